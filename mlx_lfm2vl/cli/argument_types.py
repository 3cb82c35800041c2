"""Types of options, as argparse calls them: functions of a text. Each error is the end of a line that begins with the
option."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def nonempty(given: str) -> str:
    """A text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("is empty; leave it out, or write a text")
    return given


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an integer of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a whole number {bounds}")
        return value

    return parse


def real(low: float, high: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """The type of a number from `low` (exclusive with `above`) to `high`. NaN and infinity are refused."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        good = (value > low if above else value >= low) and value <= (sys.float_info.max if high is None else high)
        if not good:
            bounds = f"above {low:g}" if above else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(
                f"{text[:50]!r} is not a number {bounds}{'' if high is None else f' and at most {high:g}'}"
            )
        return value

    return parse


def bias(text: str) -> tuple[int, float]:
    """The id of a token and a number, as in "42=-5"."""
    token, equals, number = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is no ID=BIAS, such as 42=-5")
    return whole(0)(token), real(-100, 100)(number)
