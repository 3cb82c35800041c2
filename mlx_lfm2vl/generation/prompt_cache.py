"""Beginnings of prompts whose states are known: a system prompt, a picture, a conversation with its last answer.

In go the states of rows that were prefilled or have finished; out comes the longest beginning of a new prompt. What is
in it changes no answer. A convolution's state cannot be cut, so a prompt continues from checkpoints only: after
pictures and turns, at the end of the prompt, and at the end of the answer. Image tokens all have one id, so a picture
is told apart by its key.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..backends.memory import check_bytes
from ..errors import OptionError
from ..models.cache import Cache, CacheCheckpoint

DEFAULT_BYTES = 2**30
SHORTEST_PASS = 32  # tokens; a shorter part of a prompt is not worth a pass of its own
CHECKPOINT_INTERVAL = 256  # tokens between checkpoints at turns within a long conversation


@dataclass(frozen=True)
class PictureSpan:
    """Where a picture stands in the ids, `ids[start:end]` with its markers, and what identifies it."""

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
        arrays = [array for layer in self.state.conv_inputs for array in layer]
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

    def longest(self, limit: int, whole: int) -> Checkpoint | None:
        """The last checkpoint within the first `limit` tokens of a prompt of `whole`; at its very end only one with
        logits."""
        fitting = (
            point
            for point in reversed(self.checkpoints)
            if point.offset < min(limit + 1, whole) or (point.offset == whole == limit and point.logits is not None)
        )
        return next(fitting, None)

    def at(self, checkpoint: Checkpoint) -> Cache:
        """A cache of its own that holds what there was at the checkpoint."""
        cache = self.cache.copy()
        cache.rewind(checkpoint.state)
        return cache


class Recorder:
    """Takes the checkpoints of a row while its prompt is prefilled, and when it has finished. `earlier`: checkpoints
    within the beginning that it continues."""

    def __init__(self, ids: np.ndarray, pictures: Sequence[PictureSpan], earlier: Iterable[Checkpoint] = ()):
        self._ids, self._pictures = ids, tuple(pictures)
        self.checkpoints = list(earlier)

    def take(self, cache: Cache, logits: mx.array | None = None) -> None:
        """Takes a checkpoint where `cache`, which holds this row alone, stands. `logits` (1, vocabulary) at the end of
        a prompt."""
        if self.checkpoints and self.checkpoints[-1].offset == cache.offset:
            if logits is not None:
                self.checkpoints[-1] = replace(self.checkpoints[-1], logits=logits)
            return
        self.checkpoints.append(Checkpoint(cache.checkpoint(), logits))

    def entry(self, cache: Cache, generated: Sequence[int] = ()) -> Entry | None:
        """What `cache`, which nobody writes to any more, holds of the prompt and of the tokens that followed it. None
        if that is nothing. Where it ends within a picture no span is noted, so that nothing continues from there."""
        ids = np.concatenate([self._ids, np.array(generated, self._ids.dtype)])[: cache.offset]
        if len(ids) < cache.offset or not len(ids):
            return None
        pictures = tuple(picture for picture in self._pictures if picture.end <= cache.offset)
        return Entry(ids, pictures, cache, tuple(self.checkpoints))


class PromptCache:
    """States of prompts and answers, for one model, at most `limit` bytes of them; those not used for longest go first.
    Safe to use from any thread. Raises `OptionError`."""

    def __init__(self, limit: int = DEFAULT_BYTES):
        self.limit = check_bytes("limit", limit)
        self.nbytes = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._model: weakref.ref[object] | None = None

    def bind(self, model: object) -> None:
        """Takes note of the model whose states it holds, until it is cleared. Raises `OptionError` for another."""
        with self._lock:
            bound = None if self._model is None else self._model()
            if bound is not None and bound is not model:
                raise OptionError("prompt_cache holds what another model made; use one for each model, or clear it")
            self._model = weakref.ref(model)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: np.ndarray, pictures: Sequence[PictureSpan]) -> tuple[Entry, Checkpoint] | None:
        """The entry and checkpoint with the longest beginning of a prompt (n,), or None."""
        best: tuple[Entry, Checkpoint] | None = None
        with self._lock:
            for entry in self._entries.values():
                limit = shared_length(entry.ids, entry.pictures, ids, pictures)
                point = entry.longest(limit, len(ids))
                if point is not None and (best is None or point.offset > best[1].offset):
                    best = entry, point
            if best is not None:
                self._entries.move_to_end(id(best[0]))
        return best

    def put(self, entry: Entry | None) -> None:
        """Keeps an entry (its arrays evaluated) if it fits at all, in place of those that it continues."""
        if entry is None or not entry.checkpoints or entry.nbytes > self.limit:
            return
        points = {point.offset for point in entry.checkpoints}
        with self._lock:
            for key, held in list(self._entries.items()):
                alike = shared_length(held.ids, held.pictures, entry.ids, entry.pictures)
                if all(point.offset <= alike and point.offset in points for point in held.checkpoints):
                    self._drop(key)
            self._entries[id(entry)] = entry
            self.nbytes += entry.nbytes
            while self.nbytes > self.limit:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self.nbytes, self._model = 0, None

    def _drop(self, key: int) -> None:
        self.nbytes -= self._entries.pop(key).nbytes


def check_prompt_cache(prompt_cache: PromptCache | None) -> None:
    """Raises `OptionError` for what is no `PromptCache`."""
    if not (prompt_cache is None or isinstance(prompt_cache, PromptCache)):
        raise OptionError(f"prompt_cache is {type(prompt_cache).__name__}, expected a PromptCache")


def common_length(one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> int:
    """How many ids two lists begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(np.array(one[:length], np.int64) != np.array(other[:length], np.int64))
    return int(differ[0]) if len(differ) else length


def shared_length(
    one: np.ndarray, pictures: Sequence[PictureSpan], other: np.ndarray, others: Sequence[PictureSpan]
) -> int:
    """How many tokens two prompts begin with alike. Pictures are alike by place and key."""
    limit = common_length(one, other)
    for ours, theirs in zip(pictures, others, strict=False):
        if ours != theirs:
            return min(limit, ours.start, theirs.start)
    # a picture that only one of them has ends the likeness by its ids, but for its first marker
    for extra in (*pictures[len(others) :], *others[len(pictures) :]):
        if extra.start < limit:
            limit = extra.start
    return limit


def checkpoint_places(ids: np.ndarray, pictures: Sequence[PictureSpan], ends: Sequence[int], known: int) -> list[int]:
    """Where another prompt may part from this one: after pictures and after turns (their end tokens).

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
