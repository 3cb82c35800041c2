"""vision_config of LFM3-VL's config.json. Defaults are those of transformers 5.23 (`Lfm3VlVisionConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from .fields import Fields, part_of
from .lfm3 import check_heads, read_layer_types

VISION_LAYERS = ("conv", "full_attention")


@part_of("vision_config")
@dataclass(frozen=True)
class Lfm3VlVisionConfig:
    """The LFM3-VL vision encoder. A patch is `temporal_patch_size` frames of `patch_size` x `patch_size` pixels;
    `spatial_merge_size` x `spatial_merge_size` of them become one token."""

    hidden_size: int = 1024
    intermediate_size: int = 2560
    num_hidden_layers: int = 14
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    conv_kernel_size: int = 3
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-5
    layer_types: tuple[str, ...] = field(default=())

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
        layers = read.integer("num_hidden_layers", default=14, high=1024)
        rope = Fields(read.section("rope_parameters"), f"{where}: rope_parameters")
        rope.choice("rope_type", default="axial", options=("axial",))
        config = cls(
            hidden_size=read.integer("hidden_size", default=1024),
            intermediate_size=read.integer("intermediate_size", default=2560),
            num_hidden_layers=layers,
            num_attention_heads=read.integer("num_attention_heads", default=16),
            num_key_value_heads=read.integer("num_key_value_heads", default=8),
            in_channels=read.choice("in_channels", default=3, options=(3,)),
            patch_size=read.integer("patch_size", default=16, high=1024),
            temporal_patch_size=read.integer("temporal_patch_size", default=2, high=64),
            spatial_merge_size=read.integer("spatial_merge_size", default=2, high=64),
            conv_kernel_size=read.integer("conv_kernel_size", default=3, high=63),
            rope_theta=rope.number("rope_theta", default=1_000_000.0),
            norm_eps=read.number("norm_eps", default=1e-5),
            layer_types=read_layer_types(read, layers, VISION_LAYERS, _default_vision_layers(layers)),
        )
        if config.hidden_size % config.num_attention_heads:
            raise read.refuse(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        if config.head_dim % 4:
            raise read.refuse("hidden_size", config.hidden_size, "heads of a multiple of 4 (two axes turn pairs)")
        if config.conv_kernel_size % 2 == 0:
            raise read.refuse("conv_kernel_size", config.conv_kernel_size, "an odd number")
        check_heads(read, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling, ready for config.json."""
        data = {**asdict(self), "model_type": "lfm3_vl_vision", "layer_types": list(self.layer_types)}
        data["rope_parameters"] = {"rope_theta": data.pop("rope_theta"), "rope_type": "axial"}
        return data


def _default_vision_layers(layers: int) -> tuple[str, ...]:
    """The pattern of the reference's `Lfm3VlVisionConfig`."""
    return tuple("conv" if i < 2 or i % 2 else "full_attention" for i in range(layers))
