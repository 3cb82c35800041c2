"""A folder of PEFT or mlx-lm to an `Adapter`: its configuration and the names of its tensors.

PEFT: adapter_model.safetensors with `base_model.model.PATH.lora_A.weight` (r, in), `lora_B.weight` (out, r) and, of
DoRA, `lora_magnitude_vector` (out,). mlx-lm: adapters.safetensors with `PATH.lora_a` (in, r), `lora_b` (r, out) and
`m`. Whatever would change a model in a way that is not computed here is refused, never passed over.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..backends.thread_state import computing
from ..config import parse_json, read_json
from ..errors import HubError, OptionError, WeightsError
from ..model_folder import ADAPTER_CONFIG
from ..weights.files import FLOATING, read_header
from ..weights.names import is_conv_kernel, to_module
from .adapter import Adapter, LoRAWeights

CHECKPOINT = "checkpoint.safetensors"  # the state of a training, beside what it has learned so far
PEFT_WEIGHTS, MLX_LM_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
PREFIX = "base_model.model."
_PEFT = re.compile(r"(?P<path>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.\w+)?(\.weight)?")
_MLX_LM = re.compile(r"(?P<path>.+)\.(?P<part>lora_a|lora_b|m)")
_REPEATS, _REPEATED_GROUP, MOST_REPEATS = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]"), 4  # of a key of alpha_pattern
_SAVED = re.compile(r"\.modules_to_save\.\w+")
PARTS = {"lora_A": "a", "lora_a": "a", "lora_B": "b", "lora_b": "b", "lora_magnitude_vector": "m", "m": "m"}
# Ways to begin a training that change the base model's weights, which an adapter file does not hold.
CHANGING_BEGINNINGS = ("pissa", "olora", "corda", "loftq", "lora_ga")
NOT_READ = (
    *("lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)


@computing
def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter of a folder, its tensors not yet read.

    Args:
        folder: with adapter_config.json and the safetensors file of PEFT or mlx-lm.

    Raises:
        HubError: there is no such folder, or no adapter in it.
        ConfigError: adapter_config.json is damaged.
        WeightsError: the tensors are damaged, or of a kind that is not read.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise OptionError(f"adapter is {type(folder).__name__}, expected the name of a folder")
    place = Path(folder).expanduser()
    if not (place / ADAPTER_CONFIG).is_file():
        what = "has no adapter_config.json; it is no adapter" if place.is_dir() else "no such folder of an adapter"
        what = "is a file; give the adapter's folder" if place.is_file() else what
        if (place / CHECKPOINT).is_file():
            what = "its training has ended before it kept an adapter; run `lora` again"
        raise HubError(f"{place}: {what}")
    config = read_json(place / ADAPTER_CONFIG)
    file = next((place / name for name in (PEFT_WEIGHTS, MLX_LM_WEIGHTS) if (place / name).is_file()), None)
    if file is None:
        raise HubError(f"{place}: has neither {PEFT_WEIGHTS} nor {MLX_LM_WEIGHTS}; fetch the adapter's weights")
    return _read(place, file, config)


def _read(place: Path, file: Path, config: Mapping[str, Any]) -> Adapter:
    infos = read_header(file)
    arrays: Any = mx.load(str(file))
    of_peft = file.name == PEFT_WEIGHTS
    _check(place, config, of_peft)
    parts: dict[str, dict[str, mx.array]] = {}
    saved: dict[str, mx.array] = {}
    own_names: dict[str, str] = {}  # a layer's path to the one that the files have for it
    for name, info in infos.items():
        if info.dtype not in FLOATING:
            raise WeightsError(f"{file}: tensor {name} has dtype {info.dtype}, expected {' or '.join(FLOATING)}")
        plain = _SAVED.sub("", name.removeprefix(PREFIX)) if of_peft else name
        if found := (_PEFT if of_peft else _MLX_LM).fullmatch(plain):
            path = _module(file, name, found["path"])
            parts.setdefault(path, {})[PARTS[found["part"]]] = arrays[name]
            own_names[path] = found["path"]
        elif ".lora_" in plain or ".base_layer." in plain or "trainable_tokens" in plain:
            raise WeightsError(
                f"{file}: tensor {name} is of a kind of adapter that is not read; merge it where it was made"
            )
        else:
            module = _module(file, name, plain)
            turns = is_conv_kernel(module) and len(info.shape) == 3 and info.shape[1] == 1  # as torch has it
            saved[module] = arrays[name].transpose(0, 2, 1) if turns else arrays[name]
    if not parts and not saved:
        raise WeightsError(f"{file}: holds no tensor; the adapter was not saved whole")
    layers = {}
    for path, own in parts.items():
        if missing := {"a", "b"} - own.keys():
            raise WeightsError(f"{file}: {own_names[path]} has no lora_{min(missing)}; the adapter was not saved whole")
        a, b = (own["a"].T, own["b"].T) if of_peft else (own["a"], own["b"])
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or own.get("m", b[0]).shape != b.shape[1:]:
            shapes = " and ".join(str(list(array.shape)) for array in own.values())
            raise WeightsError(f"{file}: the tensors of {own_names[path]} are of {shapes}, which do not fit each other")
        scale = _peft_scale(place, config, own_names[path], a.shape[1]) if of_peft else _mlx_lm_scale(place, config)
        layers[path] = LoRAWeights(a, b, scale, own.get("m"))
    base = config.get("base_model_name_or_path") or config.get("model")
    return Adapter(place, (file,), layers, saved, base if isinstance(base, str) else None)


@computing
def unfinished(folder: Path) -> str:
    """The words for an adapter whose training has not done all of its steps; none where it has, or nothing says so."""
    file = folder / CHECKPOINT
    if not file.is_file():
        return ""
    try:
        read_header(file)
        loaded: Any = mx.load(str(file), return_metadata=True)
        state, settings = (parse_json(loaded[1][name]) for name in ("state", "settings"))
        step, steps = int(state["step"]), int(state.get("steps") or settings["iters"])  # older ones have the latter
    except (WeightsError, RuntimeError, AttributeError, LookupError, TypeError, ValueError):
        return ""  # what is damaged is told by the training that would go on
    if state.get("best_step") is None:  # it has written no adapter: one that is there is of a training before it
        return ""
    return f"the adapter's training was stopped after {step} of {steps} steps" if step < steps else ""


def _module(file: Path, name: str, path: str) -> str:
    """The path in our model of a path in an adapter's file."""
    module = to_module(path)
    if module is None:
        raise WeightsError(
            f"{file}: tensor {name} has a name that no LFM2-VL layout has; the adapter is another model's"
        )
    return module


