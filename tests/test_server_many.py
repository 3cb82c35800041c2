"""Many clients at once: each gets the answer of its single run; those that go away are cancelled and hurt no other."""

import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from servers import about, serving, settings_of, until

PICTURES = ("scene", "count", "digit", "shapes", "text", "tall", "wide", "boxes")
PROMPTS = ("What is in this image?", "How many shapes are there?", "Describe it.", "Which colours?")
SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["ring", "square", "star"]}, "large": {"type": "boolean"}},
    "required": ["shape", "large"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA}}
TEXT: Any = [{"role": "user", "content": "Tell me everything."}]


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def server(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LFM2VL_BACKEND", request.param)
        with serving(settings_of()) as running:
            running.openai().chat.completions.create(model="demo", messages=TEXT, max_tokens=1)
            yield running


@pytest.fixture(scope="module")
def unending(endless):
    """A server whose model never ends by itself."""
    with serving(settings_of(endless)) as running:
        running.openai().chat.completions.create(model="model", messages=TEXT, max_tokens=1)
        yield running


def question(number) -> dict[str, Any]:
    """One of 16 questions, with pictures, without, and held to a schema."""
    picture, prompt = PICTURES[number % 8], PROMPTS[number // 4 % 4]
    messages = about(picture, prompt) if number % 5 else [{"role": "user", "content": prompt}]
    more = {"response_format": FORMAT} if number % 7 == 3 else {}
    return {"model": "demo", "messages": messages, "max_tokens": 16, **more}


def metric(server, name):
    lines = server.raw("GET", "/metrics")[2].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"mlx_lfm2vl_{name}"))


def leave(server, body, wait):
    """Sends a request, waits, and closes the connection."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.server.port)) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        wait()


def test_64_clients_get_the_answers_of_single_runs(server):
    client = server.openai()
    alone = [client.chat.completions.create(**question(n)).choices[0].message.content for n in range(16)]
    assert len(set(alone)) > 8

    def ask(number):
        if number % 9 == 4:
            leave(server, question(number % 16) | {"stream": bool(number % 2)}, lambda: time.sleep(0.02 * (number % 7)))
            return None
        if number % 2:
            return client.chat.completions.create(**question(number % 16)).choices[0].message.content
        chunks = client.chat.completions.create(**question(number % 16), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(64) as pool:
        made = list(pool.map(ask, range(64)))
    for number, text in enumerate(made):
        assert text in (None, alone[number % 16]), number
    assert sum(text is None for text in made) == 7
    until(lambda: metric(server, "batch_size") == metric(server, "queue_length") == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_when_its_client_goes_away(unending, stream):
    before, known = metric(unending, "generated_tokens_total"), [*unending.lines]
    whole = metric(unending, "request_seconds_count")
    body = {"model": "model", "messages": TEXT, "stream": stream}

    def answered():
        until(lambda: metric(unending, "batch_size") == 1)
        time.sleep(0.3)  # for some tokens

    leave(unending, body, answered)
    until(lambda: metric(unending, "batch_size") == 0)
    line = until(lambda: next((line for line in unending.lines if " 499 " in line and line not in known), ""))
    (tokens,) = re.findall(r" prompt=\d+ cached=\d+ images=0 answer=(\d+)", line)
    made = int(tokens)
    assert made > 0 and metric(unending, "generated_tokens_total") == before + made
    assert metric(unending, "request_seconds_count") == whole


def test_a_client_that_leaves_a_stream_of_the_official_client_cancels_it(unending):
    with unending.openai().chat.completions.create(model="model", messages=TEXT, stream=True) as stream:
        for _, _ in zip(range(3), stream, strict=False):
            pass
        assert metric(unending, "batch_size") == 1
    until(lambda: metric(unending, "batch_size") == 0)


@pytest.mark.soak
def test_10000_requests_with_clients_that_leave_cost_nothing(server):
    """Files, threads and memory do not grow, and every answer that is waited for comes."""
    import os
    import resource

    client = server.openai(timeout=120)
    alone = [client.chat.completions.create(**question(n)).choices[0].message.content for n in range(16)]
    rng = random.Random(5)
    plan = [(n % 16, rng.random()) for n in range(10_000)]

    def ask(job):
        number, luck = job
        if luck < 0.3:
            leave(server, question(number) | {"stream": luck < 0.15}, lambda: time.sleep(luck / 10))
            return True
        return client.chat.completions.create(**question(number)).choices[0].message.content == alone[number]

    def held():
        return len(os.listdir("/proc/self/fd")), threading.active_count(), resource.getrusage(0).ru_maxrss

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, plan[:2000]))
        before = held()
        assert all(pool.map(ask, plan[2000:]))
        after = held()
    until(lambda: metric(server, "batch_size") == metric(server, "queue_length") == 0)
    assert after[0] <= before[0] + 30 and after[1] <= before[1] + 10
    assert after[2] - before[2] < 150_000  # KiB
