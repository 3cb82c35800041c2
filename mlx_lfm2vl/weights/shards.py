"""The safetensors files of a folder that hold the model's weights.

An index that is true of the files decides. Published ones name shards that are not there; one that is not true decides
nothing, and all files are read but those of adapters, and what lies beside a model.safetensors that is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import read_json
from ..config.files import AGAIN
from ..errors import ConfigError, WeightsError, and_more
from ..model_folder import ADAPTER_CONFIG, incomplete, only_adapter
from .files import TensorInfo, joined, read_header, state
from .names import to_module

INDEX = "model.safetensors.index.json"
MODEL = "model.safetensors"
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_ADAPTER = re.compile(r"adapter_model.*|.*adapters\.safetensors")  # files of PEFT's and of mlx-lm's
_LORA = re.compile(r"\.lora_", re.I)


@dataclass(frozen=True)
class Shards:
    """The weight files of a folder and their tensors by name. `missing`: names of files that the index, or the numbers
    in the other files' names, speak of. `unnamed`: files that are left alone since the index does not name them.
    `notes`: what was left alone. `state`: of the files before they were read."""

    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    state: tuple[tuple[int, ...], ...]
    missing: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_shards(folder: Path) -> Shards:
    """The weights of a folder, none of them read. Raises `WeightsError` if there are none, or if a file is damaged."""
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    index = _index(folder)
    if not found:
        raise _without_files(folder, index)
    if gone := [file for file in found if not file.exists()]:
        way = incomplete(folder) or f"; {AGAIN}"
        raise WeightsError(f"{gone[0]}: is a link to a file that is not there{way}")
    before = dict(zip(found, state(found), strict=True))
    named = [file for file in found if file.name in index.values()]
    if named and {file.name for file in named} == set(index.values()):
        tensors = joined(map(read_header, named))
        if all(name in tensors and tensors[name].file.name == file for name, file in index.items()):
            left = [file.name for file in found if file not in named]
            now = tuple(before[file] for file in named)
            return Shards(tuple(named), tensors, now, unnamed=tuple(left), notes=_note(left, f"not named by {INDEX}"))
    headers = {file: read_header(file) for file in found if not _ADAPTER.fullmatch(file.name)}
    whole = {file: header for file, header in headers.items() if not header or not all(map(_LORA.search, header))}
    left = [file.name for file in found if file not in whole]
    beside = _beside(whole, folder / MODEL)
    whole = {file: header for file, header in whole.items() if file not in beside}
    if not whole:
        if (folder / ADAPTER_CONFIG).is_file():
            raise WeightsError(f"{folder}: {only_adapter(folder)}")
        raise WeightsError(
            f"{folder}: holds an adapter only ({left[0]}), not a model; load its base model with it (--adapter)"
        )
    now, missing = tuple(before[file] for file in whole), _missing(found, index)
    notes = (*_note(left, "an adapter"), *_note([file.name for file in beside], f"{MODEL} holds the model"))
    return Shards(tuple(whole), joined(whole.values()), now, missing, notes=notes)


def _beside(headers: Mapping[Path, Mapping[str, TensorInfo]], model: Path) -> list[Path]:
    """Files that hold copies of tensors of the file `model`, or nothing of a model: of another precision, averages, an
    optimiser's. Shards, which are numbered, are neither."""
    others = [file for file in headers if file != model and not _SHARD.fullmatch(file.name)]
    if model not in headers or len(others) + 1 < len(headers):
        return []
    return [f for f in others if headers[f].keys() & headers[model].keys() or not any(map(to_module, headers[f]))]


def _note(names: list[str], reason: str) -> tuple[str, ...]:
    return (f"{', '.join(names)} left alone ({reason})",) if names else ()


def _index(folder: Path) -> Mapping[str, str]:
    """Names of tensors to names of files in the folder; empty if there is no index, or one that makes no sense."""
    try:
        index = read_json(folder / INDEX).get("weight_map")
    except ConfigError:
        return {}
    names = index.values() if isinstance(index, dict) else [None]
    plain = all(isinstance(name, str) and Path(name).name == name != "" for name in names)
    return index if isinstance(index, dict) and plain else {}


def _missing(found: list[Path], index: Mapping[str, str]) -> tuple[str, ...]:
    there = {file.name for file in found}
    expected = set(index.values())
    for name in there:
        if (shard := _SHARD.fullmatch(name)) and int(shard[2]) <= int(shard[3]) <= len(there) + 100:
            numbers = range(1, int(shard[3]) + 1)
            expected |= {f"{shard[1]}-{number:05d}-of-{shard[3]}.safetensors" for number in numbers}
    return tuple(sorted(expected - there))


def _without_files(folder: Path, index: Mapping[str, str]) -> WeightsError:
    if index:
        named = sorted(set(index.values()))
        way = f"fetch what is missing{incomplete(folder)}"
        return WeightsError(f"{folder / named[0]}: no such file{and_more(named)}, which {INDEX} names; {way}")
    others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in folder.glob(pattern))
    hint = f" (it has {', '.join(others)}, which is not read)" if others else ""
    return WeightsError(f"{folder}: has no .safetensors file{hint}{incomplete(folder)}")
