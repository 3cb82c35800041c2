"""The backbone's part of config.json. Defaults are those of transformers 5.23 (`Lfm2Config`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from .fields import (
    MAX_SIZE,
    Fields,
    declare,
    flag,
    freeze_lists,
    integer,
    number,
    one_or_list,
    part_of,
    token_id,
    token_ids,
)

LAYER_TYPES = ("conv", "full_attention")


def rope_theta_of(read: Fields, *names: str, default: float) -> float:
    """Both spellings: `rope_theta`, or `rope_parameters: {rope_theta, rope_type}`."""
    parameters = Fields(read.section("rope_parameters") or read.section("rope_scaling"), read.where)
    kind = parameters.get("rope_type", "type", default="default")[1]
    if kind != "default":
        raise read.refuse("rope_type", kind, "'default'")
    if parameters.data.get("rope_theta") is not None:
        return parameters.number("rope_theta", default=default)
    return read.number("rope_theta", "theta", default=default)


@part_of("text_config")
@dataclass(frozen=True)
class Lfm2Config:
    """The LFM2 backbone. `intermediate_size` is the configured width; `feed_forward_size` is what the layers have."""

    model_type: ClassVar[str] = "lfm2"
    vocab_size: int = integer(65536)
    hidden_size: int = integer(2560, "hidden_size", "block_dim")
    intermediate_size: int = integer(12288, "block_ff_dim", "intermediate_size")
    num_hidden_layers: int = integer(32, high=1024)
    num_attention_heads: int = integer(32, "num_attention_heads", "num_heads")
    num_key_value_heads: int = integer(8)
    head_dim: int = integer(80)
    max_position_embeddings: int = integer(128_000, high=2**31)
    norm_eps: float = number(1e-5, "norm_eps", "block_norm_eps")
    rope_theta: float = declare(rope_theta_of, 1_000_000.0)
    conv_bias: bool = flag(False)
    conv_L_cache: int = integer(3, low=2, high=64)
    block_multiple_of: int = integer(256)
    block_ffn_dim_multiplier: float | None = number(1.0)
    block_auto_adjust_ff_dim: bool = flag(True)
    layer_types: tuple[str, ...] = ("full_attention",) * 32
    tie_word_embeddings: bool = flag(True, "tie_embedding", "tie_word_embeddings")
    bos_token_id: int | None = token_id(None)
    eos_token_id: int | tuple[int, ...] | None = token_ids(None)
    pad_token_id: int | None = token_id(None)

    def __post_init__(self) -> None:
        freeze_lists(self)

    @cached_property
    def feed_forward_size(self) -> int:
        """Rows of `feed_forward.w1` (the rule is that of the reference's `Lfm2MLP`)."""
        size = self.intermediate_size
        if self.block_auto_adjust_ff_dim:
            size = int(2 * size / 3)
            if self.block_ffn_dim_multiplier is not None:
                size = int(self.block_ffn_dim_multiplier * size)
                size = self.block_multiple_of * math.ceil(size / self.block_multiple_of)
        return size

    @cached_property
    def attention_layers(self) -> int:
        """Layers that keep keys and values; the others are short convolutions."""
        return self.layer_types.count("full_attention")

    def keys_kept(self, tokens: int) -> int:
        """The keys that all layers together keep of so many tokens, of each key-value head."""
        return self.attention_layers * tokens

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "text_config") -> Lfm2Config:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        values = read.declared(cls)
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        if data.get("head_dim") is None:
            if hidden % heads:
                raise read.refuse("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
            values["head_dim"] = hidden // heads
        if data.get("block_ffn_dim_multiplier", 1.0) is None:
            values["block_ffn_dim_multiplier"] = None
        config = cls(**values, layer_types=_layer_types(read, values["num_hidden_layers"]))
        read.check_heads(config)
        if not 1 <= config.feed_forward_size <= MAX_SIZE:
            wanted = f"a width that is 1 to {MAX_SIZE} after adjustment"
            raise read.refuse("intermediate_size", config.intermediate_size, wanted)
        return config

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 5, as a part of config.json."""
        out = {**asdict(self), "model_type": self.model_type}
        out["rope_parameters"] = {"rope_theta": out.pop("rope_theta"), "rope_type": "default"}
        out["layer_types"] = list(self.layer_types)
        if isinstance(self.eos_token_id, tuple):
            out["eos_token_id"] = one_or_list(self.eos_token_id)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if out[name] is None:
                del out[name]
        return out


def _layer_types(read: Fields, layers: int) -> tuple[str, ...]:
    """`layer_types`, or `full_attn_idxs` of the first LFM2 configs; with neither every layer is attention."""
    _, kinds = read.get("layer_types")
    if kinds is None:
        _, attention = read.get("full_attn_idxs", default=list(range(layers)))
        if (
            not isinstance(attention, (list, tuple))
            or len(attention) > layers
            or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < layers for i in attention)
        ):
            raise read.refuse("full_attn_idxs", attention, f"a list of layer numbers below {layers}")
        return tuple("full_attention" if i in attention else "conv" for i in range(layers))
    if not isinstance(kinds, (list, tuple)):
        raise read.refuse("layer_types", kinds, "a list of 'conv' and 'full_attention'")
    for kind in kinds:
        if kind not in LAYER_TYPES:
            raise read.refuse("an entry of layer_types", kind, "'conv' or 'full_attention'")
    if len(kinds) != layers:
        raise read.refuse("layer_types", f"{len(kinds)} entries", f"one for each of num_hidden_layers {layers}")
    return tuple(kinds)
