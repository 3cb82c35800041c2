"""Tokens of one row to pieces of text: whole characters, special tokens left out, cut at a stop text.

Tool calls are no text: what stands between their tokens is kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..processing.tokenizer import StreamDecoder, Tokenizer
from .options import GenerationOptions
from .tools import END, START


class RowText:
    """The text of one answer as its tokens come. Pieces joined are the decoded answer, up to a stop text."""

    def __init__(self, tokenizer: Tokenizer, options: GenerationOptions, ends: Iterable[int]):
        self._decoder = StreamDecoder(tokenizer)
        self._stop = options.stop
        self._ends = frozenset(ends)
        self._pending = ""  # text that may be the beginning of a stop text
        self._call_start, self._call_end = tokenizer.backend.token_to_id(START), tokenizer.backend.token_to_id(END)
        self._calling: list[int] | None = None  # tokens of the tool call that is being written
        self._tokenizer = tokenizer
        self.tool_text = ""  # tool calls that were completed, or at the end cut off, with their tokens
        self.stopped = False

    def take_tool_text(self) -> str:
        """Empties `tool_text`."""
        text, self.tool_text = self.tool_text, ""
        return text

    def push(self, token: int) -> str:
        """The text that this token makes certain. Sets `stopped` at an end token or a stop text."""
        if token in self._ends:
            self.stopped = True
            return self.finish()
        if self._calling is not None:
            self._calling.append(token)
            if token == self._call_end:
                self._end_call()
            return ""
        if token == self._call_start:
            text = self.finish()
            self._calling = None if self.stopped else [token]
            return text
        self._pending += self._decoder.push([token])
        return self._release()

    def finish(self) -> str:
        """The rest, when no token follows."""
        if self._calling:
            self._end_call()
        self._pending += self._decoder.finish()
        text = self._release()
        text, self._pending = text + self._pending, ""
        return text

    def _end_call(self) -> None:
        self.tool_text += self._tokenizer.decode(self._calling)
        self._calling = None

    def _release(self) -> str:
        found = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            return text
        held = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        cut = len(self._pending) - held
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, short of all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
