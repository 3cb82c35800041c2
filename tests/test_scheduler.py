"""The one loop: who gets a chunk, who gets a token, and what a row that leaves does to the others."""

from __future__ import annotations

import itertools
import signal
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, statistics_of

from mlx_lfm2vl import (
    GenerationOptions,
    GenerationRequest,
    PromptCache,
    ResponseFormat,
    backends,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.errors import NotFiniteError, OutOfMemoryError
from mlx_lfm2vl.generation import chunked_prefill, sequence
from mlx_lfm2vl.generation import prefill as prefill_module
from mlx_lfm2vl.generation import scheduler as scheduler_module
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.generation.response import Completion, GenerationResponse
from mlx_lfm2vl.generation.scheduler import Scheduler
from mlx_lfm2vl.generation.sequence import Sequence
from mlx_lfm2vl.threads import cancellation

GREEDY = GenerationOptions(max_tokens=12)


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


LETTERS = ResponseFormat.regex("[a-z]{1,3}(, [a-z]){9}")


@cache_by_backend
def alone(text: str, name: str | None = None, options: GenerationOptions = GREEDY) -> tuple[int, ...]:
    pictures = None if name is None else picture(name)
    responses = stream_generate(*loaded(), text, pictures, options=options)
    return tuple(token for response in responses for token in response.tokens)


class Driven:
    """A scheduler, and what each of its steps gave."""

    def __init__(self, prompt_cache: PromptCache | None = None):
        model, processor = loaded()
        self.scheduler = Scheduler(model, processor.tokenizer, prompt_cache=prompt_cache)
        self.steps: list[list[int]] = []
        self.items: dict[int, list[GenerationResponse | Exception]] = {}
        self.rows: dict[int, Sequence] = {}

    def add(self, text: str, name: str | None = None, options: GenerationOptions = GREEDY) -> int:
        request = GenerationRequest(text, None if name is None else picture(name), options=options)
        row = self.scheduler.add(encode(*loaded(), request), started=0.0)
        self.rows[row.id] = row
        return row.id

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            output = self.scheduler.step()
            self.steps.append([id for id, row in self.rows.items() if row.generated])
            for id, item in output:
                self.items.setdefault(id, []).append(item)

    def finish(self) -> None:
        while len(self.scheduler):
            self.step()

    def responses(self, id: int) -> list[GenerationResponse]:
        """Of a row that did not fail."""
        responses = [item for item in self.items[id] if isinstance(item, GenerationResponse)]
        assert len(responses) == len(self.items[id])
        return responses

    def tokens(self, id: int) -> tuple[int, ...]:
        return Completion.of(self.responses(id)).tokens

    def first(self, id: int) -> int:
        """The number of steps until the row's first token."""
        return next(number for number, ids in enumerate(self.steps, 1) if id in ids)


@pytest.fixture
def small_chunks(monkeypatch):
    """A piece of work is 32 tokens."""
    monkeypatch.setattr(chunked_prefill, "PIECE_FLOPS", 1.0)


def test_prompts_take_turns_chunk_by_chunk(small_chunks):
    """Nobody waits for more than one chunk of each other's prompt between two of its own."""
    driven = Driven()
    texts = ["Why? " * 200, "What? " * 200, "Hello."]
    long, other, short = (driven.add(text) for text in texts)
    chunks = [-(-len(encode(*loaded(), GenerationRequest(text)).ids) // 32) for text in texts]
    driven.finish()
    assert chunks[0] > 10 and chunks[1] > 10 and chunks[2] < 4
    assert driven.first(short) <= 3 * chunks[2]
    assert abs(driven.first(long) - driven.first(other)) <= 2 * abs(chunks[0] - chunks[1]) + 2
    for id, text in zip((long, other, short), texts, strict=True):
        assert driven.tokens(id) == alone(text)


def test_answers_go_on_beside_a_prompt(small_chunks):
    """A token after each chunk, and the same tokens."""
    driven = Driven()
    first = driven.add("Tell me everything.", options=GenerationOptions(max_tokens=60))
    driven.step(6)
    prompt = driven.add("Why? " * 200)
    before, chunks = len(driven.rows[first].generated), 0
    while not driven.rows[prompt].generated:
        driven.step()
        chunks += 1
    assert chunks > 10 and len(driven.rows[first].generated) == before + chunks
    driven.finish()
    assert driven.tokens(first) == alone("Tell me everything.", None, GenerationOptions(max_tokens=60))
    assert driven.tokens(prompt) == alone("Why? " * 200)


def test_prompts_of_just_one_chunk_are_run_together(small_chunks):
    texts = (f"Why? {'x' * count}" for count in range(40))
    text = next(text for text in texts if len(encode(*loaded(), GenerationRequest(text)).ids) == 32)
    driven = Driven()
    ids = [driven.add(text), driven.add(text)]
    driven.finish()
    assert driven.first(ids[0]) == driven.first(ids[1])
    assert driven.tokens(ids[0]) == driven.tokens(ids[1]) == alone(text)


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_cancel_at_any_step_leaves_the_others_alone(small_chunks, at):
    driven = Driven(PromptCache())
    ids = [driven.add("What is this?", "landscape"), driven.add("Why? " * 60), driven.add("And this?", "small")]
    driven.step(at)
    driven.scheduler.cancel(ids[1])
    driven.finish()
    assert driven.tokens(ids[0]) == alone("What is this?", "landscape")
    assert driven.tokens(ids[2]) == alone("And this?", "small")
    cut = driven.tokens(ids[1])
    assert cut == alone("Why? " * 60)[: len(cut)]
    assert driven.responses(ids[1])[-1].finish_reason in ("cancelled", "length")
    driven.scheduler.cancel(ids[1])  # harmless
    again = driven.add("Why? " * 60)
    driven.finish()
    assert driven.tokens(again) == alone("Why? " * 60)


def test_rows_that_are_cancelled_together_all_end():
    driven = Driven()
    ids = [driven.add(text) for text in ("Hello.", "Why?", "What?")]
    driven.step(6)
    for id in ids[:2]:
        driven.scheduler.cancel(id)
    driven.step()
    assert [driven.responses(id)[-1].finish_reason for id in ids[:2]] == ["cancelled", "cancelled"]
    driven.finish()
    assert driven.tokens(ids[2]) == alone("What?")


def test_rows_are_cancelled_by_the_next_step_where_one_is_interrupted(monkeypatch):
    driven = Driven()
    ids = [driven.add(text) for text in ("Hello.", "Why?")]
    driven.step(6)
    driven.scheduler.cancel_all()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(driven.rows[ids[0]].detokenizer, "finish", lambda: signal.raise_signal(signal.SIGINT))
        driven.step()
    driven.finish()
    assert [driven.responses(id)[-1].finish_reason for id in ids] == ["cancelled", "cancelled"]


def test_a_row_that_is_not_finite_leaves_the_others(monkeypatch):
    driven = Driven()
    ids = [driven.add("Hello."), driven.add("Why?"), driven.add("What?")]
    driven.step(5)
    step = GenerationBatch.step

    def damaged(self, last=False):
        tokens, logprobs = step(self, last)
        return [token if at != 1 else -1 for at, token in enumerate(tokens)], logprobs

    with monkeypatch.context() as once:
        once.setattr(GenerationBatch, "step", damaged)
        driven.step()
    driven.finish()
    assert isinstance(driven.items[ids[1]][-1], NotFiniteError)
    for id, text in ((ids[0], "Hello."), (ids[2], "What?")):
        assert driven.tokens(id) == alone(text)


def test_out_of_memory_in_a_prompt_leaves_running_rows(monkeypatch):
    driven = Driven()
    first = driven.add("Tell me everything.", options=GenerationOptions(max_tokens=30))
    driven.step(4)

    def fail(*_, **__):
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUOutOfMemory)")
        yield

    with monkeypatch.context() as short:
        short.setattr(scheduler_module, "prefill_rows", fail)
        second = driven.add("Why?")
        driven.step(2)
    driven.finish()
    assert isinstance(driven.items[second][-1], (OutOfMemoryError, RuntimeError))
    assert driven.tokens(first) == alone("Tell me everything.", None, GenerationOptions(max_tokens=30))


def test_padding_does_not_count_for_the_penalty():
    """Shorter prompts stand behind padding, whose token the answer may hold."""
    options = GenerationOptions(max_tokens=10, repetition_penalty=0.02)  # what counts as seen is nearly always chosen
    texts = ["Hello.", "What is this? " * 9, "Why? " * 3, "No.", "Tell me."]
    answers = list(generate_batch(*loaded(), [GenerationRequest(text, options=options) for text in texts]))
    assert [answer.tokens for answer in answers] == [alone(text, None, options) for text in texts]


def test_each_row_keeps_its_own_sampler_when_others_leave():
    """Whichever of the rows end first."""
    for lengths in itertools.permutations((2, 5, 9)):
        every = [
            GenerationOptions(max_tokens=length, temperature=1.5 + n, seed=7 * n, repetition_penalty=1.1 + n / 10)
            for n, length in enumerate(lengths)
        ]
        requests = [GenerationRequest("Tell me.", options=options) for options in every]
        answers = list(generate_batch(*loaded(), requests))
        assert [answer.tokens for answer in answers] == [alone("Tell me.", None, options) for options in every]


def test_speeds_count_from_the_first_token(monkeypatch):
    """A clock that goes on by one second each time a step begins."""
    now = 100.0
    monkeypatch.setattr(sequence.time, "perf_counter", lambda: now)
    model, processor = loaded()
    scheduler = Scheduler(model, processor.tokenizer)
    prompt = encode(model, processor, GenerationRequest("Hello.", options=GenerationOptions(max_tokens=6)))
    scheduler.add(prompt, started=98.0)
    items: list[GenerationResponse | Exception] = []
    while len(scheduler):
        items += [item for _, item in scheduler.step()]
        now += 1.0
    assert isinstance(items[-1], GenerationResponse)
    statistics = statistics_of(items[-1])
    steps_before = statistics.time_to_first_token - 2.0
    assert statistics.generated_tokens == 6
    assert statistics.tokens_per_second == pytest.approx(5 / 5)
    assert statistics.prompt_tokens_per_second == pytest.approx(len(prompt.ids) / (2.0 + steps_before))


def test_a_finished_row_gives_its_answer_to_the_next_turn():
    """In a batch with others too, whatever their lengths."""
    cache = PromptCache()
    driven = Driven(cache)
    texts = ["Hello.", "What is this? " * 20, "Why?"]
    ids = [driven.add(text) for text in texts]
    driven.finish()
    model, processor = loaded()
    for id, text in zip(ids, texts, strict=True):
        said = "".join(response.text for response in driven.responses(id))
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "Go on."},
        ]
        warm = list(stream_generate(model, processor, messages, options=GREEDY, prompt_cache=cache))
        cold = list(stream_generate(model, processor, messages, options=GREEDY))
        assert Completion.of(warm).tokens == Completion.of(cold).tokens
        prompt = encode(model, processor, GenerationRequest(text)).ids
        assert statistics_of(warm[-1]).cached_tokens >= len(prompt)


