"""The `Auto` classes of transformers that need no MLX: configuration and processors of a checkpoint, by its name.

Its config.json says the family; of a folder without one, which has a processor alone, `processor_class` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import CausalLMConfig, Lfm2VlConfig, Lfm3VlConfig, ModelConfig, config_in, read_json
from ..hub import resolve
from . import configuration, lfm3_processors, processors
from .configuration import ConfigMethods
from .loading import place_of
from .processors import ImageProcessorMethods, Lfm2VlProcessor
from .tokenizer import Tokenizer

ALONE = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")


class Family(NamedTuple):
    """The classes of a family."""

    config: type[ConfigMethods]
    image_processor: type[ImageProcessorMethods]
    processor: type[Lfm2VlProcessor]


FAMILIES: dict[type[ModelConfig], Family] = {
    Lfm2VlConfig: Family(configuration.Lfm2VlConfig, processors.Lfm2VlImageProcessor, processors.Lfm2VlProcessor),
    Lfm3VlConfig: Family(
        lfm3_processors.Lfm3VlConfig, lfm3_processors.Lfm3VlImageProcessor, lfm3_processors.Lfm3VlProcessor
    ),
    CausalLMConfig: Family(configuration.CausalLMConfig, processors.TextOnlyImageProcessor, processors.TextProcessor),
}


def config_class(path_or_repo: str | os.PathLike[str], options: Mapping[str, Any]) -> type[ModelConfig]:
    """The kind of a checkpoint's configuration. `options`: those of `from_pretrained`. Raises `HubError`,
    `ConfigError`."""
    place, hub = place_of(path_or_repo, options)
    folder = resolve(place, patterns=("*.json", "*.jinja", "*.txt"), enough=ALONE, **hub)
    if (folder / "config.json").is_file():
        return type(config_in(folder))
    named = (read_json(folder / name).get("processor_class") for name in ALONE if (folder / name).is_file())
    return next(
        (kind for name in named for kind, own in FAMILIES.items() if name == own.processor.__name__), Lfm2VlConfig
    )


class AutoConfig:
    """The configuration of a checkpoint, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> ConfigMethods:
        """As `Lfm2VlConfig.from_pretrained`, of the checkpoint's family."""
        return FAMILIES[config_class(path_or_repo, options)].config.from_pretrained(path_or_repo, **options)


class AutoProcessor:
    """The processor of a checkpoint, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> Lfm2VlProcessor:
        """As `Lfm2VlProcessor.from_pretrained`, of the checkpoint's family."""
        return FAMILIES[config_class(path_or_repo, options)].processor.from_pretrained(path_or_repo, **options)


class AutoImageProcessor:
    """The image processor of a checkpoint, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> ImageProcessorMethods:
        """As `Lfm2VlImageProcessor.from_pretrained`, of the checkpoint's family."""
        return FAMILIES[config_class(path_or_repo, options)].image_processor.from_pretrained(path_or_repo, **options)


class AutoTokenizer:
    """The tokenizer of a checkpoint, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> Tokenizer:
        """As `Tokenizer.from_pretrained`."""
        return Tokenizer.from_pretrained(path_or_repo, **options)
