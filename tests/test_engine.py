"""The engine from many threads and from asyncio: answers are those of single runs, whatever the neighbours do."""

import asyncio
import base64
import gc
import os
import queue
import random
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend, picture

from mlx_lfm2vl import GenerationOptions, GenerationRequest, SourcePolicy, generate, load, stream_generate
from mlx_lfm2vl.engine import queue as waiting
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.engine.handle import Request
from mlx_lfm2vl.engine.queue import READERS, Job
from mlx_lfm2vl.errors import (
    ConfigError,
    EngineClosedError,
    EngineThreadError,
    ImageError,
    NotFiniteError,
    OptionError,
    OutOfMemoryError,
    PromptError,
    QueueFullError,
)
from mlx_lfm2vl.generation import passes
from mlx_lfm2vl.generation.request import encode, longest_token
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.lfm2_vl import split_views
from mlx_lfm2vl.processing.load_image import png_bytes

NAMES = ("landscape", "small", "portrait")
FOREVER = GenerationOptions(max_tokens=100_000)
SHORT = GenerationOptions(max_tokens=6)


def loader():
    """A model that never ends by itself."""
    model, processor = load(GOLDEN / "gen2")
    model.generation_config = replace(model.generation_config, eos_token_ids=())
    return model, processor


@cache_by_backend
def alone(text: str, name: str | None, tokens: int) -> tuple[int, ...]:
    pieces = stream_generate(
        *loaded(), text, picture(name) if name else None, options=GenerationOptions(max_tokens=tokens)
    )
    return tuple(token for piece in pieces for token in piece.tokens)


@cache_by_backend
def loaded():
    return loader()


@pytest.fixture(scope="module")
def engine():
    with Engine(loader) as made:
        yield made


def test_an_answer_from_another_thread(engine):
    completion = engine.submit("What is this?", picture("small"), options=SHORT).result(60)
    assert completion.tokens == alone("What is this?", "small", 6)
    assert completion.finish_reason == "length"
    assert engine.generate("What is this?", picture("small"), options=SHORT) == completion.text
    pieces = list(engine.stream("What is this?", picture("small"), options=SHORT))
    assert "".join(piece.text for piece in pieces) == completion.text
    assert pieces[-1].statistics.image_tokens == completion.statistics.image_tokens > 0


def test_many_threads_with_random_cancels(engine):
    """8 threads x 12 requests; those that are not cancelled get just what they would get alone."""

    def client(seed: int) -> int:
        rng = random.Random(seed)
        whole = 0
        for _ in range(12):
            text = rng.choice(["Hello.", "What is this?", "Why? " * 9])
            name = rng.choice([*NAMES, None])
            tokens = rng.randint(1, 9)
            options = GenerationOptions(max_tokens=tokens)
            request = engine.submit(text, picture(name) if name else None, options=options, wait=60)
            expected = alone(text, name, tokens)
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.05)
                request.cancel()
                completion = request.result(60)
                assert completion.tokens == expected[: len(completion.tokens)]
            else:
                assert request.result(60).tokens == expected
                whole += 1
        return whole

    for text in ("Hello.", "What is this?", "Why? " * 9):
        for name in (*NAMES, None):
            longest = alone(text, name, 9)
            for tokens in range(1, 10):
                assert alone(text, name, tokens) == longest[:tokens]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) > 40


def enqueued(engine: Engine, work: Callable[[], object]) -> Request:
    """Work of its own that waits for the engine's thread."""
    request = Request()
    engine._worker.put(Job(request, work=work), 0.0)
    return request


def occupied(engine: Engine) -> tuple[Request, threading.Event]:
    """Work that keeps the engine's thread until the event is set."""
    entered, release = threading.Event(), threading.Event()
    request = enqueued(engine, lambda: (entered.set(), release.wait(60)))
    assert entered.wait(60)
    return request, release


def test_questions_that_wait_together_are_answered_together(engine):
    blocker, release = occupied(engine)
    requests = [engine.submit(f"Question {n}.", options=SHORT) for n in range(5)]
    release.set()
    blocker.result(30)
    completions = [request.result(60) for request in requests]
    assert [c.tokens for c in completions] == [alone(f"Question {n}.", None, 6) for n in range(5)]
    # one prefill and one decode for all: they end within one step of each other
    assert len({c.statistics.peak_memory for c in completions}) <= 2


def test_a_question_joins_those_that_are_being_answered(engine, monkeypatch):
    """Nobody waits for the end of a long answer, and nobody's answer changes."""
    long = engine.submit("Tell me everything.", options=GenerationOptions(max_tokens=400))
    said = iter(long)
    tokens = [token for _ in range(3) for token in next(said).tokens]
    names = [*NAMES, None, "small", "landscape"]
    joined = [
        engine.submit(
            f"Question {n}.",
            picture(name) if name else None,
            options=GenerationOptions(max_tokens=2 + n % 3),
            wait=60,
        )
        for n, name in enumerate(names)
    ]
    sampled = [
        engine.submit("Hello.", options=GenerationOptions(max_tokens=8, temperature=1.5, seed=n, logprobs=True))
        for n in range(2)
    ]
    wrong = engine.submit("?", "absent.png")
    for n, (name, request) in enumerate(zip(names, joined, strict=True)):
        assert request.result(60).tokens == alone(f"Question {n}.", name, 2 + n % 3)
    with pytest.raises(ImageError):
        wrong.result(60)
    assert not long.done
    for n, request in enumerate(sampled):
        options = GenerationOptions(max_tokens=8, temperature=1.5, seed=n, logprobs=True)
        pieces = list(stream_generate(*loaded(), "Hello.", options=options))
        assert request.result(60).tokens == tuple(token for piece in pieces for token in piece.tokens)
    tokens += [token for piece in said for token in piece.tokens]
    assert tuple(tokens) == alone("Tell me everything.", None, 400)


