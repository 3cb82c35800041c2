"""The lines of an output in the order of its rows, whatever order they come in."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from .answers import Output
from .rows import Row

AHEAD, KEPT = ".ahead", ".rank"  # behind an output's name: lines that come before their turn, or in a rank without 0


class InOrder:
    """Writes lines into an output. Those before whose turn others are missing wait in a file beside it, which a run
    that is stopped leaves for the next one."""

    def __init__(self, into: Output, numbers: Iterable[int], rows: Callable[[], Iterable[Row]]):
        """`numbers` of all rows that belong in it, ascending; `rows` reads them."""
        self._into, self._rows = into, rows
        self._open = deque(number for number in numbers if number not in into.lines)
        self._ahead: Output | None = None
        self.left = len(self._open)  # rows that are not there

    def __enter__(self) -> InOrder:
        """Takes up what earlier runs have left."""
        if os.path.exists(self._into.path + AHEAD):
            self._ahead = self._into.beside(AHEAD, self._rows)
            self.left = len(self.missing)
        self._advance()
        for path in sorted(glob.glob(glob.escape(self._into.path + KEPT) + "*")):
            with self._into.beside(path.removeprefix(self._into.path), self._rows) as kept:
                for number in list(kept.lines):
                    self.put(number, *kept.taken(number))
                kept.remove()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ahead is not None:
            if not self._open:
                self._ahead.remove()
            self._ahead.__exit__(kind, error, at)

    @property
    def missing(self) -> list[int]:
        """Numbers of the rows that are not there."""
        return [number for number in self._open if self._ahead is None or number not in self._ahead.lines]

    def put(self, number: int, line: bytes, failed: bool) -> None:
        """Takes a row's line; one that is there already counts."""
        if number in self._into.lines or (self._ahead is not None and number in self._ahead.lines):
            return
        self.left -= 1
        if self._open[0] == number:
            self._write(line, failed)
            self._advance()
            return
        if self._ahead is None:
            self._ahead = self._into.beside(AHEAD, self._rows)
        self._ahead.append(number, line, failed)

    def _advance(self) -> None:
        while self._ahead is not None and self._open and self._open[0] in self._ahead.lines:
            self._write(*self._ahead.taken(self._open[0]))

    def _write(self, line: bytes, failed: bool) -> None:
        self._into.append(self._open.popleft(), line, failed)
