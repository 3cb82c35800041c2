"""The place where a model's numbers stop being numbers: called once NaN or infinity was seen, to name its source.

`GenerationBatch` asks on the device whether the logits are finite, which costs no wait; the search here is for the
error's text only, and may take its time.
"""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import NotFiniteError
from ..models.cache import Cache, KeyValueCache
from ..models.lfm2_vl import Array, Lfm2VlForConditionalGeneration

REMEDY = "the weights are damaged, or their dtype is too small for them (try dtype float32)"


def not_finite(model: Lfm2VlForConditionalGeneration, cache: Cache, row: int) -> NotFiniteError:
    """The error for a row of a batch whose logits are not finite."""
    if (damaged := _damaged(model)) is not None:
        return damaged
    for index, layer in enumerate(cache.layers[: len(model.config.text_config.layer_types)]):
        arrays = layer.states
        if isinstance(layer, KeyValueCache):
            arrays = tuple(array[:, :, : layer.offset] for array in arrays)
        if not all(mx.isfinite(array[row]).all().item() for array in arrays):
            kind = "self_attn" if isinstance(layer, KeyValueCache) else "conv"
            part = f"model.language_model.layers.{index}.{kind}"
            return NotFiniteError(f"NaN or infinity reaches {part} first; {REMEDY}")
    return NotFiniteError(f"NaN or infinity first comes from the last layer or the head; {REMEDY}")


def check_vision(model: Lfm2VlForConditionalGeneration, pixel_values: Array, spatial_shapes: Array) -> None:
    """Raises `NotFiniteError` naming the first part of the vision tower whose output of these views is not finite."""
    if (damaged := _damaged(model)) is not None:
        raise damaged
    pixels = mx.array(pixel_values)
    if not mx.isfinite(pixels).all().item():
        raise NotFiniteError("pixel_values hold NaN or infinity")
    for view, (height, width) in zip(pixels, spatial_shapes, strict=True):
        states: list[mx.array] = []
        grid = (int(height), int(width))
        states.append(model.model.vision_tower(view[None, : grid[0] * grid[1]], [grid], states))
        layers = [f"encoder.layers.{index}" for index in range(len(states) - 2)]
        for place, state in zip(["embeddings", *layers, "post_layernorm"], states, strict=True):
            if not mx.isfinite(state).all().item():
                raise NotFiniteError(f"NaN or infinity first comes from model.vision_tower.{place}; {REMEDY}")
    raise NotFiniteError(f"NaN or infinity first comes from model.multi_modal_projector; {REMEDY}")


def _damaged(model: Lfm2VlForConditionalGeneration) -> NotFiniteError | None:
    """The error for the first parameter that is not finite, if one is not."""
    for name, array in dict(tree_flatten(model.parameters())).items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            return NotFiniteError(f"tensor {name} holds NaN or infinity; the model's files are damaged")
    return None
