"""Which modules are quantised, read from files and written to them. The quantisers are MLX's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from ..errors import OptionError, WeightsError
from .names import from_module, to_module

GROUP_SIZES = (32, 64, 128)
BITS = (4, 8)


@dataclass(frozen=True)
class Quantization:
    """Bits a weight, weights that share a scale, and MLX's mode."""

    bits: int
    group_size: int
    mode: str = "affine"

    def to_dict(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def check_options(bits: int, group_size: int) -> Quantization:
    """Raises `OptionError` for widths that are not offered."""
    if bits not in BITS:
        raise OptionError(f"q_bits is {bits}, expected one of {', '.join(map(str, BITS))}")
    if group_size not in GROUP_SIZES:
        raise OptionError(f"q_group_size is {group_size}, expected one of {', '.join(map(str, GROUP_SIZES))}")
    return Quantization(bits, group_size)


def recorded(quantization: Mapping[str, Any] | None, path: str) -> Quantization:
    """How config.json says that the module at `path` was quantised: its own entry (under its name in any layout) or the
    global one. Raises `WeightsError` if there is neither."""
    if not quantization:
        raise WeightsError(f"{path} has .scales, but config.json has no 'quantization' that says its bits")
    entry: Mapping[str, Any] = quantization
    for key, value in quantization.items():
        if isinstance(value, Mapping) and (key == path or to_module(key + ".") == path + "."):
            entry = {**{k: v for k, v in quantization.items() if not isinstance(v, Mapping)}, **value}
    try:
        return Quantization(int(entry["bits"]), int(entry["group_size"]), str(entry.get("mode") or "affine"))
    except (KeyError, TypeError, ValueError):
        raise WeightsError(
            f"config.json: quantization of {path} is {dict(entry)!r}, expected bits and group_size"
        ) from None


def prepare(model: nn.Module, tensors: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> None:
    """Turns those modules into quantised ones whose `.scales` are among `tensors` (module names); no others."""
    specs = {
        name[: -len(".scales")]: recorded(quantization, name[: -len(".scales")])
        for name in tensors
        if name.endswith(".scales")
    }
    found: set[str] = set()

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path not in specs:
            return False
        if not hasattr(module, "to_quantized"):
            raise WeightsError(f"{path}.scales: this module cannot be quantised")
        found.add(path)
        return specs[path].to_dict()

    try:
        nn.quantize(model, class_predicate=choose)
    except ValueError as error:  # a group size that does not divide the width, a mode that MLX does not know
        raise WeightsError(f"the quantisation recorded in config.json cannot be applied ({error})") from None
    if missing := sorted(specs.keys() - found):
        raise WeightsError(f"{missing[0]}.scales: the model has no such module to quantise")


def quantize(model: nn.Module, spec: Quantization) -> dict[str, Any]:
    """Quantises the embeddings and linear layers of the language model in place; vision tower and projector stay dense.

    Returns the record for config.json, with an entry `false` for each layer left dense because its width is not a
    multiple of the group, under the names that MLX programs use.
    """
    record: dict[str, Any] = spec.to_dict()

    def choose(path: str, module: nn.Module) -> bool:
        if not path.startswith(("model.language_model.", "lm_head")) or not hasattr(module, "to_quantized"):
            return False
        if module.weight.shape[-1] % spec.group_size:
            record[from_module(path, "mlx")] = False
            return False
        return True

    nn.quantize(model, group_size=spec.group_size, bits=spec.bits, mode=spec.mode, class_predicate=choose)
    return record