def test_answers_go_on_and_can_be_cancelled_while_a_long_prompt_joins_them(engine):
    said: list[object] = []
    tokens_at: list[int] = []
    wild = GenerationOptions(max_tokens=100_000, temperature=1.5, seed=2)
    running = engine.submit("Tell me everything.", options=wild, sink=said.append)
    doomed = engine.submit("Tell me nothing.", options=FOREVER)
    readers = iter(running), iter(doomed)
    for reader in readers:
        next(reader)

    def progress(done: int, total: int) -> None:
        tokens_at.append(sum(len(piece.tokens) for piece in said))
        if len(tokens_at) == 2:
            doomed.cancel()
        if len(tokens_at) == 3:
            assert doomed.done

    text = "One after the other. " * 500
    joined = engine.submit(text, options=SHORT, progress=progress)
    assert joined.result(60).tokens == alone(text, None, 6)
    assert doomed.result(60).finish_reason == "cancelled"
    assert len(tokens_at) > 8
    # one token for each piece of the prompt; a few of them wait for the rest of their character
    assert tokens_at[-1] - tokens_at[0] >= len(tokens_at) / 2
    running.cancel()


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("leaving", [1, 2])
def test_answers_are_cancelled_while_another_s_picture_is_encoded(leaving, monkeypatch):
    """Not only after the pass of the tower or the piece of the prompt; the others go on as if nothing had been."""
    monkeypatch.setattr(passes, "PIECE_FLOPS", 1.0)
    model, processor = loader()
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
            assert completion.statistics.generated_tokens == len(completion.tokens) > 0
            assert completion.tokens == alone(texts[at], None, 400)[: len(completion.tokens)]


def test_a_sink_that_hears_of_a_cancel_may_compute(monkeypatch):
    """In the engine's thread, while the prompt that is cancelled is run."""
    model, processor = loader()
    layer = type(model.model.language_model.layers[0])
    run_layer = layer.__call__
    answers: list[str] = []

    def sink(item: object) -> None:
        if item.finish_reason == "cancelled":
            answers.append(engine.call(lambda *loaded: generate(*loaded, "What is this? " * 9, options=SHORT)))

    def running_layer(self, x, *given, **named):
        if x.shape[1] > 300:
            request.cancel()
        return run_layer(self, x, *given, **named)

    with Engine(lambda: (model, processor)) as engine:
        monkeypatch.setattr(layer, "__call__", running_layer)
        request = Request(sink=sink)
        monkeypatch.setattr("mlx_lfm2vl.engine.engine.Request", lambda *_: request)
        assert engine.submit("One after the other. " * 500, options=SHORT) is request
        assert request.result(60).finish_reason == "cancelled"
        monkeypatch.undo()
        assert answers == [engine.generate("What is this? " * 9, options=SHORT, timeout=60)]


@pytest.fixture
def fragile(monkeypatch):
    """An engine whose vision tower does what `blank` says at a picture of one colour."""
    model, processor = loader()
    embeddings = type(model.model.vision_tower.embeddings)
    embed, blank = embeddings.__call__, []

    def embedding(self, patches, grids):
        views = split_views(patches, grids)
        flat = [float(np.std(np.array(view))) < 1e-6 for view in views]
        if any(flat) and blank[0] == "memory":
            raise RuntimeError("[malloc] Unable to allocate 9 bytes.")
        made = embed(self, patches, grids)
        scale = [mx.full((len(view), 1), np.nan if bad else 1.0) for view, bad in zip(views, flat, strict=True)]
        return made * mx.concatenate(scale).reshape(*made.shape[:2], 1)

    monkeypatch.setattr(embeddings, "__call__", embedding)
    with Engine(lambda: (model, processor)) as engine:
        yield engine, blank


def held(engine: Engine, options: GenerationOptions):
    """An answer that goes on, and what lets the engine's thread go on after its first piece: those who come meanwhile
    join it together."""
    entered, release = threading.Event(), threading.Event()

    def sink(_: object) -> None:
        entered.set()
        release.wait(30)

    request = engine.submit("Tell me everything.", options=options, sink=sink)
    assert entered.wait(30)
    return request, release


@pytest.mark.parametrize(("what", "error"), [("memory", OutOfMemoryError), ("nan", NotFiniteError)])
def test_what_joins_beside_a_picture_that_fails_is_answered(fragile, what, error):
    engine, blank = fragile
    blank.append(what)
    long, release = held(engine, FOREVER)
    good = engine.submit("Question.", picture("small"), options=SHORT)
    bad = engine.submit("Question.", np.full((64, 64, 3), 200, np.uint8), options=SHORT)
    late = engine.submit("Question.", np.full((64, 64, 3), 200, np.uint8), options=SHORT, deadline=0.0)
    time.sleep(0.5)  # they are read
    release.set()
    assert good.result(60).tokens == alone("Question.", "small", 6)
    with pytest.raises(error):
        bad.result(60)
    assert late.result(60).finish_reason == "cancelled"
    assert not long.done, "nobody waits for the end of another's answer"
    long.cancel()


