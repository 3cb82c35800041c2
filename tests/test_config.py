"""Configuration files of every published generation, normalised; values that make no sense, refused by name."""

import copy
import dataclasses
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import ConfigError, Lfm2VlConfig
from mlx_lfm2vl.config import (
    GenerationConfig,
    ImageProcessorConfig,
    Lfm2Config,
    ProcessorConfig,
    Siglip2VisionConfig,
    read_json,
)

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

# Published: rows of feed_forward.w1 and, for the checkpoints whose config tells the tower's true depth, parameters.
WIDTHS = {
    "LFM2-VL-450M, custom code": (4608, 450_822_656),
    "LFM2-VL-1.6B, custom code": (8192, None),
    "LFM2-VL-450M": (4608, 450_822_656),
    "LFM2-VL-1.6B": (8192, 1_584_804_000),
    "LFM2-VL-3B": (10752, 2_995_566_832),
    "LFM2.5-VL-450M": (4608, 448_718_848),
    "LFM2.5-VL-1.6B": (8192, 1_596_625_904),
    "LFM2.5-VL-3B": (10752, 3_123_483_888),
    "mlx-community, expanded by an early converter": (8192, None),
    "LiquidAI LFM2.5-VL-450M-MLX-4bit": (4608, 448_718_848),
}


def parameters(config: Lfm2VlConfig) -> int:
    """Parameters of a model with a tied head."""
    t, v = config.text_config, config.vision_config
    heads, kv = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    attention = 2 * t.hidden_size * (heads + kv) + 2 * t.head_dim
    conv = t.hidden_size * (4 * t.hidden_size + t.conv_L_cache)
    count = t.hidden_size * (t.vocab_size + 1)
    for kind in t.layer_types:
        count += 3 * t.hidden_size * t.feed_forward_size + 2 * t.hidden_size
        count += attention if kind == "full_attention" else conv
    d, m = v.hidden_size, v.intermediate_size
    count += d * (v.num_channels * v.patch_size**2 + 1) + d * v.num_patches + 2 * d
    count += v.num_hidden_layers * (4 * d + 4 * (d * d + d) + 2 * d * m + m + d)
    wide, inner = d * config.downsample_factor**2, config.projector_hidden_size
    count += 2 * wide if config.projector_use_layernorm else 0
    return count + inner * (wide + 1) + t.hidden_size * (inner + 1)


@pytest.mark.parametrize("name", GENERATIONS)
def test_feed_forward_width_and_size_are_the_published_ones(name):
    config = Lfm2VlConfig.from_dict(GENERATIONS[name])
    width, size = WIDTHS[name]
    assert config.text_config.feed_forward_size == width
    if size is not None:
        assert parameters(config) == size


@pytest.mark.parametrize("name", GENERATIONS)
def test_every_generation_means_the_same_fields(name):
    data = GENERATIONS[name]
    config = Lfm2VlConfig.from_dict(data)
    big = "3B" in name
    assert config.model_type == "lfm2_vl"
    assert config.image_token_id == (124907 if name == "LFM2.5-VL-3B" else 396)
    assert config.eos_token_ids == ((124900,) if name == "LFM2.5-VL-3B" else (7,))
    assert config.dtype == "bfloat16"
    assert config.projector_use_layernorm == ("2.5" not in name)
    assert config.projector_hidden_size == (2048 if "2.5" in name or big else 2560)
    assert config.tie_word_embeddings and config.downsample_factor == 2 and config.projector_bias
    assert config.text_config.rope_theta == 1e6
    assert config.text_config.head_dim == 64
    attention = tuple(i for i, kind in enumerate(config.text_config.layer_types) if kind == "full_attention")
    assert attention == (ATTENTION_30 if big else ATTENTION_16)
    assert config.vision_config.num_hidden_layers == data["vision_config"]["num_hidden_layers"]
    assert config.vision_config.position_table_side == 16
    assert (config.quantization or None) == data.get("quantization")