def _check(place: Path, config: Mapping[str, Any], of_peft: bool) -> None:
    """Raises `WeightsError` for a configuration that says more than its tensors do."""
    where = place / ADAPTER_CONFIG
    kind = str(config.get("peft_type", "LORA") if of_peft else config.get("fine_tune_type", "lora"))
    if kind.lower() not in (("lora",) if of_peft else ("lora", "dora", "full")):
        raise WeightsError(f"{where}: is an adapter of the kind {kind}; LoRA and DoRA are read")
    beginning = config.get("init_lora_weights")
    if isinstance(beginning, str) and beginning.lower().startswith(CHANGING_BEGINNINGS):
        raise WeightsError(
            f"{where}: the training began with {beginning}, which changes the base model's weights; convert it "
            "to plain LoRA (path_initial_model_for_weight_conversion of PEFT)"
        )
    for name in NOT_READ:
        if config.get(name):
            raise WeightsError(f"{where}: has {name}, which is not read; merge the adapter where it was made")


def _number(where: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WeightsError(f"{where}: {name} is {value!r}, expected a number")
    return float(value)


def _peft_scale(place: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    """The factor of a layer's product: alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA."""
    where = place / ADAPTER_CONFIG
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise WeightsError(f"{where}: alpha_pattern is {patterns!r}, expected an object")
    alpha = next((own for key, own in patterns.items() if _matches(where, key, path)), config.get("lora_alpha", 8))
    number = _number(where, "lora_alpha", alpha)
    return number / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(where: Path, pattern: str, path: str) -> bool:
    """Whether a key of `alpha_pattern` means a path, as PEFT says it: a regular expression for its end. One that could
    be looked for without end is refused: the folder may be a stranger's."""
    if len(_REPEATS.findall(pattern)) > MOST_REPEATS or _REPEATED_GROUP.search(pattern):
        raise WeightsError(f"{where}: alpha_pattern has {pattern!r}, which repeats too much; name the layers plainly")
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as error:
        raise WeightsError(
            f"{where}: alpha_pattern has {pattern!r}, which is no regular expression ({error})"
        ) from None


def _mlx_lm_scale(place: Path, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    return _number(place / ADAPTER_CONFIG, "scale of lora_parameters", scale)
