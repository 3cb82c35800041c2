"""What the engine holds, gives back and does without: caches, finished requests, failures of a picture's memory."""

import gc
import time
import weakref

import mlx.core as mx
import numpy as np
import pytest
from conftest import endless_model, picture
from engines import FOREVER, SHORT, all_read, alone, held

from mlx_lfm2vl import GenerationOptions
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.errors import NotFiniteError, OutOfMemoryError
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.siglip2 import split_views


@pytest.fixture
def fragile(monkeypatch):
    """An engine whose vision tower does what `blank` says at a picture of one colour."""
    model, processor = endless_model()
    embeddings = type(model.model.vision_tower.embeddings)
    embed = embeddings.__call__
    blank: list[str] = []

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


@pytest.mark.parametrize(("what", "error"), [("memory", OutOfMemoryError), ("nan", NotFiniteError)])
def test_what_joins_beside_a_picture_that_fails_is_answered(fragile, what, error):
    engine, blank = fragile
    blank.append(what)
    long, release = held(engine, FOREVER)
    good = engine.submit("Question.", picture("small"), options=SHORT)
    bad = engine.submit("Question.", np.full((64, 64, 3), 200, np.uint8), options=SHORT)
    late = engine.submit("Question.", np.full((64, 64, 3), 200, np.uint8), options=SHORT, deadline=0.0)
    all_read(engine)
    release.set()
    assert good.result(60).tokens == alone("Question.", "small", 6)
    with pytest.raises(error):
        bad.result(60)
    assert late.result(60).finish_reason == "deadline"
    assert not long.done, "nobody waits for the end of another's answer"
    long.cancel()


def test_an_answer_goes_on_where_joining_rows_find_no_room(engine, monkeypatch):
    long, release = held(engine, GenerationOptions(max_tokens=40))
    joiner = engine.submit("Question.", options=SHORT)
    all_read(engine)

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


def test_a_finished_request_keeps_no_states(engine):
    request = engine.submit("Hello.", options=SHORT)
    request.result(60)
    assert request.so_far is None


def test_finished_rows_are_freed_while_others_run(engine):
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


def test_buffers_are_freed_when_idle_and_limits_reset_when_closed():
    before = mx.set_cache_limit(2**30)
    try:
        with Engine(endless_model, cache_limit=2**28, idle_seconds=0.2) as engine:
            kept: list[int] = []  # while it answers

            def stop() -> bool:
                kept.append(mx.get_cache_memory())
                return False

            engine.chat(options=SHORT).submit("Hello.", picture("landscape"), stop=stop).result(60)
            assert mx.set_cache_limit(2**28) == 2**28
            end = time.monotonic() + 30
            while mx.get_cache_memory() and time.monotonic() < end:
                time.sleep(0.05)
            assert kept[-1] > 0 == mx.get_cache_memory()
            assert engine.submit("Hello.", options=SHORT).result(60).tokens == alone("Hello.", None, 6)
        assert mx.set_cache_limit(before) == 2**30
    finally:
        mx.set_cache_limit(before)


def test_clearing_the_caches_changes_no_answer(engine):
    question = ("What is this?", picture("landscape"))
    first = engine.submit(*question, options=SHORT).result(60)
    again = engine.submit(*question, options=SHORT).result(60)
    held = mx.get_active_memory()
    engine.clear_caches()
    assert mx.get_active_memory() < held and mx.get_cache_memory() == 0
    after = engine.submit(*question, options=SHORT).result(60)
    assert first.tokens == again.tokens == after.tokens
    assert again.statistics.cached_tokens > 0 == after.statistics.cached_tokens
