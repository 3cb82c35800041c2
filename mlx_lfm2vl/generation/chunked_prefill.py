"""A prompt through the model in pieces: a pass or some layers of the vision tower, or a chunk of the text, at a time.

On a GPU nothing waits for the device within a piece of work, so a cancel waits for the piece that was started. Its size
follows from the model's arithmetic: two floating-point operations for each weight and token, four for each channel of a
query and a key. It is at most `PIECE_FLOPS`, which an M1 takes about 110 ms for, by calculation: its GPU is published
with 2.6 TFLOP/s in float32, of which three quarters, 2 TFLOP/s, are assumed. A faster GPU takes less. Logits are
computed for the last position only.

A question that will not fit into memory is refused before, with what would fit. Counted is what cannot do without, so
that nothing is refused that might have worked. Of L tokens with an answer of N, beside the weights (attention's scores,
which the fused kernels never write down, are left out): keys and values, (L + N) rounded up to 256, in a sliding window
at most its length, x attention layers x 2 x key-value heads x head size; embeddings L x hidden; the larger of one pass
of the vision tower, patches x (4 x hidden + MLP width), and one chunk of the prompt, min(L, 512) x (2 x hidden + 3 x
feed-forward width); logits, 4 bytes x vocabulary. Numbers are of the weights' type, float32 or 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations, free_memory
from ..config import ModelConfig, TextConfig, VisionConfig
from ..distributed.group import agreed
from ..errors import FEWER_MEDIA, InputError, OutOfMemoryError
from ..models.cache import GROWTH_STEP, Cache, group_size
from ..models.layers import Context
from ..models.lfm2_vl import Array, Lfm2VlForConditionalGeneration
from ..models.siglip2 import PATCHES_PER_PASS, pack_views, split_views, vision_passes
from ..weights.fit import gb
from .finite import check_vision
from .options import number_type
from .vision_cache import VisionCache
from .watch import Cancelled, Pieces, completed

PIECE_FLOPS = 2.2e11
GRANULE = 32  # tokens: chunks are multiples of it
LONGEST_CHUNK = 512  # tokens of a prompt that are run together


@dataclass(frozen=True)
class Prompt:
    """The arrays of one call of the processor, ready to be prefilled.

    `input_ids` (B, L); `padding`: tokens of it before each row (B,), None if there are none; the pictures' arrays or
    None, or in their place `images`, the image tokens (n, hidden) that were made of them. `answer`: tokens that may
    follow, for which there must be memory, too.
    """

    input_ids: np.ndarray
    padding: np.ndarray | None = None
    pixel_values: Array | None = None
    spatial_shapes: Array | None = None
    images: mx.array | None = None
    answer: int = 0


def prefill_in_pieces(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache: Cache,
    *,
    pauses: Collection[int] = (),
    paused: Callable[[int], None] | None = None,
) -> Pieces[mx.array]:
    """Runs the prompt through the model into `cache`; a pass of the vision tower, or a chunk of the text, at a time.

    Pictures are encoded first and their buffers freed. Each chunk of the text is evaluated before the next. A single
    unpadded prompt may continue what the cache holds. Chunks that were run stay in the cache when the work ends early.

    Args:
        prompt: ids and pictures of all rows.
        cache: what stands before the prompt; takes the prompt's states.
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
    with nullcontext() if model.group is None else agreed(model.group):
        check_question(model.config, number_type(model), length, answer, patches, rows, model.kv_bits, beside)
    padding = prompt.padding
    with allocations(f"a prompt of {length:,} tokens"):
        ids, images, pixels, shapes = prompt.input_ids, prompt.images, prompt.pixel_values, prompt.spatial_shapes
        del prompt
        if pixels is not None:
            if shapes is None:
                raise InputError("pixel_values is given without spatial_shapes")
            encoding = encode_views_in_pieces(model, pixels, shapes)
            del pixels
            images = yield from encoding
            mx.eval(images)
            mx.clear_cache()  # the tower's buffers are of sizes that the text does not use
        embeds = model.model.embed(ids, images)
        del images
        end = 0
        while end < length:
            start, before = end, cache.offset
            end = min(start + prefill_chunk(model.config.text_config, rows, before), length)
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


