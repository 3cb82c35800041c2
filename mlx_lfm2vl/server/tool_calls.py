"""Tool calls of an answer: from what the model writes to deltas of their arguments, as these become certain."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ToolCallError
from ..generation.response import GenerationResponse
from ..generation.tool_call_reader import Begun, Event, ToolCall, ToolCallReader
from .api_request import ApiRequest

STRING = r'"(?:[^"\\]|\\.)*"'
MEMBER = re.compile(rf"\s*[{{,]\s*({STRING})\s*:\s*")  # of an object, up to its value


@dataclass(frozen=True)
class CallDelta:
    """Some of the call that has this `index` in its answer, or all of it. `id` lacks the prefix of the protocol;
    `arguments` is the next of an object as JSON. `cut`, on its last delta: the end of the arguments is missing."""

    index: int
    id: str
    name: str
    arguments: str = ""
    first: bool = False
    last: bool = False
    cut: bool = False

    @property
    def members(self) -> dict[str, Any]:
        """The arguments of a whole call, as far as they are whole."""
        if not self.cut:
            return dict(json.loads(self.arguments))
        found, at = {}, 0
        while name := MEMBER.match(self.arguments, at):
            try:
                value, at = json.JSONDecoder().raw_decode(self.arguments, name.end())
            except ValueError:
                break
            if not isinstance(value, (str, dict, list)) and self.arguments[at : at + 1] not in (",", "}"):
                break  # a number may go on
            found[json.loads(name[1])] = value
        return found


def joined_calls(deltas: Iterable[CallDelta]) -> list[CallDelta]:
    """The whole calls that these deltas are of."""
    own: dict[int, list[CallDelta]] = {}
    for delta in deltas:
        own.setdefault(delta.index, []).append(delta)
    return [
        replace(each[0], arguments="".join(delta.arguments for delta in each), last=each[-1].last, cut=each[-1].cut)
        for each in own.values()
    ]


class CallReader:
    """Reads one answer. A call that cannot be read, or that nobody asked for, is text. If its arguments have begun by
    then, it is `cut` and what follows is text. Nothing is told of a call that the end of the answer cuts off before.

    Attributes:
        count: calls so far.
        broken: whether one cannot be read, though the model ended it.
    """

    def __init__(self, asked: ApiRequest):
        self.count, self.broken = 0, False
        self._asked, self._several = bool(asked.tools), asked.several_calls
        self._written = 0  # characters of the block that is being written
        self._reader: ToolCallReader | None = None  # of this block
        self._before = 0  # calls before it
        self._failed = False  # the rest of the block is text
        self._open: CallDelta | None = None  # what comes next of a call

    def read(self, response: GenerationResponse) -> list[str | CallDelta]:
        """The texts and deltas of a response, in their order."""
        return [part for part in self._read(response) if part]

    def _read(self, response: GenerationResponse) -> list[str | CallDelta]:
        delta, reason = response.tool_delta, response.finish_reason
        if not self._asked:
            return [response.text + delta]
        inside, cut = bool(self._written), reason not in (None, "stop")
        parts: list[str | CallDelta] = [] if inside else [response.text]
        if response.tool_text:  # a block is whole
            size = len(response.tool_text) - self._written
            parts += self._feed(delta[:size]) + self._end(cut)
            delta = delta[size:]
        if inside:
            parts.append(response.text)
        if delta:
            self._written += len(delta)
            parts += self._feed(delta)
        return parts + (self._end(cut) if reason is not None and self._written else [])

    def _feed(self, text: str) -> list[str | CallDelta]:
        if self._failed:
            return [text]
        if self.count and not self._several and self._open is None:
            return []  # one call is all that was asked for
        reader = self._reader
        if reader is None:
            reader, self._before = ToolCallReader(), self.count
        self._reader = reader
        parts = self._made(reader, reader.feed(text))
        if reader.ended and not self._failed and reader is self._reader and (more := reader.text[reader.at :]):
            self._reader = None
            parts += self._feed(more)  # of one more block
        return parts

    def _end(self, cut: bool) -> list[str | CallDelta]:
        """The rest of a block. `cut`: it has none, since the answer was cut off."""
        reader = self._reader
        parts = []
        if reader is not None and not self._failed:
            parts = self._made(reader, reader.feed("", last=True), cut)
            if self.count == self._before and not self._failed and not cut:
                parts.append(reader.text)  # no calls at all
        self._reader, self._failed, self._written = None, False, 0
        return parts

    def _made(self, reader: ToolCallReader, events: Sequence[Event], cut: bool = False) -> list[str | CallDelta]:
        parts: list[str | CallDelta] = []
        for event in events:
            if isinstance(event, Begun):
                self._open = CallDelta(self.count, secrets.token_hex(12), event.name, first=True)
                self.count += 1
            elif isinstance(event, ToolCallError):
                return parts + self._fail(reader, cut)
            elif self._open is None:
                break
            elif isinstance(event, ToolCall):
                parts.append(replace(self._open, last=True))
                self._open = None
                if not self._several:
                    self._reader = None
                    break
            else:
                self._open = replace(self._open, arguments=self._open.arguments + event)
        if self._open is not None and (self._open.first or self._open.arguments):
            parts.append(self._open)
            self._open = replace(self._open, arguments="", first=False)
        return parts

    def _fail(self, reader: ToolCallReader, cut: bool) -> list[str | CallDelta]:
        self._failed = True
        rest = "" if cut else reader.text[reader.taken :]
        parts: list[str | CallDelta] = []
        if self._open is not None:
            parts.append(replace(self._open, last=True, cut=True))
            self._open = None
            self.broken = self.broken or not cut
        return [*parts, rest] if rest.strip() else parts
