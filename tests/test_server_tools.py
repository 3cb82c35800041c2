"""Tools of both protocols: official clients, a real server, and calls that the demo model is held to."""

import itertools
import json
from typing import Any

import anthropic
import openai
import pytest
from servers import about
from test_response_format import holds

from mlx_lfm2vl import GenerationOptions, ResponseFormat, generate, load
from mlx_lfm2vl.generation.logprobs import RowLogprobs
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START
from mlx_lfm2vl.server import anthropic as anthropic_messages
from mlx_lfm2vl.server import openai_chat, openai_responses
from mlx_lfm2vl.server.api_request import Rules
from mlx_lfm2vl.server.fields import Fields
from mlx_lfm2vl.server.tools import Tool, _call

PARAMETERS = {
    "type": "object",
    "properties": {"colour": {"enum": ["black", "pink"]}, "count": {"$ref": "#/$defs/count"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 0, "maximum": 9}},
}
NAMES = ["paint", "measure"]
OPENAI_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": f"Can {name}.", "parameters": PARAMETERS}}
    for name in NAMES
]
ANTHROPIC_TOOLS = [{"name": name, "description": f"Can {name}.", "input_schema": PARAMETERS} for name in NAMES]
TEXT = [{"role": "user", "content": "Paint the ring."}]
ONE: Any = {"tool_choice": "required", "parallel_tool_calls": False}  # call, which is demanded
ONE_USE = {"type": "any", "disable_parallel_tool_use": True}


def chat(client, **more):
    return client.chat.completions.create(model="demo", tools=OPENAI_TOOLS, **{"messages": TEXT} | more)


def is_valid(arguments):
    assert set(arguments) == {"colour", "count"}
    assert arguments["colour"] in ("black", "pink") and 0 <= arguments["count"] <= 9


@pytest.mark.parametrize("choice", ["required", *({"type": "function", "function": {"name": name}} for name in NAMES)])
def test_a_tool_that_is_demanded_is_called_with_valid_arguments(client, choice):
    (answer,) = chat(client, tool_choice=choice, parallel_tool_calls=False).choices
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert call.type == "function" and call.id.startswith("call_")
    assert call.function.name in NAMES if choice == "required" else call.function.name == choice["function"]["name"]
    is_valid(json.loads(call.function.arguments))


EMPTY: dict[str, Any] = {"type": "object", "properties": {}}


@pytest.mark.parametrize("stated", [{}, {"parameters": EMPTY}, {"parameters": EMPTY | {"required": [], "title": "T"}}])
def test_a_tool_without_parameters_is_called_with_none(server, client, stated):
    tool: Any = {"type": "function", "function": {"name": "ping", **stated}}
    made = client.chat.completions.create(model="demo", messages=TEXT, tools=[tool], **ONE)
    (answer,) = made.choices
    assert answer.message.tool_calls[0].function.arguments == "{}"
    tool = {"type": "function", "name": "ping", **stated}
    (call,) = client.responses.create(model="demo", input=TEXT, tools=[tool], **ONE).output
    assert call.arguments == "{}"
    tool = {"name": "ping", "input_schema": stated.get("parameters", EMPTY)}
    message = server.anthropic().messages.create(
        model="demo", max_tokens=99, messages=TEXT, tools=[tool], tool_choice=ONE_USE
    )
    assert message.content[0].input == {}


@pytest.mark.parametrize("choice", ["auto", "none", "required", None])
def test_two_tools_of_one_name_are_refused(server, client, choice):
    says = 'tools has two of the name "paint"; give each a name of its own'
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        client.chat.completions.create(
            model="demo", messages=TEXT, tools=[*OPENAI_TOOLS, OPENAI_TOOLS[0]], tool_choice=choice
        )
    assert refused.value.param == "tools"
    with pytest.raises(anthropic.BadRequestError, match="two of the name"):
        server.anthropic().messages.count_tokens(model="demo", messages=TEXT, tools=ANTHROPIC_TOOLS[:1] * 2)


def joined(chunks):
    """The calls of a stream, as [name, arguments], and its text."""
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls: list[list[str]] = []
    for call in [call for delta in deltas for call in delta.tool_calls or ()]:
        if call.id is not None:
            assert call.index == len(calls) and call.type == "function"
            calls.append([call.function.name, ""])
        else:
            assert call.index == len(calls) - 1 and call.function.name is None
        calls[-1][1] += call.function.arguments
    return calls, "".join(delta.content or "" for delta in deltas)


