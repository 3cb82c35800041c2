"""Work that goes on in another thread than the one that began it: MLX's streams belong to threads, arrays must not.

A lazy array is bound to the stream of the thread that asked for it: "There is no Stream" is what another one hears.
"""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture

from mlx_lfm2vl import (
    Chat,
    GenerationOptions,
    GenerationRequest,
    PromptCache,
    VisionCache,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.generation.batched_sampler import BatchedSampler
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.models.cache import Cache

pytestmark = pytest.mark.backends("mlx", "numpy")

T = TypeVar("T")
SYSTEM = "You look at pictures, say what is in them, and add nothing that is not there. " * 3
GREEDY = GenerationOptions(max_tokens=8, temperature=0.0, logprobs=True)
SAMPLED = GenerationOptions(max_tokens=12, temperature=0.9, min_p=0.02, repetition_penalty=1.2, seed=3, logprobs=True)
FILTERED = GenerationOptions(max_tokens=12, temperature=0.9, top_k=20, top_p=0.9, seed=3)


@pytest.fixture(params=[None, 2**34], ids=["MLX's own limit", "16 GiB kept"], autouse=True)
def cache_limit(request) -> Iterator[None]:
    """What MLX may keep for reuse: buffers that a thread gave back are then another one's."""
    before = None if request.param is None else mx.set_cache_limit(request.param)
    yield
    if before is not None:
        mx.set_cache_limit(before)
        mx.clear_cache()


def elsewhere(work: Callable[[], T]) -> T:
    """The result of some work in a thread of its own, which has ended when this returns."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@cache_by_backend
def loaded(folder: Path) -> Loaded:
    """Loaded in a thread that has ended."""
    return elsewhere(lambda: load(folder))


@pytest.fixture
def model_and_processor(endless) -> Loaded:
    return loaded(endless)


def said(pieces: Any) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
    """Text, tokens and logprobs of an answer, without the digits that the number of OpenBLAS's threads decides."""
    pieces = list(pieces)
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    logprobs = tuple(round(number, 2) for piece in pieces for number in piece.logprobs or ())
    return "".join(piece.text for piece in pieces), tokens, logprobs


def each_elsewhere(pieces: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a new thread."""
    end = object()
    while (item := elsewhere(lambda: next(pieces, end))) is not end:
        yield item  # type: ignore[misc]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("options", [GREEDY, SAMPLED, FILTERED], ids=["greedy", "min-p and penalty", "top-k and top-p"])
@pytest.mark.parametrize("images", [None, "photo"])
def test_each_piece_of_an_answer_may_come_in_a_new_thread(model_and_processor: Loaded, options, images):
    def begun() -> Iterator[Any]:
        image = picture(images) if images else None
        return stream_generate(*model_and_processor, "What is this?", image, options=options)

    expected = said(begun())
    assert len(expected[1]) == options.max_tokens
    assert said(each_elsewhere(begun())) == expected


def test_batches_may_go_on_in_new_threads(model_and_processor: Loaded):
    """Rows of several kinds of sampling, in two batches; beginnings are handed from one to the next."""
    kinds = [GREEDY, SAMPLED, FILTERED, SAMPLED]
    questions = [
        GenerationRequest(f"Question {n}?", picture("landscape") if n else None, SYSTEM, options=options)
        for n, options in enumerate(kinds)
    ]
    expected = [answer.tokens for answer in generate_batch(*model_and_processor, questions, batch_size=2)]
    answers = generate_batch(*model_and_processor, questions, batch_size=2)
    assert [answer.tokens for answer in each_elsewhere(answers)] == expected
    assert all(expected)


def test_rows_leave_and_join_in_new_threads(model_and_processor: Loaded):
    """Each step, and each change between steps, in a thread of its own: numbers of each row as in one thread."""
    model, _ = model_and_processor
    ids = np.random.default_rng(0).integers(500, 800, (4, 20))

    def begun(rows: np.ndarray, *options: GenerationOptions) -> GenerationBatch:
        resolved = [each.resolve(GenerationConfig(do_sample=True)) for each in options]
        sampler = BatchedSampler([UniformSampler(each) for each in resolved])
        sampler.observe(mx.array(rows), model.config.text_config.vocab_size)
        cache = Cache(model.config.text_config)
        return GenerationBatch(model, cache, prefill(model, Prompt(rows), cache), sampler, top_logprobs=0)

    def numbers(run: Callable[[Callable[[], Any]], Any]) -> list[Any]:
        made = []
        steps = run(lambda: begun(ids[:3], GREEDY, SAMPLED, FILTERED))
        for rows in (None, [0, 1], [1], None):
            made += [run(steps.step) for _ in range(3)]
            if rows is not None:
                run(partial(steps.filter, rows))
        other = run(lambda: begun(ids[3:], SAMPLED))
        run(lambda: steps.extend(other))
        return [*made, *(run(steps.step) for _ in range(3))]

    assert numbers(elsewhere) == numbers(lambda work: work())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", ["What is this?", "Why?"])
def test_what_one_thread_remembers_serves_another(model_and_processor: Loaded, text):
    """Beginnings of prompts and encoded pictures: filled in threads that have ended, used in others."""
    images = [picture("landscape"), picture("photo")]

    def answer(text: str, prompts: PromptCache | None, views: VisionCache | None) -> Any:
        pieces = stream_generate(
            *model_and_processor,
            text,
            images,
            system=SYSTEM,
            options=GREEDY,
            vision_cache=views,
            prompt_cache=prompts,
        )
        return list(pieces)

    expected = said(answer(text, None, None))
    prompts, views = PromptCache(), VisionCache()
    elsewhere(lambda: answer("What is this?", prompts, views))
    for known in (prompts, prompts, PromptCache()):
        again = elsewhere(partial(answer, text, known, views))
        assert (again[-1].statistics.cached_tokens > 100) == (known is prompts)
        assert said(again)[1] == expected[1]
        np.testing.assert_allclose(said(again)[2], expected[2], atol=1e-4)


def test_a_conversation_may_go_on_in_new_threads(model_and_processor: Loaded):
    """Made, asked, tried again, forked, undone and asked again, each in a thread of its own."""

    def cold(messages: list[dict[str, Any]]) -> Any:
        return said(stream_generate(*model_and_processor, messages, options=GREEDY))

    def check(answer: Any, chat: Chat) -> None:
        text, tokens, logprobs = cold(chat.messages[:-1])
        assert answer[:2] == (text, tokens)
        np.testing.assert_allclose(answer[2], logprobs, atol=1e-4)

    chat = elsewhere(lambda: Chat(*model_and_processor, system="Be brief.", options=GREEDY))
    check(elsewhere(lambda: said(chat.stream("What is this?", picture("landscape")))), chat)
    first = elsewhere(lambda: said(chat.stream("And that?")))
    check(first, chat)
    assert elsewhere(lambda: said(chat.retry())) == first
    twin = elsewhere(chat.fork)
    check(elsewhere(lambda: said(twin.stream("Compare them.", picture("small")))), twin)
    elsewhere(chat.undo)
    check(elsewhere(lambda: said(chat.stream("Why?"))), chat)
    elsewhere(twin.undo)
    elsewhere(twin.undo)
    assert elsewhere(lambda: said(twin.stream("And that?"))) == first
    check(said(each_elsewhere(chat.stream("Really?"))), chat)


def test_an_answer_left_open_is_closed_by_another_thread(model_and_processor: Loaded):
    chat = elsewhere(lambda: Chat(*model_and_processor, options=GREEDY))
    long = GenerationOptions(max_tokens=200, temperature=0.0)
    pieces = elsewhere(lambda: chat.stream("What is this?", picture("small"), options=long))
    for _ in range(3):
        elsewhere(lambda: next(pieces))
    answer = elsewhere(lambda: said(chat.stream("Why?")))
    assert answer[1] == said(stream_generate(*model_and_processor, chat.messages[:-1], options=GREEDY))[1]


def logits_after(model: Any, cache: Cache, tokens: list[int]) -> np.ndarray:
    """Of each of the tokens, run one by one."""
    made = [model(np.array([[token]]), past_key_values=cache).logits for token in tokens]
    return np.array(mx.concatenate(made, axis=1))


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_cache_is_copied_and_continued_in_other_threads(model_and_processor: Loaded, evaluated):
    """A point in it serves another thread too. Who copies a cache that is lazy is the thread that filled it."""
    model, _ = model_and_processor
    ids, more = np.arange(500, 540)[None], [600, 601, 602]

    def begun() -> Cache:
        cache = Cache(model.config.text_config)
        model(ids, past_key_values=cache)
        return cache

    expected = logits_after(model, begun(), more)

    def filled() -> Cache:
        cache = begun()
        if evaluated:
            mx.eval(cache.arrays)
            return cache
        return cache.copy()

    cache = elsewhere(filled)
    twin = elsewhere(cache.copy)
    point = elsewhere(twin.checkpoint)
    for own in (cache, twin):
        np.testing.assert_array_equal(elsewhere(partial(logits_after, model, own, more)), expected)
    elsewhere(lambda: twin.rewind(point))
    np.testing.assert_array_equal(elsewhere(lambda: logits_after(model, twin, more)), expected)


@pytest.mark.sampled(2)
def test_weights_outlive_the_thread_that_loaded_them(endless):
    """And those that used them first."""

    def answer(model_and_processor: Loaded) -> Any:
        return said(stream_generate(*model_and_processor, "What is this?", picture("photo"), options=GREEDY))

    own = elsewhere(lambda: load(endless))
    expected = answer(loaded(endless))
    for _ in range(3):
        gc.collect()
        assert elsewhere(lambda: answer(own)) == expected


@pytest.mark.sampled(2)
def test_a_process_may_compute_in_threads_that_end_only(endless, backend, cache_limit):
    """Functions are compiled in the first thread that calls them; the process's main thread never computes."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import mlx.core as mx
from conftest import picture
from test_threads_of_mlx import SAMPLED, each_elsewhere, elsewhere, said
from mlx_lfm2vl import load, stream_generate
model = elsewhere(lambda: load({str(endless)!r}, backend={backend!r}))
for _ in range(2):
    pieces = stream_generate(*model, "What is this?", picture("landscape"), options=SAMPLED)
    print(said(each_elsewhere(pieces))[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=GOLDEN.parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = said(stream_generate(*loaded(endless), "What is this?", picture("landscape"), options=SAMPLED))[1]
    assert done.stdout.splitlines() == [str(expected)] * 2
