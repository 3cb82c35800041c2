"""Limits of a server: what is too slow, too large, too much or no request ends in an error of the protocol's shape."""

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest
from servers import about, data_uri, serving, settings_of, until

from mlx_lfm2vl import ConstraintError, GenerationOptions, QueueFullError, SourcePolicy
from mlx_lfm2vl.server import openai_chat_answer, task_requests, tools
from mlx_lfm2vl.server.answering import Answering, is_light
from mlx_lfm2vl.server.api_request import ApiRequest, Rules
from mlx_lfm2vl.server.app import PAGE_HEADERS
from mlx_lfm2vl.server.fields import Fields
from mlx_lfm2vl.server.limits import Limits
from mlx_lfm2vl.server.log import RequestRecord

SMALL = Limits(  # no seconds that a client of a busy machine may need
    body_bytes=200_000,
    bodies_bytes=300_000,
    pictures=3,
    pixels=1_000_000,
    parts=50,
    keep_alive_seconds=30.0,
    connections=8,
)
HASTY = replace(SMALL, head_seconds=0.5, body_seconds=0.5, send_seconds=1.0)
TEXT: Any = [{"role": "user", "content": "Tell me everything."}]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server():
    with serving(settings_of(rules=Rules(SMALL))) as running:
        yield running


@pytest.fixture(scope="module")
def hasty():
    with serving(settings_of(rules=Rules(HASTY))) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(endless):
    """A server whose model never ends, with one place to answer and one to wait."""
    settings = settings_of(endless)
    settings.model_settings.engine.update(max_queue=1, max_batch=1)
    with serving(settings) as running:
        running.openai().chat.completions.create(model="model", messages=TEXT, max_tokens=1)
        yield running


