"""generation_config.json: end tokens, and sampling where a checkpoint or its makers' model card recommends any.

The published files name end tokens only, so the model of a card is recognised by its shape. Others (the demo model,
other sizes) have no recommendation and are greedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .family import ModelConfig, TextConfig
from .fields import Fields, flag, freeze_lists, optional, token_id

_FAMILY = {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}
# (hidden size, layers, vocabulary) of the language model
CARDS: dict[tuple[int, int, int], dict[str, float]] = {
    (1024, 16, 65536): _FAMILY,  # LFM2-VL-450M, LFM2.5-VL-450M
    (2048, 16, 65536): _FAMILY,  # LFM2-VL-1.6B, LFM2.5-VL-1.6B
    (2048, 30, 65536): _FAMILY,  # LFM2-VL-3B
    (2048, 30, 128000): {"temperature": 0.2, "top_k": 50, "repetition_penalty": 1.0},  # LFM2.5-VL-3B
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationConfig:
    """End tokens, and the sampling that the checkpoint recommends (None where it recommends none)."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = token_id(None)
    pad_token_id: int | None = token_id(None)
    do_sample: bool = flag(False)
    temperature: float | None = optional(high=100)
    top_p: float | None = optional(high=1)
    top_k: int | None = None
    min_p: float | None = optional(high=1)
    repetition_penalty: float | None = optional(high=100, low=0.01)

    def __post_init__(self) -> None:
        freeze_lists(self)

    def end_tokens(self, config: ModelConfig, of_tokenizer: int | None) -> list[int]:
        """The end tokens of all files: this one's, those of config.json, and the tokenizer's, where fine-tunes name
        theirs."""
        ids = (*self.eos_token_ids, *config.eos_token_ids, of_tokenizer)
        return [id for id in dict.fromkeys(ids) if id is not None]

    def recommended(self, text: TextConfig) -> GenerationConfig:
        """The same if it says anything of sampling, else with what the card of a model of this shape says."""
        card = CARDS.get((text.hidden_size, text.num_hidden_layers, text.vocab_size))
        if card is None or self.do_sample or any(getattr(self, name) is not None for name in _SAMPLING):
            return self
        return replace(self, do_sample=True, **card)  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "generation_config.json") -> GenerationConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        return cls(
            **read.declared(cls),
            eos_token_ids=read.token_ids("eos_token_id") or (),
            top_k=None if data.get("top_k") is None else read.integer("top_k", default=0, low=0),
        )


@lru_cache(maxsize=32, typed=True)
def checked(where: str, **data: Any) -> GenerationConfig:
    """`from_dict` of values that can be hashed: a model's are asked for with each answer."""
    return GenerationConfig.from_dict(data, where)
