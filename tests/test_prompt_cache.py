"""What prompts begin with alike is prefilled once, and no answer shows it."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, statistics_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_lfm2vl import Engine, GenerationOptions, GenerationRequest, PromptCache, generate_batch, load, stream_generate
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.generation import request as request_module
from mlx_lfm2vl.generation.chunked_prefill import encode_views_in_pieces
from mlx_lfm2vl.generation.options import number_type
from mlx_lfm2vl.generation.prompt_entry import SHORTEST_PASS, PictureSpan, Recorder, checkpoint_places
from mlx_lfm2vl.generation.vision_cache import VisionCache
from mlx_lfm2vl.generation.watch import completed
from mlx_lfm2vl.models.cache import Cache

SYSTEM = "You look at pictures, say what is in them, and add nothing that is not there. " * 4
OPTIONS = GenerationOptions(max_tokens=6)


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


def alone(question: GenerationRequest) -> tuple[int, ...]:
    pieces = stream_generate(
        *loaded(), question.prompt, question.images, system=question.system, options=question.options
    )
    return tuple(token for piece in pieces for token in piece.tokens)


@contextmanager
def counted(monkeypatch):
    """Counts the tokens that go through the backbone, padding too, and the passes of the tower."""
    model, _ = loaded()
    seen = {"tokens": 0, "views": 0}
    backbone, embeddings = type(model.model.language_model), type(model.model.vision_tower.embeddings)
    run, embed = backbone.__call__, embeddings.__call__

    def count_tokens(self, embeds, *arguments, **keywords):
        if embeds.shape[1] > 1:  # not the tokens of answers
            seen["tokens"] += embeds.shape[0] * embeds.shape[1]
        return run(self, embeds, *arguments, **keywords)

    def count_views(self, patches, grids):
        seen["views"] += len(grids)
        return embed(self, patches, grids)

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "__call__", count_tokens)
        patch.setattr(embeddings, "__call__", count_views)
        yield seen


def questions_of_one_picture(count: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"Question {n}: what is this?", picture("landscape"), "Be brief.", options=OPTIONS)
        for n in range(count)
    ]


def test_a_picture_with_many_questions_is_prefilled_once(monkeypatch):
    questions = questions_of_one_picture(8)
    with counted(monkeypatch) as seen:
        answers = list(generate_batch(*loaded(), questions, batch_size=4))
    assert [answer.tokens for answer in answers] == [alone(question) for question in questions]
    known = [statistics_of(answer).cached_tokens for answer in answers]
    lengths = [statistics_of(answer).prompt_tokens for answer in answers]
    assert known[0] == 0 and all(tokens > 60 for tokens in known[1:])  # 60 image tokens, and what stands before
    assert seen == {"tokens": sum(lengths) - sum(known), "views": 1}
    assert seen["tokens"] < sum(lengths) / 3


def test_a_long_system_prompt_is_prefilled_once_whatever_follows(monkeypatch):
    names = ("landscape", "small", "portrait", None)
    questions = [
        GenerationRequest("What is this? " * (1 + n), picture(name) if name else None, SYSTEM, options=OPTIONS)
        for n, name in enumerate(names)
    ]
    with counted(monkeypatch) as seen:
        answers = list(generate_batch(*loaded(), questions))
    assert [answer.tokens for answer in answers] == [alone(question) for question in questions]
    shared = min(statistics_of(answer).cached_tokens for answer in answers[1:])
    assert shared >= len(loaded()[1].tokenizer.encode(SYSTEM))
    assert seen["tokens"] == sum(statistics_of(a).prompt_tokens - statistics_of(a).cached_tokens for a in answers)
    assert seen["views"] == 3


def test_rows_with_and_without_a_shared_beginning_stand_side_by_side(monkeypatch):
    questions = [
        GenerationRequest("Hello.", options=OPTIONS),
        *questions_of_one_picture(2),
        GenerationRequest("Why? " * 5, picture("portrait"), options=OPTIONS),
        *questions_of_one_picture(1),
        GenerationRequest(
            "And this?", [picture("small"), picture("landscape")], options=GenerationOptions(max_tokens=3)
        ),
    ]
    with counted(monkeypatch) as seen:
        answers = list(generate_batch(*loaded(), questions))
    assert [answer.tokens for answer in answers] == [alone(question) for question in questions]
    assert [statistics_of(answer).cached_tokens > 60 for answer in answers] == [False, False, True, False, True, False]
    assert seen["views"] == 3  # that of three rows once, although it stands elsewhere in the last


def test_the_engine_knows_what_was_asked_before(monkeypatch):
    questions = questions_of_one_picture(3)
    expected = [alone(question) for question in questions]
    with counted(monkeypatch) as seen, Engine(loaded) as engine:
        engine.wait_until_ready(60)
        completions = []
        for question in questions:
            request = engine.submit(question.prompt, question.images, system=question.system, options=question.options)
            completions.append(request.result(60))
    assert [completion.tokens for completion in completions] == expected
    known = [statistics_of(completion).cached_tokens for completion in completions]
    assert known[0] == 0 and known[1] == known[2] > 60
    assert seen == {"tokens": sum(statistics_of(c).prompt_tokens for c in completions) - sum(known), "views": 1}


def test_a_conversation_that_is_sent_anew_costs_its_new_turns():
    """As a stateless server sees it."""
    prefixes = PromptCache()
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "image", "image": picture("landscape")}]},
    ]
    before = 0
    for turn in range(3):
        *_, last = stream_generate(*loaded(), messages, options=OPTIONS, prompt_cache=prefixes)
        cold = tuple(t for piece in stream_generate(*loaded(), messages, options=OPTIONS) for t in piece.tokens)
        warm = tuple(
            t for p in stream_generate(*loaded(), messages, options=OPTIONS, prompt_cache=prefixes) for t in p.tokens
        )
        assert warm == cold
        assert statistics_of(last).cached_tokens >= before
        before = statistics_of(last).prompt_tokens - SHORTEST_PASS
        messages += [
            {"role": "assistant", "content": "A thing. " * 4},
            {"role": "user", "content": f"And {turn}? " * 9},
        ]
    assert len(prefixes) == 3  # an answer of its own each, which the conversation does not have


def test_the_same_ids_with_another_picture_share_what_is_before_it():
    prefixes = PromptCache()
    one = np.asarray(picture("landscape"))
    for image in (one, 255 - one, one):
        question = GenerationRequest("What is this?", image, SYSTEM, options=OPTIONS)
        pieces = list(
            stream_generate(*loaded(), "What is this?", image, system=SYSTEM, options=OPTIONS, prompt_cache=prefixes)
        )
        assert tuple(token for piece in pieces for token in piece.tokens) == alone(question)


def test_it_holds_no_more_bytes_than_it_may():
    options = GenerationOptions(max_tokens=1)

    def ask(prefixes: PromptCache, n: int) -> int:
        *_, last = stream_generate(*loaded(), "?", system=f"{n}: {SYSTEM}", options=options, prompt_cache=prefixes)
        return statistics_of(last).cached_tokens

    prefixes = PromptCache()
    ask(prefixes, 0)
    room = prefixes.nbytes * 3
    prefixes = PromptCache(room)
    for n in range(9):
        assert ask(prefixes, n) == 0
        assert 0 < prefixes.nbytes <= room
    assert ask(prefixes, 8) > 0 and ask(prefixes, 0) == 0
    asked = request_module.encode(*loaded(), GenerationRequest("?", system=f"7: {SYSTEM}"))
    assert prefixes.find(asked.ids, asked.spans) is not None  # so 8 is now the longest unused, not 7
    assert ask(prefixes, 1) == 0 and ask(prefixes, 7) > 0 and ask(prefixes, 8) == 0
    nothing = PromptCache(0)
    assert ask(nothing, 0) == ask(nothing, 0) == len(nothing) == nothing.nbytes == 0
    prefixes.clear()
    assert ask(prefixes, 7) == 0
    with pytest.raises(OptionError, match="limit is -1"):
        PromptCache(-1)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_questions_in_any_batches_are_answered_as_alone(data):
    check_questions(data)


@pytest.mark.soak
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_500_batches_of_questions_are_answered_as_alone(data):
    check_questions(data)


def check_questions(data: st.DataObject) -> None:
    """Systems, pictures and texts that begin alike or not, in batches of any size, with one memory or little of it."""
    systems = st.sampled_from([None, "Be brief.", SYSTEM, SYSTEM + "Be brief.", SYSTEM[:100]])
    pictures = st.lists(st.sampled_from(["landscape", "small", "portrait"]), max_size=2)
    texts = st.sampled_from(["Why?", "What is this? " * 3, "What is this? " * 12, "What is this? " * 12 + "Why?"])
    asked = data.draw(st.lists(st.tuples(systems, pictures, texts, st.integers(1, 5)), min_size=1, max_size=7))
    questions = [
        GenerationRequest(
            text, [picture(name) for name in names] or None, system, options=GenerationOptions(max_tokens=count)
        )
        for system, names, text, count in asked
    ]
    prefixes = PromptCache(data.draw(st.sampled_from([2**28, 100_000])))
    size = data.draw(st.integers(1, 5))
    answers = list(generate_batch(*loaded(), questions, batch_size=size, prompt_cache=prefixes))
    assert [answer.tokens for answer in answers] == [alone_cached(*row) for row in asked]


@cache_by_backend
def _alone_cached(system, names, text, count):
    images = [picture(name) for name in names] or None
    return alone(GenerationRequest(text, images, system, options=GenerationOptions(max_tokens=count)))


def alone_cached(system, names, text, count):
    return _alone_cached(system, tuple(names), text, count)


def test_remembered_pictures_hold_what_they_count_and_no_more():
    """Several views are encoded in one pass; those that are forgotten must not be held by those that are not."""
    model, processor = load("demo")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for _ in range(12)]
    arrays = processor.image_processor(pictures)
    one = 16 * model.config.text_config.hidden_size * number_type(model).size
    kept = VisionCache(2 * one)
    mx.eval(completed(encode_views_in_pieces)(model, arrays["pixel_values"], arrays["spatial_shapes"]))
    mx.clear_cache()
    before = mx.get_active_memory()
    keys = [bytes([number]) for number in range(len(pictures))]
    completed(encode_views_in_pieces)(model, arrays["pixel_values"], arrays["spatial_shapes"], kept, keys)
    assert kept.nbytes == 2 * one and len(kept) == 2
    assert mx.get_active_memory() - before <= 3 * one


def test_a_long_conversation_is_not_run_in_tiny_pieces():
    """Each point ends a pass; the likely places to part are kept: after the system's text and the last turns."""
    end = 7
    ids = np.ones(4000, np.int64)
    ids[39::40] = end
    points = checkpoint_places(ids, (), (end,), known=0)
    assert len(points) <= 4000 // 256 + 3
    assert points[0] == 40 and points[-1] == 3960
    assert min(np.diff([0, *points])) >= 32
    for known, expected in ((8, [40, 3960]), (9, [3960])):  # 32 tokens before the first turn's end, and 31
        assert checkpoint_places(np.where(np.isin(np.arange(4000), (39, 3959)), end, 1), (), (end,), known) == expected


