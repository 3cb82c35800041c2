"""Corrections of published files: numbers that a configuration states wrongly, tensors that nothing uses."""

from __future__ import annotations

from dataclasses import replace

from ..config import Lfm2Config, Lfm2VlConfig, ModelConfig
from .files import TensorInfo
from .head import EMBEDDINGS, HEAD

TOWER_LAYERS = "model.vision_tower.encoder.layers."


def fit_config(config: ModelConfig, tensors: dict[str, TensorInfo]) -> ModelConfig:
    """The configuration with the two numbers that published files state wrongly taken from the weights: the layers of
    the tower (LFM2-VL-1.6B has 26, its early configurations say 27, with or without `vision_feature_layer` -2) and the
    width of the feed-forward. Those of LFM3 state none wrongly."""
    if isinstance(config, Lfm2VlConfig):
        config = _fit_tower(config, tensors)
    first = tensors.get("model.language_model.layers.0.feed_forward.w1.weight")
    text = config.text_config
    if not isinstance(text, Lfm2Config) or first is None or len(first.shape) != 2:
        return config
    if first.shape[0] in (0, text.feed_forward_size):
        return config
    text = replace(text, intermediate_size=first.shape[0], block_auto_adjust_ff_dim=False)
    return replace(config, text_config=text)  # type: ignore[arg-type]


def _fit_tower(config: Lfm2VlConfig, tensors: dict[str, TensorInfo]) -> Lfm2VlConfig:
    indices = {
        int(name[len(TOWER_LAYERS) :].split(".")[0])
        for name in tensors
        if name.startswith(TOWER_LAYERS) and name[len(TOWER_LAYERS) :].split(".")[0].isdigit()
    }
    stated = config.vision_config.num_hidden_layers
    lacks_one = config.vision_feature_layer == -2 or stated == 27
    if lacks_one and indices == set(range(stated - 1)):
        return replace(config, vision_config=replace(config.vision_config, num_hidden_layers=stated - 1))
    return config


def drop_unused(config: ModelConfig, tensors: dict[str, TensorInfo]) -> list[str]:
    """Removes what some published files hold and the computation does not use: a LayerNorm of the projector that the
    configuration switches off, a head that is the embeddings. Returns the names of what is lost so."""
    stale = [name for name in tensors if name.startswith("model.multi_modal_projector.layer_norm.")]
    stale = stale if isinstance(config, Lfm2VlConfig) and not config.projector_use_layernorm else []
    tied = [name for name in tensors if config.tie_word_embeddings and name.startswith(HEAD)]
    tied = [name for name in tied if EMBEDDINGS + name[len(HEAD) :] in tensors]
    for name in (*stale, *tied):
        del tensors[name]
    return stale
