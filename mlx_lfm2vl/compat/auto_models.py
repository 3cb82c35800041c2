"""The `Auto` classes of transformers for models: the model of a checkpoint, by its name."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx

from ..backends.thread_state import computing
from ..config import CausalLMConfig, Lfm2VlConfig, Lfm3VlConfig, ModelConfig
from ..errors import OptionError
from .auto_processors import config_class
from .lfm3_models import Lfm3VlForConditionalGeneration
from .models import ForCausalLM, Lfm2VlForConditionalGeneration, Lfm2VlModel

MODELS: dict[type[ModelConfig], type[Lfm2VlForConditionalGeneration]] = {
    Lfm2VlConfig: Lfm2VlForConditionalGeneration,
    Lfm3VlConfig: Lfm3VlForConditionalGeneration,
    CausalLMConfig: ForCausalLM,
}


class AutoModel:
    """The model of a checkpoint without its head, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> Lfm2VlModel:
        """As `Lfm2VlModel.from_pretrained`, of the checkpoint's family."""
        return MODELS[config_class(path_or_repo, options)].model_class.from_pretrained(path_or_repo, **options)


class AutoModelForImageTextToText:
    """The model of a checkpoint, by its name."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> Lfm2VlForConditionalGeneration:
        """As `Lfm2VlForConditionalGeneration.from_pretrained`, of the checkpoint's family."""
        return MODELS[config_class(path_or_repo, options)].from_pretrained(path_or_repo, **options)

    @staticmethod
    @computing
    def from_config(config: Any) -> Lfm2VlForConditionalGeneration:
        """A model with random weights. Raises `OptionError` for what is no configuration."""
        made = next((each for base, each in MODELS.items() if isinstance(config, base)), None)
        if made is None:
            names = ", ".join(base.__name__ for base in MODELS)
            raise OptionError(f"config is {type(config).__name__}, expected one of {names}")
        model = made(config)
        mx.eval(model.parameters())
        return model


AutoModelForMultimodalLM = AutoModelForImageTextToText  # another name of it, which transformers 5 has
