"""The random checkpoint of LFM3-VL, made as that of LFM2-VL is (`checkpoint`): all kinds of its layers, heads of 64,
and prompts that are longer than its window."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checkpoint
from .checkpoint import IMAGE_TOKEN, VOCABULARY, Prompts

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
    """The weights as float32, by the names that transformers gives them."""
    return checkpoint.weights(CONFIG, str)
