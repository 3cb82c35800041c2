"""Small seeded random checkpoints in the layouts of the public ones.

gen2    LFM2-VL: `rope_theta`, `block_ff_dim` with the automatic adjustment, grouped queries 4/2, a projector with
        LayerNorm, the tower under `vision_tower.vision_model`; processor split over two files, bicubic, 16..64 tokens,
        128-pixel tiles; the tokenizer adds a BOS on its own.
gen25   LFM2.5-VL: `rope_parameters`, `intermediate_size` without adjustment, one key-value head, no LayerNorm; the
        processor nested in processor_config.json, bilinear, the published limits (64..256 tokens, 512-pixel tiles);
        no BOS added.
untied  as transformers saves a fine-tune: its own output head, the tower directly under `vision_tower`, 1..10 tiles;
        and what no public checkpoint uses though the configuration allows it: biases in the short convolution, none in
        the projector.

Weights come from NumPy's generator, so that they do not depend on the version of torch. Their scale is chosen so that
every part matters: logits of several units, norms and biases away from one and zero.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from .tokenizer import SPECIAL_IDS, write_tokenizer

NAMES = ("gen2", "gen25", "untied")
SEEDS = {"gen2": 20, "gen25": 25, "untied": 31}

_VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-06,
    "model_type": "siglip2_vision_model",
    "num_channels": 3,
    "num_patches": 256,
    "patch_size": 16,
    "vision_use_head": False,
}
_TEXT: dict[str, Any] = {
    "block_ffn_dim_multiplier": 1.0,
    "conv_L_cache": 3,
    "conv_bias": False,
    "eos_token_id": SPECIAL_IDS["<|im_end|>"],
    "initializer_range": 0.02,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "use_cache": True,
}
_TOP: dict[str, Any] = {
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "downsample_factor": 2,
    "image_token_id": SPECIAL_IDS["<image>"],
    "model_type": "lfm2_vl",
    "projector_hidden_act": "gelu",
}
_SMALL_LIMITS: dict[str, Any] = {"min_image_tokens": 16, "max_image_tokens": 64, "tile_size": 128}
_PUBLISHED_LIMITS: dict[str, Any] = {"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512}
_TILING: dict[str, Any] = {
    "do_image_splitting": True,
    "encoder_patch_size": 16,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_tiles": 2,
    "use_thumbnail": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gen2": _TOP
    | _TILING
    | _SMALL_LIMITS
    | {
        "projector_bias": True,
        "projector_hidden_size": 56,
        "torch_dtype": "float32",
        "text_config": _TEXT
        | {
            "block_auto_adjust_ff_dim": True,
            "block_dim": 64,
            "block_ff_dim": 120,
            "block_multiple_of": 32,
            "block_norm_eps": 1e-05,
            "block_use_swiglu": True,
            "conv_dim": 64,
            "conv_dim_out": 64,
            "hidden_size": 64,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "max_position_embeddings": 128000,
            "num_attention_heads": 4,
            "num_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_embedding": True,
            "torch_dtype": "float32",
            "vocab_size": 832,
        },
        "vision_config": _VISION
        | {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 3, "num_hidden_layers": 3},
    },
    "gen25": _TOP
    | _TILING
    | _PUBLISHED_LIMITS
    | {
        "dtype": "float32",
        "eos_token_id": SPECIAL_IDS["<|im_end|>"],
        "projector_bias": True,
        "projector_hidden_size": 72,
        "projector_use_layernorm": False,
        "text_config": _TEXT
        | {
            "block_auto_adjust_ff_dim": False,
            "dtype": "float32",
            "hidden_size": 64,
            "intermediate_size": 88,
            "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
            "max_position_embeddings": 32768,
            "num_attention_heads": 4,
            "num_hidden_layers": 5,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "vocab_size": 848,
        },
        "vision_config": _VISION
        | {"hidden_size": 40, "intermediate_size": 72, "num_attention_heads": 4, "num_hidden_layers": 2},
    },
    "untied": _TOP
    | {
        "projector_bias": False,
        "projector_hidden_size": 48,
        "projector_use_layernorm": True,
        "tie_word_embeddings": False,
        "text_config": _TEXT
        | {
            "block_auto_adjust_ff_dim": False,
            "conv_bias": True,
            "hidden_size": 48,
            "intermediate_size": 80,
            "layer_types": ["full_attention", "conv", "full_attention"],
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "num_key_value_heads": 3,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "vocab_size": 800,
        },
        "vision_config": _VISION
        | {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2},
    },
}
_PIXELS: dict[str, Any] = {
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "downsample_factor": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 512, "width": 512},
}
# `do_resize: false` and a `max_num_patches` that nobody reads are in published files; neither may be obeyed.
IMAGE_PROCESSORS: dict[str, dict[str, Any]] = {
    "gen2": _PIXELS | _TILING | _SMALL_LIMITS | {"do_resize": False, "max_num_patches": 1024, "resample": 3},
    "gen25": _PIXELS | _TILING | _PUBLISHED_LIMITS | {"do_resize": True, "max_num_patches": 1024, "resample": 2},
    "untied": _PIXELS | _TILING | _SMALL_LIMITS | {"do_resize": True, "min_tiles": 1, "resample": 3},
}


def write_checkpoint(name: str, folder: Path) -> None:
    """Writes checkpoint `name` (of NAMES) into `folder`."""
    write_like(name, folder, CONFIGS[name], IMAGE_PROCESSORS[name], SEEDS[name])


def write_like(name: str, folder: Path, config: dict[str, Any], image_processor: dict[str, Any], seed: int) -> None:
    """Writes a checkpoint of any size with the layout, names, tokenizer and template of `name` (of NAMES)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig.from_pretrained(folder)).eval()
    set_weights(model, seed)
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    if name == "untied":
        model.config.save_pretrained(folder)
    else:
        del tensors["lm_head.weight"]
        tensors = {k.replace(".vision_tower.", ".vision_tower.vision_model."): v for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    write_tokenizer(name, config["text_config"]["vocab_size"], folder)
    processor: dict[str, Any] = {"processor_class": "Lfm2VlProcessor"}
    if name == "gen2":
        write_json(folder / "preprocessor_config.json", image_processor | processor)
        write_json(folder / "processor_config.json", processor | {"use_image_special_tokens": True})
    else:
        write_json(folder / "processor_config.json", {"image_processor": image_processor} | processor)


def set_weights(model: torch.nn.Module, seed: int) -> None:
    """Random weights of a scale at which every part matters, as said above."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = rng.standard_normal(tuple(parameter.shape), np.float32)
            if name.endswith("embed_tokens.weight"):
                values *= np.float32(3.2 / math.sqrt(parameter.shape[1]))
            elif name.endswith("position_embedding.weight"):
                values *= np.float32(0.6)
            elif parameter.ndim > 1:
                values *= np.float32(1.2 / math.sqrt(math.prod(parameter.shape[1:])))
            else:
                values = np.float32(0.0 if name.endswith("bias") else 1.0) + np.float32(0.2) * values
            parameter.copy_(torch.from_numpy(values))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whose keys are sorted."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
