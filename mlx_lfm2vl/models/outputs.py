"""Results of the models: the reference's `ModelOutput`s, with fields by name, by index or as a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from .cache import Cache


class ModelOutput:
    """Fields that are None do not count for indexing and `to_tuple`, as in transformers.

    `cache` and `image_outputs` are names that transformers 5.24 uses: attributes and keys, which `keys` does not list.
    """

    image_outputs: ImageFeatures | None = None

    @property
    def cache(self) -> Any:
        return getattr(self, "past_key_values", None)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        return list(self.to_tuple())

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def __contains__(self, name: object) -> bool:
        return name in self.keys() or (name in ("cache", "image_outputs") and getattr(self, str(name)) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)


@dataclass
class ImageFeatures(ModelOutput):
    """The features of each view: `last_hidden_state`, the tower's output (h*w, vision hidden), not padded;
    `pooler_output`, its image tokens (h*w / factor^2, text hidden). Of LFM3-VL's grids (frames, rows, columns) these
    are a picture's or video's, and the former is one array of all, as in the reference."""

    last_hidden_state: list[mx.array] | mx.array
    pooler_output: list[mx.array]


@dataclass
class Lfm2VlModelOutputWithPast(ModelOutput):
    """`last_hidden_state` (B, L, hidden); `hidden_states`: layers + 1 of them; `attentions` (B, heads, L, S), one for
    each attention layer; `image_hidden_states` (image tokens of the call, hidden)."""

    last_hidden_state: mx.array
    past_key_values: Cache | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None


@dataclass
class Lfm2VlCausalLMOutputWithPast(ModelOutput):
    """`loss` scalar float32; `logits` (B, L or what `logits_to_keep` asks for, vocabulary); the rest as above."""

    loss: mx.array | None = None
    logits: mx.array | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None
