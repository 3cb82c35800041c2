"""OpenAI's chat completions: the official client against a real server; each answer is that of the library."""

import json
from typing import Any

import openai
import pytest
from conftest import cache_by_backend
from servers import ANSWER, EXAMPLES, QUESTION, about, data_uri, serving, settings_of

from mlx_lfm2vl import GenerationOptions, generate, load


@cache_by_backend
def demo():
    return load("demo")


def alone(text, name, options=None, **overrides):
    """The library's own answer about a picture of examples/."""
    model, processor = demo()
    chosen = options or GenerationOptions(max_tokens=None)
    return generate(model, processor, text, EXAMPLES / f"{name}.png", options=chosen, **overrides)


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def server(request):
    """A server of the demo model, on each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", request.param)
        with serving(settings_of()) as running:
            running.openai().chat.completions.create(model="demo", messages=text("Hello."), max_tokens=1)
            yield running


def text(content, role="user"):
    return [{"role": role, "content": content}]


def create(client, messages=None, **more):
    return client.chat.completions.create(model="demo", messages=messages or about("scene"), **more)


def test_the_models_are_listed(client):
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "local")
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("LiquidAI/LFM2-VL-450M")
    assert refused.value.code == "model_not_found"


def test_an_answer_about_a_picture_has_openai_s_shape(client):
    made = create(client)
    (choice,) = made.choices
    assert made.id.startswith("chatcmpl-") and made.object == "chat.completion" and made.model == "demo"
    assert choice.message.role == "assistant" and choice.message.content == ANSWER
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("stop", 0, None)
    assert made.usage.prompt_tokens == 33 and made.usage.completion_tokens == 21 and made.usage.total_tokens == 54


def test_a_stream_joined_is_the_answer(client):
    chunks = list(create(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 10
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_if_asked_for(client):
    create(client)
    *chunks, last = create(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == [] and last.usage.completion_tokens == 21
    assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens == 33


def test_a_next_turn_counts_what_is_known_from_before(client):
    first = create(client, about("count"))
    message = first.choices[0].message.model_dump()
    made = create(client, [*about("count"), message, *text("Which colours?")])
    known = made.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens + first.usage.completion_tokens - 2 <= known < made.usage.prompt_tokens


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_is_cut_says_length(client, name):
    made = create(client, **{name: 4})
    assert made.choices[0].finish_reason == "length" and made.usage.completion_tokens == 4
    assert made.choices[0].message.content == "At the left there"


@pytest.mark.parametrize("stop", [" ring", [" ring", " pink"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(client, stop, stream):
    expected = ANSWER.partition(" ring")[0]
    if stream:
        chunks = list(create(client, stop=stop, stream=True))
        made, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = create(client, stop=stop).choices[0]
        made, reason = choice.message.content, choice.finish_reason
    assert (made, reason) == (expected, "stop")


def test_a_seed_repeats_an_answer_and_choices_differ(client):
    options = {"temperature": 3.0, "seed": 5, "max_tokens": 12, "n": 3}
    first, second = (
        [choice.message.content for choice in create(client, text("Say something."), **options).choices]
        for _ in range(2)
    )
    assert first == second and len(set(first)) == 3


@pytest.mark.parametrize(
    "option",
    [{"temperature": 0.0}, {"top_p": 0.01}, {"top_p": 0}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}],
)
def test_sampling_options_hold(client, option):
    made = create(client, **{"temperature": 5.0, "seed": 1, **option})
    assert made.choices[0].message.content == ANSWER


def test_a_high_temperature_is_no_likeliest_answer(client):
    assert create(client, temperature=5.0, seed=1, max_tokens=20).choices[0].message.content != ANSWER


def test_a_repetition_penalty_changes_the_answer(client):
    expected = alone(QUESTION, "scene", GenerationOptions(max_tokens=20, repetition_penalty=3.0))
    made = create(client, max_tokens=20, extra_body={"repetition_penalty": 3.0})
    assert made.choices[0].message.content == expected != ANSWER


def test_several_choices_stream_side_by_side(client):
    texts, reasons = ["", ""], [None, None]
    for chunk in create(client, n=2, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [ANSWER, ANSWER] and reasons == ["stop", "stop"]


def test_logprobs_stand_beside_their_tokens(client):
    whole = create(client, logprobs=True, max_tokens=8).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in create(client, logprobs=True, max_tokens=8, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in whole] == [entry.token for entry in streamed]
    assert "".join(entry.token for entry in whole) == "At the left there is a large black"
    assert all(-0.1 < entry.logprob <= 0 for entry in whole)


def test_the_likeliest_tokens_stand_beside_each(client):
    entries = create(client, logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    for entry in entries:
        likely = [each.logprob for each in entry.top_logprobs]
        assert len(likely) == 3 and likely == sorted(likely, reverse=True)
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob)
        assert bytes(entry.bytes).decode() == entry.token
    with pytest.raises(openai.BadRequestError, match="without logprobs"):
        create(client, top_logprobs=3)


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_detail_and_the_picture_budget_decide_the_tokens_of_a_picture(client, detail):
    policies: dict[str, dict[str, Any]] = {
        "auto": {},
        "low": {"do_image_splitting": False, "max_image_tokens": 9, "min_image_tokens": 9},
        "high": {"do_image_splitting": True},
    }
    made = create(client, about("wide", detail=detail))
    assert made.choices[0].message.content == alone(QUESTION, "wide", **policies[detail])
    budget = create(client, about("wide"), extra_body={"tiling": False, "max_image_tokens": 12}, max_tokens=1)
    assert budget.usage.prompt_tokens < create(client, about("wide"), max_tokens=1).usage.prompt_tokens


def test_a_system_text_reaches_the_model(client):
    system = {"role": "developer", "content": [{"type": "text", "text": "Answer with one word."}]}
    made = create(client, [system, *about("scene")])
    assert made.choices[0].message.content == alone(QUESTION, "scene", system="Answer with one word.")
    assert made.usage.prompt_tokens > 33


def test_tags_that_change_nothing_are_taken(client):
    made = create(
        client,
        user="me",
        metadata={"a": "b"},
        store=False,
        functions=[],
        function_call="none",
        audio=None,
        web_search_options=False,
        prediction="",
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        reasoning_effort="none",
        logit_bias={},
        presence_penalty=0,
        tool_choice=None,
        response_format={"type": "text"},
        max_tokens=1,
    )
    assert made.usage.completion_tokens == 1


TOOL = {"type": "function", "function": {"name": "paint"}}


def test_names_of_speakers_are_dropped(client):
    turns: list[Any] = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant", "user")]
    named = [turn | {"name": "Ann"} for turn in turns]
    made = [client.chat.completions.create(model="demo", messages=each, max_tokens=1) for each in (turns, named)]
    assert made[0].usage.prompt_tokens == made[1].usage.prompt_tokens
    assert made[0].choices[0].message.content == made[1].choices[0].message.content


REFUSED = [
    ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
    ({"model": None}, 400, "model", "missing_required_parameter"),
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": "Hello"}, 400, "messages", "invalid_type"),
    ({"messages": [5]}, 400, "messages[0]", None),
    ({"messages": text("Hi", role="robot")}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": "Hi", "name": 1}]}, 400, "messages[0].name", "invalid_type"),
    (
        {"messages": text([{"type": "input_audio", "input_audio": {}}])},
        400,
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    ({"messages": text([{"type": "input_audio"}])}, 400, "messages[0].content[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type", "unsupported_parameter"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        400,
        "tool_choice.type",
        "unsupported_parameter",
    ),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools[0].function.name", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, 400, "tools[0].function.name", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a.b", "schema": {}}}},
        400,
        "response_format.json_schema.name",
        "invalid_value",
    ),
    ({"logit_bias": {"999999": 1}}, 400, "logit_bias", "invalid_value"),
    ({"max_image_tokens": 4, "min_image_tokens": 9}, 400, "min_image_tokens", "invalid_value"),
    ({"messages": text("a b " * 3000)}, 400, "messages", "context_length_exceeded"),
    ({"messages": text("a" * 3_000_000)}, 400, "messages", "context_length_exceeded"),
    (
        {"messages": text([{"type": "text", "text": "a", "cache": 1}])},
        400,
        "messages[0].content[0].cache",
        "unknown_parameter",
    ),
    (
        {"messages": text([{"type": "image_url", "image_url": {"url": data_uri("scene")}}], role="system")},
        400,
        "messages[0].content[0].type",
        "invalid_value",
    ),
    ({"temperature": "hot"}, 400, "temperature", "invalid_type"),
    ({"temperature": True}, 400, "temperature", "invalid_type"),
    ({"temperature": 101}, 400, "temperature", "invalid_value"),
    ({"top_p": -0.1}, 400, "top_p", "invalid_value"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_completion_tokens", "invalid_value"),
    ({"n": 17}, 400, "n", "invalid_value"),
    ({"stop": ["a"] * 17}, 400, "stop", "invalid_value"),
    ({"stop": [""]}, 400, "stop[0]", "invalid_value"),
    ({"stop": 5}, 400, "stop", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"tool_choice": "auto"}, 400, "tool_choice", "invalid_value"),
    ({"functions": [{}]}, 400, "functions", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, 400, "audio", "unsupported_parameter"),
    ({"store": True}, 400, "store", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_parameter"),
    ({"web_search_options": {}}, 400, "web_search_options", "unsupported_parameter"),
    ({"function_call": {"name": "f"}}, 400, "function_call", "unsupported_parameter"),
    (
        {"messages": [*text("Hi"), {"role": "tool", "tool_call_id": "call_1", "content": "x"}]},
        400,
        "messages[1].tool_call_id",
        "invalid_value",
    ),
    ({"temprature": 1}, 400, "temprature", "unknown_parameter"),
    ({"detail": "high"}, 400, "detail", "unknown_parameter"),
    ({"max_image_tokens": 0}, 400, "max_image_tokens", "invalid_value"),
]


@pytest.mark.parametrize(
    ("changes", "status", "param", "code"), REFUSED, ids=[json.dumps(row[0])[:60] for row in REFUSED]
)
def test_what_is_wrong_or_not_offered_is_an_error_of_openai_s_shape(client, changes, status, param, code):
    body = {"model": "demo", "messages": text("Hi"), "max_tokens": 1} | changes
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    error = refused.value
    assert isinstance(error.body, dict) and error.request_id is not None
    assert (error.status_code, error.param, error.code) == (status, param, code)
    assert set(error.body) == {"message", "type", "param", "code"} and "\n" not in error.body["message"]
    assert error.type == "invalid_request_error"
    assert error.request_id.startswith("req_")


PICTURES = [
    ("file:///etc/passwd", "neither a data URI nor"),
    ("/etc/passwd", "neither a data URI nor"),
    ("scene.png", "neither a data URI nor"),
    ("http://127.0.0.1/a.png", "which this server does not fetch"),
    ("https://example.org/a.png", "which this server does not fetch"),
    ("data:image/png;base64,*", "no data URI in base64"),
    ("data:image/png", "no data URI in base64"),
    ("data:image/png;base64,", "no bytes in it"),
    ("data:image/png;base64,aGVsbG8=", "not a picture"),
    (data_uri("scene")[:400], "damaged"),
]


@pytest.mark.parametrize(("url", "words"), PICTURES, ids=[row[0][:30] for row in PICTURES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_cannot_be_read_is_refused_by_status(client, url, words, stream):
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, text(content), stream=stream)
    assert words in str(refused.value) and refused.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("stream", [False, True])
def test_the_bad_one_of_several_pictures_is_named(client, stream):
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    messages = [*about("scene"), *text("A ring.", role="assistant"), *text([*about("scene")[0]["content"], bad])]
    with pytest.raises(
        openai.BadRequestError, match=r"400 - messages\[2\]\.content\[2\]\.image_url\.url: not a pict"
    ) as refused:
        create(client, messages, stream=stream)
    assert refused.value.param == "messages[2].content[2].image_url.url"


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_picture_is_the_caller_s_error_of_several_choices_too(client, stream):
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        create(client, text(content), n=3, stream=stream)


def test_pictures_of_a_request_share_a_detail(client):
    content = [about("scene", detail=detail)[0]["content"][0] for detail in ("low", "high")]
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, text(content))
    assert refused.value.param == "messages[0].content[1].image_url.detail"


def test_a_prompt_that_is_too_long_is_the_caller_s_error(client):
    with pytest.raises(openai.BadRequestError, match="the model has 4096 positions"):
        create(client, text("ring " * 5000))
