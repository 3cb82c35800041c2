"""The network of each family of checkpoints, by its configuration."""

from __future__ import annotations

from ..config import CausalLMConfig, Lfm2VlConfig, Lfm3VlConfig, ModelConfig
from .causal_lm import ForCausalLM
from .lfm2_vl import Lfm2VlForConditionalGeneration
from .lfm3_vl import Lfm3VlForConditionalGeneration

NETWORKS: dict[type[ModelConfig], type[Lfm2VlForConditionalGeneration]] = {
    Lfm2VlConfig: Lfm2VlForConditionalGeneration,
    Lfm3VlConfig: Lfm3VlForConditionalGeneration,
    CausalLMConfig: ForCausalLM,
}
