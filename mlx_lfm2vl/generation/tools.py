"""Tool calls: from what a model writes between `<|tool_call_start|>` and `<|tool_call_end|>` to names and arguments.

Nothing is evaluated. Two spellings are read: calls in Python's manner, `[name(a="x", n=3)]`, and JSON objects,
`[{"name": "name", "arguments": {"a": "x"}}]`. Values are strings, numbers, true/True, false/False, null/None, lists
and dictionaries with string keys. Unlike in Python a parameter may be called `from` or `class`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import ToolCallError

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
MAX_DEPTH = 64  # of lists and dictionaries in each other
MAX_DIGITS = 1000
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*)?(\.\d*)?([eE][+-]?\d+)?(?![\w.])")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', re.S)
_PAIR = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # two halves of a character beyond 16 bits
_LONG = r"U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}"
_ESCAPE = re.compile(rf"\\({_PAIR}|u[0-9a-fA-F]{{4}}|{_LONG}|x[0-9a-fA-F]{{2}}|.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


@dataclass(frozen=True)
class ToolCall:
    """A function's name and the arguments to call it with."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def parse_tool_calls(text: str) -> list[ToolCall]:
    """All calls in a text, in order; what stands outside the two tokens is passed over.

    Takes a `tool_text`, or a whole answer decoded with its special tokens. Raises `ToolCallError` naming the place and
    what is wrong there, also for a call that was cut off.
    """
    if not isinstance(text, str):
        raise ToolCallError(f"the text of tool calls is {type(text).__name__}, expected str")
    calls: list[ToolCall] = []
    at = 0
    while (at := text.find(START, at)) >= 0:
        reader = _Reader(text, at + len(START))
        calls += reader.calls()
        at = reader.at
    return calls


class _Reader:
    """Reads a block from `at` on."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at

    def calls(self) -> list[ToolCall]:
        listed = self._take("[")
        calls: list[ToolCall] = []
        while not (listed and self._take("]")):
            calls.append(self._call())
            if not self._take(",") and not (listed and self._ahead("]")):
                if listed:
                    self._fail("',' or ']'")
                break
        if not self._take(END):
            self._fail(END)
        return calls

    def _call(self) -> ToolCall:
        if self._ahead("{"):
            return self._object()
        name = self._match(_NAME, "the name of a function")
        if not self._take("("):
            self._fail("'('")
        arguments: dict[str, Any] = {}
        while not self._take(")"):
            start = self._skip()
            parameter = self._match(_NAME, "the name of a parameter")
            if not self._take("="):
                self._fail("'=' (arguments are given by name)")
            if parameter in arguments:
                self.at = start
                self._fail(f"each parameter once, {parameter!r} is there already")
            arguments[parameter] = self._value(0)
            if not self._take(",") and not self._ahead(")"):
                self._fail("',' or ')'")
        return ToolCall(name, arguments)

    def _object(self) -> ToolCall:
        start = self._skip()
        made = self._value(0)
        arguments = made.get("arguments", {})
        if isinstance(arguments, str):  # some models write the object as a string of JSON
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(made.get("name"), str) or not isinstance(arguments, dict):
            self.at = start
            self._fail('an object with "name" and "arguments"')
        return ToolCall(made["name"], arguments)

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._fail(f"at most {MAX_DEPTH} lists and dictionaries in each other")
        self._skip()
        if self._take("["):
            items = []
            while not self._take("]"):
                items.append(self._value(depth + 1))
                if not self._take(",") and not self._ahead("]"):
                    self._fail("',' or ']'")
            return items
        if self._take("{"):
            entries: dict[str, Any] = {}
            while not self._take("}"):
                key = self._string()
                if not self._take(":"):
                    self._fail("':'")
                entries[key] = self._value(depth + 1)
                if not self._take(",") and not self._ahead("}"):
                    self._fail("',' or '}'")
            return entries
        if self.text[self.at : self.at + 1] in ("'", '"'):
            return self._string()
        if (word := _NAME.match(self.text, self.at)) and word[0] in _WORDS:
            self.at = word.end()
            return _WORDS[word[0]]
        number = _NUMBER.match(self.text, self.at)
        if number and (number[1] or (number[3] or "").strip(".")):
            digits = number[0].replace("_", "")
            if len(digits) > MAX_DIGITS:
                self._fail(f"a number of at most {MAX_DIGITS} digits")
            self.at = number.end()
            return float(digits) if number[3] or number[4] else int(digits)
        self._fail("a string, a number, true, false, null, a list or a dictionary")

    def _string(self) -> str:
        self._skip()
        found = _STRING.match(self.text, self.at)
        if not found:
            self._fail("a string in quotes, closed")
        self.at = found.end()
        return _ESCAPE.sub(_unescape, found[1] if found[1] is not None else found[2])

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
    if code[0] in "uUx" and len(code) > 1:
        if "\\" in code:
            return json.loads(f'"\\{code}"')  # type: ignore[no-any-return]
        return chr(int(code[1:], 16))
    return _ESCAPED.get(code, code)
