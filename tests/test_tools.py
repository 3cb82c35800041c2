"""Tool calls: what models write, parsed without evaluating anything, and kept out of the text that users see."""

import json
import time

import pytest
from conftest import GOLDEN, statistics_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import (
    Chat,
    GenerationOptions,
    Lfm2VlProcessor,
    ToolCall,
    ToolCallError,
    ToolCallWarning,
    demo,
    load,
    parse_tool_calls,
)
from mlx_lfm2vl.generation.detokenizer import Detokenizer
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START


def block(text: str) -> str:
    return f"{CALL_START}{text}{CALL_END}"


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        (
            '[f(a="x", n=3, d={"k": 1}, b=True)]',
            [ToolCall("f", {"a": "x", "n": 3, "d": {"k": 1}, "b": True})],
        ),
        ("[now()]", [ToolCall("now")]),
        ("[a(x=1), b.c(y=-2.5e3,),]", [ToolCall("a", {"x": 1}), ToolCall("b.c", {"y": -2500.0})]),
        ("f(x=1)", [ToolCall("f", {"x": 1})]),
        (
            "[f(a=true, b=false, c=null, d=None, e=False)]",
            [ToolCall("f", dict(a=True, b=False, c=None, d=None, e=False))],
        ),
        ("[f(a=[1, [2, []]], b={})]", [ToolCall("f", {"a": [1, [2, []]], "b": {}})]),
        ('[flight(from="BER", class="first")]', [ToolCall("flight", {"from": "BER", "class": "first"})]),
        (r"""[f(a='it\'s "x"', b="\u00e9\n\x41\/")]""", [ToolCall("f", {"a": 'it\'s "x"', "b": "é\nA/"})]),
        (r'[f(a="\ud83d\ude00")]', [ToolCall("f", {"a": "😀"})]),
        ('[f(a="line\nline")]', [ToolCall("f", {"a": "line\nline"})]),
        (f'[f(a="{CALL_END}")]', [ToolCall("f", {"a": CALL_END})]),
        ('[{"name": "f", "arguments": {"a": null}}, {"name": "g"}]', [ToolCall("f", {"a": None}), ToolCall("g")]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', [ToolCall("f", {"a": 1})]),
        ("[]", []),
        ("", []),
        ('[{"name": "f", "parameters": {"a": 1}}]', [ToolCall("f", {"a": 1})]),
        ('{"name": "f", "args": {"a": 1}}', [ToolCall("f", {"a": 1})]),
        ('[{"function": "f", "parameters": "{\'a\': True}"}]', [ToolCall("f", {"a": True})]),
        (
            '[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}]',
            [ToolCall("f", {"a": 1})],
        ),
        ('[{"type": "function", "function": {"name": "f"}, "arguments": {"a": 1}}]', [ToolCall("f", {"a": 1})]),
        ('{"function": {"name": "f", "arguments": null}, "arguments": {"a": 1}}', [ToolCall("f", {"a": 1})]),
        ('{"name": "f", "function": {"name": "f", "arguments": {"a": 1}}}', [ToolCall("f", {"a": 1})]),
        ('[{"name": "f", "arguments": ""}, {"name": "g", "arguments": null}]', [ToolCall("f"), ToolCall("g")]),
        (
            "[f(size=(800, 600), one=(1,), same=(1), none=())]",
            [ToolCall("f", {"size": [800, 600], "one": [1], "same": 1, "none": []})],
        ),
        ("[f(**{'q': 1}, r=2)]", [ToolCall("f", {"q": 1, "r": 2})]),
        ('{"name": "f", "args": {"a": 1}}\n{"name": "g"}', [ToolCall("f", {"a": 1}), ToolCall("g")]),
        ('\n{"name": "f"}\n\n{"name": "g"}{"name": "h"}\n', [ToolCall("f"), ToolCall("g"), ToolCall("h")]),
        ('f(a="x\ny")\ng(b=2),\nh()', [ToolCall("f", {"a": "x\ny"}), ToolCall("g", {"b": 2}), ToolCall("h")]),
        ("[f()]\n[g()]", [ToolCall("f"), ToolCall("g")]),
        ("[f()], [g(a=1), h()]\n", [ToolCall("f"), ToolCall("g", {"a": 1}), ToolCall("h")]),
        ('[f()][{"name": "g"}]\n{"name": "h"}', [ToolCall("f"), ToolCall("g"), ToolCall("h")]),
        ("[]\n[f()]\ng()", [ToolCall("f"), ToolCall("g")]),
        ("[f()],", [ToolCall("f")]),
    ],
)
def test_what_models_write(written, calls):
    assert parse_tool_calls(f"Let me see. {block(written)} One moment.") == calls