def test_a_beginning_that_ends_within_a_picture_has_no_span_of_it():
    span = PictureSpan(2, 6, b"key")
    for offset, expected in ((5, ()), (6, (span,))):
        cache = Cache(loaded()[0].config.text_config)
        cache.offset = offset
        entry = Recorder(np.arange(10), [span]).entry(cache)
        assert entry is not None and entry.pictures == expected


# Held in 16 bits, where MLX computes lazily as on a GPU: what is cut from an array keeps all of it. In processes of
# their own, since memory is the process's.

HELD_BY_A_CHECKPOINT = """
    cache = Cache(model.config.text_config)
    model.model.language_model(model.model.embed(np.full((1, 800), 7)), cache=cache)
    mx.eval(cache.arrays)
    point = cache.checkpoint()
    del cache
    return point, sum(array.nbytes for layer in point.states for array in layer)
"""
HELD_BY_A_PROMPT_CACHE = """
    prompts = PromptCache()
    list(stream_generate(model, processor, "Why? " * 300, system="You look at pictures. " * 4, prompt_cache=prompts,
                         options=GenerationOptions(max_tokens=6)))
    return prompts, prompts.nbytes
"""


@pytest.mark.parametrize("program", [HELD_BY_A_CHECKPOINT, HELD_BY_A_PROMPT_CACHE])
def test_states_hold_their_numbers_and_nothing_else(program):
    code = f"""
import gc
import mlx.core as mx
import numpy as np
from mlx_lfm2vl import GenerationOptions, PromptCache, load, stream_generate
from mlx_lfm2vl.models.cache import Cache

model, processor = load({str(GOLDEN / "gen2")!r}, dtype="bfloat16")

def kept():
{program}

def active():
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()

kept()  # what is made once
before = active()
state, counted = kept()
print(counted, active() - before)
"""
    environment = {**os.environ, "MLX_LFM2VL_BACKEND": "mlx"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    counted, held = map(int, done.stdout.split())
    assert 0 < counted <= held <= 1.05 * counted + 1000


def test_the_engine_s_own_thread_does_not_look_through_pictures(monkeypatch):
    """Their keys are made where they are read, so that others are answered meanwhile."""
    threads, view_key = set(), request_module.view_key

    def looking(*given):
        threads.add(threading.current_thread().name)
        return view_key(*given)

    monkeypatch.setattr(request_module, "view_key", looking)
    with Engine(loaded) as engine:
        engine.submit("What is this?", picture("landscape"), options=OPTIONS).result(60)
    assert threads == {"mlx-lfm2vl reader"}


def test_states_of_another_model_are_refused():
    prompts, views = PromptCache(), VisionCache()
    caches: dict[str, Any] = {"prompt_cache": prompts, "vision_cache": views}
    list(stream_generate(*loaded(), "Hello.", picture("small"), options=OPTIONS, **caches))
    other = load(GOLDEN / "gen2")
    for name in caches:
        with pytest.raises(OptionError, match=f"{name} holds what another model made"):
            list(stream_generate(*other, "Hello.", options=OPTIONS, **{name: caches[name]}))
    prompts.clear()
    list(stream_generate(*other, "Hello.", options=OPTIONS, prompt_cache=prompts))
    empty = PromptCache()
    begun = stream_generate(*loaded(), "Hello.", options=OPTIONS, prompt_cache=empty)
    next(begun)
    with pytest.raises(OptionError, match="what another model made"):
        next(stream_generate(*other, "Hello.", options=OPTIONS, prompt_cache=empty))
