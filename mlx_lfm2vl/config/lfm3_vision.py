"""vision_config of LFM3-VL's config.json. Defaults are those of transformers 5.23 (`Lfm3VlVisionConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .fields import Fields, choice, integer, number, part_of
from .lfm3 import read_layer_types

VISION_LAYERS = ("conv", "full_attention")


@part_of("vision_config")
@dataclass(frozen=True)
class Lfm3VlVisionConfig:
    """The LFM3-VL vision encoder. A patch is `temporal_patch_size` frames of `patch_size` x `patch_size` pixels;
    `spatial_merge_size` x `spatial_merge_size` of them become one token."""

    hidden_size: int = integer(1024)
    intermediate_size: int = integer(2560)
    num_hidden_layers: int = integer(14, high=1024)
    num_attention_heads: int = integer(16)
    num_key_value_heads: int = integer(8)
    in_channels: int = choice(3, options=(3,))
    patch_size: int = integer(16, high=1024)
    temporal_patch_size: int = integer(2, high=64)
    spatial_merge_size: int = integer(2, high=64)
    conv_kernel_size: int = integer(3, high=63)
    rope_theta: float = 1_000_000.0
    norm_eps: float = number(1e-5)
    layer_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", _default_vision_layers(self.num_hidden_layers))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @cached_property
    def layer_weights(self) -> int:
        """Numbers of the matrices of a layer with a convolution, the larger kind."""
        return self.hidden_size * (4 * self.hidden_size + 3 * self.intermediate_size)

    @cached_property
    def patch_width(self) -> int:
        """Numbers of a patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "vision_config") -> Lfm3VlVisionConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        rope = Fields(read.section("rope_parameters"), f"{where}: rope_parameters")
        rope.choice("rope_type", default="axial", options=("axial",))
        values, rope_theta = read.declared(cls), rope.number("rope_theta", default=cls.rope_theta)
        layers = values["num_hidden_layers"]
        layer_types = read_layer_types(read, layers, VISION_LAYERS, _default_vision_layers(layers))
        config = cls(**values, rope_theta=rope_theta, layer_types=layer_types)
        if config.hidden_size % config.num_attention_heads:
            raise read.refuse(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        if config.head_dim % 4:
            raise read.refuse("hidden_size", config.hidden_size, "heads of a multiple of 4 (two axes turn pairs)")
        if config.conv_kernel_size % 2 == 0:
            raise read.refuse("conv_kernel_size", config.conv_kernel_size, "an odd number")
        read.check_heads(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling, ready for config.json."""
        data = {**asdict(self), "model_type": "lfm3_vl_vision", "layer_types": list(self.layer_types)}
        data["rope_parameters"] = {"rope_theta": data.pop("rope_theta"), "rope_type": "axial"}
        return data


def _default_vision_layers(layers: int) -> tuple[str, ...]:
    """The pattern of the reference's `Lfm3VlVisionConfig`."""
    return tuple("conv" if i < 2 or i % 2 else "full_attention" for i in range(layers))
