"""Tool calls: from what a model writes between `<|tool_call_start|>` and `<|tool_call_end|>` to names and arguments,
whole or while it is written. What is told of a call does not depend on the pieces in which its text comes.

Nothing is evaluated. Two spellings are read: calls in Python's manner, `[name(a="x", n=3)]`, and JSON objects,
`[{"name": "name", "arguments": {"a": "x"}}]`, also with other names in use for their parts (`NAMES`, `ARGUMENTS`) or
nested as OpenAI's are. Without the brackets calls need no comma between them, as in JSON lines; there may be several
lists. Values are strings, finite numbers, true/True, false/False, null/None, lists, tuples (which become lists) and
dictionaries with string keys. Unlike in Python a parameter may be called `from` or `class`.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ToolCallError, ToolCallWarning
from ..processing.conversation import ARGUMENTS, CALL_END, CALL_START, NAMES
from .tool_call_values import NAME, Steps, ValueReader, as_json, inside, value_of

BESIDE = ("type", "id", "index")  # keys of one that say nothing of the call
_PART = re.compile(rf"""(["'])(?:(?!\1)[^\\]|\\.)*(?P<closed>\1|\Z)|[](){{}}[,\n]|{re.escape(CALL_END)}""", re.S)


@dataclass(frozen=True)
class ToolCall:
    """A function's name and the arguments to call it with."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """A call whose name is known. Its arguments follow."""

    name: str


Event = Begun | str | ToolCall | ToolCallError  # a text is some of a call's arguments as JSON


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
    if not isinstance(text, str):
        raise ToolCallError(f"the text of tool calls is {type(text).__name__}, expected str")
    calls: list[ToolCall] = []
    errors: list[ToolCallError] = []
    at = 0
    while (at := text.find(CALL_START, at)) >= 0:
        reader = ToolCallReader(text, at, whole=True)
        for event in reader.feed(""):
            if isinstance(event, ToolCall):
                calls.append(event)
            elif isinstance(event, ToolCallError):
                errors.append(event)
        at = reader.at
    if errors and not calls:
        raise errors[0]
    for error in errors:
        warnings.warn(str(error), ToolCallWarning, stacklevel=2)
    return calls


class ToolCallReader(ValueReader[Event]):
    """Reads a block from the token `CALL_START` on.

    Attributes:
        taken: how far events tell of it, behind the last whole call at least.
        ended: whether the block's end is read, or an error ends it.
    """

    def __init__(self, text: str = "", at: int = 0, whole: bool = False):
        """`whole`: all of the text is here, and calls behind one that cannot be read are read, too."""
        super().__init__(text, at, last=whole)
        self.ended, self._whole = False, whole
        self._steps = self._block()

    def feed(self, text: str, last: bool = False) -> list[Event]:
        """The events of more text: of each call that it begins, the arguments that became certain, which joined are
        `json.dumps` of all of them, and the call. An error is what is wrong with a call. `last`: nothing follows."""
        self.text += text
        self.last = self.last or last
        if not self.ended:
            try:
                next(self._steps)
            except StopIteration:
                self.ended = True
        events, self.events = self.events, []
        return events

    def _block(self) -> Steps[None]:
        yield from self.take(CALL_START)
        while not (yield from self.take(CALL_END)):
            closing = "]" if (yield from self.take("[")) else CALL_END
            while not (yield from self.take(closing)):
                start = self.at
                try:
                    yield from self._call()
                    start = self.at
                    if not (yield from self.take(",")) and closing == "]" and not (yield from self.ahead("]")):
                        self.fail("',' or ']'")
                    self.taken = self.at
                except ToolCallError as error:
                    self.events.append(error)
                    if not self._whole or not self._pass_over(start, closing):
                        return
            if closing == CALL_END:
                return
            yield from self.take(",")
            self.taken = self.at
            try:
                if not (yield from self.ahead(CALL_END)) and not (yield from self._begins()):
                    self.fail(CALL_END)
            except ToolCallError as error:
                self.events.append(error)
                return

    def _begins(self) -> Steps[bool]:
        """Whether one more list of calls, or a call, comes."""
        if (yield from self.ahead("[")) or (yield from self.ahead("{")):
            return True
        yield from self.run()
        start, name = self.at, NAME.match(self.text, self.at)
        if name is None:
            return False
        self.at = name.end()
        there = yield from self.ahead("(")
        self.at = start
        return there

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

    # Calls

    def _call(self) -> Steps[None]:
        self.shown = False
        if (yield from self.ahead("{")):
            yield from self._object()
            return
        name = yield from self.name("the name of a function")
        yield from self.expect("(", "'('")
        self._begin(name)
        arguments: dict[str, Any] = {}
        while not (yield from self.take(")")):
            start = self.at
            if (yield from self.take("**")):
                if not (yield from self.ahead("{")):
                    self.fail("a dictionary")
                self.shown = False
                given = yield from self.value(0)
                self._check_new(given, arguments, start)
                self.shown = True
                self.show(", " * bool(arguments and given) + inside(given))
                arguments |= given
            else:
                parameter = yield from self.name("the name of a parameter")
                yield from self.expect("=", "'=' (arguments are given by name)")
                self._check_new({parameter: None}, arguments, start)
                self.show(f"{', ' * bool(arguments)}{as_json(parameter)}: ")
                arguments[parameter] = yield from self.value(0)
            yield from self.comma(")")
        self._end(ToolCall(name, arguments))

    def _check_new(self, given: Mapping[str, Any], arguments: Mapping[str, Any], start: int) -> None:
        if twice := sorted(given.keys() & arguments.keys()):
            self.at = start
            self.fail(f"each parameter once, {twice[0]!r} is there already")

    def _object(self) -> Steps[None]:
        start = self.at
        yield from self.take("{")
        made: dict[str, Any] = {}
        begun = False
        while not (yield from self.take("}")):
            key = yield from self.key(made)
            names = _names(made.items()) if key in ARGUMENTS and not begun else []
            if len(names) == 1 and (yield from self.take("{")):
                begun = True
                self._begin(names[0])
                made[key] = yield from self.members(1)
                self.shown = False
            else:
                made[key] = yield from self.value(1)
            yield from self.comma("}")
        nested = made.pop("function") if isinstance(made.get("function"), dict) else {}
        parts = [*made.items(), *nested.items()]
        found = set(_names(parts))
        given = [value for key, value in parts if key in ARGUMENTS and value not in (None, "")]
        if isinstance(given[0] if given else None, str):  # some models write the object as a string of JSON
            with contextlib.suppress(ToolCallError):  # what is no object is refused below
                given[0] = value_of(given[0])
        known = {key for key, _ in parts} <= {*NAMES, *ARGUMENTS, *BESIDE}
        if not known or len(found) != 1 or len(given) > 1 or not all(isinstance(each, dict) for each in given):
            self.at = start
            self.fail('an object with "name" and "arguments"')
        call = ToolCall(found.pop(), given[0] if given else {})
        if not begun:
            self._begin(call.name)
            self.show(inside(call.arguments))
        self._end(call)

    def _begin(self, name: str) -> None:
        self.events += [Begun(name), "{"]
        self.shown, self.taken = True, self.at

    def _end(self, call: ToolCall) -> None:
        self.events += ["}", call]
        self.shown, self.taken = False, self.at


def _names(parts: Iterable[tuple[str, Any]]) -> list[str]:
    """The names that the parts of an object give a function."""
    return [value for key, value in parts if key in NAMES and isinstance(value, str)]
