"""Checks of what will not fit into memory, said before the work starts, with what would fit.

Counted is what cannot do without, so that nothing is refused that might have worked:

- weights: the bytes of the file, or numbers x the size of the asked type, and the largest tensor once more where types
  are changed;
- a question of L tokens with an answer of N, beside the weights (attention's scores, which the fused kernels never
  write down, are left out): keys and values, (L + N) rounded up to 256, in a sliding window at most
  its length, x attention layers x 2 x key-value heads x head size; embeddings L x hidden; the larger of one pass of the
  vision tower, patches x (4 x hidden + MLP width), and one chunk of the prompt, min(L, 512) x (2 x hidden + 3 x
  feed-forward width); logits, 4 bytes x vocabulary. Numbers are of the weights' type, float32 or 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..backends.memory import free_memory
from ..config import ModelConfig, TextConfig
from ..errors import FEWER_MEDIA, OutOfMemoryError
from ..models.cache import GROWTH_STEP, group_size
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.siglip2 import vision_passes
from .files import FLOATING, TensorInfo

LONGEST_CHUNK = 512  # tokens of a prompt that are run together
OFFERED = (8, 6, 4)  # bits that a conversion is advised to


def weight_bytes(infos: Mapping[str, TensorInfo], dtype: mx.Dtype | None = None) -> int:
    """Memory for the tensors, floating-point ones in `dtype` (None: as they are)."""
    cast = dtype is not None
    sizes = [_bytes(info, dtype) for info in infos.values()]
    return sum(sizes) + (max(sizes, default=0) if cast else 0)


def _bytes(info: TensorInfo, dtype: mx.Dtype | None) -> int:
    if dtype is None or info.dtype not in FLOATING:
        return info.nbytes
    return info.size * dtype.size


def quantised_bytes(infos: Mapping[str, TensorInfo], bits: int) -> int:
    """Memory for a dense model whose language model is quantised, in groups of 64 with 4 bytes each beside them."""
    total = 0.0
    for name, info in infos.items():
        language = name.startswith(("model.language_model.", "lm_head.")) and name.endswith(".weight")
        if language and len(info.shape) == 2 and info.dtype in FLOATING:
            total += info.size * (bits + 0.5) / 8
        else:
            total += info.nbytes
    return int(total)


def check_weights(where: str, infos: Mapping[str, TensorInfo], dtype: mx.Dtype | None = None, ranks: int = 1) -> None:
    """Raises `OutOfMemoryError` if the weights, or a rank's part, will not fit, naming the widths that would."""
    free, needed = free_memory(), weight_bytes(infos, dtype) // ranks
    if free is None or needed <= free:
        return
    fitting = []
    if not any(name.endswith(".scales") for name in infos):
        fitting = [bits for bits in OFFERED if quantised_bytes(infos, bits) <= free]
    way = "free memory, or choose a smaller model"
    if dtype is not None and weight_bytes(infos) <= free:
        way = f"as they are stored, {_gb(weight_bytes(infos))}, they would fit (dtype 'auto')"
    elif fitting:
        size = _gb(quantised_bytes(infos, fitting[0]))
        way = f"converted to {fitting[0]} bits they take {size} (mlx-lfm2vl convert -q --q-bits {fitting[0]})"
    raise OutOfMemoryError(f"{where}: its weights take {_gb(needed)} and {_gb(free)} of memory are free; {way}")


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
    if kv_bits is None:
        return text.keys_kept(tokens) * key_bytes(text, size) + fixed
    # a layer's keys and values are dense while a chunk of the prompt is run, those of a window always
    full = tokens * text.layer_types.count("full_attention")
    dense = text.keys_kept(tokens) - full + tokens
    return full * key_bytes(text, size, kv_bits) + dense * key_bytes(text, size) + fixed


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
        f"a prompt of {prompt:,} tokens with an answer of {answer:,} takes {_gb(needed)} beside the model, and "
        f"{_gb(free)} of memory are free, enough for about {fitting:,} tokens; use {fewer}a shorter prompt or answer "
        "(max_tokens), or a smaller quantisation"
    )


def largest_pass(spatial_shapes: Any) -> int:
    """Patches of the largest pass through the vision tower for views of these grids (views, 2)."""
    shapes = np.array(spatial_shapes)
    if shapes.ndim != 2 or shapes.shape[1] != 2:  # what the model refuses
        return 0
    grids = [(int(height), int(width)) for height, width in shapes]
    return max((sum(grids[at][0] * grids[at][1] for at in part) for part in vision_passes(grids)), default=0)


def number_type(model: Lfm2VlForConditionalGeneration) -> mx.Dtype:
    """The type that a model computes in: that of its last norm."""
    dtype: mx.Dtype = model.model.language_model.embedding_norm.weight.dtype
    return dtype


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
