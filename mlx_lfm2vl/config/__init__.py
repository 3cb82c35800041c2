"""Configuration of a checkpoint; the only place that knows how published generations spell it.

In: JSON files of a folder, of any generation. Out: frozen dataclasses with one spelling of each field.
"""

from .causal_lm import CausalLMConfig
from .dspark import DSparkConfig, is_dspark
from .family import ModelConfig, TextConfig, VisionConfig, config_in, config_of
from .files import parse_json, read_json, read_text, shown
from .generation import GenerationConfig
from .lfm3 import Lfm3Config
from .lfm3_processor import (
    ImageConfig,
    Lfm3VlImageProcessorConfig,
    Lfm3VlProcessorConfig,
    Lfm3VlVideoProcessorConfig,
    ProcessorFiles,
)
from .lfm3_vision import Lfm3VlVisionConfig
from .lfm3_vl import Lfm3VlConfig
from .model import Lfm2VlConfig
from .processor import ImageProcessorConfig, ProcessorConfig
from .text import Lfm2Config
from .vision import Siglip2VisionConfig
