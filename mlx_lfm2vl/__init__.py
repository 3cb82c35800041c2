"""Liquid AI's LFM2-VL, LFM2.5-VL and LFM3-VL vision-language models in MLX.

The names below are the public interface. Each is imported when it is first used, so that `import mlx_lfm2vl` costs
nothing and a program that only processes pictures never starts MLX.
"""

from __future__ import annotations

import os
import sys
import zipimport
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if isinstance(__spec__.loader, zipimport.zipimporter):
    raise ImportError(
        f"mlx_lfm2vl cannot be imported from the archive {__spec__.loader.archive}, as it reads files beside its "
        "modules; unpack the archive, or let the tool that made it keep mlx_lfm2vl as a folder (py2app: in `packages`)"
    )

if sys.platform == "linux":
    # How long threads of NumPy's OpenBLAS wait for the next product at full speed: 2^24 cycles, not 2^28, a tenth of a
    # second in the way of ours. OpenBLAS reads it when NumPy is first imported.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "24")

if TYPE_CHECKING:
    from . import demo
    from .backends import BackendError
    from .compat.auto_models import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from .compat.auto_processors import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from .compat.batch_feature import BatchFeature
    from .compat.configuration import Lfm2VlConfig
    from .compat.generation_config import GenerationConfig
    from .compat.lfm3_models import Lfm3VlForConditionalGeneration, Lfm3VlModel
    from .compat.lfm3_processors import Lfm3VlConfig, Lfm3VlImageProcessor, Lfm3VlProcessor
    from .compat.logits_process import LogitsProcessorList
    from .compat.models import Lfm2VlForConditionalGeneration, Lfm2VlModel
    from .compat.processors import Lfm2VlImageProcessor, Lfm2VlImageProcessorFast, Lfm2VlProcessor
    from .compat.seed import set_seed
    from .compat.stopping import StoppingCriteria, StoppingCriteriaList
    from .compat.streamers import TextIteratorStreamer, TextStreamer
    from .constraints.response_format import ResponseFormat
    from .conversion.convert import convert
    from .conversion.fuse import fuse
    from .doctor.checks import diagnose
    from .engine.chat import EngineChat
    from .engine.engine import Engine, MemoryUse
    from .engine.handle import Request
    from .errors import (
        AnswerError,
        AnswerWarning,
        ConfigError,
        ConstraintError,
        ContextLengthError,
        DistributedError,
        EngineClosedError,
        EngineThreadError,
        ForkError,
        HubError,
        ImageError,
        ImageWarning,
        InputError,
        KeptFileWarning,
        Lfm2VlError,
        LoadCancelledError,
        NotFiniteError,
        OptionError,
        OutOfMemoryError,
        OutputError,
        PromptError,
        QueueFullError,
        TemplateError,
        TokenizerError,
        ToolCallError,
        ToolCallWarning,
        WeightsError,
    )
    from .explanation.explain import explain
    from .explanation.explanation import Explanation
    from .generation.batch import generate_batch
    from .generation.chat import Chat
    from .generation.draft_model import DraftModel
    from .generation.logits_process import LogitsProcessor
    from .generation.options import GenerationOptions
    from .generation.prompt_cache import PromptCache
    from .generation.request import GenerationRequest
    from .generation.response import Completion, FinishReason, GenerationResponse, Statistics, TopLogprob
    from .generation.speculation import Draft
    from .generation.stream import generate, stream_generate
    from .generation.tool_call_reader import ToolCall, parse_tool_calls
    from .generation.vision_cache import VisionCache
    from .models.dspark import DSparkDraftModel
    from .pretrained import load, load_draft
    from .processing.fetch import SourcePolicy
    from .processing.load_image import load_image
    from .processing.video import Video, load_video
    from .tasks.boxes import DetectTask, PointTask
    from .tasks.description import DescribeTask
    from .tasks.drawing import draw_boxes, draw_points
    from .tasks.export import to_coco
    from .tasks.extraction import ExtractTask
    from .tasks.reading import ReadTask
    from .tasks.recipes import RECIPES, Recipe
    from .tasks.results import Box, Point, Region
    from .tasks.run import describe, detect, extract, point, read, recipe_of
    from .training.finetune import TrainingResult, finetune
    from .training.options import TrainingOptions

