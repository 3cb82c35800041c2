"""What the tests of drafts share: requests of all kinds, a draft that knows the answer, and a clock of steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mlx_lfm2vl import (
    Completion,
    GenerationOptions,
    GenerationRequest,
    ResponseFormat,
    load,
    stream_generate,
)
from mlx_lfm2vl.generation.options import generation_config
from mlx_lfm2vl.generation.pace import Pace
from mlx_lfm2vl.generation.request import encode

GREEDY = GenerationOptions(temperature=0.0, max_tokens=60)
PAYS = Pace.pays


@cache_by_backend
def loaded(name: str = "gen2") -> Loaded:
    return load(GOLDEN / name)


@cache_by_backend
def demo() -> Loaded:
    return load("demo")


class Knowing:
    """A draft that knows the answer, and is wrong where its random numbers say so."""

    def __init__(self, prompt: int, answer: Sequence[int], wrong: float = 0.0, seed: int | None = None):
        self.prompt, self.answer, self.wrong, self.seed = prompt, answer, wrong, seed
        self.random = random.Random(seed)
        self.calls = 0

    def copy(self) -> Knowing:
        return Knowing(self.prompt, self.answer, self.wrong, self.seed)

    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        at = len(tokens) - self.prompt
        assert tuple(tokens[self.prompt :]) == tuple(self.answer[:at])
        if self.seed is not None:
            count = self.random.randint(0, count)
        return [
            (token + 1) % 500 if self.random.random() < self.wrong else token for token in self.answer[at : at + count]
        ]


def answered(request: GenerationRequest, model: Loaded | None = None, **more: Any) -> Completion:
    return Completion.of(list(stream_generate(*(model or loaded()), request, **more)))


def knowing(request: GenerationRequest, plain: Completion, wrong: float, seed: int | None) -> GenerationRequest:
    """The same request with a draft that knows its answer, the end token too."""
    ends = generation_config(loaded()[0]).eos_token_ids
    assert ends
    prompt = len(encode(*loaded(), request).ids)
    draft = Knowing(prompt, (*plain.tokens, ends[0]), wrong, seed)
    return replace(request, options=replace(request.options, draft=draft))


def same(made: Completion, plain: Completion) -> None:
    assert (made.tokens, made.text, made.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    if plain.logprobs is not None:
        assert made.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    if plain.top_logprobs is not None:
        assert made.top_logprobs is not None
        for ours, theirs in zip(made.top_logprobs, plain.top_logprobs, strict=True):
            assert [each.id for each in ours] == [each.id for each in theirs]


# Answers


FORMS: list[Any] = [
    None,
    None,
    ResponseFormat.regex("[a-z]{1,3}(, [a-z]{2}){9}"),
    ResponseFormat.choice(["a long text that is forced", "a long text that is not", "b"]),
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 9},
]


class Turning:
    """A processor that remembers how often it was asked."""

    def __init__(self, count: int = 0):
        self.count = count

    def copy(self) -> Turning:
        return Turning(self.count)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.count += 1
        return logits + 2.0 * ((mx.arange(logits.shape[1]) + self.count) % 7 == 0)


def shifted(tokens: mx.array, logits: mx.array) -> mx.array:
    """A processor that depends on all tokens."""
    return logits + 2.0 * ((mx.arange(logits.shape[1]) + tokens.sum()) % 5 == 0)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    options = GenerationOptions(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7, 2.0])),
        max_tokens=draw(st.integers(1, 50)),
        seed=draw(st.integers(0, 99)),
        repetition_penalty=draw(st.sampled_from([None, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        top_k=draw(st.sampled_from([None, 4])),
        top_p=draw(st.sampled_from([None, 0.8])),
        top_logprobs=draw(st.sampled_from([0, 0, 3])),
        logit_bias=draw(st.sampled_from([{}, {40: 5.0, 50: -3.0}])),
        response_format=draw(st.sampled_from(FORMS)),
        logits_processors=draw(st.sampled_from([(), (), (shifted,), (Turning(), shifted)])),
        stop=draw(st.sampled_from([(), ("e", "o")])),
    )
    return GenerationRequest(draw(st.sampled_from(["Hi", "Who is that over there?", "Why? " * 20])), options=options)


def some(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# The clock


class Timed(Knowing):
    """A draft that ends by the clock."""

    timed = True

    def copy(self) -> Timed:
        return Timed(self.prompt, self.answer, self.wrong, self.seed)


class Ticks:
    """The clock of steps, on which only what `cost` names takes time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self._patch = 0.0, monkeypatch
        monkeypatch.setattr(Pace, "pays", PAYS)
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def cost(self, owner: type, name: str, seconds: Callable[[], float]) -> None:
        """Lets each call of a method take so many seconds."""
        own = getattr(owner, name)

        def slow(*given: Any, **named: Any) -> Any:
            self.now += seconds()
            return own(*given, **named)

        self._patch.setattr(owner, name, slow)