def test_a_call_that_is_cut_off_has_its_beginning(server, client):
    whole = chat(client, **ONE)
    (call,) = whole.choices[0].message.tool_calls
    written = call.function.arguments
    found: dict[int, str] = {}
    for most in range(9, whole.usage.completion_tokens):
        (answer,) = chat(client, **ONE, max_tokens=most).choices
        assert answer.finish_reason == "length"
        if answer.message.tool_calls:
            (cut,) = answer.message.tool_calls
            assert cut.function.name == call.function.name and answer.message.content is None
            found[most] = cut.function.arguments
    assert all(written.startswith(arguments) for arguments in found.values())
    parts = {most: arguments for most, arguments in found.items() if arguments != written}
    assert len(parts) >= 3 and len(found) > len(parts)  # the end of a call is more than its arguments

    for most in (min(parts), max(parts)):
        chunks = list(chat(client, **ONE, max_tokens=most, stream=True))
        assert joined(chunks) == ([[call.function.name, parts[most]]], "")
        assert chunks[-1].choices[0].finish_reason == "length"

        messages = server.anthropic().messages
        ask = {"model": "demo", "messages": TEXT, "tools": ANTHROPIC_TOOLS, "tool_choice": ONE_USE}
        made = messages.create(**ask, max_tokens=most)
        assert (made.stop_reason, made.content[0].name) == ("max_tokens", call.function.name)
        assert made.content[0].input.items() <= json.loads(written).items()
        with messages.stream(**ask, max_tokens=most) as stream:
            pieces = [each.delta.partial_json for each in stream if each.type == "content_block_delta"]
        assert "".join(pieces) == parts[most]

        tools = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
        made = client.responses.create(model="demo", input=TEXT, tools=tools, **ONE, max_output_tokens=most)
        (item,) = made.output
        assert (made.status, item.status, item.arguments) == ("incomplete", "incomplete", parts[most])


def test_a_forced_call_streams_piece_by_piece(server, client):
    whole = chat(client, **ONE).choices[0].message.tool_calls[0].function
    chunks = list(chat(client, **ONE, stream=True))
    assert joined(chunks) == ([[whole.name, whole.arguments]], "")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) >= 3


SAID = "Hm."
WRITTEN = """[paint(colour="pink", text='Gr\u00fc\xdfe "du"', sizes=(1, 2.5)), measure(count=3)]"""
CALLED = [
    ("paint", {"colour": "pink", "text": 'Grüße "du"', "sizes": [1, 2.5]}),
    ("measure", {"count": 3}),
]


@pytest.fixture
def writing(server, monkeypatch):
    """Lets the model answer with a text: it calls nothing by itself."""
    tokenizer = load("demo")[1].tokenizer
    server.openai().chat.completions.create(model="demo", messages=TEXT, max_tokens=1)
    answer: list[int] = []

    def step(self, last=False):
        return [answer.pop(0) if answer else tokenizer.eos_token_id], [RowLogprobs(-0.5)]

    monkeypatch.setattr("mlx_lfm2vl.generation.decode.GenerationBatch.step", step)

    def write(text: str) -> None:
        answer[:] = tokenizer.encode(text, add_special_tokens=False)

    return write


def test_calls_in_python_s_manner_stream_by_argument(writing, client):
    block = f"{SAID}{CALL_START}{WRITTEN}{CALL_END}"
    writing(block)
    whole = chat(client).choices[0]
    calls = [call.function for call in whole.message.tool_calls]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == CALLED
    assert (whole.message.content, whole.finish_reason) == (SAID, "tool_calls")
    writing(block)
    with client.chat.completions.stream(model="demo", messages=TEXT, tools=OPENAI_TOOLS) as stream:
        deltas = [each for each in stream if each.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert [call.function.arguments for call in final.message.tool_calls] == [call.arguments for call in calls]
    assert (final.message.content, final.finish_reason) == (SAID, "tool_calls")
    seen = [delta.arguments for delta in deltas if delta.name == "paint"]
    assert '{"colour": "pink"' in seen and len(seen) > 10
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))


