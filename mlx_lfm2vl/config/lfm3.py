"""The LFM3-VL family's part of config.json: backbone, vision encoder, and the whole.

Defaults are those of transformers 5.23 (`Lfm3Config`, `Lfm3VlVisionConfig`, `Lfm3VlConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .fields import ACTIVATIONS, MAX_SIZE, Fields

MODEL_TYPE = "lfm3_vl"
TEXT_LAYERS = ("conv", "full_attention", "sliding_attention")
VISION_LAYERS = ("conv", "full_attention")


@dataclass(frozen=True)
class RopeParameters:
    """Rotary positions of a kind of attention layers: pair i of the first `partial_rotary_factor` of all pairs turns by
    position * rope_theta^(-2i / head_dim), the others stay (the reference's types "default" and "proportional")."""

    rope_theta: float
    partial_rotary_factor: float = 1.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str, default: RopeParameters) -> RopeParameters:
        """Raises `ConfigError`."""
        read = Fields(data, where)
        kind = read.choice("rope_type", "type", default="default", options=("default", "proportional"))
        partial = read.number("partial_rotary_factor", default=default.partial_rotary_factor if not data else 1.0)
        if partial > 1:
            raise read.refuse("partial_rotary_factor", partial, "at most 1")
        if read.number("factor", default=1.0) != 1:
            raise read.refuse("factor", data["factor"], "1")
        return cls(
            read.number("rope_theta", default=default.rope_theta),
            partial if kind == "proportional" or not data else 1.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling."""
        if self.partial_rotary_factor == 1:
            return {"rope_theta": self.rope_theta, "rope_type": "default"}
        return {**asdict(self), "rope_type": "proportional"}


FULL_ROPE, SLIDING_ROPE = RopeParameters(1_000_000.0, 0.5), RopeParameters(10_000.0)


@dataclass(frozen=True)
class Lfm3Config:
    """The LFM3 backbone. `sliding_window`: tokens that a sliding attention layer sees, the asking one included."""

    vocab_size: int = 128_000
    hidden_size: int = 2048
    intermediate_size: int = 7680
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    max_position_embeddings: int = 128_000
    norm_eps: float = 1e-5
    full_rope: RopeParameters = FULL_ROPE
    sliding_rope: RopeParameters = SLIDING_ROPE
    sliding_window: int = 256
    conv_bias: bool = False
    conv_L_cache: int = 7
    layer_types: tuple[str, ...] = field(default=())
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 124_894
    eos_token_id: int | tuple[int, ...] | None = 124_900
    pad_token_id: int | None = 124_893

    def __post_init__(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", _default_layers(self.num_hidden_layers))

    @property
    def feed_forward_size(self) -> int:
        """Rows of `feed_forward.w1`."""
        return self.intermediate_size

    def with_feed_forward_size(self, size: int) -> Lfm3Config:
        """The same configuration with another width of the feed-forward."""
        return replace(self, intermediate_size=size)

    def rope(self, layer_type: str) -> RopeParameters:
        """The rotary positions of attention layers of a type."""
        return self.sliding_rope if layer_type == "sliding_attention" else self.full_rope

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "text_config") -> Lfm3Config:
        """Raises `ConfigError` for a value that makes no sense."""
        read, ids = Fields(data, where), Fields({**_IDS, **data}, where)
        layers = read.integer("num_hidden_layers", default=24, high=1024)
        ropes = Fields(read.section("rope_parameters"), f"{where}: rope_parameters")
        config = cls(
            vocab_size=read.integer("vocab_size", default=128_000),
            hidden_size=read.integer("hidden_size", default=2048),
            intermediate_size=read.integer("intermediate_size", default=7680),
            num_hidden_layers=layers,
            num_attention_heads=read.integer("num_attention_heads", default=16),
            num_key_value_heads=read.integer("num_key_value_heads", default=4),
            head_dim=read.integer("head_dim", default=128),
            max_position_embeddings=read.integer("max_position_embeddings", default=128_000, high=2**31),
            norm_eps=read.number("norm_eps", default=1e-5),
            full_rope=RopeParameters.from_dict(ropes.section("full_attention"), ropes.where, FULL_ROPE),
            sliding_rope=RopeParameters.from_dict(ropes.section("sliding_attention"), ropes.where, SLIDING_ROPE),
            sliding_window=read.integer("sliding_window", default=256),
            conv_bias=read.flag("conv_bias", default=False),
            conv_L_cache=read.integer("conv_L_cache", default=7, low=2, high=64),
            layer_types=_layer_types(read, layers, TEXT_LAYERS, _default_layers(layers)),
            use_sandwich_norm=read.flag("use_sandwich_norm", default=True),
            use_attention_gate=read.flag("use_attention_gate", default=True),
            attention_bias=read.flag("attention_bias", default=False),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=True),
            bos_token_id=ids.token_id("bos_token_id"),
            eos_token_id=ids.token_ids("eos_token_id") or None,
            pad_token_id=ids.token_id("pad_token_id"),
        )
        _check_heads(read, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling, ready for config.json."""
        data = {**asdict(self), "model_type": "lfm3", "layer_types": list(self.layer_types)}
        del data["full_rope"], data["sliding_rope"]
        data["rope_parameters"] = {
            "full_attention": self.full_rope.to_dict(),
            "sliding_attention": self.sliding_rope.to_dict(),
        }
        if isinstance(self.eos_token_id, tuple):
            ids = list(self.eos_token_id)
            data["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        return {name: value for name, value in data.items() if value is not None}


_IDS = {"bos_token_id": 124_894, "eos_token_id": 124_900, "pad_token_id": 124_893}


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

    @property
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
            layer_types=_layer_types(read, layers, VISION_LAYERS, _default_vision_layers(layers)),
        )
        if config.hidden_size % config.num_attention_heads:
            raise read.refuse(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        if config.head_dim % 4:
            raise read.refuse("hidden_size", config.hidden_size, "heads of a multiple of 4 (two axes turn pairs)")
        if config.conv_kernel_size % 2 == 0:
            raise read.refuse("conv_kernel_size", config.conv_kernel_size, "an odd number")
        _check_heads(read, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling, ready for config.json."""
        data = {**asdict(self), "model_type": "lfm3_vl_vision", "layer_types": list(self.layer_types)}
        data["rope_parameters"] = {"rope_theta": data.pop("rope_theta"), "rope_type": "axial"}
        return data


@dataclass(frozen=True)
class Lfm3VlConfig:
    """A whole model. `quantization` as in `Lfm2VlConfig`."""

    vision_config: Lfm3VlVisionConfig = field(default_factory=Lfm3VlVisionConfig)
    text_config: Lfm3Config = field(default_factory=Lfm3Config)
    image_token_id: int = 125_030
    video_token_id: int = 125_029
    vision_start_token_id: int = 125_009
    vision_end_token_id: int = 125_010
    projector_hidden_act: str = "gelu"
    projector_hidden_size: int = 4096
    projector_bias: bool = True
    tie_word_embeddings: bool = True
    quantization: Mapping[str, Any] | None = None
    dtype: str | None = None
    model_type: str = MODEL_TYPE

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the text configuration names; empty if it names none."""
        eos = self.text_config.eos_token_id
        return (eos,) if isinstance(eos, int) else tuple(eos or ())

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The tokens in whose place pictures and videos stand."""
        return self.image_token_id, self.video_token_id

    @property
    def downsample_factor(self) -> int:
        """Patches to a side of what becomes one token."""
        return self.vision_config.spatial_merge_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> Lfm3VlConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        text = Lfm3Config.from_dict(read.section("text_config"), f"{where}: text_config")
        method = read.section("quantization_config")  # of another program where it says so
        last = text.vocab_size - 1
        tokens = {
            name: read.integer(name, default=default, low=0, high=last)
            for name, default in (
                ("image_token_id", 125_030),
                ("video_token_id", 125_029),
                ("vision_start_token_id", 125_009),
                ("vision_end_token_id", 125_010),
            )
        }
        config = cls(
            Lfm3VlVisionConfig.from_dict(read.section("vision_config"), f"{where}: vision_config"),
            text,
            **tokens,
            projector_hidden_act=read.choice("projector_hidden_act", default="gelu", options=ACTIVATIONS),
            projector_hidden_size=read.integer("projector_hidden_size", default=4096),
            projector_bias=read.flag("projector_bias", default=True),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=text.tie_word_embeddings),
            quantization=read.section("quantization") or ({} if "quant_method" in method else method) or None,
            dtype=read.word("dtype", "torch_dtype"),
        )
        merged = config.vision_config.hidden_size * config.vision_config.spatial_merge_size**2
        if merged > MAX_SIZE:
            raise read.refuse("spatial_merge_size", merged, f"at most {MAX_SIZE} channels together")
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 5, ready for config.json."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data.update(text_config=self.text_config.to_dict(), vision_config=self.vision_config.to_dict())
        del data["dtype"], data["quantization"]
        if self.dtype:
            data["dtype"] = self.dtype
        if self.quantization:
            data["quantization"] = data["quantization_config"] = dict(self.quantization)
        return {"architectures": ["Lfm3VlForConditionalGeneration"], **data}


def _default_layers(layers: int) -> tuple[str, ...]:
    """The pattern of the reference's `Lfm3Config`."""
    kinds = {2: "full_attention", 0: "sliding_attention"}
    return tuple(kinds.get(i % 4, "conv") if i else "conv" for i in range(layers))


def _default_vision_layers(layers: int) -> tuple[str, ...]:
    """The pattern of the reference's `Lfm3VlVisionConfig`."""
    return tuple("conv" if i < 2 or i % 2 else "full_attention" for i in range(layers))


def _layer_types(read: Fields, layers: int, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    kinds = read.get("layer_types", default=default)[1]
    if not isinstance(kinds, (list, tuple)):
        raise read.refuse("layer_types", kinds, "a list of " + ", ".join(map(repr, known)))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise read.refuse("an entry of layer_types", unknown[0], "one of " + ", ".join(map(repr, known)))
    if len(kinds) != layers:
        raise read.refuse("layer_types", f"{len(kinds)} entries", f"one for each of num_hidden_layers {layers}")
    return tuple(kinds)


def _check_heads(read: Fields, heads: int, kv_heads: int, head_dim: int) -> None:
    if heads % kv_heads:
        raise read.refuse("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    if head_dim % 2:
        raise read.refuse("head_dim", head_dim, "an even number (rotary embeddings turn pairs)")
    if heads * head_dim > MAX_SIZE:
        raise read.refuse("head_dim", head_dim, f"at most {MAX_SIZE} with all {heads} heads together")
