"""Requests and work for an engine whose model never ends by itself, and the answers that single runs give."""

import threading
import time
from collections.abc import Callable
from typing import Any

from conftest import Loaded, cache_by_backend, endless_model, picture

from mlx_lfm2vl import GenerationOptions, stream_generate
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.engine.handle import Request
from mlx_lfm2vl.engine.queue import Job

FOREVER = GenerationOptions(max_tokens=100_000)
SHORT = GenerationOptions(max_tokens=6)


@cache_by_backend
def loaded() -> Loaded:
    return endless_model()


@cache_by_backend
def alone(text: str, name: str | None, tokens: int) -> tuple[int, ...]:
    """The tokens of a single run, about the picture of this name or none."""
    options = GenerationOptions(max_tokens=tokens)
    responses = stream_generate(*loaded(), text, picture(name) if name else None, options=options)
    return tuple(token for response in responses for token in response.tokens)


def enqueued(engine: Engine, work: Callable[[], Any]) -> Request:
    """Work of its own that waits for the engine's thread."""
    request = Request()
    engine._worker.put(Job(request, work=lambda _: work()), 0.0)
    return request


def all_read(engine: Engine) -> None:
    """Waits until the pictures and texts of all that waits are read."""
    waiting, end = engine._worker.waiting, time.monotonic() + 60
    while not all(job.ready for job in list(waiting._jobs)):
        assert time.monotonic() < end
        time.sleep(0.01)


def occupied(engine: Engine) -> tuple[Request, threading.Event]:
    """Work that keeps the engine's thread until the event is set."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(60)

    request = enqueued(engine, work)
    assert entered.wait(60)
    return request, release


def held(engine: Engine, options: GenerationOptions) -> tuple[Request, threading.Event]:
    """An answer that goes on, and what lets the engine's thread go on after its first piece: those who come meanwhile
    join it together."""
    entered, release = threading.Event(), threading.Event()

    def stop() -> bool:  # asked in the engine's thread
        if answers and answers[0]._items and not entered.is_set():
            entered.set()
            release.wait(30)
        return False

    answers: list[Request] = []
    answers.append(engine.chat().submit("Tell me everything.", options=options, stop=stop))
    assert entered.wait(30)
    return answers[0], release