def test_responses_stream_calls_as_they_are_written(writing, client):
    tools = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
    block = f"{SAID}{CALL_START}{WRITTEN}{CALL_END}"
    writing(block)
    made = client.responses.create(model="demo", input=TEXT, tools=tools)
    expected = [item.arguments for item in made.output if item.type == "function_call"]
    assert [json.loads(each) for each in expected] == [arguments for _, arguments in CALLED]
    writing(block)
    with client.responses.stream(model="demo", input=TEXT, tools=tools) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert [(item.name, item.arguments) for item in final.output[1:]] == [
        (name, arguments) for (name, _), arguments in zip(CALLED, expected, strict=True)
    ]
    for index, arguments in enumerate(expected, 1):
        deltas = [e for e in events if e.type == "response.function_call_arguments.delta" and e.output_index == index]
        assert "".join(delta.delta for delta in deltas) == arguments and len(deltas) >= 2
        (done,) = [e for e in events if e.type == "response.function_call_arguments.done" and e.output_index == index]
        assert done.arguments == arguments


BLOCK = f"{CALL_START}{WRITTEN}{CALL_END}"
SMILE = "\U0001f642"  # of several tokens


@pytest.mark.parametrize("most", [200, 7], ids=["whole", "cut"])
@pytest.mark.parametrize(
    "written", [SAID, f"{SMILE} Hm {SMILE}", f"{SAID}{BLOCK} Done.", f"{BLOCK}{BLOCK}Done.", BLOCK]
)
def test_streamed_responses_have_the_items_of_whole_ones(writing, client, written, most):
    ask: Any = {"model": "demo", "input": TEXT, "max_output_tokens": most}
    ask["tools"] = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
    ask["include"] = ["message.output_text.logprobs"]
    writing(written)
    whole = client.responses.create(**ask)
    writing(written)
    events = list(client.responses.create(**ask, stream=True))
    items, streamed = (
        [item.model_dump(exclude={"id", "call_id"}) for item in made.output] for made in (whole, events[-1].response)
    )
    assert items == streamed
    parts = [item["content"][0] for item in items if item["type"] == "message"]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(delta.delta for delta in deltas) == "".join(part["text"] for part in parts)
    logprobs = [[entry["token"] for entry in part["logprobs"]] for part in parts]
    assert [entry.token for delta in deltas for entry in delta.logprobs] == [*itertools.chain(*logprobs)]
    if most == 200:
        assert [part["text"] for part in parts] == [text for text in written.split(BLOCK) if text]
        tokenizer = load("demo")[1].tokenizer
        tokens = [tokenizer.encode(part["text"], add_special_tokens=False) for part in parts]
        assert logprobs == [[tokenizer.decode([token]) for token in each] for each in tokens]


def test_logprobs_of_responses_are_of_text_outside_of_blocks(writing, client):
    ask: Any = {"model": "demo", "input": TEXT, "include": ["message.output_text.logprobs"]}
    written = f"{SAID}{CALL_START}[oops]{CALL_END}"
    tools = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
    for more, expected in (({}, written), ({"tools": tools}, SAID)):
        writing(written)
        part = client.responses.create(**ask, **more).output[0].content[0]
        assert part.text == written and "".join(entry.token for entry in part.logprobs) == expected


def test_anthropic_streams_calls_as_they_are_written(writing, server):
    ask: Any = {"model": "demo", "max_tokens": 200, "messages": TEXT, "tools": ANTHROPIC_TOOLS}
    block = f"{SAID}{CALL_START}{WRITTEN}{CALL_END}"
    writing(block)
    made = server.anthropic().messages.create(**ask)
    assert [(each.name, each.input) for each in made.content[1:]] == CALLED and made.stop_reason == "tool_use"
    writing(block)
    with server.anthropic().messages.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert [(each.name, each.input) for each in final.content[1:]] == CALLED
    assert (final.content[0].text, final.stop_reason) == (SAID, "tool_use")
    pieces = [e.delta.partial_json for e in events if e.type == "content_block_delta" and e.index == 1]
    assert json.loads("".join(pieces)) == CALLED[0][1] and len(pieces) >= 4


