"""The quantisation of tensors: a width, what config.json records, and a module's tensors to and fro. The quantisers are
MLX's own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import OptionError, WeightsError
from .choices import MODES
from .files import TensorInfo
from .names import from_module

LANGUAGE = ("model.language_model.", "lm_head")  # paths of the modules that are quantised unless asked otherwise
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


def parameter_count(model: nn.Module, without: tuple[type[nn.Module], ...] = ()) -> int:
    """Numbers in the model's parameters when nothing is quantised, without those of modules of some types. Computes
    nothing."""
    count = 0
    for _, module in model.named_modules():
        if isinstance(module, without):
            continue
        quantised = isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        for name, array in module.items():
            if not isinstance(array, mx.array) or name.startswith("_") or (quantised and name in ("scales", "biases")):
                continue
            count += array.size * 32 // module.bits if quantised and name == "weight" else array.size
    return count


def encode(weight: mx.array, spec: Quantization) -> dict[str, mx.array]:
    """The tensors `weight`, `scales` and, for affine, `biases` of a quantised module; not yet evaluated."""
    arrays = mx.quantize(weight, **spec.to_dict())
    return dict(zip(PARTS, arrays, strict=False))


def decode(parts: Mapping[str, mx.array], spec: Quantization, dtype: mx.Dtype | None = None) -> mx.array:
    """The dense weight that a quantised module stands for; without a `dtype` in the type that MLX gives it."""
    return mx.dequantize(parts["weight"], parts["scales"], parts.get("biases"), **spec.to_dict(), dtype=dtype)


def stored_as(path: str, width: int, tensors: Mapping[str, TensorInfo]) -> Quantization:
    """The quantisation of the module at `path`, whose rows have `width` numbers: its tensors' shapes say it, whatever
    config.json records. Raises `WeightsError` for shapes that no quantisation of MLX makes."""
    weight, scales = tensors.get(f"{path}.weight"), tensors[f"{path}.scales"]
    packed, groups = (info.shape[-1] if info and info.shape else 0 for info in (weight, scales))
    for mode, (bits_of_mode, groups_of_mode) in MODES.items():
        for bits, group_size in itertools.product(bits_of_mode, groups_of_mode):
            fits = 32 * packed == bits * width and group_size * groups == width
            if fits and (mode == "affine") == (f"{path}.biases" in tensors):
                return Quantization(bits, group_size, mode)
    raise WeightsError(
        f"{scales.file}: {path} has a weight of {weight and list(weight.shape)} and scales of {list(scales.shape)} for "
        f"rows of {width}, which no quantisation of MLX has; convert the original again"
    )


def record(base: Quantization, modules: Mapping[str, Quantization | None]) -> dict[str, Any]:
    """config.json's `quantization`: the base, and an entry for each module that differs, `false` where dense."""
    out: dict[str, Any] = base.to_dict()
    for path, spec in modules.items():
        if spec != base:
            out[from_module(path, "mlx")] = False if spec is None else spec.to_dict()
    return out


def as_stored(model: nn.Module, specs: Mapping[str, Quantization], prefix: str = "") -> dict[str, Any] | None:
    """The record of a model whose modules are quantised so, by path; None for a dense one. The base is the commonest
    width, and what is dense of the language model has its entry. `prefix`: as for `load_model`."""
    if not specs:
        return None
    base = Counter(specs.values()).most_common(1)[0][0]
    paths = [path for path in widths(model) if path in specs or (prefix + path).startswith(LANGUAGE)]
    return record(base, {prefix + path: specs.get(path) for path in paths})


def prepare(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> dict[str, Quantization]:
    """Turns those modules into quantised ones that have `.scales` among the tensors, no others, and returns how each is
    quantised, by path."""
    modules = dict(model.named_modules())
    specs = {}
    for path in (name.removesuffix(".scales") for name in tensors if name.endswith(".scales")):
        if not hasattr(modules.get(path), "to_quantized"):
            raise WeightsError(f"{path}.scales: the model has no such module to quantise")
        specs[path] = stored_as(path, modules[path].weight.shape[-1], tensors)
    nn.quantize(model, class_predicate=lambda path, _: specs[path].to_dict() if path in specs else False)
    return specs
