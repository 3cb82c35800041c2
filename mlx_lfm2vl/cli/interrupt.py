"""Signals that end work in order: Ctrl-C at the next token of an answer, or before its first one in the next layer (a
second Ctrl-C at once), a polite kill so that what a command has begun is cleaned away; and Ctrl-C that waits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from ..errors import AnswerError
from .stderr import Spinner

GRACE = 5.0  # seconds in which a rank learns that another one is lost


@contextmanager
def handled(handler: Any, *names: str, unless: tuple[Any, ...] = ()) -> Iterator[None]:
    """While the block runs, these signals go to `handler`, where the system has them and they have not gone to one of
    `unless`. In another thread than the main one, where Python allows no handler, it does nothing."""
    main = threading.current_thread() is threading.main_thread()
    kinds = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    before = [(kind, signal.signal(kind, handler)) for kind in kinds if signal.getsignal(kind) not in unless]
    try:
        yield
    finally:
        for kind, earlier in before:
            signal.signal(kind, earlier)


class Interrupt(ExitStack):
    """While its `with` block runs, the first Ctrl-C makes it true when called (a library's `stop`), the next raises
    `KeyboardInterrupt`."""

    def __init__(self) -> None:
        super().__init__()
        self.happened = False

    def __call__(self) -> bool:
        return self.happened

    def __enter__(self) -> Interrupt:
        self.enter_context(handled(self._handle, "SIGINT"))
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.happened:
            raise KeyboardInterrupt
        self.happened = True


@contextmanager
def answering() -> Iterator[tuple[Interrupt, Spinner]]:
    """The interrupt and the spinner of one answer. Raises `KeyboardInterrupt` where Ctrl-C left no answer that a task
    can read."""
    with Interrupt() as interrupt, Spinner("reading the prompt") as spinner:
        try:
            yield interrupt, spinner
        except AnswerError:
            if interrupt.happened:
                raise KeyboardInterrupt from None
            raise


class RankInterrupt(Interrupt):
    """As `Interrupt`, for SIGTERM and SIGHUP, too. `mlx.launch` sends SIGTERM to all ranks once one has failed, and
    ends the connection to another machine: where a rank is `lost` these stop nothing."""

    def __init__(self, lost: Callable[[], bool]) -> None:
        super().__init__()
        self._lost = lost
        self._asked: float | None = None

    def __call__(self) -> bool:
        if self._asked is not None and not self.happened:
            if self._lost():
                self._asked = None
            elif time.monotonic() > self._asked + GRACE:
                self.happened = True
        return self.happened

    def __enter__(self) -> RankInterrupt:
        super().__enter__()
        self.enter_context(handled(self._ask, "SIGTERM", "SIGHUP"))
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = time.monotonic()


@contextmanager
def defer_sigint() -> Iterator[None]:
    """While the block runs, Ctrl-C waits for its end: for the imports of compiled modules, which make an `ImportError`
    of it, or end the process, or go on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def terminable() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP end it like an exception; the exit code is 128 + its number."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handled(end, "SIGTERM", "SIGHUP", unless=(signal.SIG_IGN,)):
        yield