def test_an_answer_goes_on_where_those_that_would_join_it_find_no_room(engine, monkeypatch):
    long, release = held(engine, GenerationOptions(max_tokens=40))
    joiner = engine.submit("Question.", options=SHORT)
    time.sleep(0.3)

    def refused(*_: object) -> None:
        raise RuntimeError("[malloc] unable to allocate")

    with monkeypatch.context() as short:
        short.setattr(Cache, "merge", refused)
        release.set()
        with pytest.raises(OutOfMemoryError):
            joiner.result(60)
        assert long.result(60).tokens == alone("Tell me everything.", None, 40)
    assert engine.submit("Question.", options=SHORT).result(60).tokens == alone("Question.", None, 6)


def test_a_failed_question_that_is_kept_keeps_no_memory_of_the_model(fragile):
    engine, blank = fragile
    blank.append("nan")

    def used() -> int:
        engine.clear_caches()
        gc.collect()
        return mx.get_active_memory()

    before, kept = used(), []
    for side in (64, 96, 128):
        kept.append(engine.submit("word " * 300, [picture("small"), np.full((side, side, 3), 200, np.uint8)]))
        with pytest.raises(NotFiniteError):
            kept[-1].result(60)
    assert used() <= before + 2**16


@pytest.mark.parametrize("call", ["undo", "reset"])
def test_a_turn_that_its_own_sink_closes_ends(engine, call):
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)

    def sink(item: object) -> None:
        if getattr(item, "finish_reason", "error") is None:
            getattr(talk, call)()

    request = talk.submit("Tell me everything.", options=replace(FOREVER, temperature=1.5, seed=1), sink=sink)
    assert request.result(30).finish_reason == "cancelled"


def test_two_conversations_and_a_question_are_answered_together(engine):
    """All have their first tokens while none has ended; each answer is the one that it would be alone."""
    talks = [engine.chat(), engine.chat()]
    texts = ["Tell me everything.", "Tell me nothing."]
    long = GenerationOptions(max_tokens=300)
    requests = [talk.submit(text, options=long) for talk, text in zip(talks, texts, strict=True)]
    requests.append(engine.submit("What is this?", options=long))
    for request in requests:
        request.take(0, 60)
    assert not any(request.done for request in requests)
    for request, text in zip(requests, [*texts, "What is this?"], strict=True):
        assert request.result(60).tokens == alone(text, None, 300)
    for talk, text, request in zip(talks, texts, requests, strict=False):
        assert talk.messages[0]["content"] == text
        *_, last = talk.stream("And now?", options=SHORT)
        assert last.statistics.cached_tokens >= request.result().statistics.prompt_tokens


@pytest.mark.parametrize("call", ["undo", "reset", "fork", "save", "load"])
def test_nothing_but_an_answer_waits_for_an_answer(engine, tmp_path, call):
    """The engine's thread is held all the while."""
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)
    talk.save(tmp_path / "talk.json")
    _, release = occupied(engine)
    pending = talk.submit("And now?", options=SHORT)
    started = time.monotonic()
    other = engine.chat(system="Be brief.")
    arguments = [tmp_path / "talk.json"] if call in ("save", "load") else []
    made = getattr(talk, call)(*arguments)
    assert time.monotonic() - started < 5 and not pending.done
    release.set()
    assert pending.result(60).finish_reason in ("stop", "length", "cancelled")
    assert other.ask("Hello.", options=SHORT)
    if call == "fork":
        assert len(made.messages) == 2 and made.ask("And now?", options=SHORT)


def test_a_turn_tells_of_its_prompt(engine):
    told: list[tuple[int, int]] = []
    engine.chat().submit("Never asked before.", options=SHORT, progress=lambda *at: told.append(at)).result(60)
    assert told and told[-1][0] == told[-1][1] > 0


def test_a_stop_that_fails_ends_its_own_request(engine):
    bad = engine.chat().submit("Hello.", options=FOREVER, stop=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_a_turn_that_is_cancelled_while_it_is_read_touches_no_other(engine, slow_path):
    talk = engine.chat()
    first = talk.submit("What is this?", slow_path, options=SHORT)
    assert slow_path.asked.wait(60)
    first.cancel()
    second = talk.submit("Hello.", options=GenerationOptions(max_tokens=60))
    second.take(0, 60)
    slow_path.release.set()
    assert second.result(60).tokens == alone("Hello.", None, 60)
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]


def test_undo_takes_back_the_turn_that_waits_for_its_first_word(engine):
    talk = engine.chat()
    talk.ask("Hello.", options=SHORT)
    _, release = occupied(engine)
    pending = talk.submit("And now?", options=SHORT)
    end = time.monotonic() + 30
    while pending.turn is None and time.monotonic() < end:
        time.sleep(0.001)
    talk.undo()
    release.set()
    assert pending.result(60).finish_reason == "cancelled" and len(talk.messages) == 2
    talk.undo()
    assert talk.messages == []