def test_a_prompt_that_was_answered_is_answered_again_without_a_run():
    cache = PromptCache()
    for expected in (0, None):
        *_, last = stream_generate(*loaded(), "Hello.", picture("small"), options=GREEDY, prompt_cache=cache)
        known = statistics_of(last).prompt_tokens if expected is None else expected
        assert statistics_of(last).cached_tokens == known
        assert statistics_of(last).prompt_tokens == len(
            encode(*loaded(), GenerationRequest("Hello.", picture("small"))).ids
        )
    assert np.isfinite(statistics_of(last).time_to_first_token)


def test_memory_that_runs_out_at_a_join_changes_no_answer(monkeypatch):
    """The step that a join begins with fails for the row that would join, and is done again for the other."""
    options = GenerationOptions(max_tokens=20, logprobs=True)
    model, join, calls = type(loaded()[0]), GenerationBatch.extend, []

    def fail(*_):
        calls.append(1)
        raise MemoryError

    def joining(self, other):
        with monkeypatch.context() as short:
            short.setattr(model, "logits", fail)
            join(self, other)

    monkeypatch.setattr(GenerationBatch, "extend", joining)
    driven = Driven()
    first = driven.add("Tell me everything.", options=options)
    driven.step()  # the first token, of which the step after is not dispatched yet
    second = driven.add("Why?")
    driven.finish()
    assert calls and isinstance(driven.items[second][-1], OutOfMemoryError)
    monkeypatch.undo()
    expected = list(stream_generate(*loaded(), "Tell me everything.", options=options))
    made, wanted = ([n for item in items for n in item.logprobs or ()] for items in (driven.responses(first), expected))
    np.testing.assert_allclose(made, wanted, atol=1e-4)


