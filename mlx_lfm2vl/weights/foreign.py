"""Weights that other programs store and that this package does not compute with, told by the names of their tensors.

Quantisations of other programs, layers of adapters that are not merged, and names with a training wrapper's in them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import WeightsError, and_more
from .files import LOW_BITS, TensorInfo
from .names import UNNEEDED, to_module

QUANTISED = {  # the last parts of names, and what writes them
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale": "FP8",
    "weight_scale_inv": "FP8",
    "input_scale": "FP8",
    "weight_packed": "compressed-tensors",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "W_q": "HQQ",
}
METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "hqq": "HQQ"}  # of `quant_method`; others stand as they are
WRAPPERS = {
    "base_model.model": "PEFT",
    "module": "DataParallel",
    "_forward_module": "Fabric",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
_WRAPPER = re.compile(r"^(base_model\.model)\.|(?:^|\.)(module|_forward_module|_\w+_wrapped_module|_orig_mod)\.")
_LORA = re.compile(r"\.(lora_\w+|base_layer)(\.|$)")


def check_foreign(tensors: Mapping[str, TensorInfo], quantization_config: object) -> None:
    """Raises `WeightsError` for a tensor of the files that is none of a plain or MLX model, naming what wrote it and
    the way out. `quantization_config` is config.json's, which names the method."""
    for name, info in tensors.items():
        if _LORA.search(name):
            raise WeightsError(
                f"{info.file}: tensor {name} is of an adapter that is not merged; merge it (merge_and_unload of PEFT) "
                "and save the model again"
            )
        if wrapper := _WRAPPER.search(name):
            inside = wrapper[1] or wrapper[2]
            raise _wrapped(name, info, inside, WRAPPERS.get(inside, "a wrapper"))
        if family := _quantised(name, info):
            raise WeightsError(
                f"{info.file}: the weights are quantised by {_method(quantization_config, family)} (tensor {name}), "
                "which MLX does not read; take the model that was quantised, or save it dequantised"
            )


@contextlib.contextmanager
def naming_method(quantization_config: object) -> Iterator[None]:
    """Adds to a `WeightsError` of tensors that do not fit the method that config.json names, if it names one: the
    tensors of some methods have names that tell nothing."""
    try:
        yield
    except WeightsError as error:
        if (method := _stated_method(quantization_config)) is None:
            raise
        raise WeightsError(
            f"{error}; config.json says that the weights are quantised by {method}: if so, take the model that was "
            "quantised, or save it dequantised"
        ) from None


def check_layout(tensors: Mapping[str, TensorInfo]) -> None:
    """Raises `WeightsError` for a tensor whose name no layout has, where a model lacks some: with what a wrapper of any
    name has put before that of a layout."""
    unknown = [name for name in tensors if to_module(name) is None and not UNNEEDED.search(name)]
    for name in unknown[:1]:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if to_module(".".join(parts[at:])) is not None:
                raise _wrapped(name, tensors[name], ".".join(parts[:at]), "a wrapper")
        raise WeightsError(f"tensor {name}{and_more(unknown)} has a name that no LFM2-VL layout has")


def _wrapped(name: str, info: TensorInfo, wrapper: str, writer: str) -> WeightsError:
    return WeightsError(
        f"{info.file}: tensor {name} has {wrapper + '.'!r} in its name, as {writer} adds it; save the model inside "
        "that wrapper"
    )


def _quantised(name: str, info: TensorInfo) -> str | None:
    if info.dtype.startswith(LOW_BITS):
        return f"FP{info.dtype[1]}"
    return "bitsandbytes" if ".quant_state." in name else QUANTISED.get(name.rpartition(".")[2])


def _stated_method(quantization_config: object) -> str | None:
    """The method that config.json names."""
    stated = quantization_config.get("quant_method") if isinstance(quantization_config, Mapping) else None
    return METHODS.get(stated.lower(), stated) if isinstance(stated, str) else None


def _method(quantization_config: Any, family: str) -> str:
    """The method's name in config.json, and the one that the tensors' names tell where that is more."""
    if (method := _stated_method(quantization_config)) is None:
        return family
    says_more = method.lower() not in family.lower() and "int" not in str(quantization_config.get("format"))
    return f"{method} ({family})" if says_more else method
