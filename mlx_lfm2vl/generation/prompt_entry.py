"""The states of some tokens, with the points from which a prompt can continue them.

A convolution's state cannot be cut, so a prompt continues from checkpoints only: after pictures and turns, at the end
of the prompt, and at the end of the answer. Image tokens all have one id, so a picture is told apart by its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..models.cache import Cache, CacheCheckpoint

SHORTEST_PASS = 32  # tokens; a shorter part of a prompt is not worth a pass of its own
CHECKPOINT_INTERVAL = 256  # tokens between checkpoints at turns within a long conversation
Ends = tuple[tuple[int, bool], ...]  # the offsets of checkpoints, ascending, and whether each has logits


@dataclass(frozen=True)
class PictureSpan:
    """The place of a picture in the ids, `ids[start:end]` with its markers, and what identifies it."""

    start: int
    end: int
    key: bytes


@dataclass(frozen=True)
class Checkpoint:
    """A point to which an entry's cache can be rewound. `logits` (1, vocabulary) of the token before it are known at
    the end of a prompt, so that the prompt can be answered again without running any of it."""

    state: CacheCheckpoint
    logits: mx.array | None = None

    @property
    def offset(self) -> int:
        return self.state.offset

    @property
    def nbytes(self) -> int:
        arrays = [array for layer in self.state.states for array in layer]
        return sum(array.nbytes for array in arrays) + (0 if self.logits is None else self.logits.nbytes)


@dataclass(frozen=True, eq=False)
class Entry:
    """The states of some tokens: `ids` (n,), the `pictures` among them, a `cache` of one row that holds at least these,
    and the checkpoints (ascending) to which a copy of it can be rewound."""

    ids: np.ndarray
    pictures: tuple[PictureSpan, ...]
    cache: Cache
    checkpoints: tuple[Checkpoint, ...]

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes + self.ids.nbytes + sum(point.nbytes for point in self.checkpoints)

    @property
    def ends(self) -> Ends:
        return tuple((point.offset, point.logits is not None) for point in self.checkpoints)

    def at(self, checkpoint: Checkpoint) -> Cache:
        """A cache of its own that holds what there was at the checkpoint."""
        cache = self.cache.copy()
        cache.rewind(checkpoint.state)
        return cache


@dataclass(frozen=True, eq=False)
class StoredEntry:
    """An entry in a file, whose states are not read yet."""

    file: Path
    nbytes: int
    ids: np.ndarray
    pictures: tuple[PictureSpan, ...]
    ends: Ends


Source = tuple[Entry, Checkpoint]  # an entry, and the point from which a prompt continues it


class Recorder:
    """Takes the checkpoints of a row while its prompt is prefilled, and when it has finished. `source`: what its
    beginning is, whose checkpoints are its own, too."""

    def __init__(self, ids: np.ndarray, pictures: Sequence[PictureSpan], source: Source | None = None):
        self._ids, self._pictures = ids, tuple(pictures)
        self.checkpoints: list[Checkpoint] = []
        if source is not None:
            entry, last = source
            self.checkpoints += [point for point in entry.checkpoints if point.offset <= last.offset]

    def take(self, cache: Cache, logits: mx.array | None = None) -> None:
        """Takes a checkpoint where `cache`, which holds this row alone, stands. `logits` (1, vocabulary) at the end of
        a prompt."""
        if self.checkpoints and self.checkpoints[-1].offset == cache.offset:
            if logits is not None:
                self.checkpoints[-1] = replace(self.checkpoints[-1], logits=logits)
            return
        self.checkpoints.append(Checkpoint(cache.checkpoint(), logits))

    def entry(self, cache: Cache, generated: Sequence[int] = ()) -> Entry | None:
        """The states that `cache`, which nobody writes to any more, holds of the prompt and of the tokens that followed
        it. None if that is nothing. Where it ends within a picture no span is noted, so that nothing continues from
        there."""
        ids = np.concatenate([self._ids, np.array(generated, self._ids.dtype)])[: cache.offset]
        if len(ids) < cache.offset or not len(ids):
            return None
        pictures = tuple(picture for picture in self._pictures if picture.end <= cache.offset)
        return Entry(ids, pictures, cache, tuple(self.checkpoints))


def shared_length(
    one: np.ndarray, pictures: Sequence[PictureSpan], other: np.ndarray, others: Sequence[PictureSpan]
) -> int:
    """The number of tokens that two prompts begin with alike. Pictures are alike by place and key."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    limit = int(differ[0]) if len(differ) else length
    for ours, theirs in zip(pictures, others, strict=False):
        if ours != theirs:
            return min(limit, ours.start, theirs.start)
    # a picture that only one of them has ends the likeness by its ids, but for its first marker
    return min([limit, *(extra.start for extra in (*pictures[len(others) :], *others[len(pictures) :]))])


def checkpoint_places(ids: np.ndarray, pictures: Sequence[PictureSpan], ends: Sequence[int], known: int) -> list[int]:
    """Places where another prompt may part from this one: after pictures and after turns (their end tokens).

    Each is at least `SHORTEST_PASS` tokens after the one before and after what is `known`; turns between the first and
    the last two are `CHECKPOINT_INTERVAL` apart.
    """
    turns = [int(at) + 1 for at in np.flatnonzero(np.isin(ids, ends))]
    likely = {picture.end for picture in pictures}.union(turns[:1], turns[-2:])
    points: list[int] = []
    for at in sorted(likely.union(turns)):
        apart = SHORTEST_PASS if at in likely else CHECKPOINT_INTERVAL
        if at < len(ids) and at - (points[-1] if points else known) >= apart:
            points.append(at)
    return points


def continues(entry: Entry | StoredEntry, held: Entry | StoredEntry) -> bool:
    """Whether every prompt that could continue `held` can continue `entry`."""
    alike = shared_length(held.ids, held.pictures, entry.ids, entry.pictures)
    offsets = {offset for offset, _ in entry.ends}
    return all(offset <= alike and offset in offsets for offset, _ in held.ends)


def longest(ends: Ends, limit: int, whole: int) -> int | None:
    """The number of the last checkpoint within the first `limit` tokens of a prompt of `whole`; at its very end only
    one with logits."""
    for number in reversed(range(len(ends))):
        offset, logits = ends[number]
        if offset < min(limit + 1, whole) or (offset == whole == limit and logits):
            return number
    return None
