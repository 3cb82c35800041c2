"""Ctrl-C that ends an answer in order, at the next token; a second one at once."""

from __future__ import annotations

import signal
import threading
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
