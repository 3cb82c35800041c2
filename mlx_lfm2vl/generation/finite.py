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
    damaged = damaged_parameter(model)
    if damaged is not None:
        return NotFiniteError(f"tensor {damaged} holds NaN or infinity; the model's files are damaged")
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
    damaged = damaged_parameter(model)
    if damaged is not None:
        raise NotFiniteError(f"tensor {damaged} holds NaN or infinity; the model's files are damaged")
    pixels = mx.array(pixel_values)
    if not mx.isfinite(pixels).all().item():
        raise NotFiniteError("pixel_values hold NaN or infinity")
    for view, (height, width) in zip(pixels, spatial_shapes, strict=True):
        states: list[mx.array] = []
        grid = (int(height), int(width))
        states.append(model.model.vision_tower(view[None, : grid[0] * grid[1]], [grid], states))
        for index, state in enumerate(states):
            if not mx.isfinite(state).all().item():
                layers = len(states) - 2
                place = "embeddings" if index == 0 else f"encoder.layers.{index - 1}"
                place = "post_layernorm" if index > layers else place
                raise NotFiniteError(f"NaN or infinity first comes from model.vision_tower.{place}; {REMEDY}")
    raise NotFiniteError(f"NaN or infinity first comes from model.multi_modal_projector; {REMEDY}")


def damaged_parameter(model: Lfm2VlForConditionalGeneration) -> str | None:
    """The name of the first parameter that is not finite."""
    for name, array in dict(tree_flatten(model.parameters())).items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            return name
    return None