@pytest.mark.parametrize("name", GENERATIONS)
def test_written_and_read_again_is_the_same(name):
    config = Lfm2VlConfig.from_dict(GENERATIONS[name])
    written = json.loads(json.dumps(config.to_dict()))
    assert Lfm2VlConfig.from_dict(written) == config
    assert written["model_type"] == "lfm2_vl" and "rope_theta" not in written["text_config"]


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


def test_the_first_layout_lists_attention_layers_by_number():
    data = changed("LFM2-VL-450M", text__full_attn_idxs=list(ATTENTION_16))
    del data["text_config"]["layer_types"]
    assert Lfm2VlConfig.from_dict(data) == Lfm2VlConfig.from_dict(GENERATIONS["LFM2-VL-450M"])


def test_legacy_spellings_of_width_depth_and_norm():
    data = changed("LFM2-VL-450M", text__block_dim=1024, text__num_heads=16, text__block_norm_eps=1e-5)
    for name in ("hidden_size", "num_attention_heads", "norm_eps"):
        del data["text_config"][name]
    assert Lfm2VlConfig.from_dict(data) == Lfm2VlConfig.from_dict(GENERATIONS["LFM2-VL-450M"])


def test_image_token_index_wins_over_image_token_id():
    config = Lfm2VlConfig.from_dict(changed("LFM2-VL-450M", image_token_index=400, image_token_id=396))
    assert config.image_token_id == 400


def test_absent_fields_have_the_defaults_of_the_reference():
    config = Lfm2VlConfig.from_dict({"model_type": "lfm2_vl"})
    assert config == Lfm2VlConfig()
    assert (config.image_token_id, config.projector_hidden_size, config.projector_use_layernorm) == (396, 2560, True)
    assert (config.downsample_factor, config.projector_bias, config.tie_word_embeddings) == (2, True, True)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (768, 12)
    assert (config.text_config.hidden_size, config.text_config.intermediate_size) == (2560, 12288)
    assert config.projector_hidden_act == "gelu"


@pytest.mark.parametrize(
    ("top", "inner", "tied"),
    [(None, None, True), (None, False, False), (False, None, False), (True, None, True), (None, True, True)],
)
def test_tied_head_is_found_on_either_level(top, inner, tied):
    data = changed("LFM2.5-VL-450M", tie_word_embeddings=top, text__tie_embedding=inner)
    assert Lfm2VlConfig.from_dict(data).tie_word_embeddings is tied


