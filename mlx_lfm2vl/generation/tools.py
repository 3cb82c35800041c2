"""Tool calls: from what a model writes between `<|tool_call_start|>` and `<|tool_call_end|>` to names and arguments.

Nothing is evaluated. Two spellings are read: calls in Python's manner, `[name(a="x", n=3)]`, and JSON objects,
`[{"name": "name", "arguments": {"a": "x"}}]`, also with other names in use for their parts (`NAMES`, `ARGUMENTS`) or
nested as OpenAI's are. Without the brackets calls need no comma between them, as in JSON lines; there may be several
lists. Values are strings, finite numbers, true/True, false/False, null/None, lists, tuples (which become lists) and
dictionaries with string keys. Unlike in Python a parameter may be called `from` or `class`.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import ToolCallError, ToolCallWarning
from ..processing.conversation import ARGUMENTS, CALL_END, CALL_START, NAMES

BESIDE = ("type", "id", "index")  # keys of one that say nothing of the call
MAX_DEPTH = 64  # of lists and dictionaries in each other
MAX_DIGITS = 1000
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[^\W\d][\w.-]*")
_BEGIN = re.compile(rf"{_NAME.pattern}\s*\(|[\[{{]")  # of a list of calls, or of a call
_NUMBER = re.compile(r"[+-]?\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?(?![\w.])")  # int and float say whether it is one
_STRING = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", re.S)
_PART = re.compile(rf"""(["'])(?:(?!\1)[^\\]|\\.)*(?P<closed>\1|\Z)|[](){{}}[,\n]|{re.escape(CALL_END)}""", re.S)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


@dataclass(frozen=True)
class ToolCall:
    """A function's name and the arguments to call it with."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def parse_tool_calls(text: str) -> list[ToolCall]:
    """All calls in a text, in order.

    Args:
        text: a `tool_text`, or a whole answer decoded with its special tokens. What stands outside the two tokens is
            passed over.

    Returns:
        Those that can be read whole. A `ToolCallWarning` says of each other one beside them what is wrong with it.

    Raises:
        ToolCallError: no call can be read, or the only one is cut off. It names the place, and what is wrong there.
    """
    calls, errors = read_tool_calls(text)
    if errors and not calls:
        raise errors[0]
    for error in errors:
        warnings.warn(str(error), ToolCallWarning, stacklevel=2)
    return calls


def read_tool_calls(text: str) -> tuple[list[ToolCall], list[ToolCallError]]:
    """As `parse_tool_calls`: all calls that can be read whole, and what is wrong with each other one."""
    if not isinstance(text, str):
        raise ToolCallError(f"the text of tool calls is {type(text).__name__}, expected str")
    calls: list[ToolCall] = []
    errors: list[ToolCallError] = []
    at = 0
    while (at := text.find(CALL_START, at)) >= 0:
        reader = _Reader(text, at + len(CALL_START))
        for item in reader.calls():
            if isinstance(item, ToolCall):
                calls.append(item)
            else:
                errors.append(item)
        at = reader.at
    return calls, errors


class _Reader:
    """Reads a block from `at` on."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at

    def calls(self) -> Iterator[ToolCall | ToolCallError]:
        """The calls of a block up to its end, in order. In place of one that cannot be read: what is wrong with it."""
        while not self._take(CALL_END):
            closing = "]" if self._take("[") else CALL_END
            while not self._take(closing):
                start = self.at
                try:
                    yield self._call()
                    start = self.at
                    if not self._take(",") and closing == "]" and not self._ahead("]"):
                        self._fail("',' or ']'")
                except ToolCallError as error:
                    yield error
                    if not self._pass_over(start, closing):
                        return
            if closing == CALL_END:
                return
            self._take(",")
            if not self._ahead(CALL_END) and not _BEGIN.match(self.text, self._skip()):  # of one more list or call
                try:
                    self._fail(CALL_END)
                except ToolCallError as error:
                    yield error
                return

    def _pass_over(self, start: int, closing: str) -> bool:
        """Goes from `start` behind the next comma of a block (without brackets the next end of a line too), or to its
        closing bracket. False if its end comes first, or a string that is not closed: then it goes behind the end."""
        between, depth = (",",) if closing == "]" else (",", "\n"), 0
        for part in _PART.finditer(self.text, start):
            text = part[0]
            if text == CALL_END or part["closed"] == "":
                break
            if depth == 0 and text in (*between, closing):
                self.at = part.end() if text in between else part.start()
                return True
            depth = depth + 1 if text in "([{" else max(0, depth - 1) if text in ")]}" else depth
        end = self.text.find(CALL_END, start)
        self.at = len(self.text) if end < 0 else end + len(CALL_END)
        return False

    def _call(self) -> ToolCall:
        if self._ahead("{"):
            return self._object()
        name = self._match(_NAME, "the name of a function")
        self._expect("(", "'('")
        arguments: dict[str, Any] = {}
        for _ in self._until(")"):
            start = self._skip()
            if self._take("**"):
                if not self._ahead("{"):
                    self._fail("a dictionary")
                given = self._value(0)
            else:
                parameter = self._match(_NAME, "the name of a parameter")
                self._expect("=", "'=' (arguments are given by name)")
                given = {parameter: self._value(0)}
            if twice := sorted(given.keys() & arguments.keys()):
                self.at = start
                self._fail(f"each parameter once, {twice[0]!r} is there already")
            arguments |= given
        return ToolCall(name, arguments)

    def _object(self) -> ToolCall:
        start = self._skip()
        made = self._value(0)
        nested = made.pop("function") if isinstance(made.get("function"), dict) else {}
        parts = [*made.items(), *nested.items()]
        names = {value for key, value in parts if key in NAMES and isinstance(value, str)}
        given = [value for key, value in parts if key in ARGUMENTS and value not in (None, "")]
        if isinstance(given[0] if given else None, str):  # some models write the object as a string of JSON
            with contextlib.suppress(ToolCallError):  # what is no object is refused below
                given[0] = _Reader(given[0], 0).whole_value()
        known = {key for key, _ in parts} <= {*NAMES, *ARGUMENTS, *BESIDE}
        if not known or len(names) != 1 or len(given) > 1 or not all(isinstance(each, dict) for each in given):
            self.at = start
            self._fail('an object with "name" and "arguments"')
        return ToolCall(names.pop(), given[0] if given else {})

    def whole_value(self) -> Any:
        value = self._value(0)
        if self._skip() < len(self.text):
            self._fail("the end")
        return value

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._fail(f"at most {MAX_DEPTH} lists and dictionaries in each other")
        if self._take("["):
            return [self._value(depth + 1) for _ in self._until("]")]
        if self._take("("):
            items = [self._value(depth + 1) for _ in self._until(")")]
            alone = len(items) == 1 and not self.text[: self.at - 1].rstrip().endswith(",")
            return items[0] if alone else items
        if self._take("{"):
            entries: dict[str, Any] = {}
            for _ in self._until("}"):
                start = self._skip()
                if (key := self._string()) in entries:
                    self.at = start
                    self._fail("each key once")
                self._expect(":", "':'")
                entries[key] = self._value(depth + 1)
            return entries
        if self._ahead('"') or self._ahead("'"):
            return self._string()
        if (word := _NAME.match(self.text, self.at)) and word[0] in _WORDS:
            self.at = word.end()
            return _WORDS[word[0]]
        if number := _NUMBER.match(self.text, self.at):
            if len(number[0]) > MAX_DIGITS:
                self._fail(f"a number of at most {MAX_DIGITS} digits")
            for kind in (int, float):
                with contextlib.suppress(ValueError):
                    value = kind(number[0])
                    if value not in (math.inf, -math.inf):
                        self.at = number.end()
                        return value
        self._fail("a string, a number, true, false, null, a list or a dictionary")

    def _string(self) -> str:
        quoted = self._match(_STRING, "a string in quotes, closed")
        text = _ESCAPE.sub(_unescape, quoted[1:-1])
        # two escapes of 16 bits may make one character
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    # Steps

    def _skip(self) -> int:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing at least
        return self.at

    def _ahead(self, what: str) -> bool:
        return self.text.startswith(what, self._skip())

    def _take(self, what: str) -> bool:
        there = self._ahead(what)
        self.at += len(what) * there
        return there

    def _expect(self, what: str, called: str) -> None:
        if not self._take(what):
            self._fail(called)

    def _until(self, bracket: str) -> Iterator[None]:
        """Once for each item before a closing bracket. A comma may stand behind the last one."""
        while not self._take(bracket):
            yield
            if not self._take(",") and not self._ahead(bracket):
                self._fail(f"',' or {bracket!r}")

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self.text, self._skip())
        if not found:
            self._fail(what)
        self.at = found.end()
        return found[0]

    def _fail(self, expected: str) -> NoReturn:
        rest = self.text[self._skip() :]
        there = f"{rest[:20]!r}" if rest else "the end"
        raise ToolCallError(f"tool call, character {self.at}: expected {expected}, found {there}")


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPED.get(code, code)