def clear_outgrown(cache: Cache, before: int) -> None:
    """Frees what MLX keeps for reuse if the key-value buffers have grown since `before` tokens: the outgrown ones fit
    nothing that comes later."""
    if -(-before // GROWTH_STEP) < -(-cache.offset // GROWTH_STEP):
        mx.clear_cache()


def token_bytes(config: ModelConfig, size: int, kv_bits: int | None = None) -> int:
    """Memory for the keys and values of a token that is one of many."""
    text = config.text_config
    return text.layer_types.count("full_attention") * key_bytes(text, size, kv_bits)


def key_bytes(text: TextConfig, size: int, kv_bits: int | None = None) -> int:
    """Memory for the keys and values of a token in a layer; a group of quantised ones has a scale and a bias."""
    numbers = 2 * text.num_key_value_heads * text.head_dim
    if kv_bits is None:
        return numbers * size
    return numbers * kv_bits // 8 + numbers // (group_size(text.head_dim) or 1) * 2 * size


@lru_cache(maxsize=256)
def states_bytes(text: TextConfig, tokens: int, size: int, kv_bits: int | None) -> int:
    """Memory for the keys and values of so many tokens, a multiple of `GROWTH_STEP`."""
    if kv_bits is None:
        return text.keys_kept(tokens) * key_bytes(text, size)
    # a layer's keys and values are dense while a chunk of the prompt is run, those of a window always
    full = tokens * text.layer_types.count("full_attention")
    dense = text.keys_kept(tokens) - full + tokens
    return full * key_bytes(text, size, kv_bits) + dense * key_bytes(text, size)


def question_bytes(
    config: ModelConfig, size: int, prompt: int, answer: int, patches: int = 0, kv_bits: int | None = None
) -> int:
    """Memory that a prompt of so many tokens and its answer take beside the weights. `size`: bytes of a number;
    `patches`: of the largest pass through the vision tower; `kv_bits`: of keys and values, if they are quantised."""
    text, vision = config.text_config, config.vision_config
    tokens = -(-(prompt + answer) // GROWTH_STEP) * GROWTH_STEP
    tower = patches * (4 * vision.hidden_size + vision.intermediate_size) if patches else 0
    chunk = min(prompt, LONGEST_CHUNK) * (2 * text.hidden_size + 3 * text.feed_forward_size)
    fixed = (prompt * text.hidden_size + max(tower, chunk)) * size + 4 * text.vocab_size
    return states_bytes(text, tokens, size, kv_bits) + fixed


def check_question(
    config: ModelConfig,
    dtype: mx.Dtype,
    prompt: int,
    answer: int,
    patches: int = 0,
    rows: int = 1,
    kv_bits: int | None = None,
    drafter_bytes: int = 0,
) -> None:
    """Raises `OutOfMemoryError` if `rows` questions of such a size will not fit beside the weights, saying how many
    tokens would. `dtype`: of the model's norms; `drafter_bytes`: that a drafter keeps of a token."""
    free, size = free_memory(), dtype.size
    needed = rows * (question_bytes(config, size, prompt, answer, patches, kv_bits) + (prompt + answer) * drafter_bytes)
    if free is None or needed <= free:
        return
    fixed = rows * question_bytes(config, size, min(prompt, LONGEST_CHUNK), 0, patches, kv_bits)
    each = token_bytes(config, size, kv_bits) + config.text_config.hidden_size * size + drafter_bytes
    fitting = max(0, free - fixed) // (rows * each)
    fewer = f"{FEWER_MEDIA}, a smaller max_image_tokens, " if patches else ""
    raise OutOfMemoryError(
        f"a prompt of {prompt:,} tokens with an answer of {answer:,} takes {gb(needed)} beside the model, and "
        f"{gb(free)} of memory are free, enough for about {fitting:,} tokens; use {fewer}a shorter prompt or answer "
        "(max_tokens), or a smaller quantisation"
    )


def largest_pass(spatial_shapes: Any) -> int:
    """Patches of the largest pass through the vision tower for views of these grids (views, 2)."""
    shapes = np.array(spatial_shapes)
    if shapes.ndim != 2 or shapes.shape[1] != 2:  # what the model refuses
        return 0
    grids = [(int(height), int(width)) for height, width in shapes]
    return max((sum(grids[at][0] * grids[at][1] for at in part) for part in vision_passes(grids)), default=0)


@lru_cache(maxsize=256)
def token_flops(config: TextConfig, keys: int) -> float:
    """Operations of the backbone for a token that sees so many keys."""
    hidden, attention = config.hidden_size, config.attention_layers
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    convolutions = config.num_hidden_layers - attention
    weights = config.num_hidden_layers * 3 * hidden * config.feed_forward_size
    weights += convolutions * 4 * hidden * hidden
    weights += attention * 2 * hidden * config.head_dim * (heads + kv_heads)
    return 2.0 * weights + 4.0 * config.keys_kept(keys) * heads * config.head_dim


def layer_flops(config: VisionConfig, patches: int, keys: int) -> float:
    """Operations of a layer of the vision tower for patches that each see so many keys."""
    return patches * (2.0 * config.layer_weights + 4.0 * keys * config.hidden_size)


def prefill_chunk(config: TextConfig, rows: int, past: int) -> int:
    """Tokens of each of `rows` prompts that are run together, behind `past` others."""
    flops = rows * token_flops(config, past + LONGEST_CHUNK)
    return max(GRANULE, min(LONGEST_CHUNK, int(PIECE_FLOPS / flops) // GRANULE * GRANULE))


def patches_per_pass(config: VisionConfig, grids: Sequence[tuple[int, int]]) -> int:
    """Patches of views that go through the tower together. A view is never cut."""
    largest = max((height * width for height, width in grids), default=1)
    flops = config.num_hidden_layers * layer_flops(config, 1, largest)
    return max(1, min(PATCHES_PER_PASS, int(PIECE_FLOPS / flops)))


def layers_per_piece(config: VisionConfig, grids: Sequence[tuple[int, int]]) -> int:
    """Layers of the tower that are run together for the views of a pass."""
    counts = [height * width for height, width in grids]
    flops = sum(layer_flops(config, count, count) for count in counts)
    return max(1, min(config.num_hidden_layers, int(PIECE_FLOPS / flops)))


def encode_views_in_pieces(
    model: Lfm2VlForConditionalGeneration,
    pixel_values: Array,
    spatial_shapes: Array,
    vision_cache: VisionCache | None = None,
    keys: Sequence[bytes] | None = None,
) -> Pieces[mx.array]:
    """Image tokens of all views in order, (tokens, hidden), evaluated; some views through some layers at a time.

    `keys`: the views' `view_key`s, by which equal ones are encoded once, and found and kept in `vision_cache`. Raises
    `InputError` and `NotFiniteError`.
    """
    shapes = np.array(spatial_shapes)
    if shapes.ndim != 2 or shapes.shape[1] != 2 or len(shapes) != len(pixel_values) or not len(shapes):
        raise InputError(f"spatial_shapes has shape {shapes.shape}, expected ({len(pixel_values)}, 2)")
    grids = [(int(h), int(w)) for h, w in shapes]
    names: Sequence[object] = keys if keys is not None else range(len(grids))
    tokens: dict[object, mx.array] = {}
    if vision_cache is not None and keys is not None:
        counts = [height * width // model.config.downsample_factor**2 for height, width in grids]
        found = {key: vision_cache.get(key, count) for key, count in zip(keys, counts, strict=True)}
        tokens = {key: known for key, known in found.items() if known is not None}
    firsts = {name: index for index, name in reversed(list(enumerate(names))) if name not in tokens}
    missing = sorted(firsts.values())
    room = patches_per_pass(model.config.vision_config, [grids[index] for index in missing])
    for part in vision_passes([grids[index] for index in missing], room):
        views = [missing[index] for index in part]
        whole = views == list(range(len(grids)))
        chosen = (
            pixel_values if whole else pixel_values[mx.array(views) if isinstance(pixel_values, mx.array) else views]
        )
        made = yield from _encode_pass(model, chosen, shapes[views])
        finite = mx.stack([mx.isfinite(array).all() for array in made]).all()
        mx.eval(made, finite)
        if not finite.item():
            check_vision(model, chosen, shapes[views])
        for index, array in zip(views, made, strict=True):
            tokens[names[index]] = array
            if vision_cache is not None and keys is not None:
                # a view of its pass would keep all of the pass
                vision_cache.put(keys[index], array * 1 if len(views) > 1 else array)
        yield 0
    done = [tokens[name] for name in names]
    return done[0] if len(done) == 1 else mx.concatenate(done)


def _encode_pass(
    model: Lfm2VlForConditionalGeneration, pixel_values: Array, spatial_shapes: np.ndarray
) -> Pieces[list[mx.array]]:
    """The image tokens of each view, not evaluated; as `get_image_features`, some layers at a time."""
    body = model.model
    pixels, grids = body.check_views(pixel_values, spatial_shapes)
    tower = body.vision_tower
    depth, step = model.config.vision_config.num_hidden_layers, layers_per_piece(model.config.vision_config, grids)
    hidden = tower.embeddings(pack_views(pixels, grids), grids)
    for first in range(0, depth, step):
        hidden = tower.encoder(hidden, grids, slice(first, first + step))
        if first + step < depth:
            mx.eval(hidden)
            yield 0
    return split_views(body.multi_modal_projector(tower.post_layernorm(hidden), grids), grids)
