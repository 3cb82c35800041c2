"""A prompt through the model: a pass of the vision tower, or a chunk of the text, at a time.

Logits are computed for the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations
from ..distributed.agreement import agreed
from ..errors import InputError
from ..models.cache import Cache
from ..models.context import Context
from ..models.key_values import GROWTH_STEP
from ..models.lfm2_vl import Array, Lfm2VlForConditionalGeneration
from ..weights.fit import check_question, largest_pass, number_type
from .passes import prefill_chunk
from .vision_cache import VisionCache, encode_views_in_pieces
from .watch import Cancelled, Pieces, completed


@dataclass(frozen=True)
class Prompt:
    """The arrays of one call of the processor, ready to be prefilled.

    `input_ids` (B, L); `attention_mask` (B, L), 1 at real tokens, padded on the left; the pictures' arrays or None, or
    in their place `images`, the image tokens (n, hidden) that were made of them. `answer`: tokens that may follow, for
    which there must be memory, too. `padding`: tokens of it before each row (B,), None if there are none.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    pixel_values: Array | None = None
    spatial_shapes: Array | None = None
    images: mx.array | None = None
    answer: int = 0
    padding: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.attention_mask is None:
            return
        mask = np.asarray(self.attention_mask)
        if mask.shape != self.input_ids.shape:
            raise InputError(f"attention_mask has shape {mask.shape}, input_ids {self.input_ids.shape}")
        if not mask[:, -1].all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
            raise InputError("attention_mask pads on the right; generation needs padding_side='left'")
        if not mask.all():
            object.__setattr__(self, "padding", mask.shape[1] - mask.sum(axis=1))


def prefill_in_pieces(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    *,
    chunk: int | None = None,
    vision_cache: VisionCache | None = None,
    pauses: Collection[int] = (),
    paused: Callable[[int], None] | None = None,
) -> Pieces[mx.array]:
    """Runs the prompt through the model into `cache`; a pass of the vision tower, or a chunk of the text, at a time.

    Pictures are encoded first and their buffers freed. Each chunk of the text is evaluated before the next. A single
    unpadded prompt may continue what the cache holds. Chunks that were run stay in the cache when the work ends early.

    Args:
        model: the model.
        prompt: ids and pictures of all rows.
        cache: what stands before the prompt; takes the prompt's states.
        chunk: tokens of a chunk. None is `passes.prefill_chunk`.
        vision_cache: where encoded pictures are found and kept.
        pauses: a chunk ends where the cache holds one of these numbers of tokens; more may be added meanwhile.
        paused: told of each.

    Returns:
        Logits (B, vocabulary) of the last position. Yields the tokens that the cache holds.

    Raises:
        InputError, OutOfMemoryError, NotFiniteError
    """
    rows, length = prompt.input_ids.shape
    answer = max(0, min(prompt.answer, model.config.text_config.max_position_embeddings - length))
    patches = 0 if prompt.spatial_shapes is None else largest_pass(prompt.spatial_shapes)
    beside = 0 if cache.drafter is None else cache.drafter.token_bytes
    with agreed(model.group):
        check_question(model.config, number_type(model), length, answer, patches, rows, model.kv_bits, beside)
    padding = prompt.padding
    with allocations(f"a prompt of {length:,} tokens"):
        embedding = _embed(model, prompt, vision_cache)
        del prompt
        embeds = yield from embedding
        end = 0
        while end < length:
            start, before = end, cache.offset
            end = min(start + (chunk or prefill_chunk(model.config.text_config, rows, before)), length)
            end = min((pause - before + start for pause in pauses if 0 < pause - before < end - start), default=end)
            begun, context = cache.checkpoint(detach=False), Context.following(end - start, before, padding)
            try:
                hidden = model.model.language_model(embeds[:, start:end], context, cache, last_only=True)
            except Cancelled:
                cache.rewind(begun)
                raise
            if end == length:
                break
            mx.eval(cache.arrays)
            clear_outgrown(cache, before)
            if paused is not None and cache.offset in pauses:
                paused(cache.offset)
            yield cache.offset
        logits = model.logits(hidden[:, -1:])[:, 0]
        mx.async_eval(logits, cache.arrays)  # where memory is short, it is here that this shows
        return logits


prefill = completed(prefill_in_pieces)


def _embed(model: Lfm2VlForConditionalGeneration, prompt: Prompt, vision_cache: VisionCache | None) -> Pieces[mx.array]:
    """The embeddings (B, L, hidden) of text and pictures."""
    images = prompt.images
    if prompt.pixel_values is not None:
        if prompt.spatial_shapes is None:
            raise InputError("pixel_values is given without spatial_shapes")
        images = yield from encode_views_in_pieces(model, prompt.pixel_values, prompt.spatial_shapes, vision_cache)
        mx.eval(images)
        mx.clear_cache()  # the tower's buffers are of sizes that the text does not use
    return model.model.embed(prompt.input_ids, images)


def clear_outgrown(cache: Cache, before: int) -> None:
    """Frees what MLX keeps for reuse if the key-value buffers have grown since `before` tokens: the outgrown ones fit
    nothing that comes later."""
    if -(-before // GROWTH_STEP) < -(-cache.offset // GROWTH_STEP):
        mx.clear_cache()
