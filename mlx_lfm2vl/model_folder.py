"""The folder on disk that holds a model: one given, its only child, or the revision in a folder of the hub's cache.

A folder that holds none is refused by what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import HubError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MOST_OF_AN_ADAPTER_CONFIG = 2**20  # bytes


def with_config(folder: Path) -> Path:
    """The folder itself, or the one below it, that has a config.json. Raises `HubError` unless there is just one."""
    if (folder / CONFIG).exists():
        return folder
    try:
        if (folder / "snapshots").is_dir():
            return with_config(_snapshot(folder))
    except OSError as error:
        if isinstance(error, HubError):
            raise
        raise _unreadable(str(folder), error) from None
    return folder / only_child(folder, str(folder))


def incomplete(path: Path) -> str:
    """The end of a line on a file that is not there: the way out if it is of the hub's cache; else nothing."""
    for place in (path, *path.absolute().parents):
        if place.name.startswith("models--"):
            repository = place.name.removeprefix("models--").replace("--", "/", 1)
            return f"; if the download is incomplete, load {repository!r}, which fetches what is missing"
    return ""


def only_child(folder: Path, name: str) -> str:
    """The name of the folder below that holds a model. Raises `HubError`, which calls the folder `name`, unless there
    is just one."""
    try:
        children = sorted(child.name for child in folder.iterdir() if (child / CONFIG).is_file())
    except OSError as error:
        raise _unreadable(name, error) from None
    if not children and (folder / ADAPTER_CONFIG).is_file():
        raise HubError(f"{name}: {only_adapter(folder)}")
    if not children:
        raise HubError(f"{name}: has no config.json; it is not a model folder{incomplete(folder)}")
    if len(children) > 1:
        raise HubError(f"{name}: holds several models; choose one of {', '.join(f'{name}/{c}' for c in children)}")
    return children[0]


def _snapshot(repository: Path) -> Path:
    """The revision that a repository's folder of the hub's cache holds: that of the branch main, or the only one.
    Raises `HubError` if neither can be told."""
    main, snapshots = repository / "refs" / "main", repository / "snapshots"
    there = sorted(child.name for child in snapshots.iterdir() if child.is_dir())
    commit = main.read_text(errors="replace").strip() if main.is_file() else ""
    if commit not in there and len(there) != 1:
        held = f"{len(there)} revisions" if there else "no revision"
        names = ", ".join(str(snapshots / name) for name in there)
        way = f"; choose one of {names}" if there else incomplete(repository)
        raise HubError(f"{repository}: is a folder of the hub's cache with {held}{way}")
    return snapshots / (commit if commit in there else there[0])


def holds_adapter_only(folder: Path) -> bool:
    """Whether a folder has an adapter's configuration and no weights beside the adapter's and its training's."""
    weights = (file for file in folder.glob("*.safetensors") if not file.name.startswith(("adapter", "checkpoint")))
    return (folder / ADAPTER_CONFIG).is_file() and next(weights, None) is None


def only_adapter(folder: Path) -> str:
    """The refusal of an adapter's folder in place of a model's, with the model that its configuration (PEFT's or
    mlx-lm's) names."""
    try:
        with (folder / ADAPTER_CONFIG).open("rb") as stream:
            data: Any = json.loads(stream.read(MOST_OF_AN_ADAPTER_CONFIG))
    except (OSError, ValueError, RecursionError):
        data = None
    said = data if isinstance(data, Mapping) else {}
    kind = str(said.get("peft_type") or said.get("fine_tune_type") or "")
    base = said.get("base_model_name_or_path") or said.get("model") or "a model that it does not name"
    what = f"{'a LoRA' if kind.lower() == 'lora' else 'an'} adapter of {base}"
    return f"is {what}, not a whole model; load that one with it (--adapter {folder}, load(..., adapter=))"


def _unreadable(name: str, error: OSError) -> HubError:
    return HubError(f"{name}: cannot be read ({error.strerror or error}); is it yours to read?")