@pytest.mark.parametrize("at", [1, 2, 9])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.2, "logprobs": True},
        {"temperature": 2.0, "seed": 3, "frequency_penalty": 1.0, "response_format": LETTERS},
    ],
)
def test_memory_that_runs_out_in_a_step_ends_nobody(at, given, monkeypatch):
    """All rows begin again behind their answers so far, fewer at a time, pictures too."""
    driven, options = Driven(), GenerationOptions(max_tokens=12, **given)
    texts = [("Hello.", None), ("What is this?", "landscape"), ("Why? " * 20, None)]
    ids = [driven.add(*each, options=options) for each in texts]
    step, count, most = GenerationBatch.step, 0, []

    def scarce(self, last=False):
        nonlocal count
        most.append(len(driven.scheduler._running.rows))
        count += most[-1] > 2
        if most[-1] > 2 and count == at:
            raise OutOfMemoryError("no memory")
        return step(self, last)

    monkeypatch.setattr(GenerationBatch, "step", scarce)
    driven.finish()
    assert most.count(3) == at and most[-1] < 3
    for id, each in zip(ids, texts, strict=True):
        assert driven.tokens(id) == alone(*each, options)


def test_a_row_too_large_even_alone_ends_with_the_error(monkeypatch):
    driven = Driven()
    ids = [driven.add("Hello."), driven.add("Why? " * 20)]
    step = GenerationBatch.step

    def scarce(self, last=False):
        if any(row.id == ids[1] for row in driven.scheduler._running.rows):
            raise OutOfMemoryError("no memory")
        return step(self, last)

    monkeypatch.setattr(GenerationBatch, "step", scarce)
    driven.finish()
    assert isinstance(driven.items[ids[1]][-1], OutOfMemoryError)
    assert driven.tokens(ids[0]) == alone("Hello.")


