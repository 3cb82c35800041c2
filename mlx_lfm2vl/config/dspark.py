"""config.json of a DSpark drafter: a small network that proposes blocks of tokens to one model.

The makers publish it for LFM2.5 as `Lfm2DSparkDraftModel`, with the `model_type` of its layers, `qwen3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Fields, declare, flag, integer, number
from .text import rope_theta_of


@dataclass(frozen=True)
class DSparkConfig:
    """A drafter. `target_layer_ids`: the layers of the model whose results it reads, of `num_target_layers`;
    `block_size`: the tokens that it proposes at once; `mask_token_id`: stands for those behind the first.
    `rope_is_neox_style`: whether rotary embeddings turn pairs of a head's two halves, not of neighbours."""

    target_layer_ids: tuple[int, ...]
    mask_token_id: int
    hidden_size: int = integer(2048)
    intermediate_size: int = integer(6144)
    num_hidden_layers: int = integer(5, high=1024)
    num_attention_heads: int = integer(32)
    num_key_value_heads: int = integer(8)
    head_dim: int = integer(64)
    vocab_size: int = integer(128_000)
    rms_norm_eps: float = number(1e-5)
    rope_theta: float = declare(rope_theta_of, 10_000_000.0)
    rope_is_neox_style: bool = flag(True)
    block_size: int = integer(9, high=64)
    num_target_layers: int = integer(30, high=1024)
    markov_rank: int = integer(256)
    enable_confidence_head: bool = flag(False)
    confidence_head_with_markov: bool = flag(True)

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
        values = read.declared(cls)
        config = cls(
            _target_layers(read, values["num_target_layers"]),
            read.integer("mask_token_id", default=-1, low=0, high=values["vocab_size"] - 1),
            **values,
        )
        read.check_heads(config)
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