def test_several_blocks_and_none():
    assert parse_tool_calls(block("[a()]") + "and" + block("[b(), c()]")) == [
        ToolCall("a"),
        ToolCall("b"),
        ToolCall("c"),
    ]
    assert parse_tool_calls("No call [f()].") == []
    with pytest.raises(ToolCallError, match="the text of tool calls is int, expected str"):
        parse_tool_calls(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CALL_START, r"character 19: expected the name of a function, found the end"),
        (block("[f("), r"expected the name of a parameter"),
        (block('[f("x")]'), r"expected the name of a parameter, found '\"x\"\)\]"),
        (block("[f(x)]"), r"expected '=' \(arguments are given by name\)"),
        (block("[f(x=)]"), r"character 24: expected a string, a number"),
        (block("[f(x=open('a'))]"), r"expected a string, a number, .*found \"open"),
        (block("[f(x=1 + 1)]"), r"expected ',' or '\)', found '\+ 1"),
        (block("[f(x=1, x=2)]"), r"each parameter once, 'x'"),
        (block("[f(x='a)]"), r"expected a string in quotes, closed"),
        (block("[f(x={1: 2})]"), r"expected a string in quotes"),
        (
            block('{"name": "f", "arguments": "' + "[" * 100_000 + '"}'),
            r'expected an object with "name" and "arguments"',
        ),
        (block("[f(x=" + "[" * 100_000), r"at most 64 lists and dictionaries"),
        (block("[f(x=1] )"), r"expected ',' or '\)'"),
        (block("[f(x=1e999)]"), r"expected a string, a number, .* found '1e999"),
        (block("[f(**5)]"), "expected a dictionary, found '5"),
        (block("[f(**kw=1)]"), "expected a dictionary, found 'kw"),
        (block("[f(** **{'a': 1})]"), r'expected a dictionary, found "\*\*'),
        (block("[f(a=1, **{'a': 2})]"), r"each parameter once, 'a'"),
        (block('{"name": "f", "arguments": {"a": 1, "a": 2}}'), 'each key once, found \'"a": 2'),
        (block('[{"name": "f", "name": "g"}]'), 'each key once, found \'"name"'),
        (block("[f(d={'k': {'a': 1, 'a': 1}})]"), r"each key once, found \"'a'"),
        (block("[f(**{'a': 1, 'a': 2})]"), r"each key once, found \"'a'"),
        (block('{"name": "f", "a": 1}'), 'expected an object with "name" and "arguments"'),
        (block('{"name": "f", "arguments": [1]}'), 'expected an object with "name" and "arguments"'),
        (block('{"name": "f", "arguments": "a=1"}'), 'expected an object with "name" and "arguments"'),
        (block('{"name": "f", "arguments": {"a": 1}, "args": {"b": 1}}'), 'an object with "name" and "arguments"'),
        (block('{"function": {"name": "f", "inputs": {"a": 1}}}'), 'an object with "name" and "arguments"'),
        (block('{"function": {"name": "f", "arguments": {}}, "name": "g"}'), 'an object with "name" and "arguments"'),
        (block('{"function": {"name": "f", "args": {"a": 1}}, "args": {"b": 1}}'), 'an object with "name" and "argume'),
        (block('[{"arguments": {}}]'), 'expected an object with "name" and "arguments"'),
        (block('[{"name": "f", "arguments": "{"}]'), 'expected an object with "name" and "arguments"'),
        (block(f"[f(x={'[' * 10000}]"), "at most 64"),
        (block(f"[f(x={'9' * 5000})]"), "at most 1000 characters"),
        (block("[f(x=1_000__0)]"), r"expected a string, a number"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(text, says):
    with pytest.raises(ToolCallError, match=says):
        parse_tool_calls(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (block("[f(), bad(1+)]"), r"expected the name of a parameter, found '1\+\)"),
        (block("[bad(1+), f()]"), r"expected the name of a parameter"),
        (block("[bad(x=[1, {'a': ',]' + 2}], y=3), f()]"), r"expected ',' or '}', found '\+ 2"),
        (block('[{"a": 1}, {"name": "f"}]'), 'expected an object with "name" and "arguments"'),
        (block("[bad(x='a)]") + block("[f()]"), r"expected a string in quotes, closed"),
        (block("[f() g()]"), r"expected ',' or '\]', found 'g\(\)"),
        (block('{"a": 1}\n{"name": "f"}'), 'expected an object with "name" and "arguments"'),
        (block("bad(1\n+)\nf()"), r"expected the name of a parameter, found '1"),
        (block("f()\nbad"), r"expected '\(', found"),
        (CALL_START + "[f()]", r"expected <\|tool_call_end\|>, found the end"),
        (CALL_START + "[f(), bad(x=", r"expected a string, a number, .* found the end"),
        (block("[f()]x"), r"expected <\|tool_call_end\|>, found 'x"),
        (block("[bad(" + "(" * 10_000) + block("[f()]"), r"expected the name of a parameter"),
    ],
)
def test_a_bad_call_beside_a_good_one_is_said_and_the_good_one_kept(text, says):
    with pytest.warns(ToolCallWarning, match=says) as warned:
        assert parse_tool_calls(text) == [ToolCall("f")]
    assert len(warned) == 1