def test_pictures_that_fail_together_are_tried_one_by_one(monkeypatch):
    """Only the row whose own picture fails ends with the error."""
    driven, encode_views, calls = Driven(), prefill_module.encode_views_in_pieces, []
    ids = [driven.add("What is this?", name) for name in ("landscape", "small")]
    bad = driven.rows[ids[1]].prompt.pictures[0].spatial_shapes.tolist()

    def fail(model, pixels, shapes, *rest):
        calls.append(len(shapes))
        if shapes[-1].tolist() == bad[-1]:
            raise NotFiniteError("the picture")
        return (yield from encode_views(model, pixels, shapes, *rest))

    monkeypatch.setattr(prefill_module, "encode_views_in_pieces", fail)
    driven.finish()
    assert isinstance(driven.items[ids[1]][-1], NotFiniteError) and len(calls) == 3
    assert driven.tokens(ids[0]) == alone("What is this?", "landscape")


def test_one_of_rows_prefilled_together_may_leave():
    """Between the pass of their pictures and their text."""
    driven = Driven()
    ids = [driven.add("What is this?", name) for name in ("landscape", "small", "portrait")]
    driven.step()
    assert len(driven.scheduler._prefilling) == 1 and not driven.items
    driven.scheduler.cancel(ids[1])
    driven.step()
    assert driven.responses(ids[1])[-1].finish_reason == "cancelled"
    driven.step(20)
    assert driven.tokens(ids[1]) == () and len(driven.scheduler) == 0
    for id, name in ((ids[0], "landscape"), (ids[2], "portrait")):
        assert driven.tokens(id) == alone("What is this?", name)


def test_what_short_rows_begin_with_alike_is_run_once():
    driven = Driven(PromptCache())
    texts = ["Where? " * 30 + end for end in ("Why?", "What?", "Who?")]
    ids = [driven.add(text) for text in texts]
    driven.finish()
    assert [driven.rows[id].cached > 32 for id in ids] == [False, True, True]
    assert [driven.tokens(id) for id in ids] == [alone(text) for text in texts]


def test_what_rows_begin_with_alike_is_run_once(small_chunks):
    """A row waits for the shared beginning, also one that comes later, and for no more of the other's prompt."""
    cache = PromptCache()
    driven = Driven(cache)
    shared = "Where? " * 60
    texts = [shared + "Why? " * 150, shared + "Hello.", shared + "What? " * 5]
    ids = [driven.add(text) for text in texts[:2]]
    driven.step(2)
    ids.append(driven.add(texts[2]))
    driven.finish()
    for id, text in zip(ids, texts, strict=True):
        assert driven.tokens(id) == alone(text)
    length = len(encode(*loaded(), GenerationRequest(shared)).ids)
    for id in ids[1:]:
        assert driven.rows[id].cached > length - 16
        assert driven.first(id) < driven.first(ids[0]) - 10


def test_columns_of_a_long_row_that_has_left_are_given_up():
    driven = Driven()
    long = driven.add("Why? " * 300, options=GenerationOptions(max_tokens=2))
    short = driven.add("Hello.", options=GenerationOptions(max_tokens=40))
    while not driven.rows[long].generated or not driven.rows[short].generated:
        driven.step()
    driven.step(3)
    batch = driven.scheduler._running.batch
    assert long not in driven.scheduler._rows and batch is not None and batch._cache.offset < 100
    driven.finish()
    assert driven.tokens(short) == alone("Hello.", None, GenerationOptions(max_tokens=40))


@pytest.mark.backends("mlx", "numpy")
def test_a_cancel_from_within_a_step_counts():
    """As a backend that asks within a layer gives occasion to."""
    driven = Driven()
    id = driven.add("Why? " * 100, options=GenerationOptions(max_tokens=50))
    with cancellation(lambda: driven.scheduler.cancel(id)):
        driven.finish()
    if backends.choose() == "numpy":
        assert driven.tokens(id) == ()
        assert driven.responses(id)[-1].finish_reason == "cancelled"
    else:
        assert driven.tokens(id) == alone("Why? " * 100, None, GenerationOptions(max_tokens=50))