def test_several_end_tokens():
    config = Lfm2VlConfig.from_dict(changed("LFM2-VL-450M", text__eos_token_id=[7, 2]))
    assert config.eos_token_ids == (7, 2)
    assert config.to_dict()["text_config"]["eos_token_id"] == [7, 2]


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"model_type": "qwen2_vl"}, "model_type", "'qwen2_vl'"),
        ({"model_type": None}, "model_type", "None"),
        ({"auto_map": {"AutoModel": "modeling_d1.D1Model"}}, "auto_map", "D1Model"),
        ({"image_token_id": -1}, "image_token_id", "-1"),
        ({"image_token_id": 65536}, "image_token_id", "65536"),
        ({"image_token_id": "396"}, "image_token_id", "'396'"),
        ({"downsample_factor": 0}, "downsample_factor", "0"),
        ({"projector_hidden_size": 1.5}, "projector_hidden_size", "1.5"),
        ({"projector_hidden_act": "tanhish"}, "projector_hidden_act", "'tanhish'"),
        ({"projector_bias": 1}, "projector_bias", "1"),
        ({"projector_use_layernorm": "no"}, "projector_use_layernorm", "'no'"),
        ({"vision_config": [1]}, "vision_config", "[1]"),
        ({"text_config": "lfm2"}, "text_config", "'lfm2'"),
        ({"quantization": 4}, "quantization", "4"),
        ({"vision__hidden_size": -768}, "hidden_size", "-768"),
        ({"vision__num_attention_heads": 7}, "num_attention_heads", "7"),
        ({"vision__num_patches": 255}, "num_patches", "255"),
        ({"vision__num_channels": 4}, "num_channels", "4"),
        ({"vision__layer_norm_eps": float("nan")}, "layer_norm_eps", "nan"),
        ({"vision__num_hidden_layers": 10**9}, "num_hidden_layers", "1000000000"),
        ({"text__num_key_value_heads": 5}, "num_key_value_heads", "5"),
        ({"text__num_attention_heads": 15}, "num_attention_heads", "15"),
        ({"text__norm_eps": 0}, "norm_eps", "0"),
        ({"text__rope_theta": -1.0}, "rope_theta", "-1.0"),
        ({"text__rope_theta": float("inf")}, "rope_theta", "inf"),
        ({"text__rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type", "'yarn'"),
        ({"text__layer_types": ["conv"] * 15}, "layer_types", "15"),
        ({"text__layer_types": ["conv"] * 15 + ["mamba"]}, "layer_types", "mamba"),
        ({"text__conv_L_cache": 1}, "conv_L_cache", "1"),
        ({"text__vocab_size": True}, "vocab_size", "True"),
        ({"text__eos_token_id": "7"}, "eos_token_id", "'7'"),
        ({"text__eos_token_id": []}, "eos_token_id", "[]"),
        ({"text__head_dim": 63}, "head_dim", "63"),
        ({"text__block_ff_dim": 2**40}, "block_ff_dim", str(2**40)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_nonsense_is_refused_with_its_name_and_value(fields, field, value):
    with pytest.raises(ConfigError) as caught:
        Lfm2VlConfig.from_dict(changed("LFM2-VL-450M", **fields), "some/config.json")
    message = str(caught.value)
    assert field in message and value in message and "config" in message
    assert "\n" not in message


def test_attention_layer_numbers_beyond_the_last_layer_are_refused():
    data = changed("LFM2-VL-450M", text__full_attn_idxs=[2, 16])
    del data["text_config"]["layer_types"]
    with pytest.raises(ConfigError, match=r"full_attn_idxs is \[2, 16\]"):
        Lfm2VlConfig.from_dict(data)


def test_constructor_takes_sections_as_mappings_as_the_reference_does():
    config = Lfm2VlConfig(vision_config=BASE, text_config=text(1024, 16, 16, **ROPE, **blocks(6656, True)))
    assert isinstance(config.vision_config, Siglip2VisionConfig) and isinstance(config.text_config, Lfm2Config)
    assert config.text_config.feed_forward_size == 4608
    with pytest.raises(ConfigError, match="projector_hidden_size is 0"):
        Lfm2VlConfig(projector_hidden_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.downsample_factor = 4


sizes = st.integers(1, 64)
probabilities = st.floats(1e-9, 1e3, allow_nan=False)


@st.composite
def text_configs(draw):
    heads = draw(st.integers(1, 6))
    layers = draw(st.integers(1, 6))
    adjust = draw(st.booleans())
    hidden = heads * draw(st.integers(1, 16))
    return Lfm2Config(
        vocab_size=draw(st.integers(500, 70000)),
        hidden_size=hidden,
        intermediate_size=draw(st.integers(8, 4096)),
        num_hidden_layers=layers,
        num_attention_heads=heads * draw(st.integers(1, 3)),
        num_key_value_heads=heads,
        head_dim=2 * draw(st.integers(1, 64)),
        max_position_embeddings=draw(st.integers(1, 2**20)),
        norm_eps=draw(probabilities),
        rope_theta=draw(st.floats(1, 1e9)),
        conv_bias=draw(st.booleans()),
        conv_L_cache=draw(st.integers(2, 8)),
        block_multiple_of=draw(st.integers(1, 512)),
        block_ffn_dim_multiplier=draw(st.none() | st.floats(0.5, 4)),
        block_auto_adjust_ff_dim=adjust,
        layer_types=tuple(
            draw(st.lists(st.sampled_from(("conv", "full_attention")), min_size=layers, max_size=layers))
        ),
        tie_word_embeddings=draw(st.booleans()),
        bos_token_id=draw(st.none() | st.integers(0, 499)),
        eos_token_id=draw(st.none() | st.lists(st.integers(0, 499), min_size=1, max_size=3).map(tuple)),
        pad_token_id=draw(st.none() | st.integers(0, 499)),
    )


@st.composite
def vision_configs(draw):
    heads = draw(st.integers(1, 8))
    return Siglip2VisionConfig(
        hidden_size=heads * draw(st.integers(1, 16)),
        intermediate_size=draw(sizes),
        num_hidden_layers=draw(sizes),
        num_attention_heads=heads,
        patch_size=draw(st.integers(1, 32)),
        num_patches=draw(st.integers(1, 32)) ** 2,
        hidden_act=draw(st.sampled_from(("gelu", "gelu_pytorch_tanh", "silu", "relu"))),
        layer_norm_eps=draw(probabilities),
    )


@st.composite
def configs(draw):
    text_config = draw(text_configs())
    return Lfm2VlConfig(
        vision_config=draw(vision_configs()),
        text_config=text_config,
        image_token_id=draw(st.integers(0, 499)),
        projector_hidden_act=draw(st.sampled_from(("gelu", "gelu_pytorch_tanh", "silu"))),
        projector_hidden_size=draw(sizes),
        projector_bias=draw(st.booleans()),
        projector_use_layernorm=draw(st.booleans()),
        downsample_factor=draw(st.integers(1, 8)),
        tie_word_embeddings=text_config.tie_word_embeddings,
        quantization=draw(st.none() | st.just({"group_size": 64, "bits": 4, "mode": "affine"})),
        dtype=draw(st.none() | st.sampled_from(("bfloat16", "float16", "float32"))),
    )


@given(configs())
@settings(deadline=None)
def test_any_configuration_survives_writing_and_reading(config):
    assert Lfm2VlConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {*GENERATIONS["LFM2.5-VL-450M"], *CUSTOM_CODE, "eos_token_id", "quantization", "tie_word_embeddings"}
    | {f"text__{key}" for key in [*GENERATIONS["LFM2.5-VL-450M"]["text_config"], "head_dim", "full_attn_idxs"]}
    | {f"vision__{key}" for key in BASE}
)


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
@settings(deadline=None, max_examples=300)
def test_whatever_stands_in_a_field_it_is_read_or_refused(fields):
    sections = {k: fields.pop(k) for k in ("text_config", "vision_config") if k in fields}
    data = {**changed("LFM2.5-VL-450M", **fields), **sections}
    try:
        config = Lfm2VlConfig.from_dict(data)
    except ConfigError as error:
        assert "config" in str(error)
    else:
        assert Lfm2VlConfig.from_dict(config.to_dict()) == config


def test_a_model_folder_is_read_from_disk(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GENERATIONS["LFM2.5-VL-3B"]), encoding="utf-8")
    assert Lfm2VlConfig.from_pretrained(tmp_path) == Lfm2VlConfig.from_dict(GENERATIONS["LFM2.5-VL-3B"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b'"lfm2"', b"\xff\xfe{}", b"[" * 100_000], ids=lambda c: repr(c[:8])
)
def test_unreadable_json_is_refused_with_the_file_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        ConfigError,
        match=r"config\.json: (cannot be read as JSON|holds|begins with a byte order mark; save it as UTF-8)",
    ):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"a": "' + b"x" * 2**24 + b'"}', "more than 16,777,216 bytes"),
        (b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\)"),
        (b"\xef\xbb\xbf{}", "byte order mark; save it as UTF-8 without one"),
    ],
    ids=["key twice", "half a character", "endless number", "endless file", "latin-1", "UTF-8 with a mark"],
)
def test_json_that_misleads_is_refused(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{says}") as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")  # would never end
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(is not a regular file\)"):
        read_json(tmp_path / "config.json")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_json(tmp_path / "zero")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_json(tmp_path)


