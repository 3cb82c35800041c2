"""Configuration of a checkpoint as frozen dataclasses.

Every generation of config.json, generation_config.json, preprocessor_config.json and processor_config.json that is
published for LFM2-VL and LFM2.5-VL is normalised here and only here: other modules see one spelling of each field.
"""

from .files import parse_json, read_json, read_text, shown
from .generation import GenerationConfig
from .model import Lfm2VlConfig
from .processor import ImageProcessorConfig, ProcessorConfig
from .text import Lfm2Config
from .vision import Siglip2VisionConfig

__all__ = [
    "GenerationConfig",
    "ImageProcessorConfig",
    "Lfm2Config",
    "Lfm2VlConfig",
    "ProcessorConfig",
    "Siglip2VisionConfig",
    "parse_json",
    "read_json",
    "read_text",
    "shown",
]
