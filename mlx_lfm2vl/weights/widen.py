"""Weights as MLX's CPU back end computes fastest with them: float32 and dense, wide ones by columns (see `model.cpu`).

Nothing is evaluated here: each tensor is read, made float32 and turned when the loader asks for it, one after another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..config import Lfm2VlConfig
from ..model import cpu
from .fit import free_memory
from .quantize import PARTS, Quantization, decode, parameter_count

MEMORY_SHARE = 0.8  # of what is free, for the weights; the rest is for the work


def widen(model: nn.Module, config: Lfm2VlConfig, arrays: dict[str, mx.array]) -> tuple[dict[str, mx.array], str]:
    """The parameters of `model` as float32, and a sentence on what was done ("" if nothing was).

    Quantised modules become dense ones, and `model.config` says so. Where memory does not allow it, all stays as it is.
    """
    stored = {array.dtype for array in arrays.values()}
    if stored == {mx.float32}:
        return by_columns(arrays), ""
    numbers = parameter_count(model)
    kind = " and ".join(sorted(str(dtype).removeprefix("mlx.core.") for dtype in stored))
    if config.quantization and any(name.endswith(".scales") for name in arrays):
        bits = config.quantization.get("bits")
        kind = f"{bits}-bit" if bits else "quantised"
    free = free_memory()
    if free is not None and 4 * numbers > MEMORY_SHARE * free:
        return arrays, f"the {kind} weights stay as they are, slow on a CPU: float32 would take {4e-9 * numbers:.2g} GB"
    out = dict(arrays)
    dense = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            continue
        parts = {part: out.pop(f"{path}.{part}") for part in PARTS if f"{path}.{part}" in out}
        out[f"{path}.weight"] = _dequantized(module, parts)
        rows, width = module.scales.shape[0], module.scales.shape[1] * module.group_size
        plain: nn.Module = nn.Embedding(rows, width)
        if isinstance(module, nn.QuantizedLinear):
            plain = nn.Linear(width, rows, bias="bias" in module)
        dense.append((path, plain))
    if dense:
        model.update_modules(tree_unflatten(dense))
        for part in (model, *(module for module in (getattr(model, "model", None),) if module is not None)):
            part.config = replace(config, quantization=None)
    narrow = {name: array for name, array in out.items() if mx.issubdtype(array.dtype, mx.floating)}
    out |= {name: array.astype(mx.float32) for name, array in by_columns(narrow).items()}
    return out, f"the {kind} weights were made float32, in which the CPU is fastest ({4e-9 * numbers:.2g} GB)"


def _dequantized(module: Any, parts: dict[str, mx.array]) -> mx.array:
    floating = {
        name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in parts.items()
    }
    return decode(floating, Quantization(module.bits, module.group_size, module.mode), mx.float32)


def by_columns(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Wide matrices of the backbone, which multiply single rows in decoding, laid out by columns."""
    return {
        name: cpu.by_columns(array) if "vision_tower." not in name and "multi_modal_projector." not in name else array
        for name, array in arrays.items()
    }