@pytest.mark.parametrize("call", ["save", "fork"])
def test_what_only_reads_a_conversation_ends_no_answer(engine, tmp_path, call):
    talk = engine.chat()
    running = talk.submit("Tell me everything.", options=GenerationOptions(max_tokens=200))
    running.take(0, 60)
    getattr(talk, call)(*([tmp_path / "talk.json"] if call == "save" else []))
    assert running.result(60).tokens == alone("Tell me everything.", None, 200)


def test_a_turn_whose_sink_fails_is_no_part_of_its_conversation(engine):
    talk = engine.chat()

    def sink(_: object) -> None:
        raise ValueError("mine")

    warned = pytest.warns(RuntimeWarning, match="the sink of a request failed")
    with warned, pytest.raises(ValueError, match="mine"):
        talk.submit("Hello.", options=FOREVER, sink=sink).result(60)
    assert talk.messages == [] and talk.fork().messages == []


def test_a_finished_request_keeps_no_states(engine):
    request = engine.submit("Hello.", options=SHORT)
    request.result(60)
    assert request.so_far is None


def test_a_short_question_does_not_wait_for_a_long_prompt(engine):
    """Though both were taken together."""
    _, release = occupied(engine)
    seen: list[int] = []
    long = engine.submit("Why? " * 4000, options=SHORT, progress=lambda done, _: seen.append(done))
    short = engine.submit("Hello.", options=SHORT, sink=lambda _: seen.append(-1))
    time.sleep(0.5)  # they are read
    release.set()
    assert short.result(60).tokens == alone("Hello.", None, 6)
    assert long.result(60).tokens == alone("Why? " * 4000, None, 6)
    assert sum(done > 0 for done in seen[: seen.index(-1)]) <= 8 < sum(done > 0 for done in seen) - 4


def test_a_turn_may_have_a_stop_of_its_own(engine):
    talk = engine.chat(options=FOREVER)
    asked = []
    request = talk.submit("Tell me everything.", stop=lambda: asked.append(0) or len(asked) > 20)
    assert request.result(30).finish_reason == "cancelled" and len(asked) > 20
    assert engine.submit("Question.", options=SHORT).result(30).finish_reason == "length"


def test_conversations_of_an_engine_share_encoded_pictures(engine):
    engine.clear_caches()
    features = engine._worker.vision_cache
    for _ in range(3):
        engine.chat(options=SHORT).ask("What is this?", picture("small"))
        assert len(features) == 1


def test_where_no_thread_can_be_had_the_engine_reads_by_itself(engine, monkeypatch):
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if "reader" in thread.name:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", start)
        for _ in range(waiting.MOST_READERS + 1):
            request = engine.submit("Question.", picture("small"), options=SHORT)
            assert request.result(60).tokens == alone("Question.", "small", 6)
    assert engine.submit("Question.", options=SHORT).result(60).tokens == alone("Question.", None, 6)


def test_what_has_been_answered_is_let_go_while_others_are_still_being_answered(engine):
    """A batch that others join may go on for days."""
    running = engine.submit("Hello.", options=FOREVER)
    running.take(0, 60)
    held = []
    for _ in range(25):
        image = picture("small").copy()
        request = engine.submit("What is this?", image, options=SHORT)
        assert len(request.result(60).tokens) == 6
        held += [weakref.ref(image), weakref.ref(request)]
        del image, request
    gc.collect()
    assert not running.done
    running.cancel()
    assert sum(each() is not None for each in held) <= 4  # the last ones, at most


def test_a_busy_engine_holds_no_more_than_its_rows(engine):
    """Rows come and go without the batch ever being empty; what all have left behind is given up."""
    requests = [engine.submit("Hello.", options=GenerationOptions(max_tokens=40))]
    peaks = []
    for n in range(12):
        next(iter_pieces := iter(requests[-1]))
        requests.append(engine.submit(f"Hello {n}.", options=GenerationOptions(max_tokens=40)))
        for _ in iter_pieces:
            pass
        peaks.append(mx.get_active_memory())
    assert requests[-1].result(60).finish_reason == "length"
    assert max(peaks[6:]) < max(peaks[:6]) * 1.2


def test_cancelling_ends_within_a_token(engine):
    request = engine.submit("Tell me everything.", options=FOREVER)
    pieces = iter(request)
    next(pieces)
    started = time.monotonic()
    request.cancel()
    *_, last = pieces
    assert last.finish_reason == "cancelled"
    assert time.monotonic() - started < 5
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
        seen.append((done, total))
        request.cancel()

    submitted = threading.Event()
    request = engine.submit(prompt, options=FOREVER, progress=lambda *at: (submitted.wait(30), cancel(*at)))
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


def test_progress_is_told_of_the_prompt(engine):
    seen: list[tuple[int, int]] = []
    completion = engine.submit("How? " * 300, options=SHORT, progress=lambda *at: seen.append(at)).result(60)
    new = completion.statistics.prompt_tokens - completion.statistics.cached_tokens
    assert seen[-1] == (new, new) and seen == sorted(seen) and len(seen) > 1


def test_a_deadline_ends_the_answer(engine):
    started = time.monotonic()
    completion = engine.submit("Tell me everything.", options=FOREVER, deadline=0.5).result(60)
    assert completion.finish_reason == "cancelled" and completion.tokens
    assert time.monotonic() - started < 10


