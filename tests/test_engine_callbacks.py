"""Sinks, progress functions and calls into the engine's thread: what they may do, and what their errors cost."""

import os
import queue
import threading
import warnings
from typing import Any

import pytest
from engines import FOREVER, SHORT, alone, enqueued, loaded, occupied

from mlx_lfm2vl import Engine, GenerationResponse, generate
from mlx_lfm2vl.errors import EngineThreadError, QueueFullError


def test_a_sink_that_hears_of_a_cancel_may_compute(engine):
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def sink(item: GenerationResponse | BaseException) -> None:
        if isinstance(item, GenerationResponse) and item.finish_reason == "cancelled":
            answers.put(engine.call(lambda *own: generate(own[0], own[1], "What is this? " * 9, options=SHORT)))

    request = engine.submit("One after the other. " * 500, options=SHORT, sink=sink)
    request.cancel()
    assert request.result(60).finish_reason == "cancelled"
    assert answers.get(timeout=60) == engine.generate("What is this? " * 9, options=SHORT, timeout=60)


def test_progress_is_told_of_the_prompt(engine):
    seen: list[tuple[int, int]] = []
    completion = engine.submit("How? " * 300, options=SHORT, progress=lambda *at: seen.append(at)).result(60)
    new = completion.statistics.prompt_tokens - completion.statistics.cached_tokens
    assert seen[-1] == (new, new) and seen == sorted(seen) and len(seen) > 1


def test_a_sink_that_fails_hurts_its_own_request_only(engine):
    def sink(item):
        raise ValueError("mine")

    with pytest.warns(RuntimeWarning, match=r"the sink of a request failed and gets no more \(ValueError\('mine'\)\)"):
        bad = engine.submit("Hello.", options=FOREVER, sink=sink)
        good = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
        assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}
        with pytest.raises(ValueError, match="mine"):
            bad.result(60)


@pytest.mark.parametrize("at", ["the first piece", "the last piece"])
def test_a_sink_that_fails_after_the_end_changes_no_answer(engine, at):
    ended, failed = threading.Event(), threading.Event()

    def sink(item: GenerationResponse) -> None:
        if at == "the first piece" or item.finish_reason is not None:
            ended.wait(30)
            failed.set()
            raise ValueError("mine")

    talk = engine.chat(options=SHORT)
    with pytest.warns(RuntimeWarning, match="the sink of a request failed"):
        request = talk.submit("Hello.", sink=sink)
        answer = request.result(60)
        ended.set()
        assert failed.wait(30)
        for thread in threading.enumerate():
            if thread.name == "mlx-lfm2vl sink":
                thread.join(30)
    assert request.result(60) == answer and list(request)[-1].finish_reason == "length"
    assert len(talk.messages) == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("mine")])
def test_what_callbacks_raise_ends_their_own_request_only(engine, error):
    """Also where warnings are errors, and with errors that are no `Exception`."""

    def fail(*_):
        raise error

    class Reader(os.PathLike):
        __fspath__ = fail

    _, release = occupied(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad = [
            engine.submit("Hello.", options=FOREVER, sink=fail),
            engine.submit(f"Not yet asked: {error!r}", options=SHORT, progress=fail),
            engine.submit("Hello.", Reader(), options=SHORT),
            enqueued(engine, fail),
        ]
        good = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
        release.set()
        assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}
        for request in bad:
            with pytest.raises(type(error)):
                request.result(60)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_the_engines_own_thread_may_call_it(engine):
    said: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit("Why?", options=SHORT, progress=lambda *_: said.put(engine.call(lambda model, _: model)))
    assert said.get(timeout=60) is engine.call(lambda model, _: model)


@pytest.mark.parametrize("ask", ["wait_until_ready", "count_tokens", "chat", "call", "generate"])
@pytest.mark.parametrize("where", ["after unload", "in the loader"])
def test_the_engines_own_thread_does_not_wait_for_a_model(ask, where):
    arguments: dict[str, list[Any]] = {"count_tokens": ["Hello."], "call": [print], "generate": ["Hello."]}
    said: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        if where == "after unload":
            made.unload()
        try:
            getattr(made, ask)(*arguments.get(ask, []))
        except BaseException as error:
            said.put(error)

    def loader():
        assert there.wait(20)
        if where == "in the loader" and said.empty():
            work()
        return loaded()

    there = threading.Event()
    with Engine(loader) as made:
        there.set()
        enqueued(made, work if where == "after unload" else made.clear_caches)
        assert isinstance(said.get(timeout=20), EngineThreadError)
        assert made.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_the_engines_own_thread_does_not_wait_for_itself(engine):
    with pytest.raises(EngineThreadError, match="has to make itself"):
        engine.call(lambda *_: engine.generate("Hello.", options=SHORT))
    with pytest.raises(EngineThreadError, match="has to make itself"):
        engine.call(lambda *_: next(engine.stream("Hello.", options=SHORT)))
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_where_the_engines_own_thread_finds_no_place_it_does_not_wait():
    """It alone could make one."""
    said: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        made.submit("Hello.", options=SHORT)
        try:
            made.submit("Hello.", options=SHORT, wait=600)
        except QueueFullError as error:
            said.put(error)

    with Engine(loaded, max_queue=1) as made:
        enqueued(made, work)
        assert isinstance(said.get(timeout=60), QueueFullError)
