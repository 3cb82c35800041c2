"""Keywords of transformers' `from_pretrained`: those of the hub, and those that have no meaning here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import HubError, OptionError

HUB = ("revision", "token", "cache_dir", "local_files_only")
_SILENT = (  # the values mean what is done here anyway
    "low_cpu_mem_usage",
    "use_fast",
    "use_safetensors",
    "weights_only",
    "backend",
)
_OF_MODELS = ("config", "dtype", "torch_dtype")  # which callers give to processors and tokenizers too, without effect
_NO_MEANING = {  # why; said once a call
    "attn_implementation": "attention is MLX's",
    "device_map": "MLX's memory is unified",
    "experts_implementation": "there are no experts",
    "force_download": "the hub's cache compares checksums",
    "key_mapping": "all published names are known",
    "max_memory": "MLX's memory is unified",
    "mirror": "huggingface_hub has HF_ENDPOINT for it",
    "offload_buffers": "MLX's memory is unified",
    "offload_folder": "MLX's memory is unified",
    "offload_state_dict": "MLX's memory is unified",
    "proxies": "the environment's proxies are used",
    "resume_download": "downloads always resume",
    "tp_plan": "a model runs on one device",
    "trust_remote_code": "no code of a checkpoint is ever run",
    "variant": "all published layouts are known",
}
_ANYWAY: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "sdpa", "eager"),
    "device_map": (None, "auto", "balanced", "cpu", "mps", "cuda", ""),
    "trust_remote_code": (None, False),
}


def hub_options(
    path_or_repo: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[str | os.PathLike[str], dict[str, Any], dict[str, Any]]:
    """Sorts the keywords of a call of `from_pretrained`.

    Args:
        path_or_repo: the model's name.
        options: all other keywords of the call.

    Returns:
        The name with `subfolder` behind it; the keywords for the hub; and those that are neither the hub's nor without
        meaning here.

    Raises:
        HubError: for a subfolder that cannot be one.
    """
    hub = {name: options[name] for name in HUB if name in options}
    if options.get("use_auth_token") is not None and hub.get("token") is None:
        hub["token"] = options["use_auth_token"]
    rest = {name: value for name, value in options.items() if name not in (*HUB, *_SILENT, "use_auth_token")}
    subfolder = rest.pop("subfolder", None)
    ignored = {}
    for name, why in _NO_MEANING.items():
        if name in rest and rest.pop(name) not in _ANYWAY.get(name, (None, False)):
            ignored[name] = why
    if ignored:
        said = "; ".join(f"{name} ({why})" for name, why in ignored.items())
        warnings.warn(f"from_pretrained ignores what has no meaning here: {said}", stacklevel=4)
    if not subfolder:
        return path_or_repo, hub, rest
    if not isinstance(subfolder, str) or os.path.isabs(subfolder) or ".." in Path(subfolder).parts:
        raise HubError(f"subfolder is {subfolder!r}, expected the name of a folder of the model's")
    return f"{os.fspath(path_or_repo)}/{subfolder}", hub, rest


def not_of_models(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a processor's or tokenizer's `from_pretrained` without those that are for a model."""
    return {name: value for name, value in options.items() if name not in _OF_MODELS}


def no_more(options: Mapping[str, Any], where: str) -> None:
    """Raises `OptionError` naming the first keyword that is left."""
    for name in options:
        raise OptionError(f"{where} has no option {name!r}")
