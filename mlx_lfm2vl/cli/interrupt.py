"""Signals that end work in order: Ctrl-C at the next token of an answer, or before its first one in the next layer (a
second Ctrl-C at once), a polite kill so that what a command has begun is cleaned away; and Ctrl-C that waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupt:
    """While its `with` block runs, the first Ctrl-C makes it true when called (a library's `stop`), the next raises
    `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.happened = False

    def __call__(self) -> bool:
        return self.happened

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()  # only there Python allows a handler
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.happened:
            raise KeyboardInterrupt
        self.happened = True


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

    kinds = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    if threading.current_thread() is not threading.main_thread():  # only there Python allows a handler
        yield
        return
    before = [(kind, signal.signal(kind, end)) for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
    try:
        yield
    finally:
        for kind, handler in before:
            signal.signal(kind, handler)
