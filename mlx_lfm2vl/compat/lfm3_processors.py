"""LFM3-VL's configuration and processors of transformers, by name; what they can is that of LFM2-VL's."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import config
from ..processing import lfm3_vl
from .configuration import ConfigMethods
from .processors import ImageProcessorMethods, Lfm2VlProcessor


class Lfm3VlConfig(ConfigMethods, config.Lfm3VlConfig):  # type: ignore[misc]
    """LFM3-VL's config.json, as transformers has it; see `mlx_lfm2vl.config.Lfm3VlConfig`."""

    base = config.Lfm3VlConfig


class Lfm3VlImageProcessor(ImageProcessorMethods, lfm3_vl.Lfm3VlImageProcessor):
    """`processing.Lfm3VlImageProcessor` with transformers' keywords and tensors."""

    @property
    def size(self) -> dict[str, int]:
        """The bounds of a resized picture's area in pixels."""
        return {"shortest_edge": self.config.min_pixels, "longest_edge": self.config.max_pixels}

    @property
    def image_processor_type(self) -> str:
        """The reference's name of the class."""
        return "Qwen2VLImageProcessor"


class Lfm3VlProcessor(Lfm2VlProcessor, lfm3_vl.Lfm3VlProcessor):
    """`processing.Lfm3VlProcessor` with transformers' keywords and tensors. Attributes can be set as those of
    `Lfm2VlProcessor`."""

    image_processor: Any
    image_processor_class: ClassVar[Any] = Lfm3VlImageProcessor
