"""Prompts of several rows into one cache, so that what they begin with alike is run once.

Rows that share a beginning (with each other, or with an entry of a `PromptCache`) are run one after the other, each
from where it parts; the others are padded and run together. All then stand side by side in one cache. Pictures of all
rows are encoded together, those in a known beginning not at all, and the patches are let go before the text is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .decode import Prompt, guarded, prefill_in_pieces
from .defaults import generation_config
from .prompt_cache import SHORTEST_PASS, Entry, PromptCache, Recorder, checkpoint_places, shared_length
from .request import EncodedPicture, EncodedPrompt
from .vision_cache import VisionCache, encode_views_in_pieces
from .watch import Cancelled, Pieces, Progress, Stop, check


@dataclass
class _Plan:
    """How a row is begun: from the first `known` tokens of a `source` (an entry, or another row), with `points` for
    others to begin from. `alone`: run by itself."""

    known: int = 0
    source: Entry | int | None = None
    alone: bool = False
    points: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Prefilled:
    """Rows whose prompts have been run: their `cache`, the `logits` (B, vocabulary) of their last tokens, padding
    tokens before each row (B,) or None, how many tokens of each needed no run, and each row's recorder where there is a
    prompt cache."""

    cache: Cache
    logits: mx.array
    padding: np.ndarray | None
    cached: tuple[int, ...]
    recorders: tuple[Recorder | None, ...]


def prefill_rows(
    model: Lfm2VlForConditionalGeneration,
    prompts: Sequence[EncodedPrompt],
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
) -> Pieces[Prefilled]:
    """Runs prompts, a piece at a time.

    Args:
        model: the model.
        prompts: whose pictures' patches are taken.
        vision_cache: where encoded pictures are found and kept.
        prompt_cache: where beginnings are found and kept.
        stop: asked before each piece of work.
        progress: told of the tokens done, and of all.

    Raises:
        InputError, OutOfMemoryError, NotFiniteError, Cancelled
    """
    run = _Run(model, prompts, prompt_cache, stop, progress)
    images = yield from guarded(run.encode(vision_cache), "the pictures")
    return (yield from guarded(run.prefill(images), "the prompts"))


class _Run:
    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        prompts: Sequence[EncodedPrompt],
        prompt_cache: PromptCache | None,
        stop: Stop | None,
        progress: Progress | None,
    ):
        config = generation_config(model)
        self._model, self._pad, self._ends = model, config.pad_token_id or 0, config.eos_token_ids
        self._prompts, self._prompt_cache, self._stop = prompts, prompt_cache, stop
        self._progress, self._total, self._done = progress, 0, 0
        self._recorders: list[Recorder | None] = [None] * len(prompts)
        self._plans = self._plan()

    def _plan(self) -> list[_Plan]:
        plans = [_Plan() for _ in self._prompts]
        if self._prompt_cache is None:
            return plans
        for index, prompt in enumerate(self._prompts):
            plan = plans[index]
            entry, point = self._prompt_cache.find(prompt.ids, prompt.spans)
            if entry is not None and point is not None:
                plan.known, plan.source = point.offset, entry
            for other in range(index):
                shared = shared_length(self._prompts[other].ids, self._prompts[other].spans, prompt.ids, prompt.spans)
                shared = min(shared, len(self._prompts[other].ids) - 1, len(prompt.ids) - 1)
                shared = _outside(prompt, shared)
                if shared >= SHORTEST_PASS and shared > plan.known and shared >= plans[other].known:
                    plan.known, plan.source = shared, other
            if isinstance(plan.source, int):
                plans[plan.source].points.add(plan.known)
        for index, plan in enumerate(plans):
            plan.alone = plan.known > 0 or bool(plan.points) or len(plans) == 1
            if plan.alone:
                prompt = self._prompts[index]
                plan.points.update(checkpoint_places(prompt.ids, prompt.spans, self._ends, plan.known))
        return plans

    def encode(self, vision_cache: VisionCache | None) -> Pieces[list[mx.array | None]]:
        """The image tokens (n, hidden) that each row still needs; the patches are not held any longer."""
        needed: list[EncodedPicture] = []
        counts: list[int] = []
        for prompt, plan in zip(self._prompts, self._plans, strict=True):
            new = []
            for (start, _), picture in zip(prompt.places, prompt.pictures, strict=True):
                if start >= plan.known:
                    new.append(picture)
                else:
                    picture.drop()
            needed += new
            image_tokens = int(np.count_nonzero(prompt.ids[plan.known :] == self._model.config.image_token_id))
            counts.append(image_tokens if new else 0)
        if not needed:
            check(self._stop)
            return [None] * len(counts)
        tokens = yield from self._encode_pictures(needed, vision_cache)
        mx.eval(tokens)
        ends = np.cumsum(counts).tolist()
        return [tokens[end - count : end] if count else None for end, count in zip(ends, counts, strict=True)]

    def _encode_pictures(self, pictures: list[EncodedPicture], vision_cache: VisionCache | None) -> Pieces[mx.array]:
        """The image tokens of the pictures, (n, hidden). Patches are taken only of those that are not known."""
        known: dict[int, mx.array] = {}
        unknown: list[EncodedPicture] = []
        for index, picture in enumerate(pictures):
            views = [] if vision_cache is None else [vision_cache.get(key) for key in picture.keys]
            if views and all(view is not None for view in views):
                known[index] = mx.concatenate(views)  # type: ignore[arg-type]
                picture.drop()
            else:
                unknown.append(picture)
        if unknown:
            keys = None
            if vision_cache is not None or self._prompt_cache is not None:
                keys = [key for picture in unknown for key in picture.keys]
            shapes = np.concatenate([picture.spatial_shapes for picture in unknown])
            pixels = _padded([picture.take() for picture in unknown], shapes)
            work = encode_views_in_pieces(self._model, pixels, shapes, vision_cache, self._stop, keys)
            del pixels
            tokens = yield from work
            del work
            factor = self._model.config.downsample_factor**2
            counts = [int(picture.spatial_shapes.prod(axis=1).sum()) // factor for picture in unknown]
            ends = np.cumsum(counts).tolist()
            parts = iter(tokens[end - count : end] for end, count in zip(ends, counts, strict=True))
            known |= {index: next(parts) for index in range(len(pictures)) if index not in known}
        mx.clear_cache()  # the tower's buffers are of sizes that the text does not use
        return mx.concatenate([known[index] for index in range(len(pictures))])

    def prefill(self, images: list[mx.array | None]) -> Pieces[Prefilled]:
        together = [index for index, plan in enumerate(self._plans) if not plan.alone]
        alone = [index for index, plan in enumerate(self._plans) if plan.alone]
        self._total = sum(len(self._prompts[index].ids) - self._plans[index].known for index in alone)
        caches: list[Cache] = []
        logits: list[mx.array] = []
        if together:
            ids, padding = self._side_by_side(together)
            self._total += ids.shape[1]
            mask = None if padding is None else (np.arange(ids.shape[1]) >= padding[:, None]).astype(np.int64)
            found = [each for index in together if (each := images[index]) is not None]
            answer = max(self._prompts[index].options.max_tokens for index in together)
            cache = Cache(self._model.config.text_config)
            prompt = Prompt(ids, mask, images=mx.concatenate(found) if found else None, answer=answer)
            last = yield from prefill_in_pieces(self._model, prompt, cache, stop=self._stop, progress=self._part())
            self._record(together, padding, cache, last)
            caches.append(cache)
            logits.append(last)
        made: dict[int, Entry] = {}
        for index in alone:
            if caches:
                yield
            cache, last = yield from self._alone(index, images[index], made)
            caches.append(cache)
            logits.append(last)
        cached = tuple(plan.known for plan in self._plans)
        padding = self._side_by_side(range(len(self._prompts)))[1]
        recorders = tuple(self._recorders)
        if len(caches) == 1:
            return Prefilled(caches[0], logits[0], padding, cached, recorders)
        merged = Cache.merge(caches)
        order = mx.array(np.argsort([*together, *alone]))
        merged.filter(order)
        return Prefilled(merged, mx.concatenate(logits)[order], padding, cached, recorders)

    def _record(self, rows: Sequence[int], padding: np.ndarray | None, cache: Cache, logits: mx.array) -> None:
        """Takes a checkpoint of each row at the end of its prompt, where there is a prompt cache."""
        if self._prompt_cache is None:
            return
        for at, index in enumerate(rows):
            prompt = self._prompts[index]
            recorder = Recorder(prompt.ids, prompt.spans, 0, (), ())
            row = cache.row(at, 0 if padding is None else int(padding[at]), states_only=True)
            own = mx.contiguous(logits[at : at + 1])
            mx.eval(own)  # unevaluated it would hold those of all rows
            recorder.take(row, own)
            self._recorders[index] = recorder

    def _side_by_side(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        lengths = np.array([len(self._prompts[index].ids) for index in rows])
        ids = np.full((len(rows), lengths.max()), self._pad, np.int64)
        for at, index in enumerate(rows):
            ids[at, ids.shape[1] - lengths[at] :] = self._prompts[index].ids
        padding = ids.shape[1] - lengths
        return ids, padding if padding.any() else None

    def _alone(self, index: int, images: mx.array | None, made: dict[int, Entry]) -> Pieces[tuple[Cache, mx.array]]:
        """Runs one row from where it parts from its source, and keeps its checkpoints for others."""
        prompt, plan = self._prompts[index], self._plans[index]
        source = made[plan.source] if isinstance(plan.source, int) else plan.source
        cache, earlier = Cache(self._model.config.text_config), []
        if source is not None:
            point = source.longest(plan.known, len(prompt.ids))
            assert point is not None and point.offset == plan.known
            cache = source.at(point)
            earlier = [before for before in source.checkpoints if before.offset <= plan.known]
            if plan.known == len(prompt.ids):
                assert point.logits is not None
                self._recorders[index] = Recorder(prompt.ids, prompt.spans, plan.known, (), earlier)
                return cache, point.logits
        recorder = None
        if self._prompt_cache is not None:
            recorder = Recorder(prompt.ids, prompt.spans, plan.known, plan.points, earlier)
        self._recorders[index] = recorder

        def keep() -> None:
            """Lets others begin with what there is now."""
            assert recorder is not None and self._prompt_cache is not None
            entry = recorder.entry(cache.copy())
            if entry is not None:
                made[index] = entry
                self._prompt_cache.put(entry)

        def paused(at: int) -> None:
            assert recorder is not None
            recorder.take(cache)
            if at == recorder.pauses[-1]:
                keep()

        pauses = () if recorder is None else recorder.pauses
        if plan.points and not pauses:
            keep()
        text = Prompt(prompt.ids[None, plan.known :], images=images, answer=prompt.options.max_tokens)
        try:
            logits = yield from prefill_in_pieces(
                self._model, text, cache, stop=self._stop, progress=self._part(), pauses=pauses, paused=paused
            )
        except Cancelled:
            if recorder is not None and cache.offset > plan.known:
                recorder.take(cache)
                keep()
            raise
        if recorder is not None:
            recorder.take(cache, logits)
        return cache, logits

    def _part(self) -> Progress | None:
        """Tells `progress` of one prefill after those before it."""
        progress, before = self._progress, self._done
        if progress is None:
            return None

        def told(done: int, _: int) -> None:
            self._done = before + done
            progress(self._done, self._total)

        return told


def _padded(pixels: list[np.ndarray], shapes: np.ndarray) -> np.ndarray:
    """Views of several calls as one array (views, patches, width)."""
    if len(pixels) == 1:
        return pixels[0]
    length = int(shapes.prod(axis=1).max())
    made = np.zeros((len(shapes), length, pixels[0].shape[2]), pixels[0].dtype)
    end = 0
    for part in pixels:
        made[end : end + len(part), : part.shape[1]] = part[:, :length]
        end += len(part)
    return made


def _outside(prompt: EncodedPrompt, length: int) -> int:
    """The largest length up to this one that does not end within a picture."""
    return next((start for start, end in prompt.places if start < length < end), length)
