"""config.json of a DSpark drafter: a small network that proposes blocks of tokens to one model.

The makers publish it for LFM2.5 as `Lfm2DSparkDraftModel`, with the `model_type` of its layers, `qwen3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Fields
from .text import rope_theta_of


@dataclass(frozen=True)
class DSparkConfig:
    """A drafter. `target_layer_ids`: the layers of the model whose results it reads, of `num_target_layers`;
    `block_size`: the tokens that it proposes at once; `mask_token_id`: stands for those behind the first.
    `rope_is_neox_style`: whether rotary embeddings turn pairs of a head's two halves, not of neighbours."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_is_neox_style: bool
    block_size: int
    mask_token_id: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int
    markov_rank: int
    enable_confidence_head: bool
    confidence_head_with_markov: bool

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> DSparkConfig:
        """Raises `ConfigError` for a value that makes no sense, and for a kind of drafter that is not run."""
        section = Fields(data, where).section("dflash_config")
        read = Fields({**data, **{name: value for name, value in section.items() if value is not None}}, where)
        for name, only in (("markov_head_type", "vanilla"), ("hidden_act", "silu"), ("projector_type", "dspark")):
            read.choice(name, default=only, options=(only,))
        for name in ("causal", "attention_sink_bias", "attention_bias", "use_sliding_window"):
            if read.flag(name, default=False):
                raise read.refuse(name, True, "false")
        if not read.flag("sample_from_anchor", default=True):
            raise read.refuse("sample_from_anchor", False, "true")
        heads = read.integer("num_attention_heads", default=32)
        vocabulary = read.integer("vocab_size", default=128_000)
        target = read.integer("num_target_layers", default=30, high=1024)
        config = cls(
            hidden_size=read.integer("hidden_size", default=2048),
            intermediate_size=read.integer("intermediate_size", default=6144),
            num_hidden_layers=read.integer("num_hidden_layers", default=5, high=1024),
            num_attention_heads=heads,
            num_key_value_heads=read.integer("num_key_value_heads", default=8),
            head_dim=read.integer("head_dim", default=64),
            vocab_size=vocabulary,
            rms_norm_eps=read.number("rms_norm_eps", default=1e-5),
            rope_theta=rope_theta_of(read, default=10_000_000.0),
            rope_is_neox_style=read.flag("rope_is_neox_style", default=True),
            block_size=read.integer("block_size", default=9, high=64),
            mask_token_id=read.integer("mask_token_id", default=-1, low=0, high=vocabulary - 1),
            target_layer_ids=_target_layers(read, target),
            num_target_layers=target,
            markov_rank=read.integer("markov_rank", default=256),
            enable_confidence_head=read.flag("enable_confidence_head", default=False),
            confidence_head_with_markov=read.flag("confidence_head_with_markov", default=True),
        )
        if heads % config.num_key_value_heads:
            raise read.refuse("num_key_value_heads", config.num_key_value_heads, f"a divisor of {heads} heads")
        if config.head_dim % 2:
            raise read.refuse("head_dim", config.head_dim, "an even number (rotary embeddings turn pairs)")
        kinds = read.get("layer_types", default=[])[1]
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise read.refuse("layer_types", kinds, "'full_attention' for every layer")
        return config


def is_dspark(data: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a DSpark drafter, not of a model that answers."""
    return isinstance(data.get("dflash_config"), Mapping) and data.get("model_type") == "qwen3"


def _target_layers(read: Fields, layers: int) -> tuple[int, ...]:
    name, ids = read.get("target_layer_ids")
    plain = isinstance(ids, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in ids)
    if not plain or not ids or ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= layers:
        raise read.refuse(name, ids, f"ascending layer numbers below {layers}")
    return tuple(ids)