def test_passing_over_bad_calls_takes_linear_time():
    bad = ", ".join(['f(x="\\"\\"' + "'" * 9 + "1+)"] * 20_000)
    started = time.process_time()
    with pytest.raises(ToolCallError):
        parse_tool_calls(block(f"[{bad}]"))
    assert time.process_time() - started < 10


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values), st.sampled_from([repr, json.dumps]))
def test_any_arguments_survive_in_pythons_and_in_jsons_spelling(arguments, spell):
    inside = ", ".join(f"{name}={spell(value)}" for name, value in arguments.items())
    assert parse_tool_calls(block(f"[f({inside})]")) == [ToolCall("f", arguments)]


@given(st.text(alphabet="[]{}(),:=\"'\\ftrue1.e-x \n", max_size=40))
def test_nothing_but_calls_or_the_typed_error_comes_out(inside):
    try:
        calls = parse_tool_calls(block(inside))
    except ToolCallError:
        return
    assert all(isinstance(call, ToolCall) for call in calls)


# --- in answers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["demo", "gen2", "gen25"])
def tokenizer(request):
    folder = demo.path() if request.param == "demo" else GOLDEN / request.param
    return Lfm2VlProcessor.from_pretrained(folder).tokenizer


def read(tokenizer, tokens, **options) -> tuple[list[tuple[str, str]], Detokenizer]:
    """(text, tool text) token by token, and at the end."""
    row = Detokenizer(tokenizer, GenerationOptions(**options), (tokenizer.eos_token_id,))
    made = []
    for token in tokens:
        text = row.push(token)
        made.append((text, row.tool_text))
        row.tool_text = ""
        if row.stopped:
            return made, row
    text = row.finish()
    return [*made, (text, row.tool_text)], row


