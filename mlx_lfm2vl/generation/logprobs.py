"""The model's own distribution in one place of an answer: of the tokens that were chosen, and of the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx


@dataclass(frozen=True)
class RowLogprobs:
    """Natural logarithms of one row: of its token, and ids and logarithms of the likeliest, these first."""

    own: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Logprobs:
    """Of a batch, on the device.

    Attributes:
        own: of the tokens, (B,) float32.
        ids: the likeliest tokens, (B, k) in no order.
        values: theirs, (B, k) float32.
    """

    own: mx.array
    ids: mx.array
    values: mx.array

    @classmethod
    def of(cls, logits: mx.array, tokens: mx.array, top: int) -> Self:
        """Those of `top` tokens under logits (B, vocabulary), and of the tokens (B,) that were chosen."""
        logits = logits.astype(mx.float32)
        norm = mx.logsumexp(logits, axis=-1, keepdims=True)
        own = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - norm)[:, 0]
        if not top:
            return cls(own, mx.zeros((len(tokens), 0), mx.uint32), mx.zeros((len(tokens), 0)))
        top = min(top, logits.shape[1])
        ids = mx.argpartition(logits, -top, axis=-1)[:, -top:]
        return cls(own, ids, mx.take_along_axis(logits, ids, axis=-1) - norm)

    @property
    def arrays(self) -> list[mx.array]:
        return [self.own, self.ids, self.values]

    def filter(self, rows: mx.array) -> Logprobs:
        """Those of some rows."""
        return Logprobs(*(array[rows] for array in self.arrays))

    @classmethod
    def merge(cls, parts: Sequence[Logprobs | None], counts: Sequence[int]) -> Logprobs | None:
        """Those of several batches as one. Where a part has none, or fewer, nobody asks for them: they are zeros."""
        if all(part is None for part in parts):
            return None
        width = max(part.ids.shape[1] for part in parts if part is not None)
        filled = [
            part or cls(mx.zeros(count), mx.zeros((count, 0), mx.uint32), mx.zeros((count, 0)))
            for part, count in zip(parts, counts, strict=True)
        ]
        wide = [
            [part.own, *(mx.pad(each, [(0, 0), (0, width - each.shape[1])]) for each in (part.ids, part.values))]
            for part in filled
        ]
        return cls(*(mx.concatenate(list(same)) for same in zip(*wide, strict=True)))

    def rows(self) -> list[RowLogprobs]:
        """Those of each row, on the host."""
        made = []
        for own, ids, values in zip(*(array.tolist() for array in self.arrays), strict=True):  # type: ignore[arg-type]
            likeliest = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
            made.append(RowLogprobs(own, tuple(likeliest)))
        return made