def test_a_question_that_fails_hurts_no_other(engine, tmp_path):
    good = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
    bad = engine.submit("?", tmp_path / "absent.png")
    option = engine.submit("Hello.", max_image_tokens=-3)
    good += [engine.submit("Hello.", options=SHORT)]
    with pytest.raises(ImageError, match=r"absent\.png"):
        bad.result(60)
    with pytest.raises((ConfigError, OptionError), match="max_image_tokens"):
        next(iter(option))
    assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}


def test_a_sink_that_fails_hurts_its_own_request_only(engine):
    def sink(item):
        raise ValueError("mine")

    with pytest.warns(RuntimeWarning, match=r"the sink of a request failed and gets no more \(ValueError\('mine'\)\)"):
        bad = engine.submit("Hello.", options=FOREVER, sink=sink)
        good = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
        assert {request.result(60).tokens for request in good} == {alone("Hello.", None, 6)}
        with pytest.raises(ValueError, match="mine"):
            bad.result(60)


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
            engine.submit("Hello.", options=SHORT, sink=fail),
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


def test_nobody_waits_for_a_thread_that_has_died(monkeypatch):
    with Engine(loader) as engine:
        engine.wait_until_ready(60)
        _, release = occupied(engine)
        waiting = engine.submit("Hello.")
        monkeypatch.setattr(engine._worker, "_take", lambda: 1 / 0)
        release.set()
        with pytest.raises(EngineClosedError, match="has ended with an error: ZeroDivisionError"):
            waiting.result(30)
        with pytest.raises(EngineClosedError, match="has ended with an error: ZeroDivisionError"):
            engine.generate("Hello.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deadline": 1e12}, "deadline is 1000000000000.0, expected a number of seconds"),
        ({"deadline": -1}, "deadline is -1, expected a number of seconds"),
        ({"deadline": "soon"}, "deadline is 'soon'"),
        ({"wait": None}, "wait is None"),
        ({"sink": 3}, "sink is 3, expected a function"),
        ({"progress": 5}, "progress is 5, expected a function"),
    ],
)
def test_arguments_of_a_request_are_checked(engine, arguments, words):
    with pytest.raises(OptionError, match=words):
        engine.submit("Hello.", **arguments)


@pytest.mark.parametrize("timeout", [1e12, -1, "soon", float("nan")])
def test_times_to_wait_are_checked(engine, timeout):
    request = engine.submit("Hello.", options=SHORT)
    for wait in (request.result, engine.wait_until_ready, engine.close):
        with pytest.raises(OptionError, match=f"timeout is {timeout!r}, expected a number of seconds"):
            wait(timeout)
    assert request.result(60).tokens == alone("Hello.", None, 6)


def test_what_is_kept_for_reuse_is_given_back_when_idle_and_limits_when_closed():
    before = mx.set_cache_limit(2**30)
    try:
        with Engine(loader, cache_limit=2**28, idle_seconds=0.2) as engine:
            engine.submit("Hello.", picture("landscape"), options=SHORT).result(60)
            assert mx.set_cache_limit(2**28) == 2**28
            kept, end = mx.get_cache_memory(), time.monotonic() + 30
            while mx.get_cache_memory() and time.monotonic() < end:
                time.sleep(0.05)
            assert kept > 0 == mx.get_cache_memory()
            assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
        assert mx.set_cache_limit(before) == 2**30
    finally:
        mx.set_cache_limit(before)


def test_what_is_remembered_is_forgotten_when_asked_and_answers_stay_the_same(engine):
    question = ("What is this?", picture("landscape"))
    first = engine.submit(*question, options=SHORT).result(60)
    again = engine.submit(*question, options=SHORT).result(60)
    held = mx.get_active_memory()
    engine.clear_caches()
    assert mx.get_active_memory() < held and mx.get_cache_memory() == 0
    after = engine.submit(*question, options=SHORT).result(60)
    assert first.tokens == again.tokens == after.tokens
    assert again.statistics.cached_tokens > 0 == after.statistics.cached_tokens


def test_the_engines_own_thread_may_call_it(engine):
    said: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit("Hello.", options=SHORT, sink=lambda item: said.put(engine.call(lambda model, _: model)))
    assert said.get(timeout=60) is engine.call(lambda model, _: model)


def test_what_has_come_is_kept_for_every_reader(engine):
    delivered: queue.SimpleQueue = queue.SimpleQueue()
    request = engine.submit("Hello.", options=SHORT, sink=delivered.put)
    pieces = list(request)
    assert list(request) == pieces == [delivered.get() for _ in pieces]
    assert request.result(1) is not None and request.result(1).tokens == alone("Hello.", None, 6)
    request = engine.submit("Hello.", options=SHORT)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(request.result, 60) for _ in range(2)]
        read = [pool.submit(list, request) for _ in range(2)]
        assert {result.result().tokens for result in results} == {alone("Hello.", None, 6)}
        assert read[0].result() == read[1].result() == list(request)
    failing = engine.submit("?", "absent.png")
    for _ in range(2):
        with pytest.raises(ImageError):
            list(failing)
        with pytest.raises(ImageError):
            failing.result(1)
    late = engine.submit("Tell me everything.", options=FOREVER)
    with pytest.raises(TimeoutError):
        late.result(0.2)
    late.cancel()
    assert late.result(60).finish_reason == "cancelled"


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised():
    """By a bound that no text which fits can pass: its longest token, as often as there are positions."""
    model, processor = load("demo")
    positions, longest = model.config.text_config.max_position_embeddings, longest_token(processor.tokenizer)
    assert longest == max(len(token) for token in processor.tokenizer.get_vocab())
    started = time.perf_counter()
    with pytest.raises(PromptError, match=rf"characters, so at least \d+ tokens, but the model has {positions} pos"):
        encode(model, processor, GenerationRequest("the quick fox " * 300_000))
    assert time.perf_counter() - started < 1
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens, but"):
        encode(model, processor, GenerationRequest("a " * positions))
    golden, files = loaded()
    assert longest_token(files.tokenizer) is not None
    assert len(encode(golden, files, GenerationRequest("Hello. " * 400)).ids) > 400


