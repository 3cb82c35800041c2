"""Streams that wait: for their turn, for a model, for an error. Clients get a head and signs of life meanwhile."""

import contextlib
import json
import threading
from typing import Any

import anthropic
import openai
import pytest
from conftest import GOLDEN
from servers import serving, settings_of, until
from test_server_limits import HEAD, Line

from mlx_lfm2vl import WeightsError
from mlx_lfm2vl.server.api_request import Rules
from mlx_lfm2vl.server.limits import Limits

TEXT: Any = [{"role": "user", "content": "What is this?"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TEXT},
    "/v1/responses": {"input": TEXT},
    "/v1/messages": {"messages": TEXT, "max_tokens": 5},
}
FOR_EVER = 1e6  # seconds


def beating(seconds: float) -> Rules:
    return Rules(Limits(heartbeat_seconds=seconds))


@contextlib.contextmanager
def answering(endless, seconds):
    """A server that answers one request at a time, and one without end now."""
    base = settings_of(endless, rules=beating(seconds))
    base.model_settings.engine.update(max_batch=1)
    with serving(base) as running:
        client = running.openai()
        with client.chat.completions.create(model="model", messages=TEXT, stream=True) as stream:
            next(iter(stream))
            yield running


@pytest.fixture(scope="module")
def busy(endless):
    with answering(endless, 0.1) as running:
        yield running


def opened(server, stack, path, **more) -> Line:
    """A connection on which a stream was asked for."""
    line = stack.enter_context(Line(server))
    body = json.dumps({"model": "model", "stream": True} | PATHS[path] | more).encode()
    head = HEAD.replace(b"/v1/chat/completions", path.encode())
    line.send(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return line


def read_until(line, *marks: bytes) -> bytes:
    """What comes up to the last of the marks."""
    data = b""
    while not all(mark in data for mark in marks):
        piece = line.socket.recv(4096)
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize(
    ("path", "sign", "first"),
    [
        ("/v1/chat/completions", b": keep-alive\n\n", b""),
        ("/v1/responses", b": keep-alive\n\n", b"event: response.created"),
        ("/v1/messages", b'event: ping\ndata: {"type":"ping"}\n\n', b""),
    ],
)
def test_a_stream_that_waits_for_its_turn_has_begun(busy, path, sign, first):
    with contextlib.ExitStack() as stack:
        data = read_until(opened(busy, stack, path), sign, first)
        assert data.startswith(b"HTTP/1.1 200 ") and b"text/event-stream" in data
        until(lambda: 'queue_length{model="model"} 1' in busy.raw("GET", "/metrics")[2])
    until(lambda: 'queue_length{model="model"} 0' in busy.raw("GET", "/metrics")[2])


def test_a_stream_is_refused_by_status_behind_others_too(endless):
    hello = "aGVsbG8="
    url = f"data:image/png;base64,{hello}"
    source = {"type": "base64", "media_type": "image/png", "data": hello}
    bad: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"type": "image_url", "image_url": {"url": url}},
        "/v1/responses": {"type": "input_image", "image_url": url},
        "/v1/messages": {"type": "image", "source": source},
    }
    with answering(endless, FOR_EVER) as server:
        for path, part in bad.items():
            name = "input" if path == "/v1/responses" else "messages"
            asked = {"model": "model", "stream": True} | PATHS[path] | {name: [{"role": "user", "content": [part]}]}
            status, _, answer = server.raw("POST", path, json.dumps(asked), content_type="application/json")
            assert status == 400 and "not a picture" in answer["error"]["message"]


def test_a_stream_that_waits_too_long_ends_with_an_error_event(busy):
    late: Any = {"deadline": 0.5}
    chat, messages = busy.openai().chat.completions, busy.anthropic().messages
    with pytest.raises(openai.APIError, match="nothing was answered before the deadline"):
        list(chat.create(model="model", messages=TEXT, stream=True, extra_body=late))
    with pytest.raises(anthropic.APIStatusError, match="nothing was answered before the deadline") as refused:
        list(messages.create(model="model", max_tokens=5, messages=TEXT, stream=True, extra_body=late))
    said: Any = refused.value.body
    assert said["error"]["type"] == "timeout_error"


def test_official_clients_pass_over_signs_of_life(endless):
    base = settings_of(endless, rules=beating(0.001))
    base.model_settings.engine.update(max_batch=1)
    with serving(base) as server:
        plain: dict[str, Any] = {"model": "model", "messages": TEXT, "max_tokens": 30}
        asked = plain | {"temperature": 0}
        (choice,) = server.openai().chat.completions.create(**asked).choices
        for _ in range(3):
            chunks = server.openai().chat.completions.create(**asked, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
            with server.anthropic().messages.stream(**plain, extra_body={"temperature": 0}) as stream:
                assert stream.get_final_text() == choice.message.content
            events = server.openai().responses.create(
                model="model", input=TEXT, max_output_tokens=30, temperature=0, stream=True
            )
            texts = [event.delta for event in events if event.type == "response.output_text.delta"]
            assert "".join(texts) == choice.message.content


@pytest.mark.parametrize("path", PATHS)
def test_a_model_that_fails_to_load_ends_a_stream_that_has_begun(monkeypatch, path):
    go_on = threading.Event()

    def slow(*given: Any, **more: Any) -> Any:
        assert go_on.wait(60)
        raise WeightsError("its weights are damaged")

    monkeypatch.setattr("mlx_lfm2vl.server.models.load", slow)
    with serving(settings_of(GOLDEN / "gen2", rules=beating(0.1))) as server, contextlib.ExitStack() as stack:
        line = opened(server, stack, path, model="gen2")
        data = read_until(line, b"\r\n\r\n", b"ping" if path == "/v1/messages" else b"keep-alive")
        assert data.startswith(b"HTTP/1.1 200 ")
        go_on.set()
        data = read_until(line, b"weight files are missing or damaged", b"\r\n0\r\n\r\n")
        assert b"model_not_loaded" in data or path == "/v1/messages"
        assert "cut=503" in until(lambda: next((text for text in server.lines if path in text), ""))


def test_a_model_that_fails_to_load_at_once_is_told_by_status(tmp_path):
    settings = settings_of(tmp_path, rules=beating(FOR_EVER))
    with serving(settings) as server, pytest.raises(openai.InternalServerError) as refused:
        server.openai().chat.completions.create(model=tmp_path.name, messages=TEXT, stream=True)
    assert refused.value.status_code == 503 and refused.value.code == "model_not_loaded"
