"""Calls of llguidance, and the end of the process.

A call that returns to a daemon thread where the interpreter is no more crashes the process. So the process waits at its
end for the calls in hand, whose cost is bounded, and lets no others begin.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_SECONDS = 20.0  # that the process waits at most, where others use its cores

_lock = threading.Lock()
_local = threading.local()
_inside = 0  # threads
_exiting = False


def finished_at_exit(work: Callable[P, T]) -> Callable[P, T]:
    """Makes a function one that the process waits for at its end, wherever it runs."""

    @wraps(work)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        global _inside
        if getattr(_local, "inside", False) or threading.current_thread() is threading.main_thread():
            return work(*arguments, **named)
        with _lock:
            ended = _exiting
            _inside += not ended
        if ended:
            threading.Event().wait()
        _local.inside = True
        try:
            return work(*arguments, **named)
        finally:
            _local.inside = False
            with _lock:
                _inside -= 1

    return run


@atexit.register
def _wait() -> None:
    global _exiting
    with _lock:
        _exiting = True
    end = time.monotonic() + _SECONDS
    while _inside and time.monotonic() < end:
        time.sleep(0.002)


def _after_fork() -> None:
    """The other threads are not in a process that was forked."""
    global _lock, _inside
    _lock, _inside = threading.Lock(), int(getattr(_local, "inside", False))


os.register_at_fork(after_in_child=_after_fork)
