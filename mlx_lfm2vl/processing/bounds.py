"""How large values may get while a template is rendered, and how long that may take.

A template of a few lines can double a text forty times. So whatever can make a value much larger than its parts is
measured before it is done: texts by their characters, lists and objects as the trees that they print as (one list that
stands twice in another counts twice). All functions raise `TemplateError`.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from ..errors import TemplateError

MAX_STEPS = 200_000  # loop rounds and macro calls
MAX_CALLS = 500_000  # of filters, functions and methods
MAX_CHARACTERS = 16_000_000  # of the text, and of any one on the way to it
MAX_NODES = 1_000_000  # values in a list or object, those in its inner ones included
MAX_MADE = 16  # times as many characters and values that may be made in all, since all may be kept
MAX_NUMBER = 1_000_000  # a width, a count, a precision
MAX_BITS = 20_000  # of a whole number
MAX_SECONDS = 10.0  # of processor time
CONTAINERS = (list, tuple, dict, KeysView, ItemsView, ValuesView)


@dataclasses.dataclass
class Work:
    """One rendering: what came out so far, and how much work it was."""

    pieces: list[str] = dataclasses.field(default_factory=list)
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    characters: int = 0
    printed: int = 0
    steps: int = 0
    calls: int = 0
    characters_made: int = 0
    nodes_made: int = 0
    started: float = dataclasses.field(default_factory=time.thread_time)

    def add(self, piece: str) -> None:
        """Takes a piece of the text."""
        self.characters += len(piece)
        if self.characters > MAX_CHARACTERS:
            raise TemplateError(f"makes a text of more than {MAX_CHARACTERS:,} characters")
        self.pieces.append(piece)

    def step(self, characters: int) -> None:
        """A loop round or a macro call, which prints so many literal characters."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateError(f"takes more than {MAX_STEPS:,} steps; it may never end")
        self._print(characters)
        self._check_time()

    def call(self) -> None:
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise TemplateError(f"makes more than {MAX_CALLS:,} calls; it may never end")
        self._check_time()

    def made(self, value: Any) -> Any:
        """A value that something made, if it may be so large, and if not too much was made before."""
        if isinstance(value, str):
            self.characters_made += len(value)
        elif isinstance(value, CONTAINERS):
            self.nodes_made += len(value)
        if self.characters_made > MAX_MADE * MAX_CHARACTERS or self.nodes_made > MAX_MADE * MAX_NODES:
            raise TemplateError(f"makes more than {MAX_MADE * MAX_CHARACTERS:,} characters or values on the way")
        return kept(value)

    def show(self, value: Any) -> Any:
        """A value that is printed, into the text or into a block or macro on the way to it."""
        self._print(text_size(value))
        return value

    def _print(self, characters: int) -> None:
        self.printed += characters
        if self.printed > 4 * MAX_CHARACTERS:
            raise TemplateError(f"prints more than {4 * MAX_CHARACTERS:,} characters")

    def _check_time(self) -> None:
        if time.thread_time() - self.started > MAX_SECONDS:
            raise TemplateError(f"takes more than {MAX_SECONDS:g} seconds; it may never end")


def measure(value: Any) -> tuple[int, int, int]:
    """A value as the tree that it prints as: its nodes, the characters of its texts, its depth."""
    nodes = characters = depth = 0
    level = [value]
    while level:
        nodes += len(level)
        if nodes > MAX_NODES:
            raise TemplateError(f"makes a list or object of more than {MAX_NODES:,} values")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                characters += len(one)
            elif isinstance(one, int):
                characters += one.bit_length() // 3
            elif isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, CONTAINERS):
                inner += one
            if len(inner) > MAX_NODES:
                raise TemplateError(f"makes a list or object of more than {MAX_NODES:,} values")
        level, depth = inner, depth + 1
    return nodes, characters, depth


