"""Tokens of one row to pieces of text: whole characters, special tokens left out, cut at a stop text.

Tool calls are no text. What stands between their tokens is kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..processing.conversation import CALL_END, CALL_START
from ..processing.tokenizer import Tokenizer
from ..processing.tokenizer_backend import DecodeStream
from .options import GenerationOptions

MAX_HELD = 16  # tokens without a whole character; a character has at most four


class Decoder:
    """The text of tokens as they come, in whole characters. Pieces joined are the decoded tokens."""

    def __init__(self, tokenizer: Tokenizer, special: bool):
        """`special`: special tokens are text, too."""
        self._tokenizer, self._special = tokenizer, special
        self._start([])

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        if not self._text([token]):
            return ""
        self._held.append(token)
        text = self._stream.step(self._tokenizer.backend, token)
        if text is not None:
            self._held.clear()
        elif len(self._held) >= MAX_HELD:
            # DecodeStream holds bytes that are no UTF-8 back until a character follows, and decodes all of them at
            # each token. So they are released up to where a character may begin.
            whole = self._text(self._held)
            for at in (-1, -2, -3):
                text, held = self._text(self._held[:at]), self._held[at:]
                if text + self._text(held) == whole:
                    self._start(held)
                    return text
        return text or ""

    def finish(self) -> str:
        """The rest. What follows is decoded anew."""
        text = self._text(self._held)
        self._start([])
        return text

    def _start(self, held: list[int]) -> None:
        """Decodes anew, from tokens on that make no whole character yet."""
        self._stream, self._held = DecodeStream(list(held), skip_special_tokens=not self._special), held

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.backend.decode(tokens, skip_special_tokens=not self._special)


class Detokenizer:
    """The text of one answer as its tokens come. Pieces joined are the decoded answer, up to a stop text.

    `tool_text` holds the tool calls, with their tokens, that are complete or at the end cut off; `tool_delta` what has
    come of such calls. `stopped` says whether an end token or a stop text has come, `stop_text` which text.
    """

    def __init__(self, tokenizer: Tokenizer, options: GenerationOptions, ends: Iterable[int]):
        """`options`: of the answer, for its stop texts; `ends`: ids of the tokens that end it."""
        self._tokenizer, self._decoder = tokenizer, Decoder(tokenizer, special=False)
        self._stop = options.stop
        added = tokenizer.backend.get_added_tokens_decoder()
        stops = {id: token.content for id, token in added.items() if token.content in options.stop}
        self._stop_ids = stops
        self._ends = frozenset((*ends, *stops))  # special tokens are no text, in which a stop text is looked for
        self._call_start, self._call_end = map(tokenizer.backend.token_to_id, (CALL_START, CALL_END))
        self._call: Decoder | None = None  # of the tool call that is being written
        self._call_text = ""
        self._pending = ""  # text that may be the beginning of a stop text
        self.tool_text = self.tool_delta = ""
        self.stopped = False
        self.stop_text: str | None = None

    def push(self, token: int) -> str:
        """The text that this token makes certain. Sets `stopped` at an end token or a stop text."""
        if token in self._ends:
            self.stopped, self.stop_text = True, self._stop_ids.get(token)
            return self.finish()
        if self._call is not None:
            self._add_call_text(self._call.push(token))
            if token == self._call_end:
                self._end_call(self._call)
            return ""
        if token == self._call_start:
            text = self.finish()
            if not self.stopped:
                self._call = Decoder(self._tokenizer, special=True)
                self._add_call_text(self._call.push(token))
            return text
        text = self._decoder.push(token)
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """The rest, when no token follows."""
        if self._call is not None:
            self._end_call(self._call)
        text = self._decoder.finish()
        if self._stop:
            text = self._release(text)
            text, self._pending = text + self._pending, ""
        return text

    def _end_call(self, call: Decoder) -> None:
        self._add_call_text(call.finish())
        self.tool_text, self._call, self._call_text = self.tool_text + self._call_text, None, ""

    def _add_call_text(self, text: str) -> None:
        self._call_text += text
        self.tool_delta += text

    def _release(self, text: str) -> str:
        """The part of the held-back text and this one that is certain: it holds no stop text, and ends in the
        beginning of none."""
        self._pending += text
        found = [(at, stop) for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            at, self.stop_text = min(found)
            self.stopped = True
            text, self._pending = self._pending[:at], ""
            return text
        held = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        cut = len(self._pending) - held
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, short of all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
