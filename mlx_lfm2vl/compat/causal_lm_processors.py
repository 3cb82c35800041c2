"""Configuration and processor of text models; what they can is that of LFM2-VL's, without pictures."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import config
from ..processing import text_only
from .configuration import ConfigMethods
from .processors import ImageProcessorMethods, Lfm2VlProcessor


class CausalLMConfig(ConfigMethods, config.CausalLMConfig):  # type: ignore[misc]
    """config.json of a text model; see `mlx_lfm2vl.config.CausalLMConfig`."""

    base = config.CausalLMConfig


class TextOnlyImageProcessor(ImageProcessorMethods, text_only.TextOnlyImageProcessor):  # type: ignore[misc]
    """Refuses pictures."""


class TextProcessor(Lfm2VlProcessor, text_only.TextProcessor):  # type: ignore[misc]
    """Tokenizer and chat template of a text checkpoint."""

    image_processor_class: ClassVar[Any] = TextOnlyImageProcessor