def test_arrays_and_messages_may_be_changed_once_they_are_submitted(engine):
    array = np.array(picture("small"))
    talk = engine.chat()
    messages = [{"role": "user", "content": [{"type": "image", "image": array}, {"type": "text", "text": "What?"}]}]
    _, release = occupied(engine)
    requests = [engine.submit("What?", array, options=SHORT), engine.submit(messages, options=SHORT)]
    requests.append(talk.submit("What?", [array], options=SHORT))
    array[:] = 0
    messages[0]["content"].clear()
    release.set()
    assert {request.result(60).tokens for request in requests} == {alone("What?", "small", 6)}


def test_the_engines_own_thread_does_not_wait_for_itself(engine):
    with pytest.raises(EngineThreadError, match="has to make itself"):
        engine.call(lambda *_: engine.generate("Hello.", options=SHORT))
    with pytest.raises(EngineThreadError, match="has to make itself"):
        engine.call(lambda *_: next(engine.stream("Hello.", options=SHORT)))
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


def test_asyncio(engine):
    async def ask(n: int) -> tuple[int, ...]:
        pieces = [piece async for piece in engine.astream(f"Question {n}.", options=SHORT)]
        return tuple(token for piece in pieces for token in piece.tokens)

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        answers = await asyncio.gather(*(ask(n) for n in range(4)))
        assert ticks > 3  # the loop went on
        async for _ in engine.astream("Tell me everything.", options=FOREVER):
            break  # leaving the loop stops the work

        async def listen():
            async for _ in engine.astream("Tell me everything.", options=FOREVER):
                pass

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.3)
        listening.cancel()  # and so does cancelling the task
        with pytest.raises(ImageError):
            async for _ in engine.astream("?", "absent.png"):
                pass
        ticking.cancel()
        return answers

    assert asyncio.run(main()) == [alone(f"Question {n}.", None, 6) for n in range(4)]


def test_a_full_queue_says_so():
    with Engine(loader, max_queue=2) as engine:
        _, release = occupied(engine)
        waiting = [engine.submit("Hello.", options=SHORT) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            engine.submit("Hello.")
        threading.Timer(0.2, release.set).start()
        late = engine.submit("Hello.", options=SHORT, wait=30)
        assert len({request.result(60).tokens for request in [*waiting, late]}) == 1


def test_who_gives_up_before_its_turn_is_answered_at_once():
    """And leaves its place to others, while the engine's thread is busy."""
    with Engine(loader, max_queue=3) as engine:
        blocker, release = occupied(engine)
        cancelled, late, dropped = engine.submit("1"), engine.submit("2", deadline=0.2), engine.stream("3")
        with pytest.raises(QueueFullError):
            engine.submit("4")
        cancelled.cancel()
        for request in (cancelled, late):
            completion = request.result(10)
            assert completion.finish_reason == "cancelled" and completion.statistics.prompt_tokens == 0
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
        assert request.result(10).finish_reason == "cancelled"
    finally:
        release.set()
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)


class SlowPath(os.PathLike):
    """A picture's path that tells when it is asked for, and comes when it is let."""

    def __init__(self, path):
        self.path, self.asked, self.release = path, threading.Event(), threading.Event()

    def __fspath__(self):
        self.asked.set()
        assert self.release.wait(60)
        return str(self.path)


@pytest.fixture
def slow_path(tmp_path):
    picture("small").save(tmp_path / "small.png")
    made = SlowPath(tmp_path / "small.png")
    yield made
    made.release.set()


def test_a_picture_that_is_slow_to_come_holds_up_its_own_question_only(engine, slow_path):
    slow = engine.submit("What is this?", slow_path, options=SHORT)
    talk = engine.chat(options=SHORT)
    slow_turn = talk.submit("What is this?", slow_path)
    assert slow_path.asked.wait(60)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert engine.submit("What is this?", picture("portrait"), options=SHORT).result(60).tokens
    assert engine.chat(options=SHORT).ask("Hello.")
    assert not slow.done and not slow_turn.done
    slow_path.release.set()
    assert slow.result(60).tokens == slow_turn.result(60).tokens == alone("What is this?", "small", 6)


@pytest.fixture
def slow_server():
    """The address of a picture that does not come until it is let."""
    release = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            release.wait(60)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png"
    release.set()
    server.shutdown()


