"""How tensors are quantised: a width, what config.json records, and a module's tensors to and fro. The quantisers are
MLX's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import shown
from ..errors import OptionError, WeightsError, first_line
from .choices import MODES
from .names import to_module

PARTS = ("weight", "scales", "biases")  # of a quantised module; modes other than affine have no biases


@dataclass(frozen=True)
class Quantization:
    """Bits a weight, weights that share a scale, and MLX's mode."""

    bits: int
    group_size: int
    mode: str = "affine"

    def to_dict(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @classmethod
    def checked(cls, bits: int | None, group_size: int | None, mode: str = "affine") -> Quantization:
        """Fills what is None where the mode leaves no choice of bits. Raises `OptionError` for what is not offered."""
        if mode not in MODES:
            raise OptionError(f"q_mode is {mode!r}, expected one of {', '.join(MODES)}")
        widths, groups = MODES[mode]
        if bits is None and len(widths) == 1:
            bits = widths[0]
        of = "" if mode == "affine" else f" with q_mode {mode}"
        if bits not in widths:
            raise OptionError(f"q_bits is {bits}, expected {_one_of(widths)}{of}")
        if group_size is not None and group_size not in groups:
            raise OptionError(f"q_group_size is {group_size}, expected {_one_of(groups)}{of}")
        return cls(bits, group_size or groups[0], mode)


def _one_of(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else f"one of {', '.join(map(str, sorted(values)))}"


def widths(model: nn.Module) -> dict[str, int]:
    """Paths of the modules that can be quantised or are, with the length of their rows.

    The tower's embeddings are not among them: the position table is resized, not looked up, and of the patches' weight
    mlx-vlm takes the type that pixels are cast to.
    """
    out: dict[str, int] = {}
    for path, module in model.named_modules():
        if path.endswith((".position_embedding", ".patch_embedding")):
            continue
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
            out[path] = module.scales.shape[-1] * module.group_size
        elif hasattr(module, "to_quantized"):
            out[path] = module.weight.shape[-1]
    return out


def parameter_count(model: nn.Module) -> int:
    """Numbers in the model's parameters when nothing is quantised. Computes nothing."""
    count = 0
    for _, module in model.named_modules():
        quantised = isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        for name, array in module.items():
            if not isinstance(array, mx.array) or name.startswith("_") or (quantised and name in ("scales", "biases")):
                continue
            count += array.size * 32 // module.bits if quantised and name == "weight" else array.size
    return count


def encode(weight: mx.array, spec: Quantization) -> dict[str, mx.array]:
    """The tensors `weight`, `scales` and, for affine, `biases` of a quantised module; not yet evaluated."""
    arrays = mx.quantize(weight, group_size=spec.group_size, bits=spec.bits, mode=spec.mode)
    return dict(zip(PARTS, arrays, strict=False))


def decode(parts: Mapping[str, mx.array], spec: Quantization, dtype: mx.Dtype) -> mx.array:
    """The dense weight that a quantised module stands for."""
    return mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        group_size=spec.group_size,
        bits=spec.bits,
        mode=spec.mode,
        dtype=dtype,
    )


def recorded(quantization: Mapping[str, Any] | None, path: str) -> Quantization:
    """How config.json says that the module at `path` was quantised: its own entry (under its name in any layout) or the
    global one. Raises `WeightsError` if there is neither."""
    if not quantization:
        raise WeightsError(f"{path} has .scales, but config.json has no 'quantization' that says its bits")
    entry: Mapping[str, Any] = quantization
    for key, value in quantization.items():
        if isinstance(value, Mapping) and (key == path or to_module(key + ".") == path + "."):
            entry = {**{k: v for k, v in quantization.items() if not isinstance(v, Mapping)}, **value}
    bits, group_size, mode = entry.get("bits"), entry.get("group_size"), entry.get("mode") or "affine"
    widths, groups = MODES.get(mode, ((), ())) if isinstance(mode, str) else ((), ())
    if type(bits) is not int or type(group_size) is not int or bits not in widths or group_size not in groups:
        raise WeightsError(
            f"config.json: quantization of {path} is {shown(dict(entry))}, expected bits, group_size and mode that MLX "
            "has; convert the original again"
        )
    return Quantization(bits, group_size, mode)


def all_recorded(quantization: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Quantization]:
    """How the modules are quantised whose `.scales` are among the `names` of parameters, as `recorded` says it."""
    paths = (name.removesuffix(".scales") for name in names if name.endswith(".scales"))
    return {path: recorded(quantization, path) for path in paths}


def prepare(model: nn.Module, names: Iterable[str], quantization: Mapping[str, Any] | None) -> None:
    """Turns those modules into quantised ones whose `.scales` are among the `names` of parameters; no others."""
    specs = all_recorded(quantization, names)
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
        raise WeightsError(
            f"the quantisation recorded in config.json cannot be applied ({first_line(error)})"
        ) from None
    if missing := sorted(specs.keys() - found):
        raise WeightsError(f"{missing[0]}.scales: the model has no such module to quantise")
