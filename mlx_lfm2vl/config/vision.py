"""The vision tower's part of config.json. Defaults are those of transformers 5.23 (`Siglip2VisionConfig`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from .fields import ACTIVATIONS, Fields, choice, integer, number, part_of


@part_of("vision_config")
@dataclass(frozen=True)
class Siglip2VisionConfig:
    """The SigLIP2 NaFlex tower: sizes in channels, `patch_size` in pixels, `num_patches` in the position table."""

    model_type: ClassVar[str] = "siglip2_vision_model"
    hidden_size: int = integer(768)
    intermediate_size: int = integer(3072)
    num_hidden_layers: int = integer(12, high=1024)
    num_attention_heads: int = integer(12)
    num_channels: int = choice(3, options=(3,))
    patch_size: int = integer(16, high=1024)
    num_patches: int = integer(256)
    hidden_act: str = choice("gelu_pytorch_tanh", options=ACTIVATIONS)
    layer_norm_eps: float = number(1e-6)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @cached_property
    def layer_weights(self) -> int:
        """Numbers of the matrices of a layer."""
        return self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)

    @cached_property
    def patch_width(self) -> int:
        """Numbers of a patch."""
        return self.num_channels * self.patch_size**2

    @property
    def position_table_side(self) -> int:
        """Side of the square position table (16 for 256 entries)."""
        return math.isqrt(self.num_patches)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "vision_config") -> Siglip2VisionConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        config = cls(**read.declared(cls))
        if config.hidden_size % config.num_attention_heads:
            raise read.refuse(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        if config.position_table_side**2 != config.num_patches:
            raise read.refuse("num_patches", config.num_patches, "a square number")
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 5, as a part of config.json."""
        return {**asdict(self), "model_type": self.model_type, "vision_use_head": False}