def test_missing_json_is_refused_with_the_file_name(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        read_json(tmp_path / "config.json")


# --- generation_config.json ---------------------------------------------------------------------------------------


def test_generation_config_as_published_is_greedy():
    config = GenerationConfig.from_dict(
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
    )
    assert config == GenerationConfig(eos_token_ids=(7,), bos_token_id=1, pad_token_id=0)
    assert not config.do_sample and config.temperature is None


def test_generation_config_with_recommended_sampling():
    config = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05, "eos_token_id": [7, 2]}
    )
    assert (config.temperature, config.min_p, config.repetition_penalty) == (0.1, 0.15, 1.05)
    assert config.do_sample and config.eos_token_ids == (7, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("min_p", float("nan")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0),
        ("do_sample", "yes"),
        ("eos_token_id", -7),
    ],
)
def test_generation_config_refuses_nonsense(name, value):
    with pytest.raises(ConfigError, match=f"generation_config.json: {name} is"):
        GenerationConfig.from_dict({name: value})


# --- preprocessor_config.json and processor_config.json, variants A to F --------------------------------------------

LEGACY_POLICY = {
    "processor_class": "Lfm2VlProcessor",
    "downsample_factor": 2,
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "max_pixels_tolerance": 1.5,
    "max_num_patches": 1024,
    "use_image_special_tokens": True,
    "auto_map": {"AutoProcessor": "processing_lfm2_vl.Lfm2VlProcessor"},
}
SIGLIP = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Siglip2ImageProcessorFast",
    "input_data_format": "channels_last",
    "max_num_patches": 1024,
    "patch_size": 16,
    "processor_class": "Lfm2VlProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
