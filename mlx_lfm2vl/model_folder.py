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


def only_child(folder: Path, name: str) -> str:
    """The name of the folder below that holds a model. Raises `HubError`, which calls the folder `name`, unless there
    is just one."""
    try:
        children = sorted(child.name for child in folder.iterdir() if (child / CONFIG).is_file())
    except OSError as error:
        raise _unreadable(name, error) from None
    if not children and (folder / ADAPTER_CONFIG).is_file():
        what = _adapter(folder / ADAPTER_CONFIG)
        raise HubError(f"{name}: is {what}, not a whole model; load that one with it (--adapter {name})")
    if not children:
        raise HubError(f"{name}: has no config.json; it is not a model folder")
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
        way = f"choose one of {', '.join(str(snapshots / name) for name in there)}" if there else "download it again"
        raise HubError(f"{repository}: is a folder of the hub's cache with {held}; {way}")
    return snapshots / (commit if commit in there else there[0])


def _adapter(file: Path) -> str:
    """The model that an adapter is of, as its configuration (PEFT's or mlx-lm's) says."""
    try:
        with file.open("rb") as stream:
            data: Any = json.loads(stream.read(MOST_OF_AN_ADAPTER_CONFIG))
    except (OSError, ValueError, RecursionError):
        data = None
    said = data if isinstance(data, Mapping) else {}
    kind = str(said.get("peft_type") or said.get("fine_tune_type") or "")
    base = said.get("base_model_name_or_path") or said.get("model") or "a model that it does not name"
    return f"{'a LoRA' if kind.lower() == 'lora' else 'an'} adapter of {base}"


def _unreadable(name: str, error: OSError) -> HubError:
    return HubError(f"{name}: cannot be read ({error.strerror or error}); is it yours to read?")