def test_slow_addresses_hold_up_other_addresses_at_most(slow_server):
    def private():
        return load(GOLDEN / "gen2", source_policy=SourcePolicy(allow_private_addresses=True))

    item = {"type": "image_url", "image_url": {"url": slow_server}}
    with Engine(private) as engine:
        slow = [engine.submit("What is this?", slow_server) for _ in range(READERS)]
        slow += [engine.submit([{"role": "user", "content": [item]}]) for _ in range(READERS)]
        talk = engine.chat(options=SHORT)
        turns = [
            talk.submit("What is this?", slow_server),
            *(talk.submit("And now?", picture("small")) for _ in "12345678"),
        ]
        for quick in (None, picture("portrait")):
            assert engine.submit("Hello.", quick, options=SHORT).result(60).finish_reason != "cancelled"
        late = [engine.submit("What is this?", slow_server, deadline=0.1) for _ in range(READERS)]
        assert [request.result(60).finish_reason for request in late] == ["cancelled"] * READERS
        for request in slow:
            request.cancel()
        data = "data:image/png;base64," + base64.b64encode(png_bytes(picture("small"))).decode()
        assert engine.submit("What is this?", data, options=SHORT).result(60).finish_reason != "cancelled"
        assert not any(request.done for request in turns)


def test_questions_join_before_work_that_waits_but_not_for_long(engine, monkeypatch):
    running = engine.submit("Hello.", options=FOREVER)
    running.take(0, 60)
    called = threading.Thread(target=engine.call, args=(lambda *_: None,))
    called.start()
    while len(engine._worker._waiting._jobs) < 1:
        time.sleep(0.01)
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert called.is_alive() and not running.done
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    after = engine.submit("Hello.", options=SHORT)
    with pytest.raises(TimeoutError):
        after.result(0.5)
    running.cancel()
    called.join(60)
    assert after.result(60).tokens == alone("Hello.", None, 6)


def test_a_turn_whose_wait_is_interrupted_is_cancelled(engine):
    talk = engine.chat(options=SHORT)
    refused: queue.SimpleQueue = queue.SimpleQueue()

    def sink(item):
        try:
            refused.put(talk.ask("And now?"))  # in the engine's own thread nobody can wait for it
        except EngineThreadError as error:
            refused.put(error)

    assert talk.submit("Hello.", sink=sink).result(60)
    assert isinstance(refused.get(timeout=60), EngineThreadError)
    talk.ask("Why?")
    assert [message["content"] for message in talk.messages if message["role"] == "user"] == ["Hello.", "Why?"]


def test_waiting_for_a_place_ends_at_the_deadline(engine):
    with Engine(loader, max_queue=1) as small:
        running = small.submit("Hello.", options=FOREVER, wait=60)
        running.take(0, 60)
        caller = threading.Thread(target=lambda: small.call(lambda *_: None))
        caller.start()
        while len(small._worker._waiting._jobs) < 1:
            time.sleep(0.01)
        begun = time.monotonic()
        with pytest.raises(QueueFullError):
            small.submit("Hello.", deadline=0.2, wait=30)
        assert time.monotonic() - begun < 10
        running.cancel()
        caller.join(60)


def test_the_turns_of_a_chat_keep_their_order(engine, slow_path):
    """Also where the first one's picture comes last. What changes a conversation does not wait for them."""
    expected = engine.chat(options=SHORT)
    answers = [expected.ask("What is this?", picture("small")), expected.ask("And now?")]
    talk = engine.chat(options=SHORT)
    first, second = talk.submit("What is this?", slow_path), talk.submit("And now?")
    assert slow_path.asked.wait(60)
    with pytest.raises(PromptError, match="no turn to take back"):
        talk.undo()
    assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
    assert not first.done and not second.done
    slow_path.release.set()
    assert [first.result(60).text, second.result(60).text] == answers
    talk.undo()
    assert [message["content"] for message in talk.messages[1:]] == answers[:1]


def test_no_more_is_read_ahead_than_is_soon_needed(tmp_path):
    """Pixels take room: of all pictures that wait only some are opened, and nothing that reads is left behind."""
    picture("small").save(tmp_path / "small.png")
    opened = []

    class Noted(os.PathLike):
        def __fspath__(self):
            opened.append(threading.current_thread().name)
            return str(tmp_path / "small.png")

    with Engine(loader, max_batch=2) as engine:
        _, release = occupied(engine)
        requests = [engine.submit("What is this?", Noted(), options=SHORT) for _ in range(20)]
        end = time.monotonic() + 30
        while (len(opened) < READERS or named_threads("reader")) and time.monotonic() < end:
            time.sleep(0.01)
        assert opened == ["mlx-lfm2vl reader"] * READERS
        release.set()
        assert {request.result(60).tokens for request in requests} == {alone("What is this?", "small", 6)}
        assert opened == ["mlx-lfm2vl reader"] * 20
        while named_threads("reader") and time.monotonic() < end:
            time.sleep(0.01)
        assert not named_threads("reader")


def named_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"mlx-lfm2vl {name}"]


def test_closing_does_not_wait_for_a_picture(slow_path):
    engine = Engine(loader)
    request = engine.submit("What is this?", slow_path)
    assert slow_path.asked.wait(60)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10 and not engine._worker.thread.is_alive()
    with pytest.raises(EngineClosedError, match="before the request began"):
        request.result(5)


