"""The demo's training ends by itself: it looks at the held-out rates, lets the learning rate fall, and stops."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tools.demo.schedule import GAIN, LOOK, Schedule


def told(schedule, means, every=600.0):
    """Tells the means as evaluations; the seconds after which the rates stood, or None."""
    for n, mean in enumerate(means, 1):
        if schedule.saw({"count": mean + 0.1, "read": mean - 0.1}, n * every):
            return n * every
    return None


def test_the_fall_begins_when_the_rates_stand_and_lasts_as_long_again():
    schedule = Schedule(hours=10)
    rising, level = [0.1 * n for n in range(1, LOOK + 1)], [0.5] * 2 * LOOK
    stood = told(schedule, rising + level)
    assert stood == 600.0 * 3 * LOOK  # the last evaluations equal those before them
    assert schedule.share(stood, 5000) == 1.0
    assert schedule.share(1.5 * stood, 5000) == pytest.approx(0.5)
    assert not schedule.over(2 * stood - 1)
    assert schedule.over(2 * stood)
    assert schedule.share(2 * stood, 5000) == 0.0


def test_rates_that_rise_keep_the_plateau_until_half_of_the_hours():
    schedule = Schedule(hours=2)
    assert told(schedule, [0.02 * n for n in range(1, 11)], every=300.0) is None
    assert schedule.share(3599.0, 5000) == 1.0
    assert schedule.share(5400.0, 5000) == pytest.approx(0.5)
    assert schedule.over(7200.0)


def test_the_first_steps_of_a_phase_are_small():
    assert Schedule(hours=1).share(0.0, 0) == pytest.approx(0.01)
    assert Schedule(hours=1).share(0.0, 49) == pytest.approx(0.5)


@example([0.5] * 4 + [0.75] + [0.5] * 4, 0, 1.5)  # the rates stand as the hours end
@given(
    st.lists(st.floats(0.1, 0.9), max_size=30),
    st.integers(0, 30),
    st.floats(0.5, 40),
)
def test_a_resumed_training_goes_on_alike_and_ends_within_its_hours(means, cut, hours):
    whole = Schedule(hours)
    told(whole, means)
    first = Schedule(hours)
    stood = told(first, means[:cut])
    second = Schedule(hours, **first.state())
    if stood is None:
        for n, mean in enumerate(means[cut:], cut + 1):
            if second.saw({"count": mean + 0.1, "read": mean - 0.1}, n * 600.0):
                break
    for spent in (0.0, hours * 900, hours * 1800, hours * 2700, hours * 3600):
        assert second.share(spent, 1000) == whole.share(spent, 1000)
        assert 0.0 <= whole.share(spent, 1000) <= 1.0
    assert whole.over(hours * 3600)


@pytest.mark.parametrize(("share", "stands"), [(0.9, True), (1.1, False)])
def test_a_gain_within_chance_is_none(share, stands):
    gained = [0.8] * LOOK + [0.8 + share * GAIN] * LOOK
    assert (told(Schedule(hours=100), gained) == 600.0 * 2 * LOOK) is stands
