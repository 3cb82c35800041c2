"""When the rows of `generate` end: functions (ids, scores) -> one truth value, or one for each row."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import OptionError
from . import tensors

Criterion = Callable[[np.ndarray], np.ndarray]  # ids (B, L) to (B,) bool


class StoppingCriteria:
    """The class that a caller's criterion may be of: `__call__(input_ids, scores)` says whether rows end, by one truth
    value or one for each row."""

    def __call__(self, input_ids: Any, scores: Any, **named: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__(input_ids, scores)")


class StoppingCriteriaList(list[Any]):
    """Criteria of a caller, as `generate` takes them. A row ends where one of them says so."""

    def __call__(self, input_ids: Any, scores: Any, **named: Any) -> Any:
        """(B,) bool, of the kind of `input_ids`."""
        return tensors.of_numpy(input_ids, ended_rows(self, input_ids, scores, **named))


_VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level tokens spell as themselves
_HIDDEN = sorted(set(range(256)).difference(_VISIBLE))  # and those that they spell as U+0100 and what follows
_BYTES = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}


def max_time(seconds: Any) -> Criterion:
    """All rows, once so much time has passed since this call."""
    limit = time.perf_counter() + float(seconds)
    return lambda ids: np.full(len(ids), time.perf_counter() > limit)


def stop_strings(strings: Any, tokenizer: Any) -> Criterion:
    """Rows whose last token completes one of these texts. Bytes are compared, as in transformers: the bytes of a
    character may be of several tokens, and U+FFFD is not found in bytes that make no character. Raises `OptionError`.
    """
    texts = [strings] if isinstance(strings, str) else list(strings)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise OptionError(f"stop_strings is {strings!r}, expected a text or several, none of them empty")
    if tokenizer is None:
        raise OptionError("stop_strings needs the tokenizer: generate(..., tokenizer=processor.tokenizer)")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    stops = [text.encode() for text in texts]
    longest = max(map(len, stops))

    @functools.cache
    def bytes_of(token: int) -> bytes:
        characters = tokenizer.convert_ids_to_tokens(token) or ""
        if all(character in _BYTES for character in characters):
            return bytes(_BYTES[character] for character in characters)
        return str(tokenizer.decode([token])).encode()  # an added token, which is text

    def ends(row: np.ndarray) -> bool:
        pieces = [bytes_of(token) for token in row[-longest:].tolist()]
        text, last = b"".join(pieces), len(pieces[-1])
        return any(text.find(stop, max(0, len(text) - last - len(stop) + 1)) >= 0 for stop in stops)

    return lambda ids: np.array([ends(row) for row in ids], bool)


def ended_rows(criteria: Iterable[Any], input_ids: Any, scores: Any, **named: Any) -> np.ndarray:
    """(B,) bool: the rows that one of a caller's criteria ends."""
    done = np.zeros(len(input_ids), bool)
    for criterion in criteria:
        done |= tensors.to_numpy(criterion(input_ids, scores, **named)).astype(bool)
    return done
