"""Image tokens of a `VisionCache` in a folder, for the next process: one safetensors file a view.

A file's name is a key of the model's files and the key of the view, so that tokens of other weights, dtypes and
versions are never read. A file is read like any foreign one: one that does not hold what it should is left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import mlx.core as mx

from ..errors import WeightsError, first_line
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..weights.files import DTYPES, read_header
from . import kept_files
from .options import number_type

FORMAT = "mlx_lfm2vl image tokens 1"
DEFAULT_BYTES = 2 * 2**30
NAME = "tokens"  # of the one tensor of a file
_NAMES = re.compile(r"[0-9a-f]{16}-view-[0-9a-f]{32}\.safetensors")  # what else lies there is never deleted


class VisionStore:
    """The views of one model in a folder, at most `limit` bytes of them; those not used for longest go first. To be
    used with a lock held. Raises `OptionError` and `OutputError`."""

    def __init__(self, folder: str | os.PathLike[str], limit: int, model: Lfm2VlForConditionalGeneration):
        self._folder, self._limit = Path(folder), limit
        self._hidden, self._dtype = model.config.text_config.hidden_size, number_type(model)
        self._prefix = kept_files.model_key("vision_cache", model, FORMAT)
        self._damaged: set[Path] = set()  # files of which a warning has told
        files = kept_files.listed(self._folder, "*-view-*.safetensors", "pictures")
        self._sizes = {file: kept_files.size(file) for file in files if _NAMES.fullmatch(file.name)}

    def _file(self, key: bytes) -> Path:
        return self._folder / f"{self._prefix}-view-{key.hex()}.safetensors"

    def __contains__(self, key: bytes) -> bool:
        return self._file(key).is_file()

    def read(self, key: bytes, count: int) -> mx.array | None:
        """The tokens (count, hidden) of a view, evaluated. None where there are none, with a warning, once for each
        file, where they are damaged."""
        file = self._file(key)
        if key not in self:
            return None
        try:
            found = {name: (info.shape, DTYPES.get(info.dtype)) for name, info in read_header(file).items()}
            if found != {NAME: ((count, self._hidden), self._dtype)}:
                raise WeightsError("it does not hold the tokens of a view")
            tokens = kept_files.read(file, "numbers")[NAME]
        except (WeightsError, OSError, RuntimeError) as error:
            self._sizes.pop(file, None)
            if file not in self._damaged:
                self._damaged.add(file)
                reason = first_line(error).removeprefix(f"{file}: ")
                kept_files.warn(f"{file}: is no kept picture and is left out ({reason})")
            return None
        self._sizes[file] = self._sizes.pop(file, 0) or kept_files.size(file)
        return tokens

    def write(self, key: bytes, tokens: mx.array) -> None:
        """Keeps the tokens of a view; a warning where they cannot be written."""
        file = self._file(key)
        if not kept_files.write(file, {NAME: mx.contiguous(tokens)}, {"format": FORMAT}, "a picture"):
            return
        self._sizes.pop(file, None)
        self._sizes[file] = kept_files.size(file)
        while sum(self._sizes.values()) > self._limit:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            kept_files.remove(oldest)
