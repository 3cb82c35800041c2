"""The network of each family of checkpoints."""

from __future__ import annotations

import mlx.nn as nn

from ..config import Lfm3VlConfig, ModelConfig
from . import lfm2_vl, lfm3_vl

LFM3 = {
    lfm2_vl.Lfm2VlModel: lfm3_vl.Lfm3VlModel,
    lfm2_vl.Lfm2VlForConditionalGeneration: lfm3_vl.Lfm3VlForConditionalGeneration,
}


def network_class(wanted: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
    """The class of the configuration's family that stands in the place of `wanted`, one of LFM2-VL."""
    return LFM3.get(wanted, wanted) if isinstance(config, Lfm3VlConfig) else wanted