def test_texts_around_calls_are_blocks_of_messages_in_order(writing, server):
    ask: Any = {"model": "demo", "max_tokens": 200, "messages": TEXT, "tools": ANTHROPIC_TOOLS}
    written = f"{SAID}{BLOCK}{BLOCK} Done."
    writing(written)
    made = server.anthropic().messages.create(**ask)
    writing(written)
    with server.anthropic().messages.stream(**ask) as stream:
        final = stream.get_final_message()
    whole, streamed = (
        [each.model_dump(exclude={"id", "parsed_output"}) for each in some.content] for some in (made, final)
    )
    assert whole == streamed
    assert [each.get("text", "call") for each in whole] == [SAID, *["call"] * 4, " Done."]
    results = [{"type": "tool_result", "tool_use_id": each.id} for each in made.content if each.type == "tool_use"]
    turns = [*TEXT, {"role": "assistant", "content": made.content}, {"role": "user", "content": results}]
    writing("So be it.")
    assert server.anthropic().messages.create(**ask | {"messages": turns}).content[0].text == "So be it."


def test_a_call_that_cannot_be_read_is_not_to_be_run(writing, server, client):
    block = f"{CALL_START}[paint(colour='pink', count=many)]{CALL_END}"
    for stream in (False, True):
        writing(block)
        made = chat(client, stream=stream)
        if stream:
            chunks = list(made)
            calls, text = joined(chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            ((call,), text, reason) = (
                made.choices[0].message.tool_calls,
                made.choices[0].message.content,
                made.choices[0].finish_reason,
            )
            calls = [[call.function.name, call.function.arguments]]
        assert calls == [["paint", '{"colour": "pink", "count": ']] and reason == "stop"
        assert text == f"many)]{CALL_END}"
    writing(f"{SAID}{block}")
    tools = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
    with client.responses.stream(model="demo", input=TEXT, tools=tools) as stream:
        first, call, last = stream.get_final_response().output
    assert (call.status, call.arguments) == ("incomplete", '{"colour": "pink", "count": ')
    assert (first.content[0].text, last.content[0].text) == (SAID, f"many)]{CALL_END}") and first.id != last.id
    writing(block)
    made = server.anthropic().messages.create(model="demo", max_tokens=99, messages=TEXT, tools=ANTHROPIC_TOOLS)
    call, text = made.content
    assert made.stop_reason == "end_turn" and call.input == {"colour": "pink"} and text.text == f"many)]{CALL_END}"


def test_the_result_of_a_call_goes_back(client):
    first = chat(client, **ONE).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Done."}
    made = chat(client, messages=[*TEXT, first.model_dump(exclude_none=True), result], max_tokens=5)
    assert made.choices[0].message.content
    assert made.usage.prompt_tokens > 20


@pytest.mark.parametrize("arguments", ['{"colour": "pi', "[]", "0", '""', "false", '{"a": 1, "a": 2}'])
def test_a_past_call_without_an_object_is_named(client, arguments):
    call = {"id": "a", "type": "function", "function": {"name": "paint", "arguments": arguments}}
    turns: Any = [*TEXT, {"role": "assistant", "tool_calls": [call]}, *TEXT]
    with pytest.raises(openai.BadRequestError, match="expected an object of arguments; of a call that was cut") as seen:
        client.chat.completions.create(model="demo", messages=turns)
    assert (seen.value.param, seen.value.code) == ("messages[1].tool_calls[0].function.arguments", "invalid_value")
    items: Any = [*TEXT, {"type": "function_call", "call_id": "a", "name": "paint", "arguments": arguments}]
    with pytest.raises(openai.BadRequestError, match=r"input\[1\].arguments is") as seen:
        client.responses.create(model="demo", input=items)
    assert (seen.value.param, seen.value.code) == ("input[1].arguments", "invalid_value")


@pytest.mark.parametrize("arguments", ["{}", "", " ", "null"])
def test_a_past_call_may_have_no_arguments(client, arguments):
    call = {"id": "a", "type": "function", "function": {"name": "paint", "arguments": arguments}}
    turns: Any = [*TEXT, {"role": "assistant", "tool_calls": [call]}, *TEXT]
    made = client.chat.completions.create(model="demo", messages=turns, max_tokens=1)
    items: Any = [*TEXT, {"type": "function_call", "call_id": "a", "name": "paint", "arguments": arguments}, *TEXT]
    again = client.responses.create(model="demo", input=items, max_output_tokens=1)
    assert made.usage.prompt_tokens == again.usage.input_tokens


def openai_turns(order: str) -> list[Any]:
    calls = [{"id": id, "type": "function", "function": {"name": "paint", "arguments": "{}"}} for id in "ab"]
    results = [{"role": "tool", "tool_call_id": id, "content": f"result {id}"} for id in order]
    return [*TEXT, {"role": "assistant", "tool_calls": calls}, *results]


def responses_turns(order: str) -> list[Any]:
    calls = [{"type": "function_call", "call_id": id, "name": "paint", "arguments": "{}"} for id in "ab"]
    results = [{"type": "function_call_output", "call_id": id, "output": f"result {id}"} for id in order]
    return [*TEXT, *calls, *results]


def anthropic_turns(order: str) -> list[Any]:
    calls = [{"type": "tool_use", "id": id, "name": "paint", "input": {}} for id in "ab"]
    results = [{"type": "tool_result", "tool_use_id": id, "content": f"result {id}"} for id in order]
    return [*TEXT, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]


@pytest.mark.parametrize(
    ("parse", "name", "turns"),
    [
        (openai_chat.parse, "messages", openai_turns),
        (openai_responses.parse, "input", responses_turns),
        (anthropic_messages.parse, "messages", anthropic_turns),
    ],
    ids=["chat", "responses", "messages"],
)
def test_results_are_told_in_the_order_of_their_calls(parse, name, turns):
    for order in ("ab", "ba"):
        body: dict[str, Any] = {"model": "demo", name: [*turns("ab"), *turns(order)]}  # ids may come again
        body |= {"max_tokens": 1} if parse is anthropic_messages.parse else {}
        told = [each["content"] for each in parse(Fields(body), Rules()).messages if each["role"] == "tool"]
        assert told == ["result a", "result b"] * 2


def test_the_model_is_told_of_tools_unless_none_is_to_be_called(client):
    without = client.chat.completions.create(model="demo", messages=TEXT, max_tokens=1).usage.prompt_tokens
    assert chat(client, max_tokens=1).usage.prompt_tokens > without + 50
    assert chat(client, max_tokens=1, tool_choice="auto").usage.prompt_tokens > without + 50
    assert chat(client, max_tokens=1, tool_choice="none").usage.prompt_tokens == without


def test_strict_tools_hold_calls_and_leave_text_free(client):
    function = OPENAI_TOOLS[0]["function"] | {"strict": True}
    ask: dict[str, Any] = {
        "model": "demo",
        "messages": about("scene"),
        "tools": [{"type": "function", "function": function}],
    }
    plain = client.chat.completions.create(model="demo", messages=about("scene"), tools=OPENAI_TOOLS[:1])
    free = client.chat.completions.create(**ask)
    assert free.choices[0].message.content == plain.choices[0].message.content
    start = load("demo")[1].tokenizer.convert_tokens_to_ids("<|tool_call_start|>")
    called = client.chat.completions.create(**ask, logit_bias={str(start): 100}, parallel_tool_calls=False)
    assert called.choices[0].finish_reason == "tool_calls"
    (call,) = called.choices[0].message.tool_calls
    is_valid(json.loads(call.function.arguments))


def test_arguments_hold_to_the_schema_as_an_answer_does():
    kinds = [
        {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in ("ring", "star")
    ]
    schema = {"type": "object", "properties": {"shape": {"oneOf": kinds}}, "required": ["shape"]}
    tool = Tool({"name": "draw", "parameters": schema}, strict=True)
    form = ResponseFormat.grammar("start: call\n" + _call([tool], all_strict=False))
    for arguments, right in [
        ('{"shape": {"kind": "star"}}', True),
        ('{"shape": {"kind": "disc"}}', False),
        ('{"shape": {"kind": "star"}, "more": 1}', False),
        ('{"shape": {"kind": "star", "more": 1}}', False),
    ]:
        assert holds(schema, arguments) == right
        assert holds(form, f'{{"name": "draw", "arguments": {arguments}}}') == right


REFUSED = [
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "x"}}}],
        },
        "tools",
    ),
    ({"tools": OPENAI_TOOLS * 65}, "tools"),
    (
        {
            "tool_choice": "required",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}],
        },
        "tool_choice",
    ),
]


