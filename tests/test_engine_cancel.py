"""Requests that are cancelled, dropped or past their deadline end at once and hurt no other."""

import os
import threading
import time

import pytest
from conftest import endless_model, picture, statistics_of
from engines import FOREVER, SHORT, alone, occupied

from mlx_lfm2vl import GenerationOptions
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.engine.handle import Request
from mlx_lfm2vl.errors import QueueFullError
from mlx_lfm2vl.generation import chunked_prefill


@pytest.mark.sampled(2)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("leaving", [1, 2])
def test_answers_are_cancelled_while_another_s_picture_is_encoded(leaving, monkeypatch):
    """Not only after the pass of the tower or the piece of the prompt; the others go on as if nothing had been."""
    monkeypatch.setattr(chunked_prefill, "PIECE_FLOPS", 1.0)
    model, processor = endless_model()
    layers = model.model.vision_tower.encoder.layers
    run_layer = type(layers[0]).__call__
    answering: list[Request] = []
    done: list[bool] = []

    def running_layer(layer, *given):
        if layer is layers[1]:
            for request in answering[:leaving]:
                request.cancel()
        if layer is layers[-1]:
            end = time.monotonic() + 10
            while not all(request.done for request in answering[:leaving]) and time.monotonic() < end:
                time.sleep(0.001)
            done.extend(request.done for request in answering)
        return run_layer(layer, *given)

    monkeypatch.setattr(type(layers[0]), "__call__", running_layer)
    texts = ("Tell me everything.", "Tell me nothing.")
    with Engine(lambda: (model, processor)) as engine:
        answering += [engine.submit(text, options=GenerationOptions(max_tokens=400)) for text in texts]
        for request in answering:
            request.take(0, 60)
        joined = engine.submit("What is this?", picture("landscape"), options=SHORT)
        assert joined.result(60).tokens == alone("What is this?", "landscape", 6)
        assert done == [True, leaving == 2]
        for at, request in enumerate(answering):
            completion = request.result(60)
            assert completion.finish_reason == ("cancelled" if at < leaving else "length")
            assert statistics_of(completion).generated_tokens == len(completion.tokens) > 0
            assert completion.tokens == alone(texts[at], None, 400)[: len(completion.tokens)]


def test_cancelling_ends_within_a_token(engine):
    request = engine.submit("Tell me everything.", options=FOREVER)
    pieces = iter(request)
    next(pieces)
    request.cancel()
    *_, last = pieces
    assert last.finish_reason == "cancelled"
    assert request.done


def test_a_dropped_iterator_stops_its_work(engine):
    stream = engine.stream("Tell me everything.", options=FOREVER)
    next(stream)
    del stream
    engine.stream("Tell me everything.", options=FOREVER)  # never read, dropped at once
    assert engine.submit("Hello.", options=SHORT).result(30).tokens == alone("Hello.", None, 6)


def test_a_cancelled_request_tells_what_it_had_cost(engine):
    """While it waits, while its picture is looked at, and while it is answered."""
    _, release = occupied(engine)
    waiting = engine.submit("Hello.", options=SHORT)
    waiting.cancel()
    release.set()
    assert waiting.result(60).finish_reason == "cancelled"
    assert waiting.result().statistics.prompt_tokens == waiting.result().statistics.generated_tokens == 0

    seen: list[tuple[int, int]] = []
    prompt = "Why? " * 300

    def cancel(done: int, total: int) -> None:
        assert submitted.wait(30)
        seen.append((done, total))
        request.cancel()

    submitted = threading.Event()
    request = engine.submit(prompt, options=FOREVER, progress=cancel)
    submitted.set()
    completion = request.result(60)
    assert completion.finish_reason == "cancelled" and completion.tokens == ()
    assert completion.statistics.prompt_tokens == seen[0][1] > seen[0][0] == 512 and len(seen) == 1

    request = engine.submit("Hello.", options=FOREVER)
    pieces = iter(request)
    said = [next(pieces)]
    request.cancel()
    said += list(pieces)
    assert said[-1].finish_reason == "cancelled"
    assert said[-1].statistics.generated_tokens == sum(len(piece.tokens) for piece in said)


def test_a_deadline_ends_the_answer(engine):
    completion = engine.submit("Tell me everything.", options=FOREVER, deadline=2.0).result(60)
    assert completion.finish_reason == "deadline" and completion.tokens


def test_who_gives_up_before_its_turn_is_answered_at_once():
    """And leaves its place to others, while the engine's thread is busy."""
    with Engine(endless_model, max_queue=3) as engine:
        blocker, release = occupied(engine)
        cancelled, late, dropped = engine.submit("1"), engine.submit("2", deadline=0.2), engine.stream("3")
        with pytest.raises(QueueFullError):
            engine.submit("4")
        cancelled.cancel()
        for request, reason in ((cancelled, "cancelled"), (late, "deadline")):
            completion = request.result(10)
            assert completion.finish_reason == reason and statistics_of(completion).prompt_tokens == 0
        del dropped
        good = [engine.submit("Hello.", options=SHORT, wait=10) for _ in range(3)]
        assert not blocker.done
        release.set()
        assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}


@pytest.mark.parametrize("arguments", [{"deadline": 0.3}, {}])
def test_who_gives_up_while_its_picture_is_read_is_answered_at_once(engine, arguments):
    entered, release = threading.Event(), threading.Event()

    class Slow(os.PathLike):
        def __fspath__(self):
            entered.set()
            release.wait(30)
            return "absent.png"

    request = engine.submit("What is this?", Slow(), options=SHORT, **arguments)
    entered.wait(30)
    if not arguments:
        request.cancel()
    try:
        assert request.result(10).finish_reason == ("deadline" if arguments else "cancelled")
    finally:
        release.set()
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
