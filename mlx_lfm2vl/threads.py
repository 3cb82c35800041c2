"""NumPy's work, shared between the cores of a CPU, and how it is cancelled.

OpenBLAS's own threads wait for the next product at full speed, in the way of any other thread or process (for a tenth
of a second; for some milliseconds where this package was imported before NumPy), and they help with products alone.
`parallel_for` shares all of the work, and each product takes the core of the thread that calls it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from itertools import pairwise
from typing import Any

_CORES = os.cpu_count() or 1


@cache
def _libraries() -> list[Any]:
    """NumPy's OpenBLAS, and MLX's where it has one. None if they use something else (Accelerate on a Mac)."""
    from threadpoolctl import ThreadpoolController  # 40 ms, which nobody should wait for on a GPU

    return [*ThreadpoolController().select(user_api="blas").lib_controllers]


class OneBlasThread:
    """While a `with` block runs, in whatever thread, OpenBLAS keeps to the thread that calls it. It gives the number of
    threads that OpenBLAS has otherwise, which is that of the cores unless somebody set another; without one, that of
    the cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._threads: list[int] = []

    def __enter__(self) -> int:
        with self._lock:
            if not self._inside:
                self._threads = [library.num_threads for library in _libraries()]
                for library in _libraries():
                    library.set_num_threads(1)
            self._inside += 1
            return max(self._threads, default=_CORES)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for library, threads in zip(_libraries(), self._threads, strict=True):
                    library.set_num_threads(threads)


blas_on_one_thread = OneBlasThread()


class _Cancellation:
    """The check of a `cancellation` block. It runs in the block's own thread only; the helping threads follow it."""

    def __init__(self, check: Callable[[], object]):
        self._check, self._thread = check, threading.get_ident()
        self._cancelled = False

    def __call__(self) -> None:
        if threading.get_ident() != self._thread:
            if self._cancelled:
                raise RuntimeError("the work was cancelled")  # nobody sees it: the block's thread raises the cause
            return
        current = _current.set(None)  # work that the check does itself is not cancelled by it
        try:
            self._check()
        except BaseException:
            self._cancelled = True
            raise
        finally:
            _current.reset(current)


_current: ContextVar[_Cancellation | None] = ContextVar("_current", default=None)


@contextmanager
def cancellation(check: Callable[[], object]) -> Iterator[None]:
    """While a `with` block runs, `check_cancelled` calls `check`, which raises to cancel the work. The check of a block
    around this one is called first."""
    around = _current.get()

    def both() -> None:
        if around is not None:
            around()
        check()

    before = _current.set(_Cancellation(both))
    try:
        yield
    finally:
        _current.reset(before)


def check_cancelled() -> None:
    """Calls the check of the `cancellation` block that this runs in, if there is one. For places between parts of the
    work that take milliseconds."""
    current = _current.get()
    if current is not None:
        current()


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mlx_lfm2vl")


def _after_fork() -> None:
    """The helpers are not in a process that was forked, and nobody is at work there."""
    _helpers.cache_clear()
    blas_on_one_thread.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)


def parallel_for(work: Callable[[int, int], object], units: int, minimum: int = 1) -> None:
    """Calls `work(start, end)` for ranges that make up `range(units)`, each in a thread of its own.

    There are as many threads as cores, if each gets at least `minimum` units. Such work must not call `parallel_for`:
    it would wait for a thread that waits for it.
    """
    with blas_on_one_thread as threads:
        parts = max(1, min(threads, units // max(1, minimum)))
        edges = [units * part // parts for part in range(parts + 1)]
        others = [
            _helpers(threads - 1).submit(copy_context().run, work, start, end) for start, end in pairwise(edges[1:])
        ]
        try:
            work(*edges[:2])
        finally:
            wait(others)
        for other in others:
            other.result()
