"""The prompts of a batch on their way into a cache, so that what several begin with is prefilled once.

Rows that share a beginning (with each other, or with what a `PrefixCache` knows) are run one after the other, each from
where it parts; the others are padded and run together. Both then stand side by side in one cache. Pictures of all rows
are encoded together, those in a known beginning not at all, and the pixels are let go before the text is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..models.cache import Cache, CacheCheckpoint
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .decode import Prompt, guarded, prefill_in_pieces
from .defaults import generation_config
from .features import FeatureCache, encode_views_in_pieces
from .prefix import LEAST, Beginning, Growth, PrefixCache, natural_points, shared_length
from .question import Prepared
from .watch import Pieces, Progress, Stop, check


@dataclass
class _Plan:
    """How a row is begun: from the first `known` tokens of a `source` (a beginning, or another row), with `points` for
    others to begin from."""

    known: int = 0
    source: Beginning | int | None = None
    alone: bool = False
    points: set[int] = field(default_factory=set)


class RowsStart:
    """The `Start` of one or several questions. Takes the rows out of the list that it is given, so that their pixels
    are freed once they are encoded."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        rows: list[Prepared],
        features: FeatureCache | None = None,
        prefixes: PrefixCache | None = None,
    ):
        config = generation_config(model)
        self._model, self._pad, self._ends = model, config.pad_token_id or 0, config.eos_token_ids
        self._features, self._prefixes = features, prefixes
        self._rows = list(rows)
        rows.clear()
        self._ids = [row.ids for row in self._rows]
        self._answers = [row.options.max_tokens for row in self._rows]
        self._pictures = [row.pictures if prefixes is not None else () for row in self._rows]
        self.ids, self.padding = self._side_by_side(range(len(self._ids)))
        self.cached: list[int] = [0] * len(self._ids)

    def begin(self, stop: Stop | None, progress: Progress | None) -> Pieces[tuple[Cache, mx.array]]:
        plans = self._plans()
        self.cached = [plan.known for plan in plans]
        images = yield from guarded(self._encode(plans, stop), "the pictures")
        told = _Told(progress)
        together = [index for index, plan in enumerate(plans) if not plan.alone]
        alone = [index for index, plan in enumerate(plans) if plan.alone]
        told.total = sum(len(self._ids[index]) - plans[index].known for index in alone)
        caches: list[Cache] = []
        logits: list[mx.array] = []
        if together:
            ids, padding = self._side_by_side(together)
            told.total += ids.shape[1]
            mask = None if padding is None else (np.arange(ids.shape[1]) >= padding[:, None]).astype(np.int64)
            found = [images[index] for index in together if images[index] is not None]
            answer = max(self._answers[index] for index in together)
            prompt = Prompt(ids, mask, images=_concatenated(found), answer=answer)  # type: ignore[arg-type]
            caches.append(Cache(self._model.config.text_config))
            last = yield from prefill_in_pieces(self._model, prompt, caches[-1], stop=stop, progress=told.part())
            logits.append(last)
        made: dict[int, Beginning] = {}
        for index in alone:
            if caches:
                yield
            cache, last = yield from self._alone(index, plans[index], images[index], made, stop, told.part())
            caches.append(cache)
            logits.append(last)
        if len(caches) == 1:
            return caches[0], logits[0]
        joined = Cache.joined(caches)
        order = mx.array(np.argsort([*together, *alone]))
        joined.select(order)
        return joined, mx.concatenate(logits)[order]

    def _side_by_side(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        lengths = np.array([len(self._ids[index]) for index in rows])
        ids = np.full((len(rows), lengths.max()), self._pad, np.int64)
        for at, index in enumerate(rows):
            ids[at, ids.shape[1] - lengths[at] :] = self._ids[index]
        padding = ids.shape[1] - lengths
        return ids, padding if padding.any() else None

    def _plans(self) -> list[_Plan]:
        plans = [_Plan() for _ in self._ids]
        if self._prefixes is None:
            return plans
        for index, (ids, pictures) in enumerate(zip(self._ids, self._pictures, strict=True)):
            plan = plans[index]
            held, point = self._prefixes.find(ids, pictures)
            if held is not None and point is not None:
                plan.known, plan.source = point.offset, held
            for other in range(index):
                shared = shared_length(self._ids[other], self._pictures[other], ids, pictures)
                shared = min(shared, len(self._ids[other]) - 1)
                if shared >= LEAST and shared > plan.known and shared >= plans[other].known:
                    plan.known, plan.source = shared, other
            if isinstance(plan.source, int):
                plans[plan.source].points.add(plan.known)
        for index, plan in enumerate(plans):
            plan.alone = plan.known > 0 or bool(plan.points) or len(plans) == 1
            if plan.alone:
                plan.points.update(natural_points(self._ids[index], self._pictures[index], self._ends, plan.known))
        return plans

    def _encode(self, plans: Sequence[_Plan], stop: Stop | None) -> Pieces[list[mx.array | None]]:
        """The image tokens (n, hidden) that each row still needs; the pixels are not held any longer."""
        pixels: list[np.ndarray] = []
        shapes: list[np.ndarray] = []
        keys: list[bytes] = []
        counts: list[int] = []
        remember = self._features is not None or self._prefixes is not None
        while self._rows:
            row, plan = self._rows.pop(0), plans[len(counts)]
            seen = sum(count for (start, _), count in zip(row.places, row.views, strict=True) if start < plan.known)
            new = row.ids[plan.known :] == self._model.config.image_token_id
            counts.append(int(np.count_nonzero(new)) if row.pixel_values is not None else 0)
            if row.pixel_values is not None and row.spatial_shapes is not None and seen < len(row.spatial_shapes):
                pixels.append(row.pixel_values[seen:])
                shapes.append(row.spatial_shapes[seen:])
                keys += row.keys[seen:] if remember else []
            del row
        if not pixels:
            check(stop)
            return [None] * len(counts)
        values, grids = _padded(pixels, shapes), np.concatenate(shapes)
        del pixels
        encoding = encode_views_in_pieces(self._model, values, grids, self._features, stop, keys if remember else None)
        del values
        tokens_of_all = yield from encoding
        del encoding
        mx.eval(tokens_of_all)
        ends = np.cumsum(counts).tolist()
        return [tokens_of_all[end - count : end] if count else None for end, count in zip(ends, counts, strict=True)]

    def _alone(
        self,
        index: int,
        plan: _Plan,
        images: mx.array | None,
        made: dict[int, Beginning],
        stop: Stop | None,
        progress: Progress | None,
    ) -> Pieces[tuple[Cache, mx.array]]:
        """Runs one row from where it parts from its source, and keeps its points for others."""
        ids, pictures = self._ids[index], self._pictures[index]
        source = made[plan.source] if isinstance(plan.source, int) else plan.source
        earlier: list[CacheCheckpoint] = []
        cache = Cache(self._model.config.text_config)
        if source is not None:
            point = source.longest(plan.known)
            assert point is not None and point.offset == plan.known
            cache = source.at(point)
            earlier = [before for before in source.points if before.offset <= plan.known]

        def keep(beginning: Beginning) -> None:
            made[index] = beginning
            if self._prefixes is not None:
                self._prefixes.put(beginning)

        growth = Growth(ids, pictures, cache, plan.known, plan.points, earlier, keep)
        if plan.points and not growth.pauses:
            made[index] = growth.beginning()
        logits = yield from prefill_in_pieces(
            self._model,
            Prompt(ids[None, plan.known :], images=images, answer=self._answers[index]),
            cache,
            stop=stop,
            progress=progress,
            pauses=growth.pauses,
            paused=growth.paused,
        )
        return cache, logits


@dataclass
class _Told:
    """Tells one `progress` of several prefills."""

    progress: Progress | None
    total: int = 0
    done: int = 0

    def part(self) -> Progress | None:
        """For the next of them."""
        progress, before = self.progress, self.done
        if progress is None:
            return None

        def told(done: int, of: int) -> None:
            self.done = before + done
            progress(self.done, self.total)

        return told


def _concatenated(arrays: Sequence[mx.array]) -> mx.array | None:
    return None if not arrays else arrays[0] if len(arrays) == 1 else mx.concatenate(list(arrays))


def _padded(pixels: Sequence[np.ndarray], shapes: Sequence[np.ndarray]) -> np.ndarray:
    """The views of all rows in order, padded to one number of patches."""
    if len(pixels) == 1:
        return pixels[0]
    patches = max(int(own.prod(axis=1).max()) for own in shapes)
    joined = np.zeros((sum(map(len, pixels)), patches, pixels[0].shape[2]), np.float32)
    start = 0
    for own in pixels:
        cut = own[:, :patches]
        joined[start : start + len(own), : cut.shape[1]] = cut
        start += len(own)
    return joined
