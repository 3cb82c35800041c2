"""text_config of LFM3-VL's config.json: the LFM3 backbone. Defaults are those of transformers 5.23 (`Lfm3Config`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from .fields import MAX_SIZE, Fields, freeze_lists, part_of

ROPES = ("full_attention", "sliding_attention")  # keys of rope_parameters
TEXT_LAYERS = ("conv", *ROPES)


@dataclass(frozen=True)
class RopeParameters:
    """Rotary positions of a kind of attention layers: pair i of the first `partial_rotary_factor` of all pairs turns by
    position * rope_theta^(-2i / head_dim), the others stay (the reference's types "default" and "proportional")."""

    rope_theta: float
    partial_rotary_factor: float = 1.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str, rope_theta: float) -> RopeParameters:
        """A section of rope_parameters; one without a base has this `rope_theta`. Raises `ConfigError`."""
        read = Fields(data, where)
        kind = read.choice("rope_type", "type", default="default", options=("default", "proportional"))
        partial = read.number("partial_rotary_factor", default=1.0)
        if partial > 1:
            raise read.refuse("partial_rotary_factor", partial, "at most 1")
        if read.number("factor", default=1.0) != 1:
            raise read.refuse("factor", data["factor"], "1")
        return cls(read.number("rope_theta", default=rope_theta), partial if kind == "proportional" else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling."""
        if self.partial_rotary_factor == 1:
            return {"rope_theta": self.rope_theta, "rope_type": "default"}
        return {**asdict(self), "rope_type": "proportional"}


ROPE_THETA = 1_000_000.0
FULL_ROPE, SLIDING_ROPE = RopeParameters(1_000_000.0, 0.5), RopeParameters(10_000.0)


@part_of("text_config")
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
        freeze_lists(self)

    @property
    def feed_forward_size(self) -> int:
        """Rows of `feed_forward.w1`."""
        return self.intermediate_size

    @cached_property
    def attention_layers(self) -> int:
        """Layers that keep keys and values; the others are short convolutions."""
        return len(self.layer_types) - self.layer_types.count("conv")

    def keys_kept(self, tokens: int) -> int:
        """The keys that all layers together keep of so many tokens, of each key-value head."""
        full, sliding = map(self.layer_types.count, ("full_attention", "sliding_attention"))
        return full * tokens + sliding * min(tokens, self.sliding_window)

    def rope(self, layer_type: str) -> RopeParameters:
        """The rotary positions of attention layers of a type."""
        return self.sliding_rope if layer_type == "sliding_attention" else self.full_rope

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "text_config") -> Lfm3Config:
        """Raises `ConfigError` for a value that makes no sense."""
        read, ids = Fields(data, where), Fields({**_IDS, **data}, where)
        layers = read.integer("num_hidden_layers", default=24, high=1024)
        ropes = Fields(read.section("rope_parameters"), f"{where}: rope_parameters")
        for name in ropes.data:
            if name not in ROPES:
                raise ropes.refuse("a key", name, "full_attention or sliding_attention, an object of rope_theta each")
        theta = read.number("rope_theta", default=ROPE_THETA)  # of sections that say none, as in the reference

        def rope(kind: str, absent: RopeParameters) -> RopeParameters:
            given = ropes.data.get(kind) is not None
            return RopeParameters.from_dict(ropes.section(kind), ropes.where, theta) if given else absent

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
            full_rope=rope("full_attention", FULL_ROPE),
            sliding_rope=rope("sliding_attention", SLIDING_ROPE),
            sliding_window=read.integer("sliding_window", default=256, low=2),
            conv_bias=read.flag("conv_bias", default=False),
            conv_L_cache=read.integer("conv_L_cache", default=7, low=2, high=64),
            layer_types=read_layer_types(read, layers, TEXT_LAYERS, _default_layers(layers)),
            use_sandwich_norm=read.flag("use_sandwich_norm", default=True),
            use_attention_gate=read.flag("use_attention_gate", default=True),
            attention_bias=read.flag("attention_bias", default=False),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=True),
            bos_token_id=ids.token_id("bos_token_id"),
            eos_token_id=ids.token_ids("eos_token_id") or None,
            pad_token_id=ids.token_id("pad_token_id"),
        )
        check_heads(read, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
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
        return {name: value for name, value in data.items() if value is not None or name in _IDS}


_IDS = {"bos_token_id": 124_894, "eos_token_id": 124_900, "pad_token_id": 124_893}


def _default_layers(layers: int) -> tuple[str, ...]:
    """The pattern of the reference's `Lfm3Config`."""
    kinds = {2: "full_attention", 0: "sliding_attention"}
    return tuple(kinds.get(i % 4, "conv") if i else "conv" for i in range(layers))


def read_layer_types(read: Fields, layers: int, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of the layers, one each. Raises `ConfigError`."""
    kinds = read.get("layer_types", default=default)[1]
    if not isinstance(kinds, (list, tuple)):
        raise read.refuse("layer_types", kinds, "a list of " + ", ".join(map(repr, known)))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise read.refuse("an entry of layer_types", unknown[0], "one of " + ", ".join(map(repr, known)))
    if len(kinds) != layers:
        raise read.refuse("layer_types", f"{len(kinds)} entries", f"one for each of num_hidden_layers {layers}")
    return tuple(kinds)


def check_heads(read: Fields, heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises `ConfigError` for heads that do not fit each other."""
    if heads % kv_heads:
        raise read.refuse("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    if head_dim % 2:
        raise read.refuse("head_dim", head_dim, "an even number (rotary embeddings turn pairs)")
    if heads * head_dim > MAX_SIZE:
        raise read.refuse("head_dim", head_dim, f"at most {MAX_SIZE} with all {heads} heads together")
