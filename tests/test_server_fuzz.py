"""Bodies that are changed at random: the answer is one, or an error below 500 of the protocol's shape.

MLX_LFM2VL_FUZZ=100000 in the environment runs so many of each test, in place of a few and of thousands in the soak.
"""

import base64
import contextlib
import copy
import http.client
import io
import json
import os
import random
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import web
from PIL import Image
from servers import EXAMPLES, about, serving, settings_of

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.server.api_request import Rules

GIVEN = os.environ.get("MLX_LFM2VL_FUZZ")
RUNS = pytest.mark.parametrize("runs", [int(GIVEN)] if GIVEN else [50, pytest.param(5000, marks=pytest.mark.soak)])
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
PICTURE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PICTURE, "PNG")
BASE64 = base64.b64encode(PICTURE.getvalue()).decode()
URI = f"data:image/png;base64,{BASE64}"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "demo", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a"], "n": 2,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": URI, "detail": "auto"}}, {"type": "text", "text": "t"}]},
            {"role": "assistant", "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]}],
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto", "logit_bias": {"5": 1},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "logprobs": True, "top_logprobs": 2, "user": "u", "metadata": {"a": "b"}, "deadline": 600.0,
        "stream_options": {"include_usage": True}, "stream": True, "max_image_tokens": 16, "tiling": False,
    },
    "/v1/responses": {
        "model": "demo", "max_output_tokens": 1, "instructions": "i", "temperature": 0.5, "store": False,
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": URI, "detail": "low"},
            {"type": "input_text", "text": "t"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "o"}],
        "tools": [{"type": "function", **FUNCTION}], "text": {"format": {"type": "text"}},
        "include": ["message.output_text.logprobs"],
    },
    "/v1/messages": {
        "model": "demo", "max_tokens": 1, "system": [{"type": "text", "text": "s"}], "temperature": 0.5,
        "messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "t"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]}],
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "auto"}, "stop_sequences": ["a"],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "metadata": {"user_id": "u"},
    },
    "/v1/extract": {"model": "demo", "images": [URI], "schema": SCHEMA, "max_tokens": 16},
}  # fmt: skip
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 2**64, 10**40, "", "a", "\0", "\ud83d\ude00", "<|im_end|>"),
    *("<image>", "auto", "required", "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:1/", "a" * 5000, "data:,"),
    *([], {}, [[]], [None], 2, {"": None}, {"type": "text"}, {"type": "image_url"}, {"$ref": "#"}, {"type": "object"}),
    *({"pattern": "(a+)+$"}, {"enum": []}, {"anyOf": [{"$ref": "#"}]}, {"minItems": 10**9}, '{"a": 1}', "[", "*"),
]


@pytest.fixture(scope="module")
def server():
    with serving(settings_of()) as running:
        running.openai().chat.completions.create(model="demo", messages=about("scene"), max_tokens=1)
        yield running


