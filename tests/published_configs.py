"""The config.json of every published generation."""

import copy
from typing import Any

ATTENTION_16 = (2, 5, 8, 10, 12, 14)
ATTENTION_30 = (2, 5, 9, 13, 17, 21, 24, 27)


def layer_types(count: int, attention: tuple[int, ...]) -> list[str]:
    return ["full_attention" if i in attention else "conv" for i in range(count)]


def vision(hidden: int, layers: int, heads: int, mlp: int) -> dict[str, Any]:
    return {
        "model_type": "siglip2_vision_model",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "num_channels": 3,
        "patch_size": 16,
        "num_patches": 256,
        "vision_use_head": False,
    }


BASE = vision(768, 12, 12, 3072)
LARGE = vision(1152, 27, 16, 4304)


def text(hidden: int, heads: int, layers: int, **rest: Any) -> dict[str, Any]:
    return {
        "model_type": "lfm2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "layer_types": layer_types(layers, ATTENTION_16 if layers == 16 else ATTENTION_30),
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "conv_L_cache": 3,
        "conv_bias": False,
        "vocab_size": 65536,
        "initializer_range": 0.02,
        "use_cache": True,
        **rest,
    }


def blocks(width: int, adjust: bool) -> dict[str, Any]:
    """The `block_*` family of LFM2's own configuration."""
    return {
        "block_ff_dim": width,
        "block_auto_adjust_ff_dim": adjust,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "conv_use_xavier_init": True,
        "use_pos_enc": True,
    }


TILING = {
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "tile_size": 512,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "encoder_patch_size": 16,
    "max_pixels_tolerance": 2.0,
    "use_image_special_tokens": True,
}
CUSTOM_CODE = {
    "model_type": "lfm2-vl",
    "auto_map": {
        "AutoConfig": "configuration_lfm2_vl.Lfm2VlConfig",
        "AutoModelForImageTextToText": "modeling_lfm2_vl.Lfm2VlForConditionalGeneration",
    },
    "image_token_index": 396,
    "torch_dtype": "bfloat16",
    "downsample_factor": 2,
    "projector_hidden_size": 2560,
    "projector_hidden_act": "gelu",
    "projector_bias": True,
    "max_num_patches": 1024,
    **TILING,
}
PORT = {
    "model_type": "lfm2_vl",
    "image_token_id": 396,
    "torch_dtype": "bfloat16",
    "downsample_factor": 2,
    "projector_hidden_size": 2560,
    "projector_hidden_act": "gelu",
    "projector_bias": True,
    "tie_word_embeddings": True,
    **TILING,
}
LFM25 = {
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "model_type": "lfm2_vl",
    "image_token_id": 396,
    "dtype": "bfloat16",
    "downsample_factor": 2,
    "projector_hidden_size": 2048,
    "projector_hidden_act": "gelu",
    "projector_bias": True,
    "projector_use_layernorm": False,
    **TILING,
}
ROPE = {"rope_theta": 1000000.0}
ROPE_PARAMETERS = {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
GENERATIONS: dict[str, dict[str, Any]] = {
    "LFM2-VL-450M, custom code": {
        **CUSTOM_CODE,
        "vision_feature_layer": -1,
        "vision_config": BASE,
        "text_config": text(1024, 16, 16, eos_token_id=7, **ROPE, **blocks(6656, True)),
    },
    "LFM2-VL-1.6B, custom code": {
        **CUSTOM_CODE,
        "vision_feature_layer": -2,
        "vision_config": LARGE,  # 27 here, 26 in the weights, which decide
        "text_config": text(2048, 32, 16, eos_token_id=7, **ROPE, **blocks(12288, True)),
    },
    "LFM2-VL-450M": {
        **PORT,
        "vision_config": BASE,
        "text_config": text(1024, 16, 16, eos_token_id=7, **ROPE, **blocks(6656, True)),
    },
    "LFM2-VL-1.6B": {
        **PORT,
        "vision_config": {**LARGE, "num_hidden_layers": 26},
        "text_config": text(2048, 32, 16, eos_token_id=7, **ROPE, **blocks(12288, True)),
    },
    "LFM2-VL-3B": {
        **PORT,
        "projector_hidden_size": 2048,
        "projector_use_layernorm": True,
        "vision_config": LARGE,
        "text_config": text(2048, 32, 30, eos_token_id=7, **ROPE, **blocks(10752, False)),
    },
    "LFM2.5-VL-450M": {
        **LFM25,
        "vision_config": BASE,
        "text_config": text(
            1024,
            16,
            16,
            eos_token_id=7,
            intermediate_size=6656,
            num_heads=16,
            block_dim=1024,
            block_norm_eps=1e-5,
            **ROPE_PARAMETERS,
            **blocks(6656, True),
        ),
    },
    "LFM2.5-VL-1.6B": {
        **LFM25,
        "vision_config": LARGE,
        "text_config": text(
            2048, 32, 16, eos_token_id=7, intermediate_size=12288, **ROPE_PARAMETERS, **blocks(12288, True)
        ),
    },
    "LFM2.5-VL-3B": {
        **LFM25,
        "image_token_id": 124907,
        "eos_token_id": 124900,
        "bos_token_id": 124894,
        "pad_token_id": 124893,
        "tie_word_embeddings": None,
        "vision_config": LARGE,
        "text_config": text(
            2048,
            32,
            30,
            intermediate_size=10752,
            block_auto_adjust_ff_dim=False,
            **ROPE_PARAMETERS,
        )
        | {"vocab_size": 128000, "max_position_embeddings": 32768},
    },
    "mlx-community, expanded by an early converter": {
        **CUSTOM_CODE,
        "vision_feature_layer": -2,
        "quantization": {"group_size": 64, "bits": 8},
        "quantization_config": {"group_size": 64, "bits": 8},
        "vision_config": {**LARGE, "top_k": 50, "do_sample": False, "is_decoder": False, "model_type": "lfm2_vl"},
        "text_config": text(
            2048,
            32,
            16,
            eos_token_id=7,
            temperature=1.0,
            num_beams=1,
            tie_word_embeddings=True,
            tie_embedding=True,
            _name_or_path="LFM2-1.2B",
            **ROPE,
            **blocks(12288, True),
        ),
    },
    "LiquidAI LFM2.5-VL-450M-MLX-4bit": {
        **LFM25,
        "model_type": "lfm2-vl",
        "quantization": {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
            "language_model.model.embed_tokens": {"group_size": 64, "bits": 6},
            "multi_modal_projector.linear_1": False,
        },
        "vision_config": {**BASE, "model_type": "lfm2_vl"},
        "text_config": text(
            1024, 16, 16, eos_token_id=7, intermediate_size=6656, **ROPE_PARAMETERS, **blocks(6656, True)
        ),
    },
}


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """A generation's config with fields replaced; `text__x` and `vision__x` reach into the sections."""
    data = copy.deepcopy(GENERATIONS[name])
    for field, value in fields.items():
        section, _, key = field.partition("__")
        if key:
            data[f"{section}_config"][key] = value
        else:
            data[field] = value
    return data
