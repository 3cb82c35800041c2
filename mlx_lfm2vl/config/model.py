"""config.json: the vision tower, the backbone and the whole model, every published generation in one spelling.

Defaults are those of transformers 5.23 (`Lfm2VlConfig`, `Lfm2Config`, `Siglip2VisionConfig`). Unknown keys are ignored,
as they are by the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..hub import resolve
from .fields import Fields, read_json

MODEL_TYPES = ("lfm2_vl", "lfm2-vl")
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "silu", "relu")
LAYER_TYPES = ("conv", "full_attention")


@dataclass(frozen=True)
class Siglip2VisionConfig:
    """The SigLIP2 NaFlex tower: sizes in channels, `patch_size` in pixels, `num_patches` in the position table."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    patch_size: int = 16
    num_patches: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def position_table_side(self) -> int:
        """Side of the square position table (16 for 256 entries)."""
        return math.isqrt(self.num_patches)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "vision_config") -> Siglip2VisionConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        config = cls(
            hidden_size=read.integer("hidden_size", default=768),
            intermediate_size=read.integer("intermediate_size", default=3072),
            num_hidden_layers=read.integer("num_hidden_layers", default=12, high=1024),
            num_attention_heads=read.integer("num_attention_heads", default=12),
            num_channels=read.choice("num_channels", default=3, options=(3,)),
            patch_size=read.integer("patch_size", default=16, high=1024),
            num_patches=read.integer("num_patches", default=256),
            hidden_act=read.choice("hidden_act", default="gelu_pytorch_tanh", options=ACTIVATIONS),
            layer_norm_eps=read.number("layer_norm_eps", default=1e-6),
        )
        if config.hidden_size % config.num_attention_heads:
            raise read.refuse(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        if config.position_table_side**2 != config.num_patches:
            raise read.refuse("num_patches", config.num_patches, "a square number")
        return config


@dataclass(frozen=True)
class Lfm2Config:
    """The LFM2 backbone. `intermediate_size` is the configured width; `feed_forward_size` is what the layers have."""

    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 80
    max_position_embeddings: int = 128_000
    norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    conv_bias: bool = False
    conv_L_cache: int = 3
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    layer_types: tuple[str, ...] = field(default=("full_attention",) * 32)
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def feed_forward_size(self) -> int:
        """Rows of `feed_forward.w1` (the rule is that of the reference's `Lfm2MLP`)."""
        size = self.intermediate_size
        if self.block_auto_adjust_ff_dim:
            size = int(2 * size / 3)
            if self.block_ffn_dim_multiplier is not None:
                size = int(self.block_ffn_dim_multiplier * size)
                size = self.block_multiple_of * math.ceil(size / self.block_multiple_of)
        return size

    def with_feed_forward_size(self, size: int) -> Lfm2Config:
        """The same configuration with the width taken as it is, without the automatic adjustment."""
        return replace(self, intermediate_size=size, block_auto_adjust_ff_dim=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "text_config") -> Lfm2Config:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        hidden = read.integer("hidden_size", "block_dim", default=2560)
        heads = read.integer("num_attention_heads", "num_heads", default=32)
        layers = read.integer("num_hidden_layers", default=32, high=1024)
        if hidden % heads and data.get("head_dim") is None:
            raise read.refuse("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
        multiplier = data.get("block_ffn_dim_multiplier", 1.0)
        config = cls(
            vocab_size=read.integer("vocab_size", default=65536),
            hidden_size=hidden,
            intermediate_size=read.integer("block_ff_dim", "intermediate_size", default=12288),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=read.integer("num_key_value_heads", default=8),
            head_dim=read.integer("head_dim", default=max(1, hidden // heads)),
            max_position_embeddings=read.integer("max_position_embeddings", default=128_000, high=2**31),
            norm_eps=read.number("norm_eps", "block_norm_eps", default=1e-5),
            rope_theta=_rope_theta(read),
            conv_bias=read.flag("conv_bias", default=False),
            conv_L_cache=read.integer("conv_L_cache", default=3, low=2, high=64),
            block_multiple_of=read.integer("block_multiple_of", default=256),
            block_ffn_dim_multiplier=None
            if multiplier is None
            else read.number("block_ffn_dim_multiplier", default=1.0),
            block_auto_adjust_ff_dim=read.flag("block_auto_adjust_ff_dim", default=True),
            layer_types=_layer_types(read, layers),
            tie_word_embeddings=read.flag("tie_embedding", "tie_word_embeddings", default=True),
            bos_token_id=read.token_id("bos_token_id"),
            eos_token_id=read.token_ids("eos_token_id") or None,
            pad_token_id=read.token_id("pad_token_id"),
        )
        if config.num_attention_heads % config.num_key_value_heads:
            raise read.refuse("num_key_value_heads", config.num_key_value_heads, f"a divisor of {heads} heads")
        if config.head_dim % 2:
            raise read.refuse("head_dim", config.head_dim, "an even number (rotary embeddings turn pairs)")
        if config.feed_forward_size < 1:
            raise read.refuse("intermediate_size", config.intermediate_size, "a width that is left after adjustment")
        return config


def _rope_theta(read: Fields) -> float:
    """Both spellings: `rope_theta`, or `rope_parameters: {rope_theta, rope_type}`."""
    parameters = Fields(read.section("rope_parameters") or read.section("rope_scaling"), read.where)
    kind = parameters.get("rope_type", "type", default="default")[1]
    if kind != "default":
        raise read.refuse("rope_type", kind, "'default'")
    if parameters.data.get("rope_theta") is not None:
        return parameters.number("rope_theta", default=1e6)
    return read.number("rope_theta", "theta", default=1_000_000.0)


def _layer_types(read: Fields, layers: int) -> tuple[str, ...]:
    """`layer_types`, or `full_attn_idxs` of the first LFM2 configs; with neither every layer is attention."""
    _, kinds = read.get("layer_types")
    if kinds is None:
        _, attention = read.get("full_attn_idxs", default=list(range(layers)))
        if not isinstance(attention, (list, tuple)) or not all(
            isinstance(i, int) and not isinstance(i, bool) and 0 <= i < layers for i in attention
        ):
            raise read.refuse("full_attn_idxs", attention, f"a list of layer numbers below {layers}")
        return tuple("full_attention" if i in attention else "conv" for i in range(layers))
    if not isinstance(kinds, (list, tuple)) or not all(kind in LAYER_TYPES for kind in kinds):
        raise read.refuse("layer_types", kinds, "a list of 'conv' and 'full_attention'")
    if len(kinds) != layers:
        raise read.refuse("layer_types", f"{len(kinds)} entries", f"one for each of num_hidden_layers {layers}")
    return tuple(kinds)


def _plain(value: Any) -> dict[str, Any]:
    """A section given as a dataclass, a mapping or nothing, as a dict."""
    if value is None:
        return {}
    if isinstance(value, (Siglip2VisionConfig, Lfm2Config)):
        return asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"config: expected an object for a sub-configuration, got {value!r}")
    return dict(value)


@dataclass(frozen=True)
class Lfm2VlConfig:
    """A whole model, with the arguments of the reference's `Lfm2VlConfig`.

    `vision_config` and `text_config` may be given as mappings; they are normalised. `quantization` is the MLX record of
    what is quantised (`{"group_size", "bits", "mode", <module path>: {...} | false}`), or None for a dense checkpoint.
    Raises `ConfigError` for a value that makes no sense.
    """

    vision_config: Siglip2VisionConfig = None  # type: ignore[assignment]  # None: the reference's defaults
    text_config: Lfm2Config = None  # type: ignore[assignment]
    image_token_id: int = 396
    projector_hidden_act: str = "gelu"
    projector_hidden_size: int = 2560
    projector_bias: bool = True
    projector_use_layernorm: bool = True
    downsample_factor: int = 2
    tie_word_embeddings: bool = True
    quantization: Mapping[str, Any] | None = None
    dtype: str | None = None
    model_type: str = "lfm2_vl"

    def __post_init__(self) -> None:
        if not isinstance(self.vision_config, Siglip2VisionConfig):
            object.__setattr__(self, "vision_config", Siglip2VisionConfig.from_dict(_plain(self.vision_config)))
        if not isinstance(self.text_config, Lfm2Config):
            object.__setattr__(self, "text_config", Lfm2Config.from_dict(_plain(self.text_config)))
        read = Fields(
            {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("vision_config", "text_config")},
            "config",
        )
        read.integer("projector_hidden_size", default=2560)
        read.integer("downsample_factor", default=2, high=64)
        read.choice("projector_hidden_act", default="gelu", options=ACTIVATIONS)
        for name in ("projector_bias", "projector_use_layernorm", "tie_word_embeddings"):
            read.flag(name, default=True)
        read.integer("image_token_id", default=396, low=0)
        if self.image_token_id >= self.text_config.vocab_size:
            raise read.refuse(
                "image_token_id", self.image_token_id, f"an id below vocab_size {self.text_config.vocab_size}"
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the text configuration names; empty if it names none."""
        eos = self.text_config.eos_token_id
        return (eos,) if isinstance(eos, int) else tuple(eos or ())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> Lfm2VlConfig:
        """Normalises any published generation of config.json. Raises `ConfigError`."""
        read = Fields(data, where)
        model_type = data.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"{where}: model_type is {model_type!r}; this package runs 'lfm2_vl' (LFM2-VL and LFM2.5-VL) models"
            )
        if any("D1Model" in str(entry) for entry in read.section("auto_map").values()):
            raise ConfigError(
                f"{where}: auto_map names D1Model, a decision model with another head; it cannot run here"
            )
        text = read.section("text_config")
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):  # LFM2.5-VL-3B keeps them on the top level
            if text.get(name) is None and data.get(name) is not None:
                text[name] = data[name]
        # One of the two places may hold null or nothing; the reference ties unless the top level says otherwise.
        tied = Fields(data, where).flag(
            "tie_embedding",
            "tie_word_embeddings",
            default=Fields(text, f"{where}: text_config").flag("tie_embedding", "tie_word_embeddings", default=True),
        )
        quantization = read.section("quantization") or read.section("quantization_config") or None
        return cls(
            vision_config=Siglip2VisionConfig.from_dict(read.section("vision_config"), f"{where}: vision_config"),
            text_config=Lfm2Config.from_dict(text, f"{where}: text_config"),
            image_token_id=read.integer("image_token_index", "image_token_id", default=396, low=0),
            projector_hidden_act=read.choice("projector_hidden_act", default="gelu", options=ACTIVATIONS),
            projector_hidden_size=read.integer("projector_hidden_size", default=2560),
            projector_bias=read.flag("projector_bias", default=True),
            projector_use_layernorm=read.flag("projector_use_layernorm", default=True),
            downsample_factor=read.integer("downsample_factor", default=2, high=64),
            tie_word_embeddings=tied,
            quantization=quantization,
            dtype=data.get("dtype") or data.get("torch_dtype"),
        )

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, **hub: Any) -> Lfm2VlConfig:
        """From a folder or a hub repository (`revision=`, `token=` ... as `hub.resolve` takes them)."""
        folder = resolve(path_or_repo, patterns=("*.json",), **hub)
        return cls.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """The configuration in the spelling of transformers 5 (and of `from_dict`), ready for config.json."""
        vision = {**asdict(self.vision_config), "model_type": "siglip2_vision_model", "vision_use_head": False}
        text = {**asdict(self.text_config), "model_type": "lfm2"}
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
        text["layer_types"] = list(text["layer_types"])
        if text["eos_token_id"] is not None:
            ids = list(self.eos_token_ids)
            text["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if text[name] is None:
                del text[name]
        out: dict[str, Any] = {"architectures": ["Lfm2VlForConditionalGeneration"], "model_type": "lfm2_vl"}
        for f in fields(self):
            if f.name not in ("vision_config", "text_config", "quantization", "model_type", "dtype"):
                out[f.name] = getattr(self, f.name)
        out.update(text_config=text, vision_config=vision)
        if self.dtype:
            out["dtype"] = self.dtype
        if self.quantization:
            out["quantization"] = out["quantization_config"] = dict(self.quantization)
        return out