@pytest.fixture
def connection(server):
    """One connection for all bodies; it opens anew where the server has closed it."""
    made = http.client.HTTPConnection("127.0.0.1", server.server.port, timeout=60)
    with contextlib.closing(made):
        yield made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def changed(body: Any, rng: random.Random) -> Any:
    """A body in which some values were replaced, removed, renamed or repeated."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *path, last = rng.choice(places(body)[1:])
        inner = body
        for key in path:
            inner = inner[key]
        how = rng.random()
        if how < 0.6:
            inner[last] = copy.deepcopy(rng.choice(HOSTILE))
        elif how < 0.75:
            del inner[last]
        elif isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        else:
            inner[str(rng.choice((f"{last}x", "type", "content", "n")))] = inner[last]
    return body


def assert_answered(connection, path, data) -> int:
    connection.request("POST", path, data, {"content-type": "application/json"})
    response = connection.getresponse()
    status, headers, body = response.status, response.headers, response.read()
    answer = json.loads(body) if headers.get_content_type() == "application/json" else body.decode()
    may_be_late = isinstance(data, str) and '"deadline"' in data  # which the body chose
    if status != 200:
        assert 400 <= status < 500 or (status == 504 and may_be_late), (status, answer, data[:2000])
        error = answer["error"]
        anthropic = path.startswith("/v1/messages")
        assert set(error) == ({"type", "message"} if anthropic else {"message", "type", "param", "code"})
        assert "\n" not in error["message"] and len(error["message"]) < 2000
    elif headers.get_content_type() == "text/event-stream":
        late = may_be_late and "before the deadline" in answer  # one of several answers had not begun
        assert late or '"error"' not in answer, (answer, data[:2000])
    return status


@RUNS
@pytest.mark.parametrize("path", BODIES)
def test_changed_bodies_end_in_an_answer_or_the_client_s_error(connection, path, runs):
    assert assert_answered(connection, path, json.dumps(BODIES[path])) == 200
    statuses = set()
    for seed in range(runs):
        data = json.dumps(changed(BODIES[path], random.Random(seed)))
        statuses.add(assert_answered(connection, path, data))
    assert statuses >= {200, 400}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@RUNS
def test_any_json_ends_in_the_client_s_error(connection, runs):
    @settings(max_examples=runs, deadline=None)
    @given(value=JSON, path=st.sampled_from(sorted(BODIES)))
    def ask(value, path):
        assert 400 <= assert_answered(connection, path, json.dumps(value)) < 500

    ask()


@RUNS
def test_any_bytes_end_in_the_client_s_error(connection, runs):
    @settings(max_examples=runs, deadline=None)
    @given(data=st.binary(max_size=200), path=st.sampled_from(sorted(BODIES)))
    def ask(data, path):
        assert 400 <= assert_answered(connection, path, data) < 500

    ask()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://[::1]/a", "http://169.254.169.254/", "http://2130706433/"]
)
def test_private_addresses_are_never_fetched(url):
    base = settings_of(rules=Rules(allow_urls=True))
    base.model_settings.load.update(source_policy=SourcePolicy(allow_paths=False))
    with serving(base) as server:
        picture = {"type": "image_url", "image_url": {"url": url}}
        asked = {
            "chat/completions": ({"messages": [{"role": "user", "content": [picture]}]}, "image_url.url"),
            "responses": (
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
                "input[0].content[0].image_url",
            ),
            "describe": ({"images": [url]}, "images[0]"),
        }
        for path, (body, place) in asked.items():
            status, _, answer = server.raw(
                "POST", f"/v1/{path}", json.dumps({"model": "demo"} | body), content_type="application/json"
            )
            error = answer["error"]
            assert status == 400 and "private address, which is not fetched from" in error["message"]
            assert error["param"].endswith(place) and error["message"].startswith(f"{error['param']}: {url}")
            assert "allow" not in error["message"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("/bad.png", "not a picture"), ("/cut.png", "damaged"), ("/none.png", "the server answered 404")],
)
def test_a_bad_picture_at_an_address_is_named_by_its_place(path, words):
    picture = (EXAMPLES / "scene.png").read_bytes()
    pages = web.Server(
        {"/bad.png": web.response("200 OK", b"hello"), "/cut.png": web.response("200 OK", picture[:300])}
    )
    base = settings_of(rules=Rules(allow_urls=True))
    policy = SourcePolicy(allow_paths=False, allow_private_addresses=True)
    base.model_settings.load.update(source_policy=policy)
    with contextlib.closing(pages), serving(base) as server, pytest.raises(openai.BadRequestError) as refused:
        content = [about("scene")[0]["content"][0], {"type": "image_url", "image_url": {"url": pages.url + path}}]
        server.openai().chat.completions.create(model="demo", messages=[{"role": "user", "content": content}])
    place = "messages[0].content[1].image_url.url"
    assert refused.value.param == place
    assert f" - {place}: {pages.url}{path}: {words}" in str(refused.value)
