"""Signals of a rank: what ends a run, and what `mlx.launch` sends when another rank has failed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from .interrupt import Interrupt

GRACE = 5.0  # seconds in which a rank learns that another one is lost


class RankInterrupt(Interrupt):
    """As `Interrupt`, for SIGTERM and SIGHUP, too. `mlx.launch` sends SIGTERM to all ranks once one has failed, and
    ends the connection to another machine: where a rank is `lost` these stop nothing."""

    def __init__(self, lost: Callable[[], bool]) -> None:
        super().__init__()
        self._lost = lost
        self._asked: float | None = None
        self._signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def __call__(self) -> bool:
        if self._asked is not None and not self.happened:
            if self._lost():
                self._asked = None
            elif time.monotonic() > self._asked + GRACE:
                self.happened = True
        return self.happened

    def __enter__(self) -> RankInterrupt:
        super().__enter__()
        self._others = [(number, signal.signal(number, self._ask)) for number in self._signals if self._main]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._others:
            signal.signal(number, before)
        super().__exit__(kind, error, at)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = time.monotonic()
