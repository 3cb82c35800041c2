"""Keywords of transformers' `from_pretrained`: those of the hub, and those that have no meaning here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import HubError, OptionError, did_you_mean
from ..hub import is_local

HUB = ("revision", "token", "cache_dir", "local_files_only")
_SILENT = (  # the values mean what is done here anyway
    "clean_up_tokenization_spaces",
    "from_slow",
    "low_cpu_mem_usage",
    "legacy",
    "use_fast",
    "use_safetensors",
    "weights_only",
    "backend",
    "_commit_hash",
    "_fast_init",
    "_from_auto",
    "_from_pipeline",
)
_NO_MEANING = {  # why; said once a call
    **dict.fromkeys(("_attn_implementation", "attn_implementation", "use_flash_attention_2"), "attention is MLX's"),
    **dict.fromkeys(("adapter_kwargs", "adapter_name"), "adapters are merged before"),
    **dict.fromkeys(("allow_all_kernels", "kernel_config", "use_kernels"), "kernels are MLX's"),
    **dict.fromkeys(("code_revision", "trust_remote_code"), "no code of a checkpoint is ever run"),
    **dict.fromkeys(("device_map", "max_memory", "offload_buffers", "offload_folder"), "MLX's memory is unified"),
    **dict.fromkeys(("device_mesh", "distributed_config", "tp_plan", "tp_size"), "a model runs on one device"),
    "disable_mmap": "files are read tensor by tensor",
    "experts_implementation": "there are no experts",
    "fusion_config": "layers are fused anyway",
    "force_download": "the hub's cache compares checksums",
    "ignore_mismatched_sizes": "weights of other shapes are always an error",
    "key_mapping": "all published names are known",
    "mirror": "huggingface_hub has HF_ENDPOINT for it",
    "offload_state_dict": "MLX's memory is unified",
    "proxies": "the environment's proxies are used",
    "resume_download": "downloads always resume",
    "torchscript": "MLX traces nothing",
    "variant": "all published layouts are known",
}
_QUANTISED = "convert the model (mlx_lfm2vl.convert with q_bits, or mlx-lfm2vl convert -q), and load that folder"
_SAFETENSORS = "load a folder with safetensors files"
REFUSED = {  # of models, and the way out
    "from_flax": _SAFETENSORS,
    "from_tf": _SAFETENSORS,
    "gguf_file": _SAFETENSORS,
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "output_loading_info": "the model's load_note says what was left out",
    "quantization_config": _QUANTISED,
    "state_dict": "call load_weights of the loaded model",
}
_OF_MODELS = (  # which callers give to processors and tokenizers too, without effect
    *("config", "dtype", "torch_dtype", "output_attentions", "output_hidden_states", "return_dict", "use_cache"),
    *REFUSED,
)
_ANYWAY: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "sdpa", "eager"),
    "_attn_implementation": (None, "sdpa", "eager"),
    "adapter_kwargs": (None, {}),
    "adapter_name": (None, "default"),
    "device_map": (None, "auto", "balanced", "cpu", "mps", "cuda", ""),
    "tp_size": (None, 1),
}
OF_FROM_PRETRAINED = (*HUB, *_SILENT, *_NO_MEANING, "dtype", "generation_config", "progress", "subfolder")


def hub_options(
    path_or_repo: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[str | os.PathLike[str], dict[str, Any], dict[str, Any]]:
    """Sorts the keywords of a call of `from_pretrained`: the model's name with `subfolder` behind it; the keywords for
    the hub; and those that are neither the hub's nor without meaning here. Raises `HubError` for a subfolder that
    cannot be one, and `OptionError` for what would change the model and is not offered, with the way out."""
    for name, instead in REFUSED.items():
        if options.get(name) not in (None, False):
            raise OptionError(f"from_pretrained has no option {name!r}; {instead}")
    place, hub = place_of(path_or_repo, options)
    rest = {name: value for name, value in options.items() if name not in (*HUB, *_SILENT, *REFUSED, "use_auth_token")}
    rest.pop("subfolder", None)
    ignored = {}
    if "revision" not in hub and options.get("revision") not in (None, "main"):
        ignored["revision"] = "a folder of this disk has none"
    for name, why in _NO_MEANING.items():
        if name in rest and rest.pop(name) not in _ANYWAY.get(name, (None, False)):
            ignored[name] = why
    if ignored:
        said = "; ".join(f"{name} ({why})" for name, why in ignored.items())
        warnings.warn(f"from_pretrained ignores what has no meaning here: {said}", stacklevel=4)
    return place, hub, rest


def place_of(
    path_or_repo: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[str | os.PathLike[str], dict[str, Any]]:
    """A model's name with `subfolder` behind it, and the keywords for the hub; a folder of this disk has no revision.
    Raises `HubError` for a subfolder that cannot be one."""
    hub = {name: options[name] for name in HUB if name in options}
    if options.get("use_auth_token") is not None and hub.get("token") is None:
        hub["token"] = options["use_auth_token"]
    if isinstance(path_or_repo, (str, os.PathLike)) and is_local(path_or_repo):
        hub.pop("revision", None)
    subfolder = options.get("subfolder")
    if not subfolder:
        return path_or_repo, hub
    if not isinstance(subfolder, str) or os.path.isabs(subfolder) or ".." in Path(subfolder).parts:
        raise HubError(f"subfolder is {subfolder!r}, expected the name of a folder of the model's")
    return f"{os.fspath(path_or_repo)}/{subfolder}", hub


def not_of_models(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a processor's or tokenizer's `from_pretrained` without those that are for a model."""
    return {name: value for name, value in options.items() if name not in _OF_MODELS}


def no_more(options: Mapping[str, Any], where: str, known: Iterable[str] = ()) -> None:
    """Raises `OptionError` naming the first keyword that is left, and the one of `known` that may be meant."""
    for name in options:
        raise OptionError(f"{where} has no option {name!r}{did_you_mean([name], [*known])}")
