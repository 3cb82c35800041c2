"""The family of a checkpoint, by the `model_type` of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import lfm3_vl, model
from .causal_lm import BACKBONES, CausalLMConfig
from .dspark import is_dspark
from .files import read_json, shown
from .lfm3 import Lfm3Config
from .lfm3_vision import Lfm3VlVisionConfig
from .lfm3_vl import Lfm3VlConfig
from .model import Lfm2VlConfig
from .text import Lfm2Config
from .vision import Siglip2VisionConfig

ModelConfig = Lfm2VlConfig | Lfm3VlConfig | CausalLMConfig
TextConfig = Lfm2Config | Lfm3Config
VisionConfig = Siglip2VisionConfig | Lfm3VlVisionConfig
FAMILIES: dict[str, type[ModelConfig]] = {
    **dict.fromkeys(model.MODEL_TYPES, Lfm2VlConfig),
    lfm3_vl.MODEL_TYPE: Lfm3VlConfig,
    **dict.fromkeys(BACKBONES, CausalLMConfig),
}


def config_of(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The configuration that a config.json holds. Raises `ConfigError`."""
    model_type = data.get("model_type")
    if is_dspark(data):
        raise ConfigError(f"{where}: is a DSpark drafter, which proposes tokens to its model; give it as --draft-model")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where}: model_type is {shown(model_type)}; this package runs 'lfm2_vl' (LFM2-VL and LFM2.5-VL) and "
            "'lfm3_vl' (LFM3-VL) models, and their text models 'lfm2' and 'lfm3'"
        )
    return FAMILIES[model_type].from_dict(data, where)


def config_in(folder: Path) -> ModelConfig:
    """The configuration of a model folder. Raises `ConfigError`."""
    file = folder / "config.json"
    return config_of(read_json(file), str(file))