NESTED = {
    "data_format": "channels_first",
    "do_image_splitting": True,
    "do_resize": True,
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "max_image_tokens": 256,
    "max_num_patches": 1024,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 1,
    "resample": 3,
    "return_row_col_info": True,
    "size": {"height": 512, "width": 512},
    "tile_size": 512,
    "use_thumbnail": True,
}


def test_variant_a_flat_policy_beside_a_siglip_file():
    config = ProcessorConfig.from_dicts(SIGLIP, LEGACY_POLICY)
    assert config.image == ImageProcessorConfig(max_pixels_tolerance=1.5, resample=3)
    assert config.use_image_special_tokens and config.notes == ()


def test_variant_b_one_flat_preprocessor_file():
    flat = {**SIGLIP, "image_processor_type": "Lfm2VlImageProcessorFast", "use_thumbnail": False}
    del flat["input_data_format"]
    config = ProcessorConfig.from_dicts(flat, None)
    assert config.image == ImageProcessorConfig(resample=3, use_thumbnail=False)


def test_variant_c_markup_in_one_file_and_pictures_in_the_other():
    config = ProcessorConfig.from_dicts(
        {**SIGLIP, "resample": 2}, {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": False}
    )
    assert config.image == ImageProcessorConfig(resample=2)
    assert not config.use_image_special_tokens


def test_variant_d_nested_and_it_wins_over_the_other_file():
    nested = {"image_processor": NESTED, "processor_class": "Lfm2VlProcessor"}
    assert ProcessorConfig.from_dicts(None, nested).image == ImageProcessorConfig(min_tiles=1, resample=3)
    both = ProcessorConfig.from_dicts({**SIGLIP, "resample": 2, "min_tiles": 3}, nested)
    assert both.image == ImageProcessorConfig(min_tiles=1, resample=3)


def test_variant_e_tiling_switched_off_by_a_converter_stays_on_and_is_said():
    off = {"image_processor": {**NESTED, "do_image_splitting": False, "use_thumbnail": False}}
    config = ProcessorConfig.from_dicts(None, off)
    assert config.image.do_image_splitting and config.image.use_thumbnail
    assert len(config.notes) == 1
    assert "do_image_splitting: false" in config.notes[0] and "--no-tiling" in config.notes[0]
    assert not config.image.with_overrides(do_image_splitting=False).do_image_splitting


def test_variant_f_a_wrong_patch_budget_is_derived_anew():
    config = ProcessorConfig.from_dicts({**SIGLIP, "max_num_patches": 256}, None)
    assert config.image.max_num_patches == 1024


def test_without_processor_files_the_model_config_is_used():
    config = ProcessorConfig.from_dicts(None, None, {**GENERATIONS["LFM2.5-VL-450M"], "max_tiles": 6})
    assert config.image == ImageProcessorConfig(max_tiles=6)
    assert ProcessorConfig.from_dicts().image == ImageProcessorConfig()


def test_processor_files_are_found_in_a_folder(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGLIP), encoding="utf-8")
    (tmp_path / "processor_config.json").write_text(json.dumps(LEGACY_POLICY), encoding="utf-8")
    assert ProcessorConfig.from_folder(tmp_path) == ProcessorConfig.from_dicts(SIGLIP, LEGACY_POLICY)


