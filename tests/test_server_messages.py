"""Anthropic's messages: the official client against a real server."""

import json
from typing import Any

import anthropic
import pytest
from servers import ANSWER, QUESTION, base64_of, serving, settings_of


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def server(request):
    """A server of the demo model, on each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", request.param)
        with serving(settings_of()) as running:
            running.anthropic().messages.create(model="demo", max_tokens=1, messages=user("Hello."))
            yield running


@pytest.fixture
def client(server):
    return server.anthropic()


def user(content):
    return [{"role": "user", "content": content}]


def about(name, **more):
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(name)}
    return user([{"type": "image", "source": source, **more}, {"type": "text", "text": QUESTION}])


def create(client, **more):
    return client.messages.create(**{"model": "demo", "max_tokens": 100, "messages": about("scene")} | more)


def test_an_answer_about_a_picture_has_anthropic_s_shape(client):
    made = create(client)
    (block,) = made.content
    assert (made.type, made.role, made.model) == ("message", "assistant", "demo") and made.id.startswith("msg_")
    assert (block.type, block.text) == ("text", ANSWER)
    assert (made.stop_reason, made.stop_sequence) == ("end_turn", None)
    assert made.usage.input_tokens + made.usage.cache_read_input_tokens == 33 and made.usage.output_tokens == 21
    assert create(client).usage.cache_read_input_tokens == 33


def test_a_stream_has_anthropic_s_events(client):
    with client.messages.stream(model="demo", max_tokens=100, messages=about("scene")) as stream:
        events = list(stream)
        final = stream.get_final_message()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert final.content[0].text == ANSWER and final.stop_reason == "end_turn"
    start = events[0].message.usage
    assert start.input_tokens + start.cache_read_input_tokens == 33
    assert final.usage.output_tokens == 21


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_named(client, stream):
    ask = {"model": "demo", "max_tokens": 100, "messages": about("scene"), "stop_sequences": [" pink", " ring"]}
    if stream:
        with client.messages.stream(**ask) as events:
            made = events.get_final_message()
    else:
        made = client.messages.create(**ask)
    assert made.content[0].text == ANSWER.partition(" ring")[0]
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", " ring")


def test_an_answer_that_is_cut_says_max_tokens(client):
    made = create(client, max_tokens=4)
    assert (made.stop_reason, made.usage.output_tokens) == ("max_tokens", 4)


def test_a_system_text_may_be_blocks(client):
    text = create(client, system="Short.\nPlease.", max_tokens=1).usage
    blocks = create(
        client, system=[{"type": "text", "text": "Short."}, {"type": "text", "text": "Please."}], max_tokens=1
    ).usage
    count = [usage.input_tokens + usage.cache_read_input_tokens for usage in (text, blocks)]
    assert count[0] == count[1] > 33


def test_sampling_options_hold(client):
    options = {"extra_body": {"seed": 7, "temperature": 3.0}, "max_tokens": 10, "messages": user("Say something.")}
    first, second = create(client, **options), create(client, **options)
    assert first.content[0].text == second.content[0].text
    assert create(client, extra_body={"temperature": 5.0, "top_k": 1}).content[0].text == ANSWER
    assert create(client, extra_body={"temperature": 5.0, "top_p": 0.01}).content[0].text == ANSWER


def test_tokens_are_counted_as_the_answer_counts_them(client):
    assert client.messages.count_tokens(model="demo", messages=about("scene")).input_tokens == 33
    more = client.messages.count_tokens(
        model="demo", messages=user("Hi"), system="Be brief.", tools=[{"name": "f", "input_schema": {"type": "object"}}]
    )
    made = create(
        client,
        messages=user("Hi"),
        system="Be brief.",
        max_tokens=1,
        tools=[{"name": "f", "input_schema": {"type": "object"}}],
    )
    assert more.input_tokens == made.usage.input_tokens + made.usage.cache_read_input_tokens


def test_hints_of_caches_and_records_are_taken(client):
    made = create(
        client,
        messages=about("scene", cache_control={"type": "ephemeral"}),
        max_tokens=1,
        metadata={"user_id": "me"},
        service_tier="auto",
        thinking={"type": "disabled"},
    )
    assert made.usage.output_tokens == 1


@pytest.mark.parametrize("thinking", [{"type": "adaptive"}, {"type": "adaptive", "display": "omitted"}])
def test_thinking_is_the_model_s_choice(client, thinking):
    ask: Any = {"messages": user("Hi"), "max_tokens": 1}
    plain = create(client, **ask)
    for effort in ("low", "high", "max"):
        made = create(client, **ask, thinking=thinking, output_config={"effort": effort})
        assert made.content == plain.content


THOUGHTS: list[Any] = [
    {"type": "thinking", "thinking": "A ring?", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "ZGF0YQ=="},
]


def test_thoughts_of_another_model_are_dropped(client):
    def count(blocks: list[Any]) -> int:
        turns: Any = [*user("Hi"), {"role": "assistant", "content": blocks}, *user("Why?")]
        return client.messages.count_tokens(model="demo", messages=turns).input_tokens

    text = {"type": "text", "text": "A ring."}
    assert count([*THOUGHTS, text]) == count([text]) > count(THOUGHTS) == count([{"type": "text", "text": ""}])


def test_a_tool_may_say_what_holds_anyway(client):
    tool: Any = {"name": "f", "input_schema": {"type": "object"}}
    more = tool | {"allowed_callers": ["direct"], "eager_input_streaming": True, "defer_loading": False}
    counts = [client.messages.count_tokens(model="demo", messages=user("Hi"), tools=[each]) for each in (tool, more)]
    assert counts[0].input_tokens == counts[1].input_tokens


REFUSED = [
    ({"model": "claude"}, 404, "not_found_error"),
    ({"max_tokens": None}, 400, "max_tokens is missing"),
    ({"messages": []}, 400, "messages is empty"),
    ({"messages": [{"role": "assistant", "content": "The answer is"}]}, 400, "not prefilled"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages[0].role"),
    ({"messages": user([])}, 400, "messages[0].content is empty"),
    ({"messages": user([{"type": "search_result"}])}, 400, "messages[0].content[0].type"),
    ({"messages": user([{"type": "image", "source": {"type": "file", "file_id": "a"}}])}, 400, "source.type"),
    ({"messages": user([{"type": "image", "source": {"type": "url", "url": "/etc/passwd"}}])}, 400, "source.url"),
    (
        {"messages": user([{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}])},
        400,
        "does not fetch",
    ),
    (
        {"messages": user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "*"}}])},
        400,
        "no base64",
    ),
    ({"stop_sequences": "a"}, 400, "stop_sequences is a text"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "thinking.type"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"tool_choice": {"type": "auto"}}, 400, "without tools"),
    ({"mcp_servers": [{}]}, 400, "mcp_servers is not supported"),
    ({"context_management": {"edits": []}}, 400, "context_management is not supported"),
    (
        {"tools": [{"name": "f", "input_schema": {"type": "object"}, "input_examples": [{}]}]},
        400,
        "tools[0].input_examples is not supported here; put them into the description",
    ),
    ({"output_config": {"task_budget": {"total": 1}}}, 400, "output_config.task_budget is not supported"),
    ({"messages": user(THOUGHTS)}, 400, "messages[0].content[0].type"),
    ({"messages": [*user("Hi"), {"role": "assistant", "content": THOUGHTS}]}, 400, "not prefilled"),
    ({"messages": [{"role": "assistant", "content": THOUGHTS}]}, 400, "not prefilled"),
    ({"speed": "fast"}, 400, 'speed is \\"fast\\", which is not supported'),
    ({"container": {}}, 400, "container is not supported"),
    ({"colour": "red"}, 400, "colour is not known; leave it out"),
    ({"temprature": 1}, 400, "did you mean temperature?"),
    (
        {"messages": user([{"type": "tool_result", "tool_use_id": "t", "content": "x"}])},
        400,
        'messages[0].content[0].tool_use_id is \\"t\\", which is the id of no tool call',
    ),
]


@pytest.mark.parametrize(("changes", "status", "words"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_an_error_of_anthropic_s_shape(client, changes, status, words, stream):
    body = {"model": "demo", "max_tokens": 1, "messages": user("Hi"), "stream": stream} | changes
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.post("/v1/messages", body=body, cast_to=object)
    error = refused.value
    shape: Any = error.body
    assert error.status_code == status
    assert shape["type"] == "error" and set(shape["error"]) == {"type", "message"}
    assert words in json.dumps(shape) and shape["request_id"] == error.request_id


def test_a_bad_picture_is_named_by_its_place(client):
    bad = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}
    with pytest.raises(anthropic.BadRequestError, match=r"'messages\[0\]\.content\[1\]\.source\.data: not a picture"):
        create(client, messages=user([{"type": "text", "text": "a"}, bad]), max_tokens=1)


def test_the_models_are_listed_as_anthropic_lists_them(client):
    page = client.models.list()
    (model,) = page
    assert (model.id, model.type, model.display_name, model.lifecycle) == ("demo", "model", "demo", "active")
    assert model.created_at.year >= 2026 and (page.has_more, page.first_id, page.last_id) == (False, "demo", "demo")
    assert client.models.retrieve("demo").created_at == model.created_at
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.models.retrieve("claude")
    shape: Any = refused.value.body
    assert shape["error"]["type"] == "not_found_error" and shape["request_id"] == refused.value.request_id


def test_other_paths_and_methods_have_that_shape_too(server):
    status, _, error = server.raw("GET", "/v1/messages")
    assert status == 405 and error["type"] == "error"
    assert error["error"]["message"] == "/v1/messages takes POST, not GET"
    status, _, error = server.raw("POST", "/v1/messages/batches", "{}", content_type="application/json")
    assert status == 404 and error["error"]["type"] == "not_found_error"
