"""config.json of every published generation, normalised; values that make no sense, refused by name."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import ATTENTION_16, ATTENTION_30, BASE, CUSTOM_CODE, GENERATIONS, ROPE, blocks, changed, text

from mlx_lfm2vl import ConfigError, Lfm2VlConfig
from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig

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


def test_a_dtype_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"dtype is \[1\], expected a text"):
        Lfm2VlConfig.from_dict({"model_type": "lfm2_vl", "dtype": [1]})


def test_constructor_takes_sections_as_mappings_as_the_reference_does():
    config = Lfm2VlConfig(
        vision_config=BASE,  # type: ignore[arg-type]
        text_config=text(1024, 16, 16, **ROPE, **blocks(6656, True)),  # type: ignore[arg-type]
    )
    assert isinstance(config.vision_config, Siglip2VisionConfig) and isinstance(config.text_config, Lfm2Config)
    assert config.text_config.feed_forward_size == 4608
    with pytest.raises(ConfigError, match="projector_hidden_size is 0"):
        Lfm2VlConfig(projector_hidden_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.downsample_factor = 4  # type: ignore[misc]


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
