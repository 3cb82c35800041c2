"""The random checkpoint of LFM3-VL, made as that of LFM2-VL is (`checkpoint`): all kinds of its layers, heads of 64,
and prompts that are longer than its window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..config import config_of
from ..models.families import NETWORKS
from ..weights.names import from_module, is_conv_kernel, parameters
from . import checkpoint
from .checkpoint import IMAGE_TOKEN, VOCABULARY, Prompts, matrix, vector

CONFIG: dict[str, Any] = {
    "architectures": ["Lfm3VlForConditionalGeneration"],
    "model_type": "lfm3_vl",
    "dtype": "bfloat16",
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": IMAGE_TOKEN - 1,
    "vision_start_token_id": IMAGE_TOKEN - 2,
    "vision_end_token_id": IMAGE_TOKEN - 3,
    "projector_hidden_size": 256,
    "text_config": {
        "model_type": "lfm3",
        "bos_token_id": 1,
        "eos_token_id": 7,
        "pad_token_id": 0,
        "head_dim": 64,
        "hidden_size": 512,
        "intermediate_size": 512,
        "layer_types": ["conv", "sliding_attention", "conv", "full_attention"],
        "max_position_embeddings": 32768,
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "sliding_window": 24,
        "vocab_size": VOCABULARY,
    },
    "vision_config": {
        "model_type": "lfm3_vl_vision",
        "hidden_size": 128,
        "intermediate_size": 256,
        "layer_types": ["conv", "full_attention"],
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
    },
}


def prompts() -> Prompts:
    """The prompts, the same on each machine."""
    return checkpoint.prompts(2 * 768)


def tensors() -> dict[str, np.ndarray]:
    """The weights as float32, by the names that published checkpoints have. The shapes are those of the network, which
    holds no arrays."""
    config = config_of(CONFIG)
    made: dict[str, np.ndarray] = {}
    for name, array in parameters(NETWORKS[type(config)](config)).items():
        stored, shape = from_module(name, "hub"), tuple(array.shape)
        if is_conv_kernel(name):
            shape = (shape[0], 1, *shape[1:-1])
        if len(shape) == 1:
            made[stored] = vector(stored, shape[0], 0.0 if name.endswith("bias") else 1.0)
        else:
            gain = 3.2 if name.endswith("embed_tokens.weight") else 1.2
            made[stored] = matrix(stored, (shape[0], math.prod(shape[1:])), gain).reshape(shape)
    return made