def test_calls_are_no_text_but_are_there(tokenizer):
    call = block('[place(name="Größe 漢字", n=3)]')
    tokens = tokenizer.encode(f"One moment.{call} Done.{call}", add_special_tokens=False)
    assert tokens.count(10) == tokens.count(11) == 2
    made, _ = read(tokenizer, tokens)
    assert "".join(text for text, _ in made) == "One moment. Done."
    assert [calls for _, calls in made if calls] == [call, call]
    assert made[tokens.index(11)] == ("", call)
    assert parse_tool_calls(made[tokens.index(11)][1]) == [ToolCall("place", {"name": "Größe 漢字", "n": 3})]


def test_a_call_that_was_cut_off_is_kept_and_refused_by_the_parser(tokenizer):
    tokens = tokenizer.encode(f"Yes.{CALL_START}[place(na", add_special_tokens=False)
    made, _ = read(tokenizer, tokens)
    assert made[-1] == ("", f"{CALL_START}[place(na")
    with pytest.raises(ToolCallError, match="found the end"):
        parse_tool_calls(made[-1][1])
    ended, row = read(tokenizer, [*tokens, tokenizer.eos_token_id])
    assert row.stopped and ended[-1] == ("", f"{CALL_START}[place(na")


def test_what_comes_of_a_call_adds_up_to_it(tokenizer):
    call = block('[place(name="Größe 漢字 👩‍👩‍👧", n=3)]')
    row = Detokenizer(tokenizer, GenerationOptions(), (tokenizer.eos_token_id,))
    deltas: list[str] = []
    for token in tokenizer.encode(f"One.{call} Done.", add_special_tokens=False):
        row.push(token)
        deltas.append(row.tool_delta[sum(map(len, deltas)) :])
    assert "".join(deltas) == row.tool_delta == row.tool_text == call
    assert sum(map(bool, deltas)) > 10 and not any("\ufffd" in delta for delta in deltas)


def test_stop_texts_look_at_the_text_only(tokenizer):
    tokens = tokenizer.encode(f"One{block('[stop()]')} two stop three", add_special_tokens=False)
    made, row = read(tokenizer, tokens, stop=("stop",))
    assert row.stopped and "".join(text for text, _ in made) == "One two "
    held, row = read(tokenizer, tokenizer.encode(f"a st{block('[f()]')}op", add_special_tokens=False), stop=("stop",))
    assert not row.stopped and "".join(text for text, _ in held) == "a stop"


def test_an_answer_with_a_call_is_part_of_a_conversation(monkeypatch):
    """The model must see its own call in the next turn, and the result that a tool sends."""
    model, processor = load(GOLDEN / "gen2")
    call = processor.tokenizer.encode(f"Hm.{block('[now()]')}", add_special_tokens=False)
    answers = iter([*call, 7])
    step = "mlx_lfm2vl.generation.decode.GenerationBatch.step"
    schema = [{"name": "now", "description": "the time", "parameters": {}}]
    with monkeypatch.context() as scripted:  # a random model calls nothing by itself: its tokens are given here
        scripted.setattr(step, lambda self, last=False: ([next(answers)], None))
        chat = Chat(model, processor, tools=schema)
        pieces = list(chat.stream("What time is it?"))
    assert "".join(piece.text for piece in pieces) == "Hm."
    assert parse_tool_calls("".join(piece.tool_text for piece in pieces)) == [ToolCall("now")]
    assert chat.messages[-1]["content"] == f"Hm.{block('[now()]')}"
    chat = Chat(model, processor, tools=schema, options=GenerationOptions(max_tokens=3))
    chat.messages = [{"role": "user", "content": "Time?"}, {"role": "assistant", "content": f"Hm.{block('[now()]')}"}]
    last = list(chat.stream("12:00", role="tool"))[-1]
    assert statistics_of(last).generated_tokens == 3 and chat.messages[-2] == {"role": "tool", "content": "12:00"}
