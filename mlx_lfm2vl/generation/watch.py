"""Ways to watch work, stop it, and do other work meanwhile: between passes of the vision tower, chunks of a
prompt, and tokens; and calls of the caller's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from ..backends.memory import is_out_of_memory
from ..backends.thread_state import computing, stop_at_exit
from ..errors import Lfm2VlError, OptionError, first_line, short
from ..threads import cancellation

Progress = Callable[[int, int], None]  # tokens of the prompt done, tokens in all
Stop = Callable[[], bool]  # true once the work shall end
T = TypeVar("T")
P = ParamSpec("P")
Pieces = Generator[int, None, T]  # work that yields between its pieces: how many tokens are done, padding included


class Cancelled(Exception):
    """Raised inside the library when a caller's `Stop` says so; callers see the finish reason "cancelled"."""


def check_callable(name: str, value: object) -> None:
    """Raises `OptionError` for what is neither a function nor None."""
    if value is not None and not callable(value):
        texts = name == "stop" and isinstance(value, (str, list, tuple))
        way = "; texts that end an answer are GenerationOptions(stop=)" if texts else ""
        raise OptionError(f"{name} is {short(repr(value))}, expected a function{way}")


@contextmanager
def calling(what: str, function: object) -> Iterator[None]:
    """Turns what a caller's function raises within a `with` block into an `OptionError` that names it: its request
    ends, and no other. What the library raises, and memory that runs out, stays as it is. `what`: the function is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (Lfm2VlError, Cancelled)) or is_out_of_memory(error):
            raise
        kind = type(error).__name__
        raise OptionError(f"the {what} {name_of(function)} raised {kind}: {first_line(error)}") from error


def name_of(function: object) -> str:
    """The name of a function, or of the class of what is called like one."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def check(stop: Stop | None) -> None:
    """Raises `Cancelled` if `stop` says so."""
    if stop is not None and stop():
        raise Cancelled


@computing
def whole(pieces: Pieces[T], stop: Stop | None = None, progress: Callable[[int], None] | None = None) -> T:
    """The result of all pieces, one after the other. `stop` is asked between them, and within a layer by a backend that
    computes when it is called; `progress` is told of what is done. Raises `Cancelled`."""
    with cancellation(lambda: check(stop)):
        while True:
            stop_at_exit()
            check(stop)
            try:
                done = next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if progress is not None:
                progress(done)


def completed(work: Callable[P, Pieces[T]]) -> Callable[P, T]:
    """The same work, done as a whole."""

    @functools.wraps(work)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        return whole(work(*arguments, **named))

    return run
