"""How a caller watches work and stops it: between passes of the vision tower, chunks of a prompt, and tokens."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import OptionError

Progress = Callable[[int, int], None]  # tokens of the prompt done, tokens in all
Stop = Callable[[], bool]  # true once the work shall end


class Cancelled(Exception):
    """Raised inside the library when a caller's `Stop` says so; callers see the finish reason "cancelled"."""


def check_callable(name: str, value: object) -> None:
    """Raises `OptionError` for what is neither a function nor None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} is {value!r}, expected a function")


def check(stop: Stop | None) -> None:
    """Raises `Cancelled` if `stop` says so."""
    if stop is not None and stop():
        raise Cancelled