@pytest.mark.parametrize(("changes", "param"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
def test_tools_that_make_no_sense_are_refused(client, changes, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(
            "/chat/completions",
            body={"model": "demo", "messages": TEXT, "tools": OPENAI_TOOLS} | changes,
            cast_to=object,
        )
    assert refused.value.param == param


@pytest.mark.parametrize("choice", [ONE_USE, {"type": "tool", "name": "measure"}])
def test_anthropic_s_tool_use_has_its_input(server, choice):
    client = server.anthropic()
    ask = {"model": "demo", "max_tokens": 100, "messages": TEXT, "tools": ANTHROPIC_TOOLS, "tool_choice": choice}
    made = client.messages.create(**ask)
    (block,) = made.content
    assert made.stop_reason == "tool_use" and block.type == "tool_use" and block.id.startswith("toolu_")
    assert block.name == choice.get("name", block.name)
    is_valid(block.input)
    with client.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    assert (streamed.content[0].name, streamed.content[0].input) == (block.name, block.input)
    assert streamed.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "Done."}]}
    turn = [
        *TEXT,
        {"role": "assistant", "content": made.model_dump()["content"]},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**ask | {"messages": turn, "tool_choice": {"type": "none"}}).stop_reason == "end_turn"


def test_anthropic_s_unknown_tool_is_refused(server):
    with pytest.raises(anthropic.BadRequestError, match="none of the tools"):
        server.anthropic().messages.create(
            model="demo",
            max_tokens=1,
            messages=TEXT,
            tools=ANTHROPIC_TOOLS,
            tool_choice={"type": "tool", "name": "fly"},
        )


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["shape", "large"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_holds_to_a_json_schema(client, stream):
    format = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": SCHEMA}}
    ask = {"model": "demo", "messages": about("scene"), "response_format": format}
    if stream:
        chunks = client.chat.completions.create(**ask, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**ask).choices[0].message.content
    made = json.loads(text)
    assert list(made) == ["shape", "large"] and isinstance(made["large"], bool) and len(made["shape"]) <= 12


def test_an_answer_is_a_json_object(client):
    made = client.chat.completions.create(
        model="demo", messages=TEXT, response_format={"type": "json_object"}, max_tokens=200
    )
    assert made.choices[0].message.content.startswith("{")


def test_anthropic_s_output_config_holds_to_a_json_schema(server):
    made = server.anthropic().messages.create(
        model="demo",
        max_tokens=100,
        messages=TEXT,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert list(json.loads(made.content[0].text)) == ["shape", "large"]


FORMATS = [
    ({"type": "xml"}, "response_format.type"),
    ({"type": "json_schema"}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema"),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": "/etc/passwd"}},
        "response_format.json_schema.schema",
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
        "response_format.json_schema.schema",
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1/a.json"}}},
        "response_format.json_schema.schema",
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": "a" * 300_000}}},
        "response_format.json_schema.schema",
    ),
]


@pytest.mark.parametrize(("format", "param"), FORMATS, ids=[json.dumps(row[0])[:60] for row in FORMATS])
def test_a_form_that_cannot_be_held_is_refused(client, format, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=TEXT, response_format=format)
    assert refused.value.param == param


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_penalties_of_tokens_hold(client, penalty):
    tokenizer = load("demo")[1].tokenizer
    words = [tokenizer.encode(word, add_special_tokens=False)[0] for word in (" ring", " square")]
    options: dict[str, Any] = {"logit_bias": {token: 100 for token in words}, "max_tokens": 40}

    def ask(**more):
        asked = {"model": "demo", "messages": TEXT, **options}
        return client.chat.completions.create(**asked, **more).choices[0].message.content

    model, processor = load("demo")
    penalties: dict[str, Any] = {penalty: 2.0}
    expected = generate(model, processor, TEXT[0]["content"], options=GenerationOptions(**options, **penalties))
    assert ask(**penalties) == expected
    if penalty == "frequency_penalty":
        assert len(set(ask().split())) == 1 and set(expected.split()) == {"ring", "square"}
