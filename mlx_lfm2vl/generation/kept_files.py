"""Files that caches keep in a folder for the next process: how they are named, read, written and dated."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import KeptFileWarning, OptionError, OutputError, WeightsError, first_line
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .options import number_type


def model_key(cache: str, model: Lfm2VlForConditionalGeneration, *more: str) -> str:
    """The beginning of the names of a model's files, 16 hexadecimal digits: states of other weights, dtypes and
    versions have another. Raises `OptionError` for a model that was not loaded from files."""
    key, backend = getattr(model, "checkpoint_key", ""), getattr(model, "backend", "")
    if not key:
        raise OptionError(f"{cache} has a folder, for which the model must have been loaded from files")
    what = [*more, key, backend, str(number_type(model)), version("mlx")]
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def listed(folder: Path, pattern: str, what: str) -> list[Path]:
    """The files of this pattern in a folder, made where there is none; those not used for longest first. Raises
    `OutputError`, which names `what`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return sorted(folder.glob(pattern), key=_used)
    except OSError as error:
        raise OutputError(f"{folder}: {what} cannot be kept there ({error.strerror or error})") from None


def read(file: Path, what: str) -> dict[str, mx.array]:
    """The arrays of a file, evaluated, which counts as used now. Raises `WeightsError`, which names `what`, where one
    is not finite, and `RuntimeError` where the file cannot be read."""
    arrays: Any = mx.load(str(file))
    finite = mx.stack([mx.isfinite(array).all() for array in arrays.values()]).all()
    mx.eval(arrays, finite)
    if not finite.item():
        raise WeightsError(f"its {what} are not finite")
    with suppress(OSError):
        os.utime(file)
    return arrays  # type: ignore[no-any-return]


def write(file: Path, arrays: dict[str, mx.array], metadata: dict[str, str], what: str) -> bool:
    """Writes a whole file or none. False, with a warning that names `what`, where it cannot be written."""
    part = file.with_name(f".{file.stem}-{os.getpid()}.safetensors")
    try:
        mx.save_safetensors(str(part), arrays, metadata)
        part.replace(file)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        warn(f"{file}: {what} cannot be kept ({first_line(error)})")
        return False
    return True


def remove(file: Path) -> None:
    """Deletes a file that another process may have deleted."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def size(file: Path) -> int:
    """The bytes of a file; 0 where another process has deleted it."""
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _used(file: Path) -> float:
    """The time of a file's last use; 0 where another process has deleted it."""
    with suppress(FileNotFoundError):
        return file.stat().st_mtime
    return 0.0


def warn(text: str) -> None:
    """Warns of a file that is left out or not written."""
    warnings.warn(text, KeptFileWarning, stacklevel=4)
