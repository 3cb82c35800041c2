"""Work shared between the cores of a CPU by threads of its own, beside which OpenBLAS keeps still; and how it is broken
off.

OpenBLAS's threads wait for the next product at full speed, in the way of any other thread or process (for a tenth of a
second; for some milliseconds where this package was imported before NumPy); and they help with products alone. Here all
work is shared, and each product takes the core of the thread that calls it.
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


class Cores:
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


cores = Cores()


class _Question:
    """What breaks work off by raising. It is put in its own thread only; in those that help, `ask` follows it."""

    def __init__(self, question: Callable[[], object]):
        self._question, self._thread = question, threading.get_ident()
        self._ended = False

    def __call__(self) -> None:
        if threading.get_ident() != self._thread:
            if self._ended:
                raise RuntimeError("the work was broken off")  # which nobody hears: its thread raises the cause
            return
        asking = _asked.set(None)  # what the question computes itself is its own
        try:
            self._question()
        except BaseException:
            self._ended = True
            raise
        finally:
            _asked.reset(asking)


_asked: ContextVar[_Question | None] = ContextVar("_asked", default=None)


@contextmanager
def asking(question: Callable[[], object]) -> Iterator[None]:
    """While a `with` block runs, `ask` calls `question`, which raises to break off what is computed."""
    before = _asked.set(_Question(question))
    try:
        yield
    finally:
        _asked.reset(before)


def ask() -> None:
    """Asks the question of the block that this runs in, if it runs in one. To be called between parts of the work that
    take milliseconds."""
    question = _asked.get()
    if question is not None:
        question()


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mlx_lfm2vl")


def together(work: Callable[[int, int], object], units: int, least: int = 1) -> None:
    """`work(start, end)` of ranges that make up `range(units)`, each in a thread: as many as there are cores, if each
    gets at least `least` units. Such work must not share its own: it would wait for a thread that waits for it."""
    with cores as threads:
        parts = max(1, min(threads, units // max(1, least)))
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