class Line:
    """A connection by hand."""

    def __init__(self, server, buffer=None):
        self.socket = socket.socket()
        self.socket.settimeout(20)
        if buffer is not None:  # the system offers it to the server as it connects
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(("127.0.0.1", server.server.port))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def response(self):
        """Status, and body as JSON, of what comes until the server closes the connection."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_connection_holds_small_segments_back(host):
    with serving(settings_of(host=host)) as running, socket.create_connection((host, running.server.port)) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in line.recv(65536)
        assert running.server._uvicorn is not None
        (connection,) = running.server._uvicorn.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HT", b"GET /v1/models HTTP/1.1\r\nHost: loc"])
def test_a_head_that_is_slow_ends_the_connection(hasty, sent):
    with Line(hasty) as line:
        line.send(sent)
        status, body = line.response()
    assert status == 408 and "within 0.5 seconds" in body["error"]["message"]


def test_a_head_that_drips_ends_the_connection(hasty):
    with Line(hasty) as line, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for letter in b"GET /v1/models HTTP/1.1\r\n" + b"A: b\r\n" * 100:
            line.send(bytes([letter]))
            time.sleep(0.05)


def test_a_second_head_on_a_connection_may_not_be_slow_either(hasty):
    with Line(hasty) as line:
        line.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in line.socket.recv(65536)
        line.send(b"GET /hea")
        assert line.response()[0] == 408


def test_a_body_that_is_slow_is_refused(hasty):
    with Line(hasty) as line:
        line.send(HEAD + b'Content-Length: 100\r\nConnection: close\r\n\r\n{"model"')
        status, body = line.response()
    assert status == 408 and set(body["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused_before_it_comes(server):
    with Line(server) as line:
        line.send(HEAD + b"Content-Length: 99999999999\r\nConnection: close\r\n\r\n")
        assert line.response()[0] == 413


def test_a_body_in_chunks_is_refused_once_it_is_too_large(server):
    with Line(server) as line, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line.send(HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for _ in range(5):
            line.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert line.response()[0] == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    ],
    ids=range(7),
)
def test_what_is_no_http_is_refused_as_json(server, sent):
    with Line(server) as line:
        line.send(sent)
        status, body = line.response()
    assert 400 <= status < 500 and body["error"]["type"] in ("invalid_request_error", "permission_error")


def test_too_many_connections_are_told_to_come_later(server):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(server)) for _ in range(SMALL.connections)]
        with Line(server) as line:
            status, body = line.response()
        assert status == 503 and "too many connections" in body["error"]["message"]
        lines[0].socket.close()
        until(lambda: server.raw("GET", "/health")[0] == 200)


BODIES = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[]", "the body is a list"),
    (b"null", "the body is null"),
    (b'"model"', "the body is a text"),
    (b'{"model": "demo", "model": "demo"}', "stands twice"),
    (b'{"model": "\xff"}', "not UTF-8"),
    (b'{"model": "\\ud800"}', "half a character"),
    (b'{"temperature": NaN}', "NaN"),
    (b'{"temperature": 1e999}', "Infinity"),
    (b'{"n": ' + b"9" * 5000 + b"}", "no JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", "lists and objects in each other"),
    (b'{"messages": ' + b'{"a":' * 500 + b"1" + b"}" * 501, "lists and objects in each other"),
]


@pytest.mark.parametrize(("body", "words"), BODIES, ids=[repr(row[0][:30]) for row in BODIES])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"])
def test_a_body_that_makes_no_sense_is_refused(server, path, body, words):
    status, _, answer = server.raw("POST", path, body, content_type="application/json")
    assert status == 400 and words in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 300


def test_names_and_numbers_in_errors_are_short(server):
    wrong: list[dict[str, object]] = [
        {"a" * 1000: 1},
        {"n": 10**400},
        {"model": "m" * 1000},
        {"max_tokens": "9" * 1000},
    ]
    for changes in wrong:
        body = json.dumps({"model": "demo", "messages": TEXT} | changes)
        status, _, answer = server.raw("POST", "/v1/chat/completions", body, content_type="application/json")
        assert status in (400, 404) and len(answer["error"]["message"]) < 300


def test_pictures_pixels_and_parts_are_bounded(server):
    client = server.openai()
    many = [about("digit")[0]["content"][0]] * 4
    with pytest.raises(openai.BadRequestError, match="is picture 4; a request may have 3"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": many}])
    parts = [{"type": "text", "text": "a"}] * 51
    with pytest.raises(openai.BadRequestError, match="more than 50 messages and parts"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": parts}])
    call = {"id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    calls: Any = [{"role": "assistant", "tool_calls": [call] * 51}]
    with pytest.raises(openai.BadRequestError, match="tool_calls brings the request to more than 50"):
        client.chat.completions.create(model="demo", messages=calls)
    with pytest.raises(openai.BadRequestError, match="messages has 51 items"):
        client.chat.completions.create(model="demo", messages=TEXT * 51)


def test_a_full_queue_says_when_to_try_again(narrow):
    def stream():
        return narrow.openai().chat.completions.create(model="model", messages=TEXT, stream=True)

    with stream() as first:
        next(iter(first))
        waiting = socket.create_connection(("127.0.0.1", narrow.server.port))
        body = json.dumps({"model": "model", "messages": TEXT}).encode()
        waiting.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: 'queue_length{model="model"} 1' in narrow.raw("GET", "/metrics")[2])
        with pytest.raises(openai.RateLimitError) as refused:
            stream()
        assert refused.value.response.headers["retry-after"] == "1" and refused.value.code == "queue_full"
        waiting.close()
    until(lambda: 'batch_size{model="model"} 0' in narrow.raw("GET", "/metrics")[2])


@pytest.mark.soak  # the system holds megabytes that nobody reads
def test_an_answer_that_nobody_reads_is_given_up(endless):
    """The client keeps its connection and does not read on; its answer must not be kept for ever."""
    with serving(settings_of(endless, rules=Rules(HASTY))) as server, Line(server, 4096) as line:
        ask = {"model": "model", "messages": TEXT, "stream": True, "n": 8, "logprobs": True}
        body = json.dumps(ask).encode()
        line.send(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: 'batch_size{model="model"} 8' in server.raw("GET", "/metrics")[2])
        until(lambda: any(" 499 " in text for text in server.lines), seconds=120)
        until(lambda: 'batch_size{model="model"} 0' in server.raw("GET", "/metrics")[2])


def test_a_deadline_cuts_an_answer(narrow):
    made = narrow.openai().chat.completions.create(model="model", messages=TEXT, extra_body={"deadline": 2.0})
    assert made.choices[0].finish_reason == "length" and made.choices[0].message.content
    with pytest.raises(openai.InternalServerError) as late:
        narrow.openai().chat.completions.create(model="model", messages=TEXT, extra_body={"deadline": 1e-6})
    assert late.value.status_code == 504


def test_the_server_s_own_deadline_holds(endless):
    with serving(settings_of(endless, deadline=2.0)) as server:
        client = server.openai()
        assert client.chat.completions.create(model="model", messages=TEXT).choices[0].finish_reason == "length"
        made = client.chat.completions.create(model="model", messages=TEXT, extra_body={"deadline": 600})
        assert made.choices[0].finish_reason == "length"


def test_the_log_has_no_word_of_prompts_pictures_or_answers(server):
    client = server.openai()
    made = client.chat.completions.create(model="demo", messages=about("digit", "Which xylophone?"), max_tokens=8)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "xylophone " * 9000}])
    text = "\n".join([*server.lines, server.line(made._request_id or "")])
    assert made._request_id and made._request_id in text
    assert "xylophone" not in text and data_uri("digit")[30:60] not in text
    assert made.choices[0].message.content not in text


STRICT = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}, "strict": True}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("extract", {"images": [data_uri("digit")], "schema": {"type": "object"}}),
        ("chat/completions", {"messages": TEXT, "tools": [STRICT]}),
    ],
    ids=["extract", "tools"],
)
def test_a_schema_that_takes_long_to_check_stops_no_other_request(server, monkeypatch, path, body):
    begun, go_on, waited = threading.Event(), threading.Event(), []

    def slow(*_: Any) -> Any:
        begun.set()
        waited.append(go_on.wait(30))
        raise ConstraintError("slow")

    monkeypatch.setitem(task_requests.MAKE, "extract", slow)
    monkeypatch.setattr(tools, "text_or_calls", slow)
    found: list[Any] = []
    data = json.dumps({"model": "demo"} | body)
    asking = threading.Thread(
        target=lambda: found.append(server.raw("POST", f"/v1/{path}", data, content_type="application/json"))
    )
    asking.start()
    assert begun.wait(30)
    assert server.raw("GET", "/health")[0] == 200
    go_on.set()
    asking.join(30)
    assert waited == [True] and found[0][0] == 400 and "slow" in found[0][2]["error"]["message"]


@pytest.mark.parametrize(
    ("content", "light"),
    [("a" * 100_000, True), ("a" * 300_000, False), ([0] * 20_000, False), ([[]] * 2000, True), ([[]] * 9000, False)],
    ids=["a text", "a long text", "numbers", "few lists", "lists"],
)
def test_a_body_of_few_values_is_read_at_once(content, light):
    assert is_light(json.dumps({"content": content}).encode()) == light


def test_a_body_counts_until_its_request_has_ended(endless):
    """One that is being answered leaves no room for a second one that is as large."""
    body = json.dumps({"model": "model", "messages": TEXT, "stream": True}).encode()
    body += b" " * (180_000 - len(body))
    with serving(settings_of(endless, rules=Rules(SMALL))) as server:
        with Line(server) as line:
            line.send(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert b"200 OK" in line.socket.recv(65536)
            status, headers, _ = server.raw("POST", "/v1/chat/completions", body, content_type="application/json")
            assert status == 429 and headers["retry-after"]
        until(lambda: any(" 499 " in text for text in server.lines))
        short = body.replace(b'"stream": true', b'"max_tokens": 1')
        assert server.raw("POST", "/v1/chat/completions", short, content_type="application/json")[0] == 200


def test_a_picture_with_too_many_pixels_is_to_be_made_smaller():
    settings = settings_of(rules=Rules(SMALL))
    settings.model_settings.load.update(source_policy=SourcePolicy(allow_paths=False, max_pixels=100))
    with serving(settings) as running, pytest.raises(openai.BadRequestError) as refused:
        running.openai().chat.completions.create(model="demo", messages=about("scene"))
    assert str(refused.value).endswith(" is more than 100 pixels; make it smaller")


@pytest.mark.parametrize("coding", ["gzip", "br", "Deflate"])
def test_a_compressed_body_is_refused(server, coding):
    status, _, body = server.raw(
        "POST", "/v1/messages", b"\x1f\x8b", content_type="application/json", content_encoding=coding
    )
    assert status == 415 and f"({coding.lower()})" in body["error"]["message"]


def test_a_number_with_too_many_digits_is_told_in_plain_words(server):
    body = f'{{"model": "demo", "max_tokens": {"9" * 5000}}}'
    status, _, answer = server.raw("POST", "/v1/chat/completions", body, content_type="application/json")
    assert (
        status == 400
        and answer["error"]["message"] == "the body is no JSON (it holds a number of more than 4300 digits)"
    )


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"Host: localhost\r\nHost: localhost\r\n", "multiple Host"),
        (b"Accept: */*\r\n", "Host"),
        (b"Host: localhost\r\nA b: c\r\n", "illegal header line"),
    ],
)
def test_a_head_that_is_no_http_says_why(server, head, words):
    with Line(server) as line:
        line.send(b"GET /health HTTP/1.1\r\n" + head + b"\r\n")
        status, body = line.response()
    assert status == 400 and words in body["error"]["message"]


@pytest.mark.parametrize("path", ["/static/nope.js", "/v1/models/", "/nothing"])
def test_a_path_that_is_not_there_is_named(server, path):
    status, _, body = server.raw("GET", path)
    assert status == 404 and body["error"]["message"].startswith(f"there is nothing at {path}; there is /v1/chat/")


def test_a_file_of_the_page_is_only_read(server):
    status, headers, body = server.raw("POST", "/static/index.html")
    assert status == 405 and headers["allow"] == "GET, HEAD"
    assert body["error"]["message"] == "/static/index.html takes GET, HEAD, not POST"


@pytest.mark.parametrize(("range", "expected"), [("bytes=0-3", 206), ("bytes=9999999-", 416), ("lines=1", 400)])
def test_a_part_of_a_file_of_the_page_has_its_headers(server, range, expected):
    status, headers, _ = server.raw("GET", "/static/index.html", range=range)
    assert status == expected
    assert [headers[name] for name in PAGE_HEADERS] == list(PAGE_HEADERS.values())


def test_the_time_of_the_first_piece_counts_from_the_body(narrow):
    client, known = narrow.openai(), len(narrow.lines)
    with client.chat.completions.create(model="model", messages=TEXT, stream=True) as stream:
        next(iter(stream))
        ask = functools.partial(client.chat.completions.create, model="model", messages=TEXT, max_tokens=1)
        waiting = threading.Thread(target=ask)
        waiting.start()
        until(lambda: 'queue_length{model="model"} 1' in narrow.raw("GET", "/metrics")[2])
        time.sleep(0.3)
    waiting.join(30)
    line = until(lambda: next((line for line in narrow.lines[known:] if " 200 " in line and "answer=1 " in line), ""))
    assert float(line.partition(" first=")[2].removesuffix("s")) >= 0.3


@pytest.mark.parametrize(
    ("more", "beside"),
    [({}, False), ({"tools": []}, True), ({"messages": [{}] * 5000}, True)],
    ids=["small", "with a form", "large"],
)
def test_a_body_is_let_go_once_it_is_read(more, beside):
    answering = Answering(cast(Any, None), Rules())  # no model is asked
    body = json.dumps({"model": "demo", **more}).encode()
    scope = {"headers": [(b"content-type", b"application/json")], "record": SimpleNamespace()}
    held: list[weakref.ref[Fields]] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    def parse(fields: Fields, rules: Rules) -> Any:
        held.append(weakref.ref(fields))
        return threading.current_thread()

    async def read() -> threading.Thread:
        async with answering.parsed(scope, receive, parse) as thread:
            until(lambda: held[0]() is None)
            return thread

    assert (asyncio.run(read()) is not threading.current_thread()) == beside
    answering.close()


def test_choices_hold_the_options_of_a_request_once():
    """They may be large: a bias for every token."""
    taken: list[Any] = []

    def submit(**given: Any) -> Any:
        taken.append(given["options"])
        if len(taken) == 3:
            raise QueueFullError("full")
        return SimpleNamespace(so_far=lambda: None, cancel=lambda: None)

    pictures = SimpleNamespace(config=SimpleNamespace(coarsest={}, finest={}))
    model = SimpleNamespace(engine=SimpleNamespace(submit=submit), processor=SimpleNamespace(image_processor=pictures))
    models = SimpleNamespace(use=lambda id: contextlib.nullcontext(model), find=lambda id: SimpleNamespace(id=id))
    answering = Answering(cast(Any, models), Rules())
    asked = ApiRequest("model", TEXT, None, GenerationOptions(logit_bias={7: 1.0}), {}, choices=3)
    record, sent = RequestRecord("POST", "/", ""), cast(Any, None)
    with pytest.raises(QueueFullError):
        asyncio.run(answering.answer(cast(Any, openai_chat_answer), asked, record, sent))
    assert [each is asked.options for each in taken] == [True] * 3
    answering.close()
