"""Drafts end by the clock: they cost a fiftieth of the time and one step at most, and are tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.generation.pace import LONE, NEEDED, SAVED, SHARE, Pace


class Run:
    """Answers with drafts on a clock that is simulated: a step without takes a second.

    Attributes:
        spent: seconds of the steps, those left out that other work took.
        tokens: of each row, and so the seconds of steps without drafts.
        drafts: the tokens behind which there was a step with drafts.
    """

    def __init__(self) -> None:
        self.now = self.spent = self.tokens = 0.0
        self.drafts: list[float] = []
        self.pace = Pace(lambda: self.now)

    def steps(self, count: int, cost: float, right: Iterable[float], wait: Callable[[int], float] | None = None) -> Run:
        """Steps of which one with drafts takes `cost` and gives a token and as many as `right` says in turn. `wait`:
        the seconds that other work takes from the draft of a number."""
        each = iter(right)
        for _ in range(count):
            drafting = self.pace.pays(1)
            self.pace.begin()
            self.now += cost if drafting else 1.0
            self.spent += cost if drafting else 1.0
            if drafting:
                made = 1 + next(each)
                self.now += 0.0 if wait is None else wait(len(self.drafts))
                self.pace.drafted(1, made)
                self.drafts.append(self.tokens)
                self.tokens += made
            else:
                self.pace.plain(1)
                self.tokens += 1
        return self


@settings(max_examples=30)
@given(st.integers(1, 1000), st.floats(0.5, LONE), st.lists(st.floats(0, 8), min_size=1, max_size=9))
def test_drafts_cost_a_fiftieth_and_one_step(steps, cost, right):
    """At every length of an answer, whatever a step costs and however the part that is right changes."""
    run = Run()
    for made in [*right, *right]:
        run.steps(steps // 6, cost, repeat(made))
        assert run.spent - run.tokens <= SHARE * run.tokens + cost + 1e-6


@settings(max_examples=30)
@given(st.integers(1, 1000), st.floats(LONE, 1000))
def test_very_slow_drafts_cost_one_step_more(steps, cost):
    """Since a single one may have waited for other work."""
    run = Run().steps(steps, cost, repeat(0.0))
    assert run.spent - run.tokens <= SHARE * run.tokens + 2 * cost
    assert len(run.drafts) <= 2 + SHARE * run.tokens / (cost - 1)


@pytest.mark.parametrize("cost", [1.05, 1.5, 2.0, 3.0, LONE])
def test_useless_drafts_cost_less_than_three_percent(cost):
    run = Run().steps(max(100, round(100 * cost)), cost, repeat(0.0))
    assert run.drafts
    assert run.spent <= 1.03 * run.tokens


def test_drafts_that_pay_go_on():
    assert len(Run().steps(1000, 1.2, repeat(4.0)).drafts) == 1000 - NEEDED
    assert len(Run().steps(1000, 1.2, cycle([0.0, 3.0])).drafts) > 950


@settings(max_examples=30)
@given(st.integers(0, 60), st.floats(0, 10_000))
def test_one_slow_step_stops_right_drafts_for_150_tokens(number, seconds):
    """At most, even if it is the first."""
    run = Run().steps(400, 2.0, repeat(4.0), lambda draft: seconds * (draft == number))
    assert len(run.drafts) >= 400 - NEEDED - (LONE - 5) / SHARE - 1
    late = Run().steps(400, 2.0, repeat(4.0), lambda draft: seconds * (draft == 20))
    assert len(late.drafts) == 400 - NEEDED  # what they have saved pays for it


@settings(max_examples=30)
@given(st.floats(0, 100), st.floats(1.0, LONE))
def test_drafts_that_ended_are_tried_again(first, cost):
    """After as many tokens as the loss of a step takes to be made up."""
    run = Run().steps(1000, cost, repeat(0.0), lambda draft: first * (draft == 0))
    pauses = [after - before for before, after in zip(run.drafts, run.drafts[1:], strict=False)]
    assert pauses and max(pauses) <= (LONE - 1) / SHARE + 2


def test_drafts_that_become_right_are_used_again():
    run = Run().steps(1000, 2.0, repeat(0.0))
    used = len(run.drafts)
    assert used <= 1 + SHARE * 1000 + 1
    run.steps(1000, 2.0, repeat(4.0))
    assert len(run.drafts) - used >= 1000 - 1 / SHARE - 2


def test_what_was_saved_is_not_used_up_for_long():
    """Drafts that no longer pay are given up within a few steps."""
    run = Run().steps(500, 1.0, repeat(3.0))
    used = len(run.drafts)
    run.steps(50, 2.0, repeat(0.0))
    assert len(run.drafts) - used <= SAVED + 1


def test_a_batch_of_other_rows_is_timed_anew():
    """And a step that waited for something else does not count."""
    now = 0.0
    pace = Pace(lambda: now)
    for seconds in (1.0, 1.1, 50.0, 1.0, 1.0):
        pace.begin()
        now += seconds
        pace.plain(4)
    assert pace.pays(4) and not pace.pays(3)
    for _ in range(3):
        pace.begin()
        now += 3.0
        pace.drafted(4, 1.0)
    assert pace.lost and not pace.pays(4)
