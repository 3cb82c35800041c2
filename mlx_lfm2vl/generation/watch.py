"""How a caller watches work, stops it, and does other work meanwhile: between passes of the vision tower, chunks of a
prompt, and tokens. It can stop between and within layers, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import mlx.core as mx

from ..errors import OptionError
from ..model.outputs import Between
from ..threads import ask, asking

Progress = Callable[[int, int], None]  # tokens of the prompt done, tokens in all
Stop = Callable[[], bool]  # true once the work shall end
SOON = 16  # rows
T = TypeVar("T")
P = ParamSpec("P")
Pieces = Generator[None, None, T]  # work that yields between its pieces and returns its result


class Cancelled(Exception):
    """Raised inside the library when a caller's `Stop` says so; callers see the finish reason "cancelled"."""


def check_callable(name: str, value: object) -> None:
    """Raises `OptionError` for what is neither a function nor None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} is {value!r}, expected a function")


def advance(pieces: Pieces[T]) -> T | None:
    """Does the next piece; the result if it was the last one."""
    try:
        next(pieces)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    return None


def whole(pieces: Pieces[T]) -> T:
    """The result of all pieces, one after the other."""
    while (result := advance(pieces)) is None:
        pass
    return result


def completed(work: Callable[P, Pieces[T]]) -> Callable[P, T]:
    """The same work, done as a whole."""

    @functools.wraps(work)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        return whole(work(*arguments, **named))

    return run


def check(stop: Stop | None) -> None:
    """Raises `Cancelled` if `stop` says so."""
    if stop is not None and stop():
        raise Cancelled


@contextmanager
def heeding(stop: Stop | None, rows: int) -> Iterator[Between | None]:
    """While a pass or chunk of so many patches or tokens is run in a `with` block, with the `Between` that it gives,
    `stop` is asked after each layer, and on a CPU within them; `Cancelled` is raised if it says so. None without a
    `stop`, and for fewer than `SOON` rows, which are soon run.

    A stop waits for one layer, not for all of them. So that the device always has work, the next layer is dispatched
    before the last one is waited for.
    """
    if stop is None or rows < SOON:
        yield None
        return
    dispatched: list[mx.array] = []

    def between(made: mx.array) -> None:
        mx.async_eval(made)
        dispatched.append(made)
        if len(dispatched) > 1:
            mx.eval(dispatched.pop(0))
        ask()

    with asking(lambda: check(stop)):
        yield between
