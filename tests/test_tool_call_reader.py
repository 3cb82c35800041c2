"""Tool calls while they are written: the same events however the text comes, and nothing taken back."""

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import steps

from mlx_lfm2vl import ToolCall, ToolCallError, parse_tool_calls
from mlx_lfm2vl.generation.tool_call_reader import Begun, Event, ToolCallReader
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4)


BROKEN = [
    "[f(a='x', b=[1, {'c': (2,)}]), g(a=",
    '{"name": "f", "arguments": {"a": "\\ud83d\\ude00"}, "b": 1}',
    '{"name": "f", "arguments": {"a": "\\ud83d\\u12"}} x',
    "f(a=tru)",
    "[f(a=1.5e-7), g(**{'b': 1}, b=2)]",
    "f()\ng",
]


def python(arguments: dict[str, object]) -> str:
    return f"f({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def escaped(arguments: dict[str, object]) -> str:
    return json.dumps({"name": "f", "arguments": arguments})


def plain(arguments: dict[str, object]) -> str:
    return json.dumps({"name": "f", "parameters": arguments}, ensure_ascii=False, indent=1)


def last_first(arguments: dict[str, object]) -> str:
    return json.dumps({"arguments": arguments, "name": "f"})


def as_text(arguments: dict[str, object]) -> str:
    return json.dumps({"name": "f", "arguments": json.dumps(arguments)})


def events_of(pieces: list[str], ends: bool = True) -> list[Event]:
    """All events of a block that comes in these pieces, texts that follow each other joined; of an error its place."""
    reader = ToolCallReader()
    found: list[Event] = []
    for event in [event for piece in pieces for event in reader.feed(piece)] + (reader.feed("", True) if ends else []):
        if isinstance(event, str) and found and isinstance(found[-1], str):
            found[-1] += event
        else:
            found.append(event)
    return [str(event).partition(", found")[0] if isinstance(event, ToolCallError) else event for event in found]


def cut(text: str, at: list[int]) -> list[str]:
    places = [0, *sorted(min(each, len(text)) for each in at), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(ARGUMENTS, max_size=3), st.sampled_from([python, escaped, plain, last_first, as_text]), st.booleans())
def test_joined_arguments_are_those_of_the_whole_call(several, spell, brackets):
    inside = (", " if brackets else "\n").join(map(spell, several))
    text = f"{CALL_START}{f'[{inside}]' if brackets else inside}{CALL_END}"
    calls = parse_tool_calls(text)
    assert calls == [ToolCall("f", arguments) for arguments in several]
    expected = [(Begun("f"), json.dumps(call.arguments, ensure_ascii=False), call) for call in calls]
    assert events_of(list(text)) == events_of([text]) == [*itertools.chain(*expected)]


@given(
    st.text(alphabet="[]{}(),:=\"'\\fu0d81etrue1.-x \n", max_size=60) | st.sampled_from(BROKEN),
    st.lists(st.integers(0, 100), max_size=5),
    st.booleans(),
)
def test_events_do_not_depend_on_the_pieces(inside, at, ends):
    text = f"{CALL_START}{inside}{CALL_END if ends else ''}"
    whole = events_of([text])
    assert events_of(cut(text, at)) == events_of(list(text)) == whole
    begun = [event for event in events_of([text[: len(text) // 2]], ends=False) if isinstance(event, str)]
    said = [event for event in whole if isinstance(event, str)]
    assert all(all_of_it.startswith(some) for all_of_it, some in zip(said, begun, strict=False))


def test_arguments_come_as_soon_as_they_are_certain():
    reader, found = ToolCallReader(), []
    written = f"{CALL_START}[say(text='Grüße \\u00fc', n=[1, 25], to={{'a': None}})]{CALL_END}"
    for letter in written:
        found.append("".join(event for event in reader.feed(letter) if isinstance(event, str)))
    told = {at: text for at, text in enumerate(found) if text}

    def until(end: str) -> str:
        return "".join(text for at, text in told.items() if at < written.index(end) + len(end))

    assert until("say(") == "{"
    assert until("text='Gr") == '{"text": "Gr'
    assert until("\\u00fc'") == '{"text": "Grüße ü"'
    assert until("n=[1, 2") == '{"text": "Grüße ü", "n": [1, '
    assert until("25]") == '{"text": "Grüße ü", "n": [1, 25]'
    assert until("None") == '{"text": "Grüße ü", "n": [1, 25], "to": {"a": '
    assert until(")]") == '{"text": "Grüße ü", "n": [1, 25], "to": {"a": null}}'


@pytest.mark.parametrize(
    ("inside", "told", "rest"),
    [
        ("[f(a=1, b=oops)]", ["f", '{"a": 1, "b": '], "oops)]"),
        ("[f(a=1, a=2)]", ["f", '{"a": 1'], ", a=2)]"),
        ('{"name": "f", "arguments": {"a": 1}, "b": 2}', ["f", '{"a": 1'], '}, "b": 2}'),
        ("[f(), oops]", ["f", "{}", "f"], " oops]"),
        ("oops", [], CALL_START + "oops"),
    ],
)
def test_what_cannot_be_read_stands_behind_what_is_taken(inside, told, rest):
    reader = ToolCallReader()
    events = reader.feed(f"{CALL_START}{inside}{CALL_END}")
    assert isinstance(events.pop(), ToolCallError) and reader.ended
    names = [event if isinstance(event, str) else getattr(event, "name", "error") for event in events]
    assert "".join(names) == "".join(told)
    assert reader.text[reader.taken :] == rest + CALL_END


@pytest.mark.parametrize("inside", ["[f(a='" + "x\\n" * 40_000, "[f(a=[" + "1, " * 40_000])
def test_long_arguments_are_read_in_linear_time(inside):
    reader, started = ToolCallReader(), time.process_time()
    count = sum(len(reader.feed(letter)) for letter in CALL_START + inside)
    assert count > 40_000 and time.process_time() - started < 10


@pytest.mark.parametrize(
    "before", ["[f(a=", "[f(a=1, ", "[", "", "f(), ", "[f(a=[-", '{"name": "f", "arguments": {"a":']
)
@pytest.mark.parametrize("letter", ["1", "x"])
def test_names_and_numbers_without_an_end_are_refused_soon(before, letter):
    block = f"{CALL_START}{before}{letter * 1500}"
    reader = ToolCallReader(f"{CALL_START}{before}")
    events = [event for _ in range(1001) for event in reader.feed(letter)]
    assert reader.ended and isinstance(events[-1], ToolCallError)
    assert events_of(list(block)) == events_of([block])


def test_an_object_of_many_keys_is_read_in_linear_time():
    def read(keys: int) -> object:
        members = "".join(f'"k{number}": 1, ' for number in range(keys))
        return ToolCallReader(f'{CALL_START}{{{members}"name": "f"}}{CALL_END}').feed("", last=True)

    assert steps(lambda: read(400)) < 2.2 * steps(lambda: read(200))
