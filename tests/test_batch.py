"""Rows of a batch against the same questions asked alone."""

import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, statistics_of

from mlx_lfm2vl import Chat, GenerationOptions, GenerationRequest, generate_batch, load, stream_generate
from mlx_lfm2vl.errors import ImageError, OptionError, OutOfMemoryError, PromptError
from mlx_lfm2vl.generation import chunked_prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.prompt_cache import PromptCache
from mlx_lfm2vl.generation.request import encode

NAMES = ("landscape", "small", "portrait", "photo", "square")


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


def alone(question: GenerationRequest) -> tuple[tuple[int, ...], str, str | None]:
    pieces = list(
        stream_generate(
            *loaded(),
            question.prompt,
            question.images,
            system=question.system,
            options=question.options,
            **question.image_overrides,
        )
    )
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return tokens, "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def mixed(count: int, seed: int = 0) -> list[GenerationRequest]:
    rng = np.random.default_rng(seed)
    questions = []
    for index in range(count):
        images = [picture(NAMES[i]) for i in rng.integers(0, len(NAMES), rng.integers(0, 3))]
        options = GenerationOptions(max_tokens=int(rng.integers(1, 12)))
        overrides = {"do_image_splitting": False} if index % 4 == 1 else {}
        text = "What is this? " * int(rng.integers(1, 6))
        questions.append(
            GenerationRequest(text, images or None, "Be brief." if index % 3 else None, None, options, overrides)
        )
    return questions


@pytest.mark.sampled(1)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_row_is_what_it_would_be_alone(batch_size):
    questions = mixed(17)
    answers = list(generate_batch(*loaded(), iter(questions), batch_size=batch_size))
    assert len(answers) == 17
    for question, answer in zip(questions, answers, strict=True):
        assert (answer.tokens, answer.text, answer.finish_reason) == alone(question)
        assert statistics_of(answer).generated_tokens == question.options.max_tokens
        assert answer.error is None


def test_sampling_with_a_seed_is_a_rows_own():
    options = GenerationOptions(max_tokens=8, temperature=1.5, top_p=0.9, seed=11, repetition_penalty=1.2)
    questions = [
        GenerationRequest(text, picture("small"), options=options) for text in ("One.", "Another one, longer.")
    ]
    answers = list(generate_batch(*loaded(), questions))
    assert [answer.tokens for answer in answers] == [alone(question)[0] for question in questions]


def test_an_error_stays_in_its_row(tmp_path):
    good = GenerationRequest("What?", picture("small"), options=GenerationOptions(max_tokens=3))
    questions = [good, GenerationRequest("?", tmp_path / "absent.png"), GenerationRequest(""), good]
    answers = list(generate_batch(*loaded(), questions))
    assert isinstance(answers[1].error, ImageError) and "absent.png" in str(answers[1].error)
    assert isinstance(answers[2].error, PromptError)
    assert [answer.finish_reason for answer in answers] == ["length", "error", "error", "length"]
    assert answers[0].tokens == answers[3].tokens == alone(good)[0]


def test_questions_are_read_as_needed_and_none_after_a_stop():
    read = []

    def questions():
        for index in range(100):
            read.append(index)
            yield GenerationRequest("Hello.", options=GenerationOptions(max_tokens=2))

    answers = generate_batch(*loaded(), questions(), batch_size=4)
    next(answers)
    assert read == [0, 1, 2, 3]
    stopped = list(generate_batch(*loaded(), questions(), batch_size=4, stop=lambda: True))
    assert [answer.finish_reason for answer in stopped] == ["cancelled"] * 4


@pytest.mark.backends("mlx", "numpy")
def test_progress_counts_the_prompts_that_were_read():
    model, processor = loaded()
    told: list[tuple[int, int]] = []
    answers = list(generate_batch(model, processor, mixed(5), batch_size=2, progress=lambda *now: told.append(now)))
    lengths = [statistics_of(answer).prompt_tokens for answer in answers]
    assert told[-1] == (sum(lengths), sum(lengths))
    assert all(before < after for (before, _), (after, _) in pairwise(told))
    assert all(done <= read for done, read in told) and told[0][1] == sum(lengths[:2])
    with pytest.raises(OptionError, match="progress is 3, expected a function"):
        next(generate_batch(model, processor, mixed(1), progress=3))  # type: ignore[arg-type]


def test_progress_ends_at_all_where_rows_begin_again_behind_a_known_answer(monkeypatch):
    """Of which the states stand behind the prompt."""
    cache, told = PromptCache(), list[tuple[int, int]]()

    def questions(count: int, tokens: int) -> list[GenerationRequest]:
        return [GenerationRequest("Why? " * 20, options=GenerationOptions(max_tokens=tokens))] * count

    (known,) = generate_batch(*loaded(), questions(1, 4), prompt_cache=cache)
    step, steps = GenerationBatch.step, itertools.count()

    def scarce(self, last=False):
        if next(steps) == 7:
            monkeypatch.setattr(chunked_prefill, "prefill_chunk", lambda *_: 1)
            raise OutOfMemoryError("no memory")
        return step(self, last)

    monkeypatch.setattr(GenerationBatch, "step", scarce)
    answers = list(
        generate_batch(*loaded(), questions(2, 12), prompt_cache=cache, progress=lambda *now: told.append(now))
    )
    assert [len(answer.tokens) for answer in answers] == [12, 12]
    total = 2 * statistics_of(known).prompt_tokens
    assert next(steps) > 8 and told[-1] == (total, total)


def test_each_row_has_the_positions_that_it_would_have_alone():
    """A long neighbour takes none of a short row's, and one that is too long is told of in its own row."""
    model, _ = loaded()
    config, options = model.config, GenerationOptions(max_tokens=12)
    questions = [
        GenerationRequest(text, options=options) for text in ("Hello.", "What is this? " * 9, "What is this? " * 30)
    ]
    lengths = [encode(*loaded(), question).ids.size for question in questions]
    limit = lengths[1] + 5
    assert lengths[0] + 12 < limit < lengths[2]
    try:
        model.config = replace(config, text_config=replace(config.text_config, max_position_embeddings=limit))
        short, long, too_long = generate_batch(*loaded(), questions)
        assert (short.finish_reason, len(short.tokens)) == ("length", 12)
        assert (long.finish_reason, len(long.tokens)) == ("length", 5)
        assert isinstance(too_long.error, PromptError)
        assert f"the prompt has {lengths[2]} tokens, but the model has {limit} positions" in str(too_long.error)
        assert [short.tokens, long.tokens] == [alone(question)[0] for question in questions[:2]]
        chat = Chat(*loaded(), options=options)
        *_, last = chat.stream("What is this? " * 9)
        assert (last.finish_reason, statistics_of(last).generated_tokens) == ("length", 5)
        with pytest.raises(PromptError, match=f"but the model has {limit} positions"):
            chat.ask("And?")
        assert len(chat.messages) == 2
    finally:
        model.config = config


def test_batch_size_is_checked():
    for wrong in (0, True, 2.0):
        with pytest.raises(OptionError, match="batch_size"):
            list(generate_batch(*loaded(), [], batch_size=wrong))  # type: ignore[arg-type]
