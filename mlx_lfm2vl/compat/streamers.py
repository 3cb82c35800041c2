"""Streamers for `generate`: text to stdout, or to an iterator in another thread, as transformers has them."""

from __future__ import annotations

import unicodedata
from queue import Queue
from typing import Any, Self

from ..errors import InputError
from . import tensors

_NO_SPACES = (  # how Unicode names the characters of scripts that put no spaces between words
    *("CJK ", "HIRAGANA ", "KATAKANA", "IDEOGRAPHIC ", "FULLWIDTH ", "THAI ", "LAO ", "KHMER ", "MYANMAR "),
)


class TextStreamer:
    """Prints the text of one answer to stdout as words are complete, which is what it is for. Text of scripts without
    spaces is complete with each character.

    Args:
        tokenizer: a processor's tokenizer, or the processor.
        skip_prompt: leave the prompt out.
        decode_kwargs: for the tokenizer's `decode` (`skip_special_tokens=True`).
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any):
        self.tokenizer, self.skip_prompt, self.decode_kwargs = tokenizer, skip_prompt, decode_kwargs
        self._ids: list[int] = []
        self._given = 0  # characters of the text of `_ids` that were given out
        self._begun = False

    def put(self, value: Any) -> None:
        """Takes ids: first the prompt's, then one a step. Raises `InputError` for a batch."""
        ids = tensors.to_numpy(value)
        if ids.ndim > 1 and len(ids) > 1:
            raise InputError("a TextStreamer takes one answer, not a batch")
        begun, self._begun = self._begun, True
        if self.skip_prompt and not begun:
            return
        self._ids += ids.reshape(-1).tolist()
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs)
        whole = text.endswith("\n") or unicodedata.name(text[-1:] or " ", "").startswith(_NO_SPACES)
        end = len(text) if whole else text.rfind(" ") + 1
        self.on_finalized_text(text[self._given : end])
        self._given = max(self._given, end)
        if text.endswith("\n"):
            self._ids, self._given = [], 0

    def end(self) -> None:
        """Gives out what is left."""
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs) if self._ids else ""
        rest, self._ids, self._given, self._begun = text[self._given :], [], 0, False
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints it, and a line break at the end."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Iterates over the text of one answer that another thread generates.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as for `TextStreamer`.
        timeout: seconds to wait for the next text; then `queue.Empty` is raised. None waits for ever.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._texts: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands it to the iterator."""
        self._texts.put(text)
        if stream_end:
            self._texts.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text = self._texts.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
