"""Limits of one rendering of a template: steps, calls, sizes of values, processor time. All raise `TemplateError`.

A template of a few lines can double a text forty times. So each value is measured when it is made, and what can make
much of little is refused beforehand (`foresee`). A list or object is measured as the tree that it prints as: an inner
list that stands in it twice counts twice.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from ..errors import TemplateError

MAX_SECONDS = 10.0  # of processor time
MAX_CHARACTERS = 16_000_000  # of a text, and of all texts in a list or object
MAX_VALUES = 1_000_000  # of a list or object, those of inner ones included
MAX_DEPTH = 256  # of lists and objects in each other; Python hashes a tuple on the stack
MAX_BITS = 20_000  # of a whole number
TOTALS = {
    "steps": 200_000,  # loop rounds and macro calls
    "calls": 500_000,  # of filters, tests, functions and methods; values that a filter yields
    "characters": MAX_CHARACTERS,  # of the result
    "printed characters": 4 * MAX_CHARACTERS,  # of blocks and macros too
    "made characters": 16 * MAX_CHARACTERS,  # all may be kept
    "made values": 16 * MAX_VALUES,
}
_VIEWS = tuple(map(type, ({}.keys(), {}.values(), {}.items())))
CONTAINERS: tuple[Any, ...] = (list, tuple, dict, MappingProxyType, *_VIEWS)
_VALUE, _BIT = MAX_CHARACTERS // MAX_VALUES, MAX_CHARACTERS // MAX_BITS  # weights in characters


class Meter(Counter[str]):
    """The work of one rendering. `spans`: the places of `{% generation %}` blocks in its result."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.thread_time()
        self.spans: list[tuple[int, int]] = []

    def count(self, what: str, amount: int = 1) -> None:
        """Adds to one of `TOTALS`, and looks at the clock."""
        self[what] += amount
        if self[what] > TOTALS[what]:
            raise TemplateError(f"takes more than {TOTALS[what]:,} {what}; it may never end")
        if time.thread_time() - self.started > MAX_SECONDS:
            raise TemplateError(f"takes more than {MAX_SECONDS:g} seconds; it may never end")

    def made(self, value: Any) -> Any:
        """Measures a new value. The values of an iterator are measured as they come."""
        if isinstance(value, str):
            self.count("made characters", len(value))
        elif isinstance(value, CONTAINERS):
            self.count("made values", len(value))
        elif isinstance(value, Iterator):
            return self._each(value)
        else:
            self.count("made values")
        measure(value)
        return value

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.count("calls")
            yield self.made(value)


def measure(value: Any) -> tuple[int, int, int]:
    """A value as the tree that it prints as: the characters of its texts, its values, its depth."""
    if isinstance(value, str):
        check_size(len(value))
        return len(value), 1, 1
    characters = values = depth = 0
    level = [value]
    while level:
        values, depth = values + len(level), depth + 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                characters += len(one)
            elif isinstance(one, int):
                characters += one.bit_length() // 3
                if one.bit_length() > MAX_BITS:
                    raise TemplateError(f"makes a number of more than {MAX_BITS:,} bits")
            elif isinstance(one, (dict, MappingProxyType)):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, CONTAINERS):
                inner += one
            if values + len(inner) > MAX_VALUES:
                raise TemplateError(f"makes a list or object of more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise TemplateError(f"makes more than {MAX_DEPTH} lists or objects in each other")
        level = inner
    check_size(characters)
    return characters, values, depth


def size(value: Any) -> int:
    """About how many characters a value prints as."""
    characters, values, _ = measure(value)
    return characters + 4 * values


def check_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise TemplateError(f"makes a value larger than {MAX_CHARACTERS:,}")


def foresee(name: str, *arguments: Any, **named: Any) -> None:
    """Refuses an operator, filter or method whose result would be too large, before it is made."""
    if name in GROWTH:
        check_size(GROWTH[name](*arguments, **named))


def _repeated(left: Any, right: Any) -> int:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, (str, list, tuple)) and isinstance(times, int):
            return len(items) * times * (1 if isinstance(items, str) else _VALUE)
    return 0


def _formatted(form: Any, *values: Any, **named: Any) -> int:
    """Characters of `form % values` and `form.format(values)`. Widths stand in the form, or come from the values."""
    form, given = str(form), [*values, *named.values()]
    widths = [int(digits) for digits in re.findall(r"\d+", form)]
    if re.search(r"\*|\{[^{}]*\{", form):
        widths += [abs(value) for value in given if isinstance(value, int)]
    return len(form) + (form.count("%") + form.count("{")) * max([400, *widths, *map(size, given)])


def _formatted_by_braces(form: str, *values: Any, **named: Any) -> int:
    if re.search(r"\{[^{}:!]*[.\[]", form):
        raise TemplateError("formats an attribute or item of a value; a field may only name the value")
    return _formatted(form, *values, **named)


def _replaced(text: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


GROWTH: dict[str, Callable[..., int]] = {  # operators, filters and methods: the characters of a result at most
    "*": _repeated,
    "**": lambda left, right: _BIT * left.bit_length() * abs(right) if isinstance(left, int) else 0,
    "%": lambda left, right: (
        _formatted(left, *(right if isinstance(right, tuple) else [right])) if isinstance(left, str) else 0
    ),
    "batch": lambda items, linecount, fill_with=None: _VALUE * linecount,
    "format": _formatted,
    ".format": _formatted_by_braces,
    "indent": lambda text, width=4, *_, **__: (len(str(text)) + 1) * (len(width) if isinstance(width, str) else width),
    "join": lambda items, d="", attribute=None: size(items) + len(items) * size(d),
    "replace": _replaced,
    "round": lambda value, precision=0, method="common": _VALUE * abs(precision),
    "slice": lambda items, slices, fill_with=None: _VALUE * slices,
    "sum": lambda items, attribute=None, start=0: 0 if isinstance(start, (int, float)) else MAX_CHARACTERS + 1,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda text, width=80, *_, **__: width),
    **dict.fromkeys(
        ("rsplit", "split", "splitlines"),
        lambda text, sep=None, *_, **__: _VALUE * (text.count(sep) if isinstance(sep, str) and sep else len(text)),
    ),
}
