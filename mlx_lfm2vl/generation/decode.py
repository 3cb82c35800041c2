"""One prefill and one decode loop, for single prompts and padded batches alike.

The loop is one step ahead: the next step is dispatched before the last token is read, so that the device never waits
for Python. Logits are computed for the last position only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..model.cache import Cache
from ..model.lfm2 import Context, padding_masks
from ..model.lfm2vl import Array, Lfm2VlForConditionalGeneration
from .sampling import Sampler

PREFILL_CHUNK = 512  # tokens; bounds the activations of a long prompt
Progress = Callable[[int, int], None]  # tokens done, tokens in all


@dataclass(frozen=True)
class Prompt:
    """What the processor makes of one call, ready to be prefilled.

    `input_ids` (B, L); `attention_mask` (B, L), 1 at real tokens, padded on the left; the pictures' arrays or None.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    pixel_values: Array | None = None
    spatial_shapes: Array | None = None

    def __post_init__(self) -> None:
        if self.attention_mask is None:
            return
        mask = np.asarray(self.attention_mask)
        if mask.shape != self.input_ids.shape:
            raise InputError(f"attention_mask has shape {mask.shape}, input_ids {self.input_ids.shape}")
        if not mask[:, -1].all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
            raise InputError("attention_mask pads on the right; generation needs padding_side='left'")

    @property
    def padding(self) -> np.ndarray | None:
        """Padding tokens before each row (B,), or None if there are none."""
        if self.attention_mask is None or np.asarray(self.attention_mask).all():
            return None
        return self.input_ids.shape[1] - np.asarray(self.attention_mask).sum(axis=1)


def prefill(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    *,
    chunk: int = PREFILL_CHUNK,
    progress: Progress | None = None,
) -> mx.array:
    """Runs the prompt through the model into `cache` and returns the logits (B, vocabulary) of its last position.

    Pictures are encoded first and their buffers freed; the text follows in chunks, each evaluated before the next.
    """
    body = model.model
    images = None
    if prompt.pixel_values is not None:
        if prompt.spatial_shapes is None:
            raise InputError("pixel_values is given without spatial_shapes")
        tokens = body.get_image_features(prompt.pixel_values, prompt.spatial_shapes).pooler_output
        images = tokens[0] if len(tokens) == 1 else mx.concatenate(tokens)
        del tokens
        mx.eval(images)
    embeds = body.embed(prompt.input_ids, images)
    del images
    length = embeds.shape[1]
    hidden = embeds
    for start in range(0, length, chunk):
        part = embeds[:, start : start + chunk]
        hidden = body.language_model(part, _context(prompt, cache, part.shape[1]), cache)
        if start + chunk < length:
            mx.eval(cache.arrays)
        if progress is not None:
            progress(min(start + chunk, length), length)
    return model.logits(hidden[:, -1:])[:, 0]


def _context(prompt: Prompt, cache: Cache, length: int) -> Context:
    """Positions and masks of the next `length` tokens; padding shifts a row's positions, so that a row of a batch sees
    just what it would see alone."""
    padding = prompt.padding
    past = cache.offset
    if padding is None:
        return Context(offset=past, attention_mask="causal" if length > 1 else None)
    positions = np.arange(past + length)
    mask, keep = padding_masks(positions[None, :] >= padding[:, None], length)
    return Context(offset=mx.array(past - padding), attention_mask=mask, keep=keep)


def decode(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    logits: mx.array,
    sampler: Sampler,
    max_tokens: int,
) -> Iterator[list[int]]:
    """Yields the next token of every row, at most `max_tokens` times; the caller stops when it has enough.

    When a step is yielded the cache may already hold it and the device work on the one after.
    """
    body = model.model
    tokens = sampler(logits)
    mx.async_eval(tokens)
    for step in range(max_tokens):
        following = None
        if step + 1 < max_tokens:
            embeds = body.language_model.embed_tokens(tokens[:, None])
            hidden = body.language_model(embeds, _context(prompt, cache, 1), cache)
            following = sampler(model.logits(hidden)[:, 0])
            mx.async_eval(following)
        yield tokens.tolist()  # type: ignore[misc]
        if following is None:
            return
        tokens = following
