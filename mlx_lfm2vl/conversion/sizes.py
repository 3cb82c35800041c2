"""The size of a language model with other bits, known before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import mlx.nn as nn

from ..errors import OptionError
from ..weights.load import open_model
from ..weights.quantize import LANGUAGE, Quantization, widths

WIDTHS = (3, 4, 5, 6, 8)  # bits that a search chooses from


class Sizes:
    """The bytes that the language model's modules take in each of `WIDTHS`, from the weights' headers alone. `paths`:
    those that can be quantised; `unsupported`: those whose rows the groups do not divide. Raises `OptionError`."""

    def __init__(self, folder: Path, group_size: int | None = None):
        self.specs = {bits: Quantization.checked(bits, group_size) for bits in WIDTHS}
        group = self.specs[WIDTHS[0]].group_size
        model: nn.Module
        model, stored = open_model(folder)
        if stored.config.quantization:
            raise OptionError(f"{folder}: is quantised already; search from the dense original")
        rows = {path: width for path, width in widths(model).items() if path.startswith(LANGUAGE)}
        self.unsupported = [path for path, width in rows.items() if width % group]
        self.paths = [path for path, width in rows.items() if not width % group]
        if not self.paths:
            raise OptionError("no module would be quantised; choose a smaller q_group_size")
        self._infos = {path: stored.infos[f"{path}.weight"] for path in self.paths}
        self._rest = sum(i.nbytes for i in stored.infos.values()) - sum(i.nbytes for i in self._infos.values())

    def size(self, assignment: Mapping[str, int]) -> int:
        """Bytes of all weights with these widths; modules that are not named are dense."""
        total = self._rest
        for path, info in self._infos.items():
            if path not in assignment:
                total += info.nbytes
                continue
            spec = self.specs[assignment[path]]
            total += math.prod(info.shape) * spec.bits // 8 + 2 * info.nbytes // spec.group_size  # and their scales
        return total