@pytest.mark.parametrize("splitting", [True, False])
def test_patch_budget_covers_a_tile_only_where_tiles_are_cut(splitting):
    config = ImageProcessorConfig(max_image_tokens=64, do_image_splitting=splitting)
    assert config.max_num_patches == (1024 if splitting else 256)


@given(
    st.builds(
        ImageProcessorConfig,
        do_image_splitting=st.just(True),
        min_tiles=st.integers(1, 4),
        max_tiles=st.integers(4, 12),
        use_thumbnail=st.booleans(),
        min_image_tokens=st.integers(1, 64),
        max_image_tokens=st.integers(64, 512),
        tile_size=st.integers(1, 32).map(lambda n: 32 * n),
        max_pixels_tolerance=st.floats(0.5, 4),
        resample=st.sampled_from((2, 3)),
        image_mean=st.tuples(*[st.floats(-1, 1)] * 3),
        image_std=st.tuples(*[st.floats(0.1, 1)] * 3),
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_any_picture_policy_survives_writing_and_reading(image, special):
    config = ProcessorConfig(image=image, use_image_special_tokens=special)
    assert ProcessorConfig.from_dicts(None, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("downsample_factor", 0),
        ("min_tiles", 11),
        ("max_tiles", 0),
        ("max_tiles", "10"),
        ("min_image_tokens", 257),
        ("max_image_tokens", 0),
        ("max_image_tokens", 10**12),
        ("tile_size", 500),
        ("encoder_patch_size", -16),
        ("resample", 1),
        ("max_pixels_tolerance", float("nan")),
        ("max_pixels_tolerance", 0),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", 0.5),
        ("use_thumbnail", "true"),
        ("rescale_factor", -1),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_name_and_value(name, value):
    with pytest.raises(ConfigError) as caught:
        ProcessorConfig.from_dicts({**LEGACY_POLICY, name: value}, None)
    assert f"{name} is" in str(caught.value) and str(value if not isinstance(value, list) else value[0]) in str(
        caught.value
    )


def test_an_unknown_override_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no option 'max_tokens'; there are .*max_image_tokens"):
        ImageProcessorConfig().with_overrides(max_tokens=3)


def test_an_override_of_none_keeps_what_the_checkpoint_says():
    config = ImageProcessorConfig(max_tiles=6)
    assert config.with_overrides(max_tiles=None, min_tiles=3) == ImageProcessorConfig(max_tiles=6, min_tiles=3)


def test_a_budget_beyond_the_other_takes_it_along():
    config = ImageProcessorConfig(min_image_tokens=64, max_image_tokens=256)
    assert config.with_overrides(max_image_tokens=32).min_image_tokens == 32
    assert config.with_overrides(min_image_tokens=300).max_image_tokens == 300
    with pytest.raises(ConfigError, match="min_image_tokens is 9"):
        config.with_overrides(min_image_tokens=9, max_image_tokens=8)


def test_tiling_that_was_switched_off_here_stays_off():
    chosen = ProcessorConfig(image=ImageProcessorConfig(do_image_splitting=False, use_thumbnail=False))
    again = ProcessorConfig.from_dicts(processor=chosen.to_dict())
    assert again == chosen and again.notes == ()


def test_a_dtype_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"dtype is \[1\], expected a text"):
        Lfm2VlConfig.from_dict({"model_type": "lfm2_vl", "dtype": [1]})
