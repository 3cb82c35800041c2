"""A turn of a conversation: its pictures, and what of it is still to be run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..config import ImageProcessorConfig
from ..models.cache import Cache, CacheCheckpoint
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.batch import BatchFeature
from ..processing.processor import Lfm2VlProcessor
from ..processing.source import Picture
from . import sequence
from .decode import Prompt, prefill_in_pieces
from .defaults import generation_config
from .features import FeatureCache
from .prefix import Growth, PrefixCache, natural_points
from .watch import Pieces, Progress, Stop


class ReadPictures:
    """The pictures of a turn, as `Chat.read` makes them: RGB, with what identifies each, the `seconds` that it took,
    and their views, which can be taken once."""

    def __init__(self, pictures: list[Picture], keys: list[bytes], views: BatchFeature | None, seconds: float):
        self.pictures, self.keys, self._views, self.seconds = pictures, keys, views, seconds

    def take(self, wanted: Sequence[Picture]) -> BatchFeature | None:
        """The views, if they are those of the pictures wanted; they are not kept in any case."""
        views, self._views = self._views, None
        same = len(wanted) == len(self.pictures)
        return views if same and all(one is other for one, other in zip(wanted, self.pictures, strict=True)) else None


def picture_key(picture: Picture, config: ImageProcessorConfig) -> bytes:
    digest = hashlib.blake2b(repr((picture.size, config)).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()


class Conversation(Protocol):
    """What a turn needs of a `Chat`."""

    model: Lfm2VlForConditionalGeneration
    processor: Lfm2VlProcessor
    features: FeatureCache
    prefixes: PrefixCache | None
    _sequence: sequence.Sequence
    _overrides: dict[str, Any]


class Turn:
    """The start of a turn: what is new in the conversation, behind what the chat's cache holds of it."""

    padding = None

    def __init__(
        self,
        chat: Conversation,
        ids: list[int],
        spans: list[sequence.PictureSpan],
        pictures: list[Picture],
        read: ReadPictures | None,
    ):
        self.ids, self._spans, self._pictures, self._read = np.array([ids], np.int64), spans, pictures, read
        self._chat, self.cached = chat, [0]

    def begin(self, stop: Stop | None, progress: Progress | None) -> Pieces[tuple[Cache, mx.array]]:
        chat, held = self._chat, self._chat._sequence
        kept, logits = held.reuse(self.ids[0].tolist(), self._spans)
        growth = None
        if kept == 0 and chat.prefixes is not None:
            growth = self._shared(held, chat.prefixes)
            kept = held.cache.offset
        self.cached = [kept]
        if logits is None:
            logits = yield from prefill_in_pieces(
                chat.model,
                self._prompt(kept),
                held.cache,
                features=chat.features,
                stop=stop,
                progress=progress,
                pauses=growth.pauses if growth is not None else (),
                paused=growth.paused if growth is not None else None,
            )
            mx.eval(logits, held.cache.arrays)
            held.mark(logits)
        elif self._read is not None:
            self._read.take(())
        return held.cache, logits

    def _prompt(self, kept: int) -> Prompt:
        """What is left to run: the ids and the pictures behind `kept`."""
        new = [picture for span, picture in zip(self._spans, self._pictures, strict=True) if span.start >= kept]
        rest = self.ids[:, kept:]
        views = None if self._read is None else self._read.take(new)
        if not new:
            return Prompt(rest)
        if views is None:
            views, _ = self._chat.processor.image_processor.encode(new, **self._chat._overrides)
        return Prompt(rest, None, views["pixel_values"], views["spatial_shapes"])

    def _shared(self, held: sequence.Sequence, prefixes: PrefixCache) -> Growth:
        """Begins with what another conversation began with, if it is known, and keeps the rest for others."""
        ids, ends = self.ids[0], generation_config(self._chat.model).eos_token_ids
        source, point = prefixes.find(ids, self._spans)
        earlier: list[CacheCheckpoint] = []
        if source is not None and point is not None:
            held.cache = source.at(point)
            held.hold(ids.tolist(), self._spans)
            earlier = [before for before in source.points if before.offset <= point.offset]
        known = held.cache.offset
        points = natural_points(ids, self._spans, ends, known)
        return Growth(ids, self._spans, held.cache, known, points, earlier, prefixes.put)
