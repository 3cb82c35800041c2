"""Drafts that end by the clock, on which steps take what a test says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import GOLDEN, statistics_of
from drafts import GREEDY, PAYS, Ticks, Timed, answered, loaded, same
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import (
    Completion,
    GenerationRequest,
)
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.options import generation_config
from mlx_lfm2vl.generation.pace import NEEDED, Pace
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.generation.speculation import MOST

pytestmark = [pytest.mark.backends("mlx", "numpy"), pytest.mark.usefixtures("by_acceptance_only", "nothing_fails")]


def test_verbose_says_that_drafts_did_not_pay(cli, monkeypatch):  # noqa: F811
    ticks = Ticks(monkeypatch)
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(GenerationBatch, "verify", lambda: 8.0)
    scene = GOLDEN.parent.parent / "examples" / "scene.png"
    asked = ("--model", "demo", "--image", scene, "--prompt", "What is in this image?", "--temp", 0, "--verbose")
    code, _, err = cli("generate", *asked, "--draft-model", "demo")
    assert (
        code == 0
        and "drafts: 4 of 4 proposed tokens were right; 17 runs of the model, 10 without drafts, which did not pay\n"
        in err
    )


def timed(monkeypatch: pytest.MonkeyPatch, verified: float, wrong: float = 0.0) -> tuple[Completion, Completion]:
    """An answer of 100 tokens without drafts, and with drafts that end by a clock, on which a step takes a second and
    one with drafts `verified` seconds."""
    request = GenerationRequest("Hi", options=replace(GREEDY, max_tokens=100))
    plain = answered(request)
    ticks = Ticks(monkeypatch)
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(GenerationBatch, "verify", lambda: verified)
    ends = generation_config(loaded()[0]).eos_token_ids
    assert ends
    draft = Timed(len(encode(*loaded(), request).ids), (*plain.tokens, ends[0]), wrong)
    return answered(replace(request, options=replace(request.options, draft=draft))), plain


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_drafts_that_cost_more_than_they_save_end(wrong, monkeypatch):
    """Right ones too."""
    made, plain = timed(monkeypatch, 20.0, wrong)
    same(made, plain)
    assert statistics_of(made).drafted_tokens == 4


def test_drafts_that_save_time_go_on(monkeypatch):
    made, plain = timed(monkeypatch, 1.5)
    same(made, plain)
    assert statistics_of(made).model_steps <= 1 + NEEDED + 2 + 100 // MOST + 2


@pytest.mark.parametrize("slow", [0, 5])
def test_one_slow_step_ends_drafts_for_150_tokens_at_most(slow, monkeypatch):
    """A step that waits for other work, be it the first one with a draft."""
    request = GenerationRequest("Hi", options=replace(GREEDY, max_tokens=250))
    plain = answered(request)
    ticks, verified = Ticks(monkeypatch), iter(range(10**6))
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(GenerationBatch, "verify", lambda: 100.0 if next(verified) == slow else 2.0)
    draft = Timed(len(encode(*loaded(), request).ids), plain.tokens)
    made = answered(replace(request, options=replace(request.options, draft=draft)))
    same(made, plain)
    statistics = statistics_of(made)
    assert len(made.tokens) == 250 and statistics.undrafted_steps <= 150 and statistics.accepted_tokens > 70


@pytest.mark.parametrize("slow", [0.0, 500.0])
def test_what_was_proposed_is_verified(slow, monkeypatch):
    """Also where to propose it took longer than drafts may."""
    request = GenerationRequest("Hi", options=replace(GREEDY, max_tokens=30))
    plain, ticks = answered(request), Ticks(monkeypatch)
    ticks.cost(GenerationBatch, "step", lambda: 1.0)
    ticks.cost(Timed, "__call__", lambda: slow)
    draft = Timed(len(encode(*loaded(), request).ids), plain.tokens)
    statistics = statistics_of(answered(replace(request, options=replace(request.options, draft=draft))))
    assert statistics.accepted_tokens >= 4
    assert bool(statistics.undrafted_steps) == bool(slow)


def test_ngrams_by_the_clock_change_no_answer(cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Pace, "pays", PAYS)
    words = ("generate", "--model", "demo", "--prompt", "Where is the ring?", "--max-tokens", 40, "--temp", 0)
    assert cli(*words, "--draft", "auto") == cli(*words)
