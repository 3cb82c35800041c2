"""text_config of LFM3-VL's config.json: the LFM3 backbone. Defaults are those of transformers 5.23 (`Lfm3Config`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .fields import Fields, flag, freeze_lists, integer, number, one_or_list, part_of, token_id, token_ids

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

    vocab_size: int = integer(128_000)
    hidden_size: int = integer(2048)
    intermediate_size: int = integer(7680)
    num_hidden_layers: int = integer(24, high=1024)
    num_attention_heads: int = integer(16)
    num_key_value_heads: int = integer(4)
    head_dim: int = integer(128)
    max_position_embeddings: int = integer(128_000, high=2**31)
    norm_eps: float = number(1e-5)
    full_rope: RopeParameters = FULL_ROPE
    sliding_rope: RopeParameters = SLIDING_ROPE
    sliding_window: int = integer(256, low=2)
    conv_bias: bool = flag(False)
    conv_L_cache: int = integer(7, low=2, high=64)
    layer_types: tuple[str, ...] = ()
    use_sandwich_norm: bool = flag(True)
    use_attention_gate: bool = flag(True)
    attention_bias: bool = flag(False)
    tie_word_embeddings: bool = flag(True)
    bos_token_id: int | None = token_id(124_894)
    eos_token_id: int | tuple[int, ...] | None = token_ids(124_900)
    pad_token_id: int | None = token_id(124_893)

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
        read = Fields(data, where)
        ropes = Fields(read.section("rope_parameters"), f"{where}: rope_parameters")
        for name in ropes.data:
            if name not in ROPES:
                raise ropes.refuse("a key", name, "full_attention or sliding_attention, an object of rope_theta each")
        theta = read.number("rope_theta", default=ROPE_THETA)  # of sections that say none, as in the reference

        def rope(kind: str, absent: RopeParameters) -> RopeParameters:
            given = ropes.data.get(kind) is not None
            return RopeParameters.from_dict(ropes.section(kind), ropes.where, theta) if given else absent

        values = read.declared(cls)
        layers = values["num_hidden_layers"]
        config = cls(
            **values,
            full_rope=rope("full_attention", FULL_ROPE),
            sliding_rope=rope("sliding_attention", SLIDING_ROPE),
            layer_types=read_layer_types(read, layers, TEXT_LAYERS, _default_layers(layers)),
        )
        read.check_heads(config)
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
            data["eos_token_id"] = one_or_list(self.eos_token_id)
        return data


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
