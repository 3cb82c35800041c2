"""config.json of LFM3-VL: the whole model. Defaults are those of transformers 5.23 (`Lfm3VlConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from .fields import ACTIVATIONS, MAX_SIZE, Fields, WholeModel, check_declared, choice, flag, integer
from .files import shown
from .lfm3 import Lfm3Config
from .lfm3_vision import Lfm3VlVisionConfig

MODEL_TYPE = "lfm3_vl"
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Lfm3VlConfig(WholeModel):
    """A whole model, with the arguments of the reference's `Lfm3VlConfig`.

    `vision_config` and `text_config` may be given as mappings; they are normalised. `quantization` as in
    `Lfm2VlConfig`. Raises `ConfigError` for a value that makes no sense.
    """

    vision_config: Lfm3VlVisionConfig = field(default_factory=Lfm3VlVisionConfig)
    text_config: Lfm3Config = field(default_factory=Lfm3Config)
    image_token_id: int = 125_030
    video_token_id: int = 125_029
    vision_start_token_id: int = 125_009
    vision_end_token_id: int = 125_010
    projector_hidden_act: str = choice("gelu", options=ACTIVATIONS)
    projector_hidden_size: int = integer(4096)
    projector_bias: bool = flag(True)
    tie_word_embeddings: bool = flag(True)
    quantization: Mapping[str, Any] | None = None
    dtype: str | None = None
    model_type: str = MODEL_TYPE

    def __post_init__(self) -> None:
        self.make_section("vision_config", Lfm3VlVisionConfig)
        self.make_section("text_config", Lfm3Config)
        read = check_declared(self, "config")
        for name in TOKENS:
            read.integer(name, default=0, low=0, high=self.text_config.vocab_size - 1)
        merged = self.vision_config.hidden_size * self.downsample_factor**2
        if merged > MAX_SIZE:
            raise read.refuse("spatial_merge_size", merged, f"at most {MAX_SIZE} channels together")

    @property
    def family(self) -> str:
        """The makers' name of such models."""
        return "LFM3-VL"

    @cached_property
    def placeholders(self) -> tuple[int, ...]:
        """The tokens in whose place pictures and videos stand."""
        return self.image_token_id, self.video_token_id

    @property
    def downsample_factor(self) -> int:
        """Patches to a side of what becomes one token."""
        return self.vision_config.spatial_merge_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> Lfm3VlConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        read = Fields(data, where)
        if data.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"{where}: model_type is {shown(data.get('model_type'))}; expected 'lfm3_vl' (LFM3-VL)")
        text = Lfm3Config.from_dict(read.section("text_config"), f"{where}: text_config")
        last = text.vocab_size - 1
        ids: dict[str, Any] = {
            name: read.integer(name, default=getattr(cls, name), low=0, high=last) for name in TOKENS
        }
        values = read.declared(cls)
        if data.get("tie_word_embeddings") is None:
            values["tie_word_embeddings"] = text.tie_word_embeddings
        return cls(
            Lfm3VlVisionConfig.from_dict(read.section("vision_config"), f"{where}: vision_config"),
            text,
            **ids,
            **values,
            quantization=cls.quantization_in(read),
            dtype=read.word("dtype", "torch_dtype"),
        )

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the processor's files state too."""
        vision = self.vision_config
        return {
            "patch size": vision.patch_size,
            "temporal patch size": vision.temporal_patch_size,
            "downsample factor": self.downsample_factor,
            "image token's id": self.image_token_id,
            "video token's id": self.video_token_id,
        }

    def to_dict(self) -> dict[str, Any]:
        """In the spelling of transformers 5, ready for config.json."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data.update(text_config=self.text_config.to_dict(), vision_config=self.vision_config.to_dict())
        del data["dtype"], data["quantization"]
        return self.with_weights({"architectures": ["Lfm3VlForConditionalGeneration"], **data})
