"""OpenAI's responses: the official client against a real server."""

import json
from typing import Any

import openai
import pytest
from servers import ANSWER, QUESTION, data_uri, serving, settings_of


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def server(request):
    """A server of the demo model, on each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", request.param)
        with serving(settings_of()) as running:
            running.openai().responses.create(model="demo", input="Hello.", max_output_tokens=1)
            yield running


def about(name):
    content = [{"type": "input_image", "image_url": data_uri(name)}, {"type": "input_text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


ONE: Any = {"tool_choice": "required", "parallel_tool_calls": False}  # call, which is demanded
TOOL = {
    "type": "function",
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["black", "pink"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


def test_an_answer_about_a_picture_has_openai_s_shape(client):
    made = client.responses.create(model="demo", input=about("scene"))
    assert made.id.startswith("resp_") and (made.object, made.status) == ("response", "completed")
    assert made.output_text == ANSWER and made.output[0].type == "message"
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (33, 21, 54)
    again = client.responses.create(model="demo", input=about("scene"))
    assert again.usage.input_tokens_details.cached_tokens == 33


def test_a_stream_has_openai_s_events(client):
    with client.responses.stream(model="demo", input=about("scene")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert final.output_text == ANSWER and final.usage.output_tokens == 21


def test_an_answer_that_is_cut_is_incomplete(client):
    made = client.responses.create(model="demo", input=about("scene"), max_output_tokens=4)
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete" and made.output_text == "At the left there"
    kinds = [
        event.type for event in client.responses.create(model="demo", input="Hi", max_output_tokens=1, stream=True)
    ]
    assert kinds[-1] == "response.incomplete"


def test_a_conversation_is_sent_anew(client):
    first = client.responses.create(model="demo", input=about("scene"), instructions="Be brief.")
    items = [*about("scene"), *(item.model_dump() for item in first.output), {"role": "user", "content": "Why?"}]
    made = client.responses.create(model="demo", input=items, instructions="Be brief.", max_output_tokens=2)
    assert made.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 2
    assert made.instructions == "Be brief."


def test_a_call_and_its_result(client):
    first = client.responses.create(model="demo", input="Paint.", tools=[TOOL], **ONE)
    (call,) = first.output
    assert call.type == "function_call" and call.name == "paint"
    assert json.loads(call.arguments)["colour"] in ("black", "pink")
    with client.responses.stream(model="demo", input="Paint.", tools=[TOOL], **ONE) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response().output[0]
    assert "response.function_call_arguments.done" in kinds and streamed.arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Done."}
    items = [{"role": "user", "content": "Paint."}, call.model_dump(exclude_none=True), result]
    made = client.responses.create(model="demo", input=items, tools=[TOOL], max_output_tokens=3)
    assert made.output_text and made.usage.output_tokens == 3


def test_an_answer_holds_to_a_json_schema(client):
    schema = TOOL["parameters"]
    format = {"type": "json_schema", "name": "paint", "schema": schema, "strict": True}
    made = client.responses.create(model="demo", input="Paint.", text={"format": format})
    assert json.loads(made.output_text)["colour"] in ("black", "pink")


def test_sampling_and_logprobs(client):
    ask = {
        "model": "demo",
        "input": "Say something.",
        "temperature": 3.0,
        "max_output_tokens": 8,
        "include": ["message.output_text.logprobs"],
        "extra_body": {"seed": 5},
    }
    first, second = client.responses.create(**ask), client.responses.create(**ask)
    assert first.output_text == second.output_text and first.temperature == 3.0
    entries = first.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == first.output_text and all(e.logprob <= 0 for e in entries)


def test_encrypted_reasoning_is_asked_for_in_vain(client):
    ask: Any = {"model": "demo", "input": "Hi", "max_output_tokens": 1, "store": False}
    made = client.responses.create(**ask, include=["reasoning.encrypted_content"])
    assert [item.type for item in made.output] == ["message"] and not made.output[0].content[0].logprobs
    made = client.responses.create(**ask, include=["reasoning.encrypted_content", "message.output_text.logprobs"])
    assert len(made.output[0].content[0].logprobs) == 1


REFUSED = [
    ({"input": None}, 400, "input"),
    ({"input": []}, 400, "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, 400, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 400, "input[0].content[0].file_data"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "a"}]}]},
        400,
        "input[0].content[0].file_id",
    ),
    ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
    ({"store": True}, 400, "store"),
    ({"background": True}, 400, "background"),
    ({"include": ["file_search_call.results"]}, 400, "include[0]"),
    ({"include": ["reasoning.encrypted_content", "file_search_call.results"]}, 400, "include[1]"),
    ({"include": ["reasoning.encrypted_content"], "top_logprobs": 2}, 400, "top_logprobs"),
    ({"text": {"verbosity": "low"}}, 400, "text.verbosity"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, 400, "input[0].call_id"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
    ({"model": "gpt"}, 404, "model"),
    ({"seed": "x"}, 400, "seed"),
    ({"messages": []}, 400, "messages"),
]


@pytest.mark.parametrize(("changes", "status", "param"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
def test_what_is_wrong_or_not_offered_is_refused(client, changes, status, param):
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/responses", body={"model": "demo", "input": "Hi"} | changes, cast_to=object)
    assert (refused.value.status_code, refused.value.param) == (status, param)


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL | {"output_schema": {"type": "object"}}]}, "tools[0].output_schema"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.type"),
]


@pytest.mark.parametrize(("changes", "param"), UNSUPPORTED, ids=[row[1] for row in UNSUPPORTED])
def test_what_is_not_offered_is_unsupported(client, changes, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/responses", body={"model": "demo", "input": "Hi"} | changes, cast_to=object)
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")


def test_a_prompt_that_is_too_long_is_told_by_its_code(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="demo", input="a b " * 3000)
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
