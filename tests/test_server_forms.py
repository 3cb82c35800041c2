"""Forms of answers with tools: how many calls, calls beside a form of the text, calls that the length cuts off. And the
logprobs of answers that a stop text ends, and biases of tokens."""

import json
from typing import Any

import openai
import pytest
from servers import ANSWER, about
from test_response_format import holds
from test_server_tools import ANTHROPIC_TOOLS, OPENAI_TOOLS, SCHEMA, TEXT, chat, is_valid, joined

from mlx_lfm2vl import load
from mlx_lfm2vl.processing.conversation import CALL_END, CALL_START
from mlx_lfm2vl.server import anthropic as anthropic_messages
from mlx_lfm2vl.server import openai_chat, openai_responses
from mlx_lfm2vl.server.api_request import Rules
from mlx_lfm2vl.server.fields import Fields

PAINT = '{"name": "paint", "arguments": {"colour": "pink", "count": 3}}'
WRONG = '{"name": "paint", "arguments": {"colour": "red"}}'
FORM = '{"shape": "ring", "large": true}'
FLAT_TOOLS = [{"type": "function", **tool["function"]} for tool in OPENAI_TOOLS]
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "paint"}}


def block(*calls: str) -> str:
    return f"{CALL_START}[{', '.join(calls)}]{CALL_END}"


def chat_form(**more):
    return openai_chat.parse(
        Fields({"model": "demo", "messages": TEXT, "tools": OPENAI_TOOLS} | more), Rules()
    ).options.response_format


def responses_form(**more):
    return openai_responses.parse(
        Fields({"model": "demo", "input": TEXT, "tools": FLAT_TOOLS} | more), Rules()
    ).options.response_format


def messages_form(**more):
    return anthropic_messages.parse(
        Fields({"model": "demo", "messages": TEXT, "tools": ANTHROPIC_TOOLS, "max_tokens": 9} | more), Rules()
    ).options.response_format


@pytest.mark.parametrize(
    ("form", "several"),
    [
        (chat_form(tool_choice="required"), True),
        (chat_form(tool_choice="required", parallel_tool_calls=True), True),
        (chat_form(tool_choice="required", parallel_tool_calls=False), False),
        (chat_form(tool_choice=NAMED), False),
        (responses_form(tool_choice="required"), True),
        (responses_form(tool_choice="required", parallel_tool_calls=False), False),
        (responses_form(tool_choice={"type": "function", "name": "paint"}), False),
        (messages_form(tool_choice={"type": "any"}), True),
        (messages_form(tool_choice={"type": "any", "disable_parallel_tool_use": True}), False),
        (messages_form(tool_choice={"type": "tool", "name": "paint"}), False),
    ],
)
def test_demanded_calls_are_one_or_as_many_as_allowed(form, several):
    assert holds(form, block(PAINT))
    assert holds(form, block(PAINT, PAINT)) == several
    assert holds(form, block(*[PAINT] * 16)) == several and not holds(form, block(*[PAINT] * 17))
    assert not holds(form, "Hm.") and not holds(form, block()) and not holds(form, block(WRONG))


def test_several_demanded_calls_come_with_their_arguments(server, client):
    """The demo model is made to go on behind a call."""
    tokenizer = load("demo")[1].tokenizer
    going_on = tokenizer.encode(', {"', add_special_tokens=False)[0]
    ask: dict[str, Any] = {"tool_choice": "required", "logit_bias": {str(going_on): 100}, "max_tokens": 150}
    (whole,) = chat(client, **ask).choices
    calls = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
    assert len(calls) >= 2
    is_valid(json.loads(calls[0][1]))
    is_valid(json.loads(calls[1][1]))
    assert joined(chat(client, **ask, stream=True)) == (calls, "")
    (alone,) = chat(client, **ask, parallel_tool_calls=False).choices
    assert (len(alone.message.tool_calls), alone.finish_reason) == (1, "tool_calls")


def strict(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**tool, "function": tool["function"] | {"strict": True}} for tool in tools]


CHAT_SCHEMA = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}
SCHEMA_FORMAT = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("form", "held"),
    [
        (chat_form(response_format=CHAT_SCHEMA), False),
        (chat_form(response_format=CHAT_SCHEMA, tools=strict(OPENAI_TOOLS)), True),
        (responses_form(text={"format": SCHEMA_FORMAT | {"name": "shape"}}), False),
        (messages_form(output_config={"format": SCHEMA_FORMAT}), False),
        (
            messages_form(
                output_config={"format": SCHEMA_FORMAT}, tools=[{**tool, "strict": True} for tool in ANTHROPIC_TOOLS]
            ),
            True,
        ),
    ],
)
def test_beside_a_form_tools_may_be_called(form, held):
    assert holds(form, FORM) and holds(form, block(PAINT)) and holds(form, block(PAINT, PAINT))
    assert holds(form, block(WRONG)) != held
    assert not holds(form, "Hm.") and not holds(form, FORM + block(PAINT)) and not holds(form, '{"shape": "ring"}')


def test_any_json_object_may_stand_beside_calls():
    form = chat_form(response_format={"type": "json_object"}, parallel_tool_calls=False)
    assert holds(form, '{"a": [1]}') and holds(form, block(PAINT))
    assert not holds(form, "[1]") and not holds(form, block(PAINT, PAINT))


