"""Drafts end by the clock: they cost a hundredth of the time and one step at most, whatever steps take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lfm2vl.generation.pace import NEEDED, SAVED, SHARE, Pace


def run(steps: int, cost: float, right: list[float], rows: int = 1) -> tuple[float, float, int]:
    """Seconds of answers with drafts, the seconds that their tokens take without, and the drafts. A step without takes
    a second; one with a draft `cost`, and gives as many tokens as `right` says in turn."""
    pace, spent, tokens, drafts = Pace(), 0.0, 0.0, 0
    for _ in range(steps):
        if pace.pays(rows):
            made = 1 + right[drafts % len(right)]
            pace.drafted(rows, cost, made)
            spent, tokens, drafts = spent + cost, tokens + made, drafts + 1
        else:
            pace.plain(rows, 1.0)
            spent, tokens = spent + 1, tokens + 1
    return spent, tokens, drafts


@given(
    st.integers(1, 3000),
    st.floats(0.5, 12),
    st.lists(st.floats(0, 8), min_size=1, max_size=9),
)
def test_drafts_cost_a_hundredth_and_one_step(steps, cost, right):
    spent, tokens, _ = run(steps, cost, right)
    assert spent - tokens <= SHARE * tokens + cost + 1e-6


@pytest.mark.parametrize("cost", [1.05, 1.5, 3.0, 8.0])
def test_wrong_drafts_cost_less_than_three_percent(cost):
    spent, tokens, drafts = run(2000, cost, [0.0])
    assert drafts >= 1 and spent <= 1.03 * tokens


def test_drafts_that_pay_go_on():
    assert run(1000, 1.2, [0.0, 3.0])[2] > 950


def test_what_was_saved_is_not_used_up_for_long():
    """Drafts that no longer pay are given up within a few steps."""
    pace = Pace()
    for _ in range(NEEDED):
        pace.plain(1, 1.0)
    for _ in range(500):
        pace.drafted(1, 1.0, 4.0)
    lost = 0
    while pace.pays(1):
        pace.drafted(1, 2.0, 1.0)
        lost += 1
    assert lost <= SAVED + 1


def test_a_batch_of_other_rows_is_timed_anew():
    """And a step that waited for something else does not count."""
    pace = Pace()
    for seconds in (1.0, 1.1, 50.0, 1.0, 1.0):
        pace.plain(4, seconds)
    assert pace.pays(4) and not pace.pays(3)
    for _ in range(3):
        pace.drafted(4, 3.0, 1.0)
    assert not pace.pays(4)
