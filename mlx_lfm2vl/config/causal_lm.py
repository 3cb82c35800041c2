"""config.json of a text model alone, LFM2 or LFM3: the backbone's fields stand at its top level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from .fields import Fields, WholeModel
from .files import shown
from .lfm3 import Lfm3Config
from .text import Lfm2Config

BACKBONES: dict[str, type[Lfm2Config] | type[Lfm3Config]] = {"lfm2": Lfm2Config, "lfm3": Lfm3Config}
ARCHITECTURES = {"lfm2": "Lfm2ForCausalLM", "lfm3": "Lfm3ForCausalLM"}
_NESTED = {  # names of a text model within a vision-language model, in files of both layouts, and its own
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head": "lm_head",
}


def bare(name: str) -> str:
    """The name of a parameter or module in the files of a text model, of that within a vision-language model."""
    for nested, own in _NESTED.items():
        if name.startswith(nested):
            return own + name[len(nested) :]
    return name


@dataclass(frozen=True)
class CausalLMConfig(WholeModel):
    """A text model: a backbone and its head (the reference's `Lfm2Config` and `Lfm3Config`, for their `ForCausalLM`).

    `text_config` may be given as a mapping; `model_type` is then that of the backbone. `quantization` as in
    `Lfm2VlConfig`. There is no vision: `vision_config` is None. Raises `ConfigError` for a value that makes no sense.
    """

    vision_config: Any = None
    text_config: Lfm2Config | Lfm3Config = field(default_factory=Lfm2Config)
    tie_word_embeddings: bool = True
    quantization: Mapping[str, Any] | None = None
    dtype: str | None = None
    model_type: str = "lfm2"

    def __post_init__(self) -> None:
        if self.model_type not in BACKBONES:
            known = " or ".join(map(repr, BACKBONES))
            raise ConfigError(f"config: model_type is {shown(self.model_type)}; expected {known}")
        backbone = BACKBONES[self.model_type]
        if not isinstance(self.text_config, (Lfm2Config, Lfm3Config)):
            self.make_section("text_config", backbone)
        if not isinstance(self.text_config, backbone):
            made = type(self.text_config).__name__
            raise ConfigError(f"config: text_config is {made}, expected {backbone.__name__} of {self.model_type!r}")

    @property
    def image_token_id(self) -> int:
        """The id of no token, as no token stands for pictures."""
        return -1

    @property
    def downsample_factor(self) -> int:
        """Patches to a side of an image token, of which there are none."""
        return 1

    @cached_property
    def placeholders(self) -> tuple[int, ...]:
        """The tokens in whose place pictures stand: none."""
        return ()

    @property
    def family(self) -> str:
        """The makers' name of such models."""
        return self.model_type.upper()

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the processor's files state too: none."""
        return {}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> CausalLMConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read, model_type = Fields(data, where), str(data.get("model_type"))
        text = BACKBONES.get(model_type, Lfm2Config).from_dict(data, where)
        return cls(
            text_config=text,
            tie_word_embeddings=text.tie_word_embeddings,
            quantization=cls.quantization_in(read),
            dtype=read.word("dtype", "torch_dtype"),
            model_type=model_type,
        )

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 5, ready for config.json."""
        data = {"architectures": [ARCHITECTURES[self.model_type]], **self.text_config.to_dict()}
        data |= {"model_type": self.model_type, "tie_word_embeddings": self.tie_word_embeddings}
        return self.with_weights(data, bare)