__all__ = [
    "RECIPES",
    "AnswerError",
    "AnswerWarning",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoProcessor",
    "AutoTokenizer",
    "BackendError",
    "BatchFeature",
    "Box",
    "Chat",
    "Completion",
    "ConfigError",
    "ConstraintError",
    "ContextLengthError",
    "DSparkDraftModel",
    "DescribeTask",
    "DetectTask",
    "DistributedError",
    "Draft",
    "DraftModel",
    "Engine",
    "EngineChat",
    "EngineClosedError",
    "EngineThreadError",
    "Explanation",
    "ExtractTask",
    "FinishReason",
    "ForkError",
    "GenerationConfig",
    "GenerationOptions",
    "GenerationRequest",
    "GenerationResponse",
    "HubError",
    "ImageError",
    "ImageWarning",
    "InputError",
    "KeptFileWarning",
    "Lfm2VlConfig",
    "Lfm2VlError",
    "Lfm2VlForConditionalGeneration",
    "Lfm2VlImageProcessor",
    "Lfm2VlImageProcessorFast",
    "Lfm2VlModel",
    "Lfm2VlProcessor",
    "Lfm3VlConfig",
    "Lfm3VlForConditionalGeneration",
    "Lfm3VlImageProcessor",
    "Lfm3VlModel",
    "Lfm3VlProcessor",
    "LoadCancelledError",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MemoryUse",
    "NotFiniteError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "Point",
    "PointTask",
    "PromptCache",
    "PromptError",
    "QueueFullError",
    "ReadTask",
    "Recipe",
    "Region",
    "Request",
    "ResponseFormat",
    "SourcePolicy",
    "Statistics",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TemplateError",
    "TextIteratorStreamer",
    "TextStreamer",
    "TokenizerError",
    "ToolCall",
    "ToolCallError",
    "ToolCallWarning",
    "TopLogprob",
    "TrainingOptions",
    "TrainingResult",
    "Video",
    "VisionCache",
    "WeightsError",
    "convert",
    "demo",
    "describe",
    "detect",
    "diagnose",
    "draw_boxes",
    "draw_points",
    "explain",
    "extract",
    "finetune",
    "fuse",
    "generate",
    "generate_batch",
    "load",
    "load_draft",
    "load_image",
    "load_video",
    "parse_tool_calls",
    "point",
    "read",
    "recipe_of",
    "set_seed",
    "stream_generate",
    "to_coco",
]
_HOMES = {
    "backends": ("BackendError",),
    "compat.auto_models": ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
    "compat.auto_processors": ("AutoConfig", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer"),
    "compat.batch_feature": ("BatchFeature",),
    "compat.configuration": ("Lfm2VlConfig",),
    "compat.generation_config": ("GenerationConfig",),
    "compat.logits_process": ("LogitsProcessorList",),
    "compat.lfm3_models": ("Lfm3VlForConditionalGeneration", "Lfm3VlModel"),
    "compat.lfm3_processors": ("Lfm3VlConfig", "Lfm3VlImageProcessor", "Lfm3VlProcessor"),
    "compat.models": ("Lfm2VlForConditionalGeneration", "Lfm2VlModel"),
    "compat.processors": ("Lfm2VlImageProcessor", "Lfm2VlImageProcessorFast", "Lfm2VlProcessor"),
    "compat.seed": ("set_seed",),
    "compat.stopping": ("StoppingCriteria", "StoppingCriteriaList"),
    "compat.streamers": ("TextIteratorStreamer", "TextStreamer"),
    "constraints.response_format": ("ResponseFormat",),
    "conversion.convert": ("convert",),
    "conversion.fuse": ("fuse",),
    "doctor.checks": ("diagnose",),
    "errors": tuple(name for name in __all__ if name.endswith(("Error", "Warning")) and name != "BackendError"),
    "generation.batch": ("generate_batch",),
    "generation.chat": ("Chat",),
    "engine.chat": ("EngineChat",),
    "engine.engine": ("Engine", "MemoryUse"),
    "generation.vision_cache": ("VisionCache",),
    "generation.draft_model": ("DraftModel",),
    "generation.logits_process": ("LogitsProcessor",),
    "generation.options": ("GenerationOptions",),
    "generation.prompt_cache": ("PromptCache",),
    "engine.handle": ("Request",),
    "generation.request": ("GenerationRequest",),
    "generation.response": ("Completion", "FinishReason", "GenerationResponse", "Statistics", "TopLogprob"),
    "generation.speculation": ("Draft",),
    "generation.stream": ("generate", "stream_generate"),
    "generation.tool_call_reader": ("ToolCall", "parse_tool_calls"),
    "explanation.explain": ("explain",),
    "explanation.explanation": ("Explanation",),
    "models.dspark": ("DSparkDraftModel",),
    "pretrained": ("load", "load_draft"),
    "processing.fetch": ("SourcePolicy",),
    "processing.load_image": ("load_image",),
    "processing.video": ("Video", "load_video"),
    "tasks.boxes": ("DetectTask", "PointTask"),
    "tasks.description": ("DescribeTask",),
    "tasks.drawing": ("draw_boxes", "draw_points"),
    "tasks.export": ("to_coco",),
    "tasks.extraction": ("ExtractTask",),
    "tasks.reading": ("ReadTask",),
    "tasks.recipes": ("RECIPES", "Recipe"),
    "tasks.results": ("Box", "Point", "Region"),
    "tasks.run": ("describe", "detect", "extract", "point", "read", "recipe_of"),
    "training.finetune": ("TrainingResult", "finetune"),
    "training.options": ("TrainingOptions",),
}
_WITHOUT_MLX = str.split(  # the modules that do not import it
    "backends compat.auto_processors compat.batch_feature compat.configuration compat.generation_config"
    " compat.lfm3_processors compat.processors compat.stopping compat.streamers constraints.response_format errors"
    " explanation.explanation generation.options generation.speculation generation.tool_call_reader processing.fetch"
    " processing.load_image processing.video tasks.drawing tasks.export tasks.recipes tasks.results training.options"
)
_HOME = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # for a type checker, a name that is not above is an error

    def __getattr__(name: str) -> Any:
        if name == "demo":
            return import_module(".demo", __name__)
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if _HOME[name] not in _WITHOUT_MLX:
            import_module(".backends", __name__).require()
        globals()[name] = value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
