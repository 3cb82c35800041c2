"""The table of names against the public models: counts of tensors and parameters, both ways through every layout."""

import pytest
from mlx.utils import tree_flatten

from mlx_lfm2vl.config import Lfm2VlConfig
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.names import LAYOUTS, from_module, to_module

SIXTEEN, THIRTY = [2, 5, 8, 10, 12, 14], [2, 5, 9, 13, 17, 21, 24, 27]
SMALL_TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE_TOWER = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}

# name: text hidden, attention layers, ff, adjusted, vocabulary, tower, projector, LayerNorm; tensors, parameters
PUBLIC = {
    "LFM2-VL-450M": (1024, SIXTEEN, 6656, True, 65536, SMALL_TOWER, 2560, True, 351, 450_822_656),
    "LFM2-VL-1.6B": (
        *(2048, SIXTEEN, 12288, True, 65536, {**LARGE_TOWER, "num_hidden_layers": 26}, 2560, True),
        *(575, 1_584_804_000),
    ),
    "LFM2-VL-3B": (2048, THIRTY, 10752, False, 65536, LARGE_TOWER, 2048, True, 709, 2_995_566_832),
    "LFM2.5-VL-450M": (1024, SIXTEEN, 6656, True, 65536, SMALL_TOWER, 2048, False, 349, 448_718_848),
    "LFM2.5-VL-1.6B": (2048, SIXTEEN, 12288, True, 65536, LARGE_TOWER, 2048, False, 589, 1_596_625_904),
    "LFM2.5-VL-3B": (2048, THIRTY, 10752, False, 128_000, LARGE_TOWER, 2048, False, 707, 3_123_483_888),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_have_their_published_tensors(name):
    hidden, attention, ff, adjusted, vocabulary, tower, projector, norm, tensors, parameters = PUBLIC[name]
    config = Lfm2VlConfig.from_dict(
        {
            "model_type": "lfm2_vl",
            "projector_hidden_size": projector,
            "projector_use_layernorm": norm,
            "vision_config": tower,
            "text_config": {
                "hidden_size": hidden,
                "num_hidden_layers": 30 if attention is THIRTY else 16,
                "num_attention_heads": hidden // 64,
                "num_key_value_heads": 8,
                "vocab_size": vocabulary,
                "block_ff_dim": ff,
                "block_auto_adjust_ff_dim": adjusted,
                "full_attn_idxs": attention,
            },
        }
    )
    # MLX makes arrays when they are read, so a model of any size can be built and asked for its shapes.
    flat = dict(tree_flatten(Lfm2VlForConditionalGeneration(config).parameters()))
    assert len(flat) == tensors
    assert sum(array.size for array in flat.values()) == parameters
    for layout in LAYOUTS:
        assert {to_module(from_module(module, layout)) for module in flat} == set(flat)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.language_model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("language_model.model.layers.3.conv.conv.weight", "model.language_model.layers.3.conv.conv.weight"),
        ("language_model.model.layers.3.conv.in_proj.scales", "model.language_model.layers.3.conv.in_proj.scales"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.post_layernorm.bias"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "model.vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "model.vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.post_layernorm.bias"),
        ("multi_modal_projector.linear_1.biases", "model.multi_modal_projector.linear_1.biases"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        (
            "language_model.model.layers.0.feed_forward.gate_proj.weight",
            "model.language_model.layers.0.feed_forward.w1.weight",
        ),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.layers.0.operator_norm.weight", "model.language_model.layers.0.operator_norm.weight"),
        ("language_model.layers.0.operator_norm.weight", "model.language_model.layers.0.operator_norm.weight"),
        ("language_model.embedding_norm.weight", "model.language_model.embedding_norm.weight"),
        ("layers.0.operator_norm.weight", None),
        ("audio_tower.weight", None),
    ],
)
def test_every_nesting_that_was_seen(name, module):
    assert to_module(name) == module


def test_paths_of_modules_translate_too():
    assert from_module("model.language_model.embed_tokens", "mlx") == "language_model.model.embed_tokens"
    assert from_module("lm_head", "mlx") == "language_model.lm_head"
    with pytest.raises(KeyError):
        from_module("decoder.weight", "hub")
