"""The prompt of a call of `generate`: what is given, in every form that transformers takes, run into a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError, OptionError
from ..generation.chunked_prefill import Prompt, prefill
from ..models import lfm2_vl
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from . import tensors

ARGUMENTS = (  # of `generate`, beside settings
    *("input_ids", "inputs_embeds", "attention_mask", "past_key_values"),
    *("streamer", "logits_processor", "stopping_criteria", "generation_config", "tokenizer", "seed"),
)
_NOT_NEEDED = ("token_type_ids", "mm_token_type_ids", "logits_to_keep", "labels")


@dataclass
class GivenPrompt:
    """`ids` (B, L) int64, with which the answer's rows begin, L = 0 for `embeds` alone; `mask` (B, past + new) or None;
    `new` tokens that the `cache` does not hold; `images` (n, hidden) in place of `pixel_values`. `like`: an array of
    the caller's kind."""

    like: Any
    ids: np.ndarray
    cache: Cache
    new: int
    mask: np.ndarray | None
    embeds: mx.array | None
    pixel_values: Any
    spatial_shapes: Any
    images: mx.array | None

    @property
    def has_pictures(self) -> bool:
        return self.pixel_values is not None or self.images is not None

    @property
    def padding(self) -> np.ndarray | None:
        """As `left_padding`."""
        return None if self.mask is None else left_padding(self.mask)

    def run(self, model: Lfm2VlForConditionalGeneration, answer: int) -> mx.array:
        """Runs the prompt into the cache: the logits (B, vocabulary) of its last position."""
        padding, past, new_ids = self.padding, self.cache.offset, self.ids[:, -self.new :]
        if self.embeds is None and (past == 0 or (len(self.ids) == 1 and padding is None)):
            if past == 0 and self.mask is not None and self.mask.shape != new_ids.shape:
                raise InputError(f"attention_mask has shape {self.mask.shape}, input_ids {new_ids.shape}")
            prompt = Prompt(new_ids, padding, self.pixel_values, self.spatial_shapes, self.images, answer)
            return prefill(model, prompt, self.cache)
        positions = None
        if padding is not None and self.mask is not None:
            positions = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)[:, -self.new :]
        given: dict[str, Any] = {"input_ids": new_ids} if self.embeds is None else {"inputs_embeds": self.embeds}
        if self.images is not None:
            given["image_outputs"] = lfm2_vl.ImageFeatures([], [self.images])
        out = lfm2_vl.Lfm2VlForConditionalGeneration.__call__(
            model,
            **given,
            pixel_values=self.pixel_values,
            spatial_shapes=self.spatial_shapes,
            attention_mask=None if padding is None else self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        assert isinstance(out, lfm2_vl.Lfm2VlCausalLMOutputWithPast) and out.logits is not None
        mx.async_eval(out.logits, self.cache.arrays)
        return out.logits[:, -1]


def take_prompt(
    model: Lfm2VlForConditionalGeneration, inputs: Any, keywords: dict[str, Any], bos: int | None, pad: int | None
) -> GivenPrompt:
    """Takes from the `keywords` of a call of `generate` what is the prompt; `inputs` is its first argument, the ids.
    `bos`: the token that an answer to nothing begins with. `pad`: the token that pads where there is no mask; None
    where it ends answers, too. Raises `InputError` and `OptionError` for arrays that do not fit each other."""

    def take(name: str) -> Any:
        return tensors.to_mlx(keywords.pop(name, None))

    like = tensors.first_given(inputs, keywords.get("input_ids"), keywords.get("inputs_embeds"))
    for name in _NOT_NEEDED:
        keywords.pop(name, None)
    if keywords.pop("position_ids", None) is not None:
        raise OptionError("position_ids are made of the attention mask; leave them out of generate")
    ids, embeds = take("input_ids"), take("inputs_embeds")
    if inputs is not None:
        if ids is not None:
            raise InputError("the prompt is given twice: as the first argument and as input_ids")
        ids = tensors.to_mlx(inputs)
    if ids is None and embeds is None:
        if bos is None:
            raise InputError("give input_ids, or inputs_embeds")
        ids = np.array([[bos]])
    if embeds is not None:
        embeds = mx.array(embeds).astype(model.model.language_model.embedding_norm.weight.dtype)
    rows = np.zeros((embeds.shape[0], 0), np.int64) if ids is None else np.array(ids)
    if rows.ndim != 2 or (embeds is None and not rows.size):
        raise InputError(f"input_ids has shape {rows.shape}, expected (batch, length) with at least one token")
    vocabulary = model.config.text_config.vocab_size
    if (wrong := rows[(rows < 0) | (rows >= vocabulary)]).size:  # where embeddings are given, no one else looks
        raise InputError(f"input_ids holds {wrong[0]}; the model's vocabulary has ids 0 to {vocabulary - 1}")
    cache = keywords.pop("cache" if keywords.get("past_key_values") is None else "past_key_values", None)
    cache = Cache(model.config.text_config) if cache is None else cache
    if not isinstance(cache, Cache):
        raise InputError(f"past_key_values is {type(cache).__name__}, expected a Cache of an earlier output")
    mask = take("attention_mask")
    mask = _mask_of(rows, pad) if mask is None and embeds is None and not cache.offset else mask
    mask = None if mask is None else np.array(mask).astype(np.int64)
    images = keywords.pop("mm_encoder_outputs", None) or keywords.pop("image_outputs", None)
    images = images.get("image") if isinstance(images, dict) else images
    arrays = {name: take(name) for name in model.model.view_arguments}
    pixels, shapes = model.model.views_of(arrays, None if embeds is not None else rows)
    new = rows.shape[1] if embeds is None else embeds.shape[1]
    if cache.offset and (embeds is not None or mask is None or mask.shape[1] == new):  # all of the text is given
        new -= cache.offset
        if new < 1:
            raise InputError(
                f"past_key_values hold {cache.offset} tokens, and the prompt has no more; give all of the text, or its "
                "new tokens with an attention_mask for all of it"
            )
    embeds = None if embeds is None else embeds[:, -new:]
    encoded = None if images is None else mx.concatenate([tensors.to_mlx(each) for each in images.pooler_output])
    return GivenPrompt(like, rows.astype(np.int64), cache, new, mask, embeds, pixels, shapes, encoded)


def left_padding(mask: np.ndarray) -> np.ndarray | None:
    """Tokens of padding before each row (B,), None if there are none, by a mask (B, L) that is 1 at real tokens. Raises
    `InputError` for padding elsewhere."""
    if not mask[:, -1].all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
        raise InputError("attention_mask pads on the right; generation needs padding_side='left'")
    return None if mask.all() else mask.shape[1] - mask.sum(axis=1)


def _mask_of(ids: np.ndarray, pad: int | None) -> np.ndarray | None:
    """The mask of rows that begin with padding; None if none does."""
    real = ids != pad
    begins = np.logical_or.accumulate(real, axis=1)
    return begins.astype(np.int64) if pad is not None and not begins.all() and begins[:, -1].all() else None
