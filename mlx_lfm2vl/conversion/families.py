"""The rules for the files of each family of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import (
    CausalLMConfig,
    Lfm2VlConfig,
    Lfm3VlConfig,
    Lfm3VlProcessorConfig,
    ModelConfig,
    ProcessorConfig,
    ProcessorFiles,
)
from . import lfm2_files


@dataclass(frozen=True)
class FileRules:
    """Changes to a family's files beside copying them.

    `processor`: reads its processor files. `mended`: a processor file put right, and what was changed.
    `complete_processor`: completes the processor files of a folder. `spell_out`: completes config.json and its sections
    of text and vision for other MLX programs. `runs_elsewhere`: whether other MLX programs run the family.
    """

    processor: type[ProcessorFiles]
    mended: Callable[[dict[str, Any], Any], tuple[dict[str, Any], list[tuple[str, str]]]] = lambda data, config: (
        data,
        [],
    )
    complete_processor: Callable[[Path], None] = lambda target: None
    spell_out: Callable[[dict[str, Any], dict[str, Any], dict[str, Any], Any], None] = lambda *sections: None
    runs_elsewhere: bool = False


RULES: dict[type[ModelConfig], FileRules] = {
    Lfm2VlConfig: FileRules(
        ProcessorConfig, lfm2_files.mended, lfm2_files.complete_processor, lfm2_files.spell_out, runs_elsewhere=True
    ),
    Lfm3VlConfig: FileRules(Lfm3VlProcessorConfig),
    CausalLMConfig: FileRules(ProcessorConfig),
}
