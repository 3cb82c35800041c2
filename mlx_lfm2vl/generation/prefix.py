"""Beginnings of prompts that were prefilled lately: a long system prompt, an earlier part of a conversation, the same
picture with another question.

A convolution's state cannot be cut, so a prompt continues from marked points only: after pictures, after turns, and
where the prompts of a batch part. Image tokens all have one id, so pictures are told apart by their keys.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.memory import check_bytes
from ..errors import OptionError
from ..models.cache import Cache, CacheCheckpoint
from .sequence import PictureSpan, common_length

DEFAULT_BYTES = 256 * 2**20
LEAST = 32  # tokens; a shorter beginning is not worth a pass of its own
APART = 256  # tokens between points within a long conversation


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a cache held when the last of `points` was made: `ids` (n,), the `pictures` among them, and the points
    (ascending) to which a copy of `cache` can be rewound."""

    ids: np.ndarray
    pictures: tuple[PictureSpan, ...]
    cache: Cache
    points: tuple[CacheCheckpoint, ...]

    @property
    def nbytes(self) -> int:
        points = (array.nbytes for point in self.points for layer in point.conv_inputs for array in layer)
        return self.cache.nbytes + self.ids.nbytes + sum(points)

    def longest(self, limit: int) -> CacheCheckpoint | None:
        """The last point within the first `limit` tokens."""
        return next((point for point in reversed(self.points) if point.offset <= limit), None)

    def at(self, point: CacheCheckpoint) -> Cache:
        """A cache of its own that holds what there was at the point."""
        cache = self.cache.copy()
        cache.rewind(point)
        return cache


class Growth:
    """The points of a prompt that is run into `cache`, behind its first `known` tokens with the points `earlier`:
    `pauses` and `paused` are for `prefill`, and `done` is told of the whole beginning at the last one."""

    def __init__(
        self,
        ids: np.ndarray,
        pictures: Sequence[PictureSpan],
        cache: Cache,
        known: int,
        points: Iterable[int],
        earlier: Iterable[CacheCheckpoint],
        done: Callable[[Beginning], None],
    ):
        self._ids, self._pictures, self._cache, self._done = ids, pictures, cache, done
        self._points = list(earlier)
        self.pauses = [at - known for at in sorted(points) if at > known]

    def paused(self, at: int) -> None:
        self._points.append(self._cache.checkpoint())
        if at == self.pauses[-1]:
            self._done(self.beginning())

    def beginning(self) -> Beginning:
        """What the cache holds now, at the last of the points."""
        length, cache = self._cache.offset, self._cache.copy()
        cache.rewind(self._points[-1])  # whose arrays are its own; the cache's are cut from larger ones
        pictures = tuple(picture for picture in self._pictures if picture.end <= length)
        return Beginning(self._ids[:length], pictures, cache, tuple(self._points))


class PrefixCache:
    """Beginnings of prompts for one model, at most `limit` bytes of them; those not used for longest go first. What is
    in it changes no answer."""

    def __init__(self, limit: int = DEFAULT_BYTES):
        self.limit = check_bytes("limit", limit)
        self.nbytes = 0
        self._held: OrderedDict[int, Beginning] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def find(
        self, ids: np.ndarray, pictures: Sequence[PictureSpan]
    ) -> tuple[Beginning, CacheCheckpoint] | tuple[None, None]:
        """The longest beginning of a prompt that is known, short of all of it."""
        best: tuple[Beginning, CacheCheckpoint] | tuple[None, None] = (None, None)
        with self._lock:
            for held in self._held.values():
                point = held.longest(shared_length(held.ids, held.pictures, ids, pictures))
                if point is not None and (best[1] is None or point.offset > best[1].offset):
                    best = held, point
            if best[0] is not None:
                self._held.move_to_end(id(best[0]))
        return best

    def put(self, beginning: Beginning) -> None:
        """Keeps a beginning (its arrays evaluated) if it fits at all, in place of those that it continues."""
        with self._lock:
            if beginning.nbytes > self.limit:
                return
            for key, held in list(self._held.items()):
                whole = len(held.ids)
                points = {point.offset for point in beginning.points}
                if points.issuperset(point.offset for point in held.points) and whole == _alike(
                    held.ids, held.pictures, beginning.ids, beginning.pictures
                ):
                    self._drop(key)
            self._held[id(beginning)] = beginning
            self.nbytes += beginning.nbytes
            while self.nbytes > self.limit:
                self._drop(next(iter(self._held)))

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.nbytes = 0

    def _drop(self, key: int) -> None:
        self.nbytes -= self._held.pop(key).nbytes


def check_prefixes(prefixes: PrefixCache | None) -> None:
    """Raises `OptionError` for what is no `PrefixCache`."""
    if not (prefixes is None or isinstance(prefixes, PrefixCache)):
        raise OptionError(f"prefixes is {type(prefixes).__name__}, expected a PrefixCache")


def shared_length(
    one: np.ndarray, pictures: Sequence[PictureSpan], other: np.ndarray, others: Sequence[PictureSpan]
) -> int:
    """How many tokens two prompts begin with alike: outside pictures, and short of all of the `other`."""
    limit = min(_alike(one, pictures, other, others), len(other) - 1)
    for picture in others:
        if picture.start < limit < picture.end:
            limit = picture.start
    return limit


def _alike(one: np.ndarray, pictures: Sequence[PictureSpan], other: np.ndarray, others: Sequence[PictureSpan]) -> int:
    limit = common_length(one, other)
    for ours, theirs in zip(pictures, others, strict=False):
        if ours != theirs:
            return min(limit, ours.start, theirs.start)
    # a picture that only one of them has ends the likeness by its ids, but for its first marker
    for extra in (*pictures[len(others) :], *others[len(pictures) :]):
        if extra.start < limit:
            limit = extra.start
    return limit


def natural_points(ids: np.ndarray, pictures: Sequence[PictureSpan], ends: Sequence[int], known: int) -> list[int]:
    """Where another prompt may part from this one: after pictures and after turns (their end tokens), each at least
    `LEAST` tokens after the one before and after what is `known`; turns between the first and the last two, `APART`."""
    turns = [int(at) + 1 for at in np.flatnonzero(np.isin(ids, ends))]
    likely = {picture.end for picture in pictures}.union(turns[:1], turns[-2:])
    points: list[int] = []
    for at in sorted(likely.union(turns)):
        if at < len(ids) and at - (points[-1] if points else known) >= (LEAST if at in likely else APART):
            points.append(at)
    return points