def text_size(value: Any) -> int:
    """The characters, roughly, that a value prints as."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (int, *CONTAINERS)):
        nodes, characters, _ = measure(value)
        return characters + 4 * nodes
    return 0


def kept(value: Any) -> Any:
    """A value, if it may be so large."""
    if isinstance(value, str):
        _text(len(value))
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        _bits(value.bit_length())
    elif isinstance(value, CONTAINERS):
        _text(measure(value)[1])
    return value


def check_operator(operator: str, left: Any, right: Any) -> None:
    """`+`, `*`, `**` and `%` (printf)."""
    sequences = [side for side in (left, right) if isinstance(side, (str, list, tuple))]
    numbers = [side for side in (left, right) if isinstance(side, int)]
    if operator == "%":
        if isinstance(left, str):
            check_printf(left, right if isinstance(right, tuple) else (right,))
    elif operator in "+*" and sequences:
        length = sum(map(len, sequences)) if operator == "+" else max(map(len, sequences)) * max(numbers, default=0)
        if isinstance(sequences[0], str):
            _text(length)
        elif length > MAX_NODES:
            raise TemplateError(f"makes a list or object of more than {MAX_NODES:,} values")
    elif operator == "*":
        _bits(sum(number.bit_length() for number in numbers))
    elif operator == "**" and len(numbers) == 2:
        _bits(left.bit_length() * abs(right))


def check_printf(form: str, values: Sequence[Any] | Mapping[str, Any]) -> None:
    """`form % values`."""
    inner = list(values.values()) if isinstance(values, Mapping) else list(values)
    _check_form(form, form.count("%"), inner, "*" in form)


def check_format(form: str, values: Sequence[Any]) -> None:
    """`form.format(...)`."""
    _check_form(form, form.count("{"), list(values), re.search(r"\{[^{}]*\{", form) is not None)


def _check_form(form: str, fields: int, values: list[Any], computed: bool) -> None:
    """`computed`: widths may come from the values."""
    widths = [int(digits) if len(digits) < 8 else 10**8 for digits in re.findall(r"\d+", form)]
    numbers = [value for value in values if isinstance(value, int)] if computed else []
    longest = max([20, *map(text_size, values), *widths, *map(abs, numbers)])
    _text(len(form) + fields * longest)


def check_replace(text: str, old: str, new: str) -> None:
    times = text.count(old) if old else len(text) + 1
    _text(len(text) + times * len(new))


def check_method(owner: Any, name: str, values: Sequence[Any]) -> None:
    """A call of a method of a text or number with positional and named `values`."""
    if not isinstance(owner, (str, bytes, int, float)):
        for value in (owner, *values):  # which may be compared with one another
            kept(value)
        return
    if isinstance(owner, str) and name in ("split", "rsplit", "splitlines"):
        check_split(owner, values)
    for value in values:
        check_number(value)
    if name == "join" and values:
        check_join(list(values[0]), owner)
    elif name == "replace" and len(values) >= 2 and isinstance(owner, str):
        check_replace(owner, str(values[0]), str(values[1]))
    elif name == "format" and isinstance(owner, str):
        check_format(owner, values)


def check_split(text: str, values: Sequence[Any]) -> None:
    """`text.split(...)`: how many parts there may be."""
    between = values[0] if values and isinstance(values[0], str) and values[0] else None
    parts = text.count(between) if between else sum(map(text.count, " \t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    if parts >= MAX_NODES:
        raise TemplateError(f"makes a list or object of more than {MAX_NODES:,} values")


def check_join(items: list[Any], between: Any) -> None:
    _text(text_size(items) + len(items) * text_size(between))


def check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise TemplateError(f"asks for {value:.3g}; a width or count may be {MAX_NUMBER:,} at most")


def _indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    check_number(width)
    size = width if isinstance(width, int) else text_size(width)
    _text(text_size(text) + (str(text).count("\n") + 1) * size)


def _numbers(value: Any, *arguments: Any, **named: Any) -> None:
    for argument in (*arguments, *named.values()):
        check_number(argument)


def _precision(value: Any, precision: Any = 0, method: Any = "common") -> None:
    if not isinstance(precision, int) or abs(precision) > 100:
        raise TemplateError(f"rounds to {precision!r} digits")


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise TemplateError("sums what is no number")


def _printf(value: Any, *arguments: Any, **named: Any) -> None:
    check_printf(str(value), named or arguments)


def _replace(value: Any, old: Any, new: Any, count: Any = None) -> None:
    check_replace(str(value), str(old), str(new))


def _each(value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_NODES:
        raise TemplateError(f"goes over the letters of a text of more than {MAX_NODES:,}")


def _each_in_groups(value: Any, *arguments: Any, **named: Any) -> None:
    _each(value)
    _numbers(value, *arguments, **named)


FILTERS: dict[str, Callable[..., None]] = {  # what filters that can make much of little are asked before
    **{"batch": _each_in_groups, "center": _numbers, "slice": _each_in_groups, "truncate": _numbers},
    **dict.fromkeys(("groupby", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select"), _each),
    **dict.fromkeys(("selectattr", "sort", "unique"), _each),
    **{"format": _printf, "indent": _indent, "replace": _replace, "round": _precision, "sum": _sum},
}
# They work in steps of their own that nothing can count, on texts of any length; no chat template needs them.
LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
UNSAFE_METHODS = ("expandtabs", "format_map", "from_bytes", "maketrans", "to_bytes", "translate")


def _text(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateError(f"makes a value larger than {MAX_CHARACTERS:,}")


def _bits(size: int) -> None:
    if size > MAX_BITS:
        raise TemplateError(f"makes a number of more than {MAX_BITS:,} bits")
