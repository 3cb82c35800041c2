"""The thread that answers requests which have given up before their turn, while the engine's own thread works.

It never calls MLX. `Attendant.poke` may be called from anywhere, also while an object is being deleted.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

LONGEST_SLEEP = 3600.0


class Attendant:
    """Calls `let_go` after each `poke`, and at the time (of `time.monotonic`) that it has returned, if any."""

    def __init__(self, let_go: Callable[[], float | None]):
        self._let_go = let_go
        self._pokes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._attend, name="mlx-lfm2vl attendant", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Asks for a look at who has given up."""
        self._pokes.put(None)

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread, and waits for that for at most `timeout` seconds, if it is given."""
        self._closed = True
        self.poke()
        if timeout is not None and threading.current_thread() is not self._thread:
            self._thread.join(max(0.0, timeout))

    def _attend(self) -> None:
        until: float | None = None
        while not self._closed:
            sleep = None if until is None else min(LONGEST_SLEEP, max(0.0, until - time.monotonic()))
            with contextlib.suppress(queue.Empty):  # it is time
                self._pokes.get(timeout=sleep)
                while True:
                    self._pokes.get_nowait()
            until = self._let_go()
