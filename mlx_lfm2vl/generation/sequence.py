"""What a cache holds, token by token, and how much of it a new prompt can reuse.

A key-value cache could be cut anywhere, a convolution's state cannot: a prompt continues either from the very end of
what is held or from a marked point. A point keeps its logits too, so that a prompt can be answered again without
running any of it. Image tokens all have one id, so a picture is told apart by its key.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..config import Lfm2Config
from ..models.cache import Cache, CacheCheckpoint


@dataclass(frozen=True)
class PictureSpan:
    """Where a picture stands in the ids, `ids[start:end]` with its markers, and what identifies it."""

    start: int
    end: int
    key: bytes


@dataclass(frozen=True)
class Point:
    """A place to go back to: the cache's checkpoint and the logits (1, vocabulary) of the token before it."""

    checkpoint: CacheCheckpoint
    logits: mx.array

    @property
    def offset(self) -> int:
        return self.checkpoint.offset


class Sequence:
    """A cache for one row, the ids in it, the pictures among them, and the points to which it can go back."""

    def __init__(self, config: Lfm2Config):
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.cache = Cache(self._config)
        self.ids: list[int] = []
        self.pictures: list[PictureSpan] = []
        self._points: list[Point] = []

    def mark(self, logits: mx.array) -> None:
        """Makes the present end, whose next token has these logits (1, vocabulary), a point to go back to."""
        if not self._points or self._points[-1].offset != self.cache.offset:
            self._points.append(Point(self.cache.checkpoint(), logits))

    def reuse(self, ids: List[int], pictures: List[PictureSpan]) -> tuple[int, mx.array | None]:
        """Goes back to where the cache holds a beginning of `ids`; returns its length and, if that is all of `ids`, the
        logits of the token after them."""
        limit = common_length(self.ids, ids)
        for ours, new in zip(self.pictures, pictures, strict=False):
            if ours != new:
                limit = min(limit, ours.start, new.start)
                break
        if self.cache.offset > limit or limit == len(ids):  # with nothing left to run, only a point has the logits
            self._points = [point for point in self._points if point.offset <= limit]
            if not self._points:
                self.reset()
                return 0, None
            self.cache.rewind(self._points[-1].checkpoint)
            self._forget_after(self.cache.offset)
        kept = self.cache.offset
        return kept, self._points[-1].logits if kept == len(ids) else None

    def hold(self, ids: List[int], pictures: List[PictureSpan]) -> None:
        """Notes that the cache now holds the beginning of `ids`, as far as it reaches; of a picture that it ends in,
        nothing, as its ids do not tell which one it is."""
        cut = (picture.start for picture in pictures if picture.start < self.cache.offset < picture.end)
        self.ids = list(ids[: next(cut, self.cache.offset)])
        self.pictures = [picture for picture in pictures if picture.end <= self.cache.offset]

    def fork(self) -> Sequence:
        """An independent continuation of the same past, without copying it."""
        twin = Sequence(self._config)
        twin.cache, twin.ids = self.cache.copy(), list(self.ids)
        twin.pictures, twin._points = list(self.pictures), list(self._points)
        return twin

    def _forget_after(self, length: int) -> None:
        self.ids = self.ids[:length]
        self.pictures = [picture for picture in self.pictures if picture.end <= length]


def common_length(one: List[int] | np.ndarray, other: List[int] | np.ndarray) -> int:
    """How many ids two lists begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(np.array(one[:length], np.int64) != np.array(other[:length], np.int64))
    return int(differ[0]) if len(differ) else length
