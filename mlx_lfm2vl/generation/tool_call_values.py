"""Values of tool calls, read while they are written, and written as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Generator, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from ..errors import ToolCallError

T = TypeVar("T")
E = TypeVar("E")
Steps = Generator[None, None, T]  # stops where more of the text is needed
MAX_DEPTH = 64  # of lists and dictionaries in each other
MAX_RUN = 1000  # characters of a name or number
NAME = re.compile(r"[^\W\d][\w.-]*")
_SPACE = re.compile(r"\s*")
_RUN = re.compile(r"[\w.+-]*")  # a name or a number, and what may belong to it
_NUMBER = re.compile(r"[+-]?\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?(?![\w.])")  # int and float say whether it is one
_PLAIN = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}  # of a string, up to its end or an escape
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.S)
_MAY_ESCAPE = re.compile(r"\\(?:[uUx][0-9a-fA-F]{0,8})?\Z")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


class ValueReader(Generic[E]):
    """Reads values from a text that grows.

    Attributes:
        text: what has come.
        at: how far it is read.
        taken: how far `events` tell of it.
        last: whether nothing more comes.
        shown: whether the JSON of what is read goes to `events`.
    """

    def __init__(self, text: str, at: int = 0, last: bool = False):
        self.text, self.at, self.taken, self.last = text, at, at, last
        self.shown = False
        self.events: list[E | str] = []

    def show(self, text: str) -> None:
        if self.shown and text:
            self.events.append(text)
            self.taken = self.at

    def whole_value(self) -> Steps[Any]:
        value = yield from self.value(0)
        if (yield from self.skip()) < len(self.text):
            self.fail("the end")
        return value

    def value(self, depth: int) -> Steps[Any]:
        if depth > MAX_DEPTH:
            self.fail(f"at most {MAX_DEPTH} lists and dictionaries in each other")
        if (yield from self.take("[")):
            items, _ = yield from self.items("]", depth)
            return items
        if (yield from self.take("(")):
            shown, self.shown = self.shown, False  # a list or its only item
            items, comma = yield from self.items(")", depth)
            self.shown = shown
            value = items[0] if len(items) == 1 and not comma else items
            self.show(as_json(value))
            return value
        if (yield from self.take("{")):
            self.show("{")
            entries = yield from self.members(depth)
            self.show("}")
            return entries
        if (yield from self.ahead('"')) or (yield from self.ahead("'")):
            return (yield from self._string(self.shown))
        yield from self.run()
        if (word := NAME.match(self.text, self.at)) and word[0] in _WORDS:
            self.at = word.end()
            self.show(as_json(_WORDS[word[0]]))
            return _WORDS[word[0]]
        return self._number()

    def _number(self) -> float:
        if number := _NUMBER.match(self.text, self.at):
            for kind in (int, float):
                with contextlib.suppress(ValueError):
                    value = kind(number[0])
                    if value not in (math.inf, -math.inf):
                        self.at = number.end()
                        self.show(as_json(value))
                        return value
        self.fail("a string, a number, true, false, null, a list or a dictionary")

    def items(self, bracket: str, depth: int) -> Steps[tuple[list[Any], bool]]:
        """The items of a list up to its bracket, and whether a comma stands behind the last one."""
        items: list[Any] = []
        comma = False
        self.show("[")
        while not (yield from self.take(bracket)):
            self.show(", " * bool(items))
            items.append((yield from self.value(depth + 1)))
            comma = yield from self.comma(bracket)
        self.show("]")
        return items, comma

    def members(self, depth: int) -> Steps[dict[str, Any]]:
        """The members of a dictionary up to its bracket."""
        entries: dict[str, Any] = {}
        while not (yield from self.take("}")):
            key = yield from self.key(entries)
            self.show(f"{', ' * bool(entries)}{as_json(key)}: ")
            entries[key] = yield from self.value(depth + 1)
            yield from self.comma("}")
        return entries

    def key(self, entries: Mapping[str, Any]) -> Steps[str]:
        start = self.at
        if (key := (yield from self._string(False))) in entries:
            self.at = start
            self.fail("each key once")
        yield from self.expect(":", "':'")
        return key

    def _string(self, shown: bool) -> Steps[str]:
        start = yield from self.skip()
        quote = self.text[start : start + 1]
        if quote not in _PLAIN:
            self.fail("a string in quotes, closed")
        self.at += 1
        if shown:
            self.show('"')
        parts: list[str] = []
        half = ""  # the first of two escapes of 16 bits that may make one character
        while True:
            new, more = half + self._plain(quote), False
            closed = self.text.startswith(quote, self.at)
            certain = not closed and (self.last or not _MAY_ESCAPE.match(self.text, self.at))
            if certain and (escape := _ESCAPE.match(self.text, self.at)):
                new, self.at, more = new + _unescape(escape), escape.end(), True
            cut = len(new) - (not closed and "\ud800" <= new[-1:] <= "\udbff")
            new, half = new[:cut].encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"), new[cut:]
            parts.append(new)
            if shown:
                self.show(as_json(new)[1:-1])
            if closed:
                break
            if not more and self.last:
                self.at = start
                self.fail("a string in quotes, closed")
            if not more:
                yield
        self.at += 1
        if shown:
            self.show('"')
        return "".join(parts)

    def _plain(self, quote: str) -> str:
        """The characters of a string up to its end or an escape."""
        found = _PLAIN[quote].match(self.text, self.at)
        assert found is not None  # it matches nothing at least
        self.at = found.end()
        return found[0]

    # Steps

    def skip(self) -> Steps[int]:
        while True:
            self._pass_space()
            if self.last or self.at < len(self.text):
                return self.at
            yield

    def _pass_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing at least

    def ahead(self, what: str) -> Steps[bool]:
        yield from self.skip()
        while not self.last and len(self.text) - self.at < len(what) and what.startswith(self.text[self.at :]):
            yield
        return self.text.startswith(what, self.at)

    def take(self, what: str) -> Steps[bool]:
        there = yield from self.ahead(what)
        self.at += len(what) * there
        return there

    def expect(self, what: str, called: str) -> Steps[None]:
        if not (yield from self.take(what)):
            self.fail(called)

    def comma(self, bracket: str) -> Steps[bool]:
        """Whether a comma stands behind an item. It may behind the last one before the bracket, and has to before
        others."""
        if (yield from self.take(",")):
            return True
        if not (yield from self.ahead(bracket)):
            self.fail(f"',' or {bracket!r}")
        return False

    def run(self) -> Steps[None]:
        """Waits until a name or number has ended."""
        yield from self.skip()
        while True:
            end = _RUN.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing at least
            if end - self.at > MAX_RUN:
                self.fail(f"a name or number of at most {MAX_RUN} characters")
            if self.last or end < len(self.text):
                return
            yield

    def name(self, what: str) -> Steps[str]:
        yield from self.run()
        found = NAME.match(self.text, self.at)
        if not found:
            self.fail(what)
        self.at = found.end()
        return found[0]

    def fail(self, expected: str) -> NoReturn:
        self._pass_space()
        rest = self.text[self.at : self.at + 20]
        there = f"{rest!r}" if rest else "the end"
        raise ToolCallError(f"tool call, character {self.at}: expected {expected}, found {there}")


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def inside(members: Mapping[str, Any]) -> str:
    return as_json(members)[1:-1]


def value_of(text: str) -> Any:
    """The value that a text is. Raises `ToolCallError`."""
    steps = ValueReader[str](text, last=True).whole_value()
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise AssertionError("a whole text needs no more")


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPED.get(code, code)