def test_waiting_for_a_place_does_not_block_the_event_loop():
    with Engine(loader, max_queue=1) as engine:
        _, release = occupied(engine)
        waiting = engine.submit("Hello.", options=SHORT)

        async def ask(wait: float) -> tuple[int, ...]:
            pieces = [piece async for piece in engine.astream("Hello.", options=SHORT, wait=wait)]
            return tuple(token for piece in pieces for token in piece.tokens)

        async def main():
            with pytest.raises(QueueFullError):
                await ask(0.1)
            asking = asyncio.create_task(ask(30))
            await asyncio.sleep(0.1)
            release.set()  # from the event loop, which could not if it were blocked
            return await asking

        assert asyncio.run(main()) == alone("Hello.", None, 6) == waiting.result(60).tokens


def test_a_model_in_place_of_its_loader_is_refused():
    with pytest.raises(OptionError, match="loader is Lfm2VlForConditionalGeneration, expected a function"):
        Engine(load("demo")[0])


def test_closing_ends_everything_and_returns():
    engine = Engine(loader)
    running = engine.submit("Tell me everything.", options=FOREVER)
    next(iter_pieces := iter(running))
    blocked = enqueued(engine, lambda: None)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 20
    assert list(iter_pieces)[-1].finish_reason == "cancelled"
    with pytest.raises(EngineClosedError, match="before the request began"):
        blocked.result(5)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        engine.submit("Hello.")
    engine.close()
    assert not engine._worker.thread.is_alive()


@pytest.mark.parametrize("way", ["close", "exit"])
def test_a_sink_that_waits_for_the_thread_that_closes_does_not_hold_it_up(way):
    """A bounded queue whose reader is the thread that closes."""
    script = f"""
import queue, threading, time
from mlx_lfm2vl import Engine, load
begun = threading.Event()
names = set()
items = queue.Queue(maxsize=2)
engine = Engine(lambda: (begun.wait(60), load("demo"))[1])
def sink(item):
    names.add(threading.current_thread().name)
    items.put(item)
for _ in range(12):
    engine.submit("Hello.", sink=sink)
threading.Timer(0.5, begun.set).start()
if {way == "close"}:
    engine.close(timeout=5)
    assert "MainThread" not in names and names, names
print("here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


def test_a_model_that_does_not_load_is_told_to_all_who_ask(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with Engine(lambda: load(tmp_path)) as engine:
        with pytest.raises(ConfigError, match="model_type"):
            engine.wait_until_ready(60)
        with pytest.raises(ConfigError, match="model_type"):
            engine.submit("Hello.").result(60)
        lengths = []
        for _ in range(5):
            with pytest.raises(ConfigError) as raised:
                engine.wait_until_ready(60)
            lengths.append(len(traceback.extract_tb(raised.value.__traceback__)))
        assert len(set(lengths)) == 1


@pytest.mark.parametrize("made", [5, (1, 2), None])
def test_what_a_loader_returns_is_checked(made):
    with Engine(lambda: made) as engine:
        with pytest.raises(OptionError, match=r"the loader returned .*, expected \(model, processor\)"):
            engine.wait_until_ready(30)
        with pytest.raises(OptionError, match="the loader returned"):
            engine.generate("Hi.")


def test_chats_in_the_engine(engine):
    engine.wait_until_ready(60)
    engine.warm_up()
    chat = engine.chat(options=SHORT)
    first = chat.ask("What is this?", picture("landscape"))
    second = chat.ask("And now?")
    assert [message["content"] for message in chat.messages[1::2]] == [first, second]
    assert "".join(piece.text for piece in chat.retry()) == second
    twin = chat.fork()
    chat.undo()
    assert len(chat.messages) == 2 and len(twin.messages) == 4
    assert chat.ask("And now?") == second
    with pytest.raises(ImageError):
        chat.ask("?", "absent.png")
    delivered: queue.SimpleQueue = queue.SimpleQueue()
    request = chat.submit("And now?", sink=delivered.put, wait=1, deadline=60)
    last = None
    while last is None or last.finish_reason is None:
        last = delivered.get(timeout=60)
    assert request.done and last.statistics.cached_tokens > 0
    again = chat.submit_retry(sink=delivered.put)
    while not again.done:
        time.sleep(0.01)
    chat.reset()
    assert chat.messages == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queue", 0),
        ("max_batch", True),
        ("cache_limit", -1),
        ("wired_limit", 0.5),
        ("idle_seconds", "long"),
        ("idle_seconds", 1e12),
        ("idle_seconds", float("nan")),
        ("vision_cache_bytes", None),
        ("prompt_cache_bytes", -1),
        ("loader", "demo"),
    ],
)
def test_limits_are_checked(name, value):
    with pytest.raises(OptionError, match=f"{name} is {value!r}, expected"):
        Engine(**{"loader": loader, name: value})


ENDINGS = {
    "closed": "with Engine(lambda: load('demo')) as engine: engine.generate('Hi.', options=few)",
    "not closed": "engine = Engine(lambda: load('demo')); engine.generate('Hi.', options=few)",
    "while it answers": "engine = Engine(lambda: load('demo')); pieces = engine.stream('Hi.'); next(pieces)",
    "while it loads": "engine = Engine(lambda: load('demo')); request = engine.submit('Hi.')",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_used_an_engine_exits_with_0(ending):
    """Several at a time, since what they must not lose is a race."""
    program = f"from mlx_lfm2vl import *; few = GenerationOptions(max_tokens=3)\n{ENDINGS[ending]}"
    runs = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(5)]
    assert [(run.communicate(timeout=120)[1], run.returncode) for run in runs] == [(b"", 0)] * 5
