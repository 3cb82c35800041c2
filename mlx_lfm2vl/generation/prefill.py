"""Prompts of rows into a batch that can be decoded.

In go rows: one, which may continue a beginning that is known, or several short ones, which are padded and run together.
Pictures of all rows are encoded together, those in a known beginning not at all, and their patches are freed before the
text is run. Out comes a `GenerationBatch`.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .batched_sampler import BatchedSampler
from .chunked_prefill import Prompt, encode_views_in_pieces, prefill_in_pieces
from .decode import GenerationBatch
from .options import generation_config
from .prompt_cache import PromptCache
from .prompt_entry import Recorder, checkpoint_places
from .request import EncodedPicture, take_views
from .sampler import UniformSampler
from .sequence import Sequence
from .vision_cache import VisionCache
from .watch import Cancelled, Pieces


@dataclass(eq=False)
class Prefill:
    """Rows whose prompts are run together, and the work that is left."""

    rows: list[Sequence]
    work: Pieces[GenerationBatch]

    def check(self) -> None:
        """Raises `Cancelled` if nobody waits for the work."""
        if all(row.cancelled for row in self.rows):
            raise Cancelled


def prefill_rows(
    model: Lfm2VlForConditionalGeneration,
    rows: List[Sequence],
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
    lost: bool = False,
) -> Pieces[GenerationBatch]:
    """Runs the prompts of rows, a piece at a time.

    Args:
        rows: one, or several without a `source`. The patches of their pictures are taken.
        vision_cache: where encoded pictures are found and kept.
        prompt_cache: where states are kept: at the `points` of a single row, behind its pictures and turns.
        lost: whether drafts have cost more time than they may.

    Raises:
        InputError, OutOfMemoryError, NotFiniteError
    """
    with allocations("the pictures and videos"):
        images = yield from _encode_pictures(model, rows, vision_cache, prompt_cache is not None)
    for row in rows:
        row.encoded = True
    padding = None
    with allocations("the prompts"):
        if len(rows) == 1:
            cache, logits = yield from _prefill_row(model, rows[0], images, prompt_cache)
        else:
            cache, logits, padding = yield from _prefill_together(model, rows, images)
            if prompt_cache is not None:
                _record_ends(rows, padding, cache, logits)
    for row in rows:
        if row.prompt.grammar is not None or row.options.logits_processors:
            row.begin_state()
        if row.speculation is not None:
            yield from row.speculation.prefill(lost)
    top = max((row.options.top_logprobs for row in rows if row.options.logprobs), default=None)
    return GenerationBatch(model, cache, logits, _sampler(model, rows), padding, top)


def prefill_forced(model: Lfm2VlForConditionalGeneration, row: Sequence, cache: Cache) -> Pieces[GenerationBatch]:
    """Runs the last tokens of a row, which its grammar forces. `cache`: of the row alone, with the tokens before.
    Raises `OutOfMemoryError`, `NotFiniteError`."""
    with allocations("the answer's next tokens"):
        logits = yield from prefill_in_pieces(model, Prompt(row.tokens[None, cache.offset :]), cache)
        return GenerationBatch(model, cache, logits, _sampler(model, [row]), first=False)


def _sampler(model: Lfm2VlForConditionalGeneration, rows: List[Sequence]) -> UniformSampler | BatchedSampler:
    """For the tokens that follow those which the rows have."""
    every = [UniformSampler(row.options, row.generated, row.state) for row in rows]
    sampler = every[0] if len(every) == 1 else BatchedSampler(every)
    if any(row.options.repetition_penalty != 1 for row in rows):
        sampler.observe(mx.array(_right_aligned(rows)), model.config.text_config.vocab_size)
    return sampler


def _encode_pictures(
    model: Lfm2VlForConditionalGeneration, rows: List[Sequence], vision_cache: VisionCache | None, keyed: bool
) -> Pieces[mx.array | None]:
    """The image tokens (n, hidden) of the rows' pictures behind their known beginnings, evaluated. With `keyed` equal
    pictures are encoded once."""
    pictures: list[EncodedPicture] = []
    for row in rows:
        for (start, _), picture in zip(row.prompt.places, row.prompt.pictures, strict=True):
            if start >= row.known:
                pictures.append(picture)
            else:
                picture.drop()
    if not pictures:
        return None
    known: dict[int, mx.array] = {}
    factor = model.config.downsample_factor**2
    if vision_cache is not None:
        for index, picture in enumerate(pictures):
            counts = (picture.spatial_shapes.prod(axis=1) // factor).tolist()
            views = [vision_cache.get(key, count) for key, count in zip(picture.keys, counts, strict=True)]
            if all(view is not None for view in views):
                known[index] = mx.concatenate(views)  # type: ignore[arg-type]
                picture.drop()
    unknown = [picture for index, picture in enumerate(pictures) if index not in known]
    if unknown:
        keys = [key for picture in unknown for key in picture.keys] if keyed or vision_cache is not None else None
        pixels, shapes = take_views(unknown)
        work = encode_views_in_pieces(model, pixels, shapes, vision_cache, keys)
        del pixels
        tokens = yield from work
        del work
        counts = [int(picture.spatial_shapes.prod(axis=1).sum()) // factor for picture in unknown]
        parts = iter(mx.split(tokens, np.cumsum(counts)[:-1].tolist()))
        known |= {index: next(parts) for index in range(len(pictures)) if index not in known}
    images = mx.concatenate([known[index] for index in range(len(pictures))])
    mx.eval(images)
    mx.clear_cache()  # the tower's buffers are of sizes that the text does not use
    return images


def _prefill_row(
    model: Lfm2VlForConditionalGeneration, row: Sequence, images: mx.array | None, prompt_cache: PromptCache | None
) -> Pieces[tuple[Cache, mx.array]]:
    """Runs a row from where it parts from its source, and keeps its states for others where there is a prompt cache.
    Cache and logits (1, vocabulary)."""
    ids, known, spans = row.tokens, row.known, row.prompt.spans if prompt_cache is not None else ()
    source, row.source = row.source, None  # its arrays are the prompt cache's
    cache = model.make_cache() if source is None else source[0].at(source[1])
    if cache.drafter is not row.drafter:
        cache.follow(row.drafter)
    if not row.generated:
        row.cached = known
    row.recorder = recorder = None if prompt_cache is None else Recorder(row.ids, spans, source)
    if source is not None and known == len(ids):
        assert source[1].logits is not None
        return cache, source[1].logits
    text = Prompt(ids[None, known:], images=images, answer=row.limit)
    if recorder is None or prompt_cache is None:
        return cache, (yield from prefill_in_pieces(model, text, cache))
    places = checkpoint_places(ids, spans, row.ends, known)
    row.points = {**dict.fromkeys(places[:-1], False), **dict.fromkeys(places[-1:], True), **row.points}

    def keep() -> None:
        """Lets others begin with what there is now."""
        prompt_cache.put(recorder.entry(cache.copy(), row.generated))

    def paused(at: int) -> None:
        recorder.take(cache)
        if row.points[at]:
            keep()

    try:
        logits = yield from prefill_in_pieces(model, text, cache, pauses=row.points, paused=paused)
    except Cancelled:
        if cache.offset > known:
            recorder.take(cache)
            keep()
        raise
    recorder.take(cache, logits)
    return cache, logits


def _prefill_together(
    model: Lfm2VlForConditionalGeneration, rows: List[Sequence], images: mx.array | None
) -> Pieces[tuple[Cache, mx.array, np.ndarray | None]]:
    """Runs padded rows. Cache, logits (B, vocabulary), and padding tokens before each row (B,) or None."""
    lengths = np.array([len(row.ids) for row in rows])
    ids = np.full((len(rows), lengths.max()), generation_config(model).pad_token_id or 0, np.int64)
    for at, row in enumerate(rows):
        ids[at, len(ids[at]) - len(row.ids) :] = row.ids
    padding = ids.shape[1] - lengths if (lengths < ids.shape[1]).any() else None
    prompt = Prompt(ids, padding, images=images, answer=max(row.limit for row in rows))
    cache = model.make_cache()
    cache.follow(next((row.drafter for row in rows if row.drafter is not None), None))
    logits = yield from prefill_in_pieces(model, prompt, cache)
    return cache, logits, padding


def _record_ends(rows: List[Sequence], padding: np.ndarray | None, cache: Cache, logits: mx.array) -> None:
    """Takes a checkpoint of each row at the end of its prompt."""
    for at, row in enumerate(rows):
        row.recorder = Recorder(row.ids, row.prompt.spans)
        own = mx.contiguous(logits[at : at + 1])
        mx.eval(own)  # unevaluated it would hold those of all rows
        row.recorder.take(cache.row(at, 0 if padding is None else int(padding[at]), states_only=True), own)


def _right_aligned(rows: List[Sequence]) -> np.ndarray:
    """The tokens (B, L); shorter rows repeat their last token before them, so that padding does not count as said."""
    every = [row.tokens for row in rows]
    length = max(map(len, every))
    return np.stack([np.concatenate([np.full(length - len(ids), ids[-1]), ids]) for ids in every])
