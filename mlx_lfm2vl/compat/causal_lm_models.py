"""The model classes of text models; what they can is that of LFM2-VL's."""

from __future__ import annotations

from ..models import causal_lm
from . import models
from .causal_lm_processors import CausalLMConfig


class CausalLMModel(models.Lfm2VlModel, causal_lm.CausalLMModel):
    """The backbone without its head; see `models.causal_lm`. Arrays as those of `Lfm2VlModel`."""

    config_class = CausalLMConfig


class ForCausalLM(models.Lfm2VlForConditionalGeneration, causal_lm.ForCausalLM):
    """The model with its head; see `models.causal_lm`. Arrays as those of `Lfm2VlModel`."""

    config_class = CausalLMConfig
    model_class = CausalLMModel
