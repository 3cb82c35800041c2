"""generation_config.json: end tokens, and sampling where a checkpoint recommends any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Fields
from .model import Lfm2VlConfig


@dataclass(frozen=True)
class GenerationConfig:
    """End tokens, and the sampling that the checkpoint recommends (None where it recommends none)."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def end_tokens(self, config: Lfm2VlConfig, of_tokenizer: int | None) -> list[int]:
        """Those of all files: this one's, those of config.json, and the tokenizer's, where fine-tunes name theirs."""
        ids = (*self.eos_token_ids, *config.eos_token_ids, of_tokenizer)
        return [id for id in dict.fromkeys(ids) if id is not None]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "generation_config.json") -> GenerationConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)

        def optional(name: str, high: float, low: float = 0.0, above: bool = False) -> float | None:
            if data.get(name) is None:
                return None
            value = read.number(name, default=0.0, low=low, above=above)
            if value > high:
                raise read.refuse(name, value, f"a number up to {high:g}")
            return value

        return cls(
            eos_token_ids=read.token_ids("eos_token_id"),
            bos_token_id=read.token_id("bos_token_id"),
            pad_token_id=read.token_id("pad_token_id"),
            do_sample=read.flag("do_sample", default=False),
            temperature=optional("temperature", 100),
            top_p=optional("top_p", 1, above=True),
            top_k=None if data.get("top_k") is None else read.integer("top_k", default=0, low=0),
            min_p=optional("min_p", 1),
            repetition_penalty=optional("repetition_penalty", 100, low=0.01),
        )
