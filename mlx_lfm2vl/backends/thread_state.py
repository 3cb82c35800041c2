"""The state that MLX keeps of each thread that computes, and how such a thread ends.

MLX keeps streams, compiled functions and random numbers of a thread. Some of that is Python's: a thread that lets go of
it where the interpreter is no more aborts the process. So a thread clears it as it ends. When the process exits, daemon
threads are stopped before the interpreter is: those at work in the library after the piece in hand, the others where
they wake next.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import mlx.core as mx

from ..errors import ForkError

P = ParamSpec("P")
T = TypeVar("T")
EXIT_SECONDS = 1.0  # that the process waits at its end for the pieces in hand and the engines, together
IDLE_SECONDS = 0.5  # and for daemon threads that look for work now and then

_local = threading.local()
_lock = threading.Lock()
_states: weakref.WeakSet[_ThreadState] = weakref.WeakSet()
_exiting = False
_exit_end: float | None = None  # of `time.monotonic`
_used = False  # whether this process, or the one that it was forked from, has computed
_forked = False  # since then


class _ThreadState:
    """Local to a thread that computes. Python deletes it in that thread, as the last thing it does there."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.depth = 0  # of pieces of work within each other
        self.stopped = False
        # Python sees a thread of another runtime (Qt, Grand Central Dispatch) end whenever it returns there, when
        # CPython 3.11 must not enter MLX.
        self._ends = not isinstance(threading.current_thread(), threading._DummyThread)
        with _lock:
            _states.add(self)

    def __del__(self) -> None:
        if not self._ends or threading.get_ident() != self.ident:
            return
        try:
            mx.clear_streams()
        except SystemExit:  # of `_stop_all`, while the thread was ending anyway
            mx.clear_streams()


def computing(work: Callable[P, T]) -> Callable[P, T]:
    """Makes a function one that may call MLX in a thread that ends, or is there still when the process exits."""

    @wraps(work)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        global _used
        if _forked:
            check_fork()
        _used = True
        if threading.current_thread() is threading.main_thread():
            return work(*arguments, **named)
        state: _ThreadState | None = getattr(_local, "state", None)
        if state is None:
            state = _local.state = _ThreadState()
        state.depth += 1
        try:
            stop_at_exit()
            return work(*arguments, **named)
        finally:
            stop_at_exit()
            state.depth -= 1

    return run


def note_use() -> None:
    """Takes note that this process computes. Raises `ForkError` where it cannot."""
    global _used
    check_fork()
    _used = True


def forked() -> bool:
    """Whether this process was forked from one that had computed."""
    return _forked


def check_fork() -> None:
    """Raises `ForkError` in a process that was forked from one that had computed: there it would wait for ever."""
    if _forked:
        raise ForkError(
            "this process was forked from one that had used MLX, whose threads it lacks; start it anew, as"
            " multiprocessing.get_context('spawn') does"
        )


def _after_fork() -> None:
    global _forked, _lock
    _forked, _lock = _used, threading.Lock()
    _states.clear()


os.register_at_fork(after_in_child=_after_fork)


def stop_at_exit() -> None:
    """Once the process exits, ends the work of a thread that computes: does not return. For places between parts."""
    if _exiting and (state := getattr(_local, "state", None)) is not None:
        state.stopped = True
        never = threading.Lock()
        with never:
            never.acquire()


def exit_end() -> float:
    """The time at which the process, which exits, waits no more for what is running: one for all who ask."""
    global _exit_end
    if _exit_end is None:
        _exit_end = time.monotonic() + EXIT_SECONDS
    return _exit_end


@atexit.register
def _stop_all() -> None:
    """Only daemon threads are there still."""
    global _exiting
    _exiting = True

    def alive() -> list[_ThreadState]:
        with _lock:
            return [state for state in _states if not state.stopped]

    _wait(lambda: not any(state.depth for state in alive()), exit_end())
    for state in alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(state.ident), ctypes.py_object(SystemExit))
    _wait(lambda: not alive(), time.monotonic() + IDLE_SECONDS)


def _wait(until: Callable[[], bool], end: float) -> None:
    while not until() and time.monotonic() < end:
        time.sleep(0.002)