def test_tools_that_may_not_be_called_leave_the_form_alone():
    form = chat_form(response_format=CHAT_SCHEMA, tool_choice="none")
    assert holds(form, FORM) and not holds(form, block(PAINT))


def test_a_demanded_call_is_made_whatever_the_form_of_text():
    form = chat_form(response_format=CHAT_SCHEMA, tool_choice="required")
    assert holds(form, block(PAINT)) and not holds(form, FORM)


def test_a_model_answers_in_a_form_or_calls(client):
    start = str(load("demo")[1].tokenizer.convert_tokens_to_ids(CALL_START))
    ask: dict[str, Any] = {"tools": strict(OPENAI_TOOLS), "response_format": CHAT_SCHEMA, "model": "demo"}
    (said,) = client.chat.completions.create(messages=about("scene"), **ask, logit_bias={start: -100}).choices
    assert list(json.loads(said.message.content)) == ["shape", "large"] and said.message.tool_calls is None
    ask |= {"parallel_tool_calls": False, "logit_bias": {start: 100}}
    (called,) = client.chat.completions.create(messages=about("scene"), **ask).choices
    (call,) = called.message.tool_calls
    is_valid(json.loads(call.function.arguments))


@pytest.mark.parametrize("most", [1, 3, 8])
def test_nothing_is_told_of_a_call_that_is_cut_off_early(server, client, most):
    (answer,) = chat(client, tool_choice="required", max_tokens=most).choices
    assert (answer.finish_reason, answer.message.tool_calls, answer.message.content) == ("length", None, "")
    chunks = list(chat(client, tool_choice="required", max_tokens=most, stream=True))
    assert joined(chunks) == ([], "") and chunks[-1].choices[0].finish_reason == "length"
    made = client.responses.create(
        model="demo", input=TEXT, tools=FLAT_TOOLS, tool_choice="required", max_output_tokens=most
    )
    assert (made.status, made.output_text) == ("incomplete", "")
    ask: Any = {"model": "demo", "messages": TEXT, "tools": ANTHROPIC_TOOLS, "tool_choice": {"type": "any"}}
    message = server.anthropic().messages.create(**ask, max_tokens=most)
    assert (message.stop_reason, [part.text for part in message.content]) == ("max_tokens", [""])


STOPS = ["large", " large", "rge bl", "black ring", "no such text", "a black", "t"]


@pytest.mark.parametrize("stop", [*([text] for text in STOPS), ["large pink", "black", "pink square."]])
def test_logprobs_cover_the_text_that_a_stop_leaves(client, stop):
    ask: dict[str, Any] = {"model": "demo", "messages": about("scene"), "logprobs": True, "top_logprobs": 2}
    all_tokens = [entry.token for entry in client.chat.completions.create(**ask).choices[0].logprobs.content]
    assert "".join(all_tokens) == ANSWER
    (whole,) = client.chat.completions.create(**ask, stop=stop).choices
    text = whole.message.content
    tokens = [entry.token for entry in whole.logprobs.content] if whole.logprobs else []
    assert tokens == all_tokens[: len(tokens)] and len("".join(tokens[:-1])) < len(text) <= len("".join(tokens))
    said, seen = "", []
    for chunk in client.chat.completions.create(**ask, stop=stop, stream=True):
        (choice,) = chunk.choices
        said += choice.delta.content or ""
        seen += [entry.token for entry in choice.logprobs.content] if choice.logprobs else []
        assert len("".join(seen[:-1])) <= len(said) <= len("".join(seen))
    assert (said, seen) == (text, tokens)


def test_logprobs_of_an_answer_without_text_are_none(client):
    ask: dict[str, Any] = {"model": "demo", "messages": about("scene"), "logprobs": True, "stop": "At"}
    (choice,) = client.chat.completions.create(**ask).choices
    assert (choice.message.content, choice.logprobs) == ("", None)


def test_logprobs_of_calls_stay_where_a_stop_text_is_given(client):
    ask: dict[str, Any] = {"tool_choice": "required", "logprobs": True, "max_tokens": 100}
    plain, stopped = (chat(client, **ask, **more).choices[0] for more in ({}, {"stop": ["pink"]}))
    assert [entry.token for entry in plain.logprobs.content] == [entry.token for entry in stopped.logprobs.content]
    assert plain.message.tool_calls[0].function == stopped.message.tool_calls[0].function


def test_calls_whose_form_cannot_be_held_name_the_tools(client):
    tool: Any = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "x"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=TEXT, tools=[tool], response_format=CHAT_SCHEMA)
    assert refused.value.param == "tools"


def test_biases_of_tokens_hold(client):
    def ask(bias):
        asked = {"model": "demo", "messages": about("scene"), "max_tokens": 4}
        return client.chat.completions.create(**asked, logit_bias=bias).choices[0].message.content

    ring = load("demo")[1].tokenizer.encode(" ring", add_special_tokens=False)[0]
    assert ask({str(ring): 100}) == " ring" * 4
    for wrong in ({"ring": 1}, {"5": 101}, {"5": "a"}):
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            ask(wrong)
