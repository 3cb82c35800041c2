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
    """The logprobs of a batch, on the device.

    Attributes:
        own: of the tokens, (B,) float32.
        top: ids of the likeliest tokens and their logarithms, (B, k) each in no order; None if nobody asks for them.
    """

    own: mx.array
    top: tuple[mx.array, mx.array] | None = None

    @classmethod
    def of(cls, logits: mx.array, tokens: mx.array, top: int) -> Self:
        """The logprobs of `top` tokens under logits (B, vocabulary), and of the tokens (B,) that were chosen."""
        logits = logits.astype(mx.float32)
        norm = mx.logsumexp(logits, axis=-1, keepdims=True)
        own = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - norm)[:, 0]
        if not top:
            return cls(own)
        top = min(top, logits.shape[1])
        ids = mx.argpartition(logits, -top, axis=-1)[:, -top:]
        return cls(own, (ids, mx.take_along_axis(logits, ids, axis=-1) - norm))

    @property
    def arrays(self) -> list[mx.array]:
        return [self.own, *(self.top or ())]

    def filter(self, rows: mx.array) -> Logprobs:
        """The logprobs of some rows."""
        return Logprobs(self.own[rows], self.top and (self.top[0][rows], self.top[1][rows]))

    @classmethod
    def merge(cls, parts: Sequence[Logprobs | None], counts: Sequence[int]) -> Logprobs | None:
        """The logprobs of several batches as one. A part that has none, or fewer, is not asked for them: zeros."""
        if all(part is None for part in parts):
            return None
        filled = [part or cls(mx.zeros(count)) for part, count in zip(parts, counts, strict=True)]
        own = mx.concatenate([part.own for part in filled])
        width = max((part.top[0].shape[1] for part in filled if part.top is not None), default=0)
        if not width:
            return cls(own)
        tops = [
            part.top or (mx.zeros((count, 0), mx.uint32), mx.zeros((count, 0)))
            for part, count in zip(filled, counts, strict=True)
        ]
        ids, values = (
            mx.concatenate([mx.pad(top[at], [(0, 0), (0, width - top[at].shape[1])]) for top in tops]) for at in (0, 1)
        )
        return cls(own, (ids, values))

    def rows(self) -> list[RowLogprobs]:
        """The logprobs of each row, on the host."""
        own: list[float] = self.own.tolist()  # type: ignore[assignment]
        if self.top is None:
            return [RowLogprobs(each) for each in own]
        pairs = zip(*(array.tolist() for array in self.top), strict=True)  # type: ignore[arg-type]
        tops = [sorted(zip(*pair, strict=True), key=lambda each: (-each[1], each[0])) for pair in pairs]
        return [RowLogprobs(each, tuple(top)) for each, top in zip(own, tops, strict=True)]
