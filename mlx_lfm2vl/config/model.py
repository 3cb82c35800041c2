"""config.json: the whole model, every published generation in one spelling.

Defaults are those of transformers 5.23 (`Lfm2VlConfig`). Unknown keys are ignored, as they are by the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from .fields import ACTIVATIONS, MAX_SIZE, Fields, WholeModel, check_declared, choice, flag, integer
from .files import shown
from .text import Lfm2Config
from .vision import Siglip2VisionConfig

MODEL_TYPES = ("lfm2_vl", "lfm2-vl")


@dataclass(frozen=True)
class Lfm2VlConfig(WholeModel):
    """A whole model, with the arguments of the reference's `Lfm2VlConfig`.

    `vision_config` and `text_config` may be given as mappings; they are normalised. `quantization` is the MLX record of
    what is quantised (`{"group_size", "bits", "mode", <module path>: {...} | false}`), or None for a dense checkpoint.
    `vision_feature_layer` is the first release's; -2 says that the tower's file lacks the last layer it counts.
    Raises `ConfigError` for a value that makes no sense.
    """

    vision_config: Siglip2VisionConfig = None  # type: ignore[assignment]  # None: the reference's defaults
    text_config: Lfm2Config = None  # type: ignore[assignment]
    image_token_id: int = integer(396, "image_token_index", "image_token_id", low=0)
    projector_hidden_act: str = choice("gelu", options=ACTIVATIONS)
    projector_hidden_size: int = integer(2560)
    projector_bias: bool = flag(True)
    projector_use_layernorm: bool = flag(True)
    downsample_factor: int = integer(2, high=64)
    tie_word_embeddings: bool = flag(True, "tie_embedding", "tie_word_embeddings")
    vision_feature_layer: int = -1
    quantization: Mapping[str, Any] | None = None
    dtype: str | None = None
    model_type: str = "lfm2_vl"

    def __post_init__(self) -> None:
        self.make_section("vision_config", Siglip2VisionConfig)
        self.make_section("text_config", Lfm2Config)
        read = check_declared(self, "config")
        if self.image_token_id >= self.text_config.vocab_size:
            raise read.refuse(
                "image_token_id", self.image_token_id, f"an id below vocab_size {self.text_config.vocab_size}"
            )
        merged = self.vision_config.hidden_size * self.downsample_factor**2
        if merged > MAX_SIZE:
            raise read.refuse("downsample_factor", self.downsample_factor, f"at most {MAX_SIZE} channels, not {merged}")

    @property
    def family(self) -> str:
        """The makers' name of such models."""
        return "LFM2-VL" if self.projector_use_layernorm else "LFM2.5-VL"

    @cached_property
    def placeholders(self) -> tuple[int, ...]:
        """The tokens in whose place pictures stand."""
        return (self.image_token_id,)

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the processor's files state too."""
        return {
            "patch size": self.vision_config.patch_size,
            "downsample factor": self.downsample_factor,
            "image token's id": self.image_token_id,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> Lfm2VlConfig:
        """Normalises any published generation of config.json. Raises `ConfigError`."""
        read = Fields(data, where)
        model_type = data.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"{where}: model_type is {shown(model_type)}; "
                "this package runs 'lfm2_vl' (LFM2-VL and LFM2.5-VL) models"
            )
        if any("D1Model" in str(entry) for entry in read.section("auto_map").values()):
            raise ConfigError(
                f"{where}: auto_map names D1Model, a decision model with another head; it cannot run here"
            )
        text = read.section("text_config")
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):  # LFM2.5-VL-3B keeps them on the top level
            if text.get(name) is None and data.get(name) is not None:
                text[name] = data[name]
        inner = Fields(text, f"{where}: text_config")
        values = read.declared(cls)
        if all(data.get(name) is None for name in ("tie_embedding", "tie_word_embeddings")):
            values["tie_word_embeddings"] = inner.flag("tie_embedding", "tie_word_embeddings", default=True)
        try:
            return cls(
                Siglip2VisionConfig.from_dict(read.section("vision_config"), f"{where}: vision_config"),
                Lfm2Config.from_dict(text, inner.where),
                **values,
                vision_feature_layer=read.choice("vision_feature_layer", default=-1, options=(-1, -2)),
                quantization=cls.quantization_in(read),
                dtype=read.word("dtype", "torch_dtype") or inner.word("dtype", "torch_dtype"),
            )
        except ConfigError as error:  # what the fields say together is checked by the class, which knows no file
            said = str(error)
            raise ConfigError(f"{where}{said[6:]}" if said.startswith("config: ") else said) from None

    def to_dict(self) -> dict[str, Any]:
        """The configuration in the spelling of transformers 5 (and of `from_dict`), ready for config.json."""
        out: dict[str, Any] = {"architectures": ["Lfm2VlForConditionalGeneration"], "model_type": "lfm2_vl"}
        out.update({each.name: getattr(self, each.name) for each in fields(self) if "read" in each.metadata})
        out.update(text_config=self.text_config.to_dict(), vision_config=self.vision_config.to_dict())
        if self.vision_feature_layer != -1:
            out["vision_feature_layer"] = self.vision_feature_layer
        return self.with_weights(out)
