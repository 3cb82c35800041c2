"""A case and its outcome."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytest

from mlx_lfm2vl.errors import Lfm2VlError

from .bench import Bench, Ended


class Outcome(Protocol):
    """What a row expects."""

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        """Does `act` and asserts on what comes of it. Texts may name the bench's folder as {folder}."""


@dataclass(frozen=True)
class Row:
    """`act(bench)` does the case; `outcome` says what must come of it, within `seconds`."""

    name: str
    act: Callable[[Bench], Any]
    outcome: Outcome
    seconds: float = 60.0


def without_bench(function: Callable[..., Any], *arguments: Any) -> Callable[[Bench], Any]:
    """An act that is a call of `function`."""
    return lambda _: function(*arguments)


def _assert_says(line: str, where: str, what: str, way: str, bench: Bench) -> None:
    assert "\n" not in line and line.strip() == line, repr(line)
    for words in (where, what, way):
        assert words.format(folder=bench.folder) in line, f"{words!r} is not in {line!r}"


@dataclass(frozen=True)
class Gives:
    """The act returns `expected`, arrays bit for bit; `warns` is in the one warning that it gives (none if empty)."""

    expected: Any
    warns: str = ""

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            made = act()
        said = [str(warning.message) for warning in recorded]
        assert len(said) == bool(self.warns), said
        assert all(self.warns.format(folder=bench.folder) in line for line in said), said
        if isinstance(self.expected, np.ndarray):
            assert (made.dtype, made.shape) == (self.expected.dtype, self.expected.shape)
            np.testing.assert_array_equal(made, self.expected)
        else:
            assert made == self.expected


@dataclass(frozen=True)
class Near:
    """The act returns an array that is nowhere more than `within` from `expected`: for what loses information."""

    expected: np.ndarray
    within: int
    warns: str = ""

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        def made() -> bool:
            array = act()
            assert (array.dtype, array.shape) == (self.expected.dtype, self.expected.shape)
            assert np.abs(array.astype(int) - self.expected).max() <= self.within
            return True

        Gives(True, self.warns).check(made, bench)


@dataclass(frozen=True)
class Refused:
    """The act raises `error` (that class, no other) with one line: `where` it is (the file, option or address), `what`
    is wrong, and the `way` out, which is empty only where the fault names it (a value and its range, a missing file).
    """

    error: type[Lfm2VlError]
    where: str
    what: str
    way: str = ""

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        assert self.what, "a row says what the message says"
        with pytest.raises(Lfm2VlError) as caught:
            act()
        assert type(caught.value) is self.error, repr(caught.value)
        _assert_says(str(caught.value), self.where, self.what, self.way, bench)


@dataclass(frozen=True)
class Exits:
    """The act runs a command (`bench.cli`, `bench.process`) that ends with `code`, prints nothing on stdout and one
    error line on stderr, with `where`, `what` and `way` as in `Refused`; lines before it are the program's notes."""

    where: str
    what: str
    way: str = ""
    code: int = 2

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        assert self.what, "a row says what the message says"
        ended: Ended = act()
        assert (ended.code, ended.out) == (self.code, ""), ended
        *before, last = ended.err.splitlines()
        assert last.startswith("mlx-lfm2vl: error: "), ended.err
        assert all(line.startswith("mlx-lfm2vl: ") and "error" not in line for line in before), ended.err
        _assert_says(last, self.where, self.what, self.way, bench)


@dataclass(frozen=True)
class Answers:
    """The act runs a command that ends with 0 and prints a line; `notes` are the texts its stderr lines hold, in
    order, a line each; `prints` is in what it prints."""

    notes: tuple[str, ...] = ()
    prints: str = ""

    def check(self, act: Callable[[], Any], bench: Bench) -> None:
        ended: Ended = act()
        assert ended.code == 0 and ended.out.endswith("\n"), ended
        assert self.prints.format(folder=bench.folder) in ended.out
        lines = ended.err.splitlines()
        assert len(lines) == len(self.notes), ended.err
        for line, words in zip(lines, self.notes, strict=True):
            assert line.startswith("mlx-lfm2vl: ") and words.format(folder=bench.folder) in line, ended.err
