"""Liquid AI's LFM2-VL and LFM2.5-VL vision-language models in MLX.

The names below are the public interface. Each is imported when it is first used, so that `import mlx_lfm2vl` costs
nothing and a program that only processes pictures never starts MLX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import demo
    from .backend import BackendError
    from .config import Lfm2VlConfig
    from .conversion.convert import convert
    from .errors import (
        ConfigError,
        HubError,
        ImageError,
        InputError,
        Lfm2VlError,
        OptionError,
        OutputError,
        PromptError,
        TemplateError,
        TokenizerError,
        WeightsError,
    )
    from .generation.options import GenerationOptions
    from .generation.stream import GenerationPiece, Statistics, generate, stream_generate
    from .pretrained import Lfm2VlForConditionalGeneration, Lfm2VlModel, load
    from .processing.image import Lfm2VlImageProcessor, Lfm2VlImageProcessorFast
    from .processing.processor import Lfm2VlProcessor

__all__ = [
    "BackendError",
    "ConfigError",
    "GenerationOptions",
    "GenerationPiece",
    "HubError",
    "ImageError",
    "InputError",
    "Lfm2VlConfig",
    "Lfm2VlError",
    "Lfm2VlForConditionalGeneration",
    "Lfm2VlImageProcessor",
    "Lfm2VlImageProcessorFast",
    "Lfm2VlModel",
    "Lfm2VlProcessor",
    "OptionError",
    "OutputError",
    "PromptError",
    "Statistics",
    "TemplateError",
    "TokenizerError",
    "WeightsError",
    "convert",
    "demo",
    "generate",
    "load",
    "stream_generate",
]

_HOMES = {
    "backend": ("BackendError",),
    "config": ("Lfm2VlConfig",),
    "conversion.convert": ("convert",),
    "errors": (
        "ConfigError",
        "HubError",
        "ImageError",
        "InputError",
        "Lfm2VlError",
        "OptionError",
        "OutputError",
        "PromptError",
        "TemplateError",
        "TokenizerError",
        "WeightsError",
    ),
    "generation.options": ("GenerationOptions",),
    "generation.stream": ("GenerationPiece", "Statistics", "generate", "stream_generate"),
    "pretrained": ("Lfm2VlForConditionalGeneration", "Lfm2VlModel", "load"),
    "processing.image": ("Lfm2VlImageProcessor", "Lfm2VlImageProcessorFast"),
    "processing.processor": ("Lfm2VlProcessor",),
}
_COMPUTING = ("conversion.convert", "generation.stream", "pretrained")  # import MLX
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "demo":
        return import_module(".demo", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name] in _COMPUTING:
        import_module(".backend", __name__).require()
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
