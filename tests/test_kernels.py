"""What a GPU has to do, counted: kernels a token and a picture, and FLOPs. A count that grows is a slower model.

Shapes of kernels do not matter for their number, so the graphs are of LFM2.5-VL-450M's layers with small widths. In 16
bits the CPU computes as a GPU does, by MLX's own functions.
"""

import copy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN, case_ids, logits_of
from kernels import Count
from mlx.utils import tree_flatten

from mlx_lfm2vl.config import Lfm2VlConfig
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model
from mlx_lfm2vl.weights.names import parameters

ATTENTION = (2, 5, 8, 10, 12, 14)
TEXT = {
    **{"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8},
    **{"vocab_size": 65536, "intermediate_size": 6656, "block_auto_adjust_ff_dim": True},
    "layer_types": ["full_attention" if n in ATTENTION else "conv" for n in range(16)],
}
VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
NARROW_TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500}
NARROW_VISION = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}


def model_of(text: dict, vision: dict, width: int) -> Lfm2VlForConditionalGeneration:
    config = {"model_type": "lfm2_vl", "projector_hidden_size": width, "projector_use_layernorm": False}
    return Lfm2VlForConditionalGeneration(
        Lfm2VlConfig.from_dict({**config, "text_config": text, "vision_config": vision})
    )


@pytest.fixture
def narrow() -> Lfm2VlForConditionalGeneration:
    model = model_of({**TEXT, **NARROW_TEXT, "intermediate_size": 96}, {**VISION, **NARROW_VISION}, 64)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


def decode_step(model: Lfm2VlForConditionalGeneration) -> Count:
    cache = Cache(model.config.text_config)
    mx.eval(prefill(model, Prompt(np.array([[1, 2, 3, 4]])), cache), cache.arrays)

    def step():
        hidden = model.model.language_model(model.model.language_model.embed_tokens(mx.array([[5]])), None, cache)
        return [mx.argmax(model.logits(hidden)[:, 0], axis=-1)]

    return Count(step)


def picture(model: Lfm2VlForConditionalGeneration, height: int, width: int, padded: int = 0) -> Count:
    grid = (height // 16, width // 16)
    pixels = mx.zeros((1, max(padded, grid[0] * grid[1]), 768), mx.bfloat16)
    mx.eval(pixels)
    return Count(lambda: model.get_image_features(pixels, np.array([grid])).pooler_output)


def test_kernels_of_a_token(narrow):
    """45 norms, 93 products (32 of them with their residual), 26 elementwise ones, 12 rotations, 12 writes into the
    cache, 6 attentions, the embedding and the choice."""
    count = decode_step(narrow)
    assert count.total == 196, count.kernels
    assert count.kernels["AddMM"] == 32 and count.kernels["Matmul"] == 61
    assert (count.kernels["fast.rms_norm"], count.kernels["fast.rope"], count.kernels["fast.attention"]) == (45, 12, 6)


def test_kernels_of_a_token_of_a_quantised_model(narrow):
    """Without products that take the residual along."""
    model = narrow
    dense_embedding = lambda _, module: isinstance(module, nn.Linear)  # noqa: E731
    nn.quantize(model.model.language_model, group_size=32, bits=4, class_predicate=dense_embedding)
    count = decode_step(model)
    assert count.total == 228, count.kernels
    assert count.kernels["QuantizedMatmul"] == 92


def test_kernels_of_a_picture(narrow):
    """Ten a layer: two norms, one product for queries, keys and values, attention, three products, GELU, two sums.
    (What the count cannot see: a GPU copies once to gather the patches of a token.)"""
    model = narrow
    model.fuse()
    count = picture(model, 256, 256)
    assert count.total == 127, count.kernels
    assert picture(model, 384, 512).total == 131, "and four to resize the table of positions"


@pytest.mark.parametrize(("height", "width"), [(256, 256), (384, 512), (512, 512)])
def test_flops_of_a_picture_are_those_of_its_true_patches(height, width):
    model = model_of(TEXT, VISION, 2560)
    model.set_dtype(mx.bfloat16)
    n, d, ff = height * width // 256, 768, 3072
    tower = 12 * (2 * n * (4 * d * d + 2 * d * ff) + 4 * n * n * d) + 2 * n * 768 * d
    projector = 2 * (n // 4) * (4 * d * 2560 + 2560 * 1024)
    assert picture(model, height, width).flops == tower + projector
    assert picture(model, height, width, padded=1024).flops == tower + projector


@pytest.mark.soak
def test_flops_of_a_prompt_leave_out_what_no_answer_needs():
    """Behind the last attention only the last token and the two before it, which its convolution takes. (Counted are
    attention and the products that add the residual.)"""
    model = model_of(TEXT, VISION, 2560)
    model.set_dtype(mx.bfloat16)
    n, d, ff, rest = 40, 1024, 4608, 3
    made = Count(lambda: prefill(model, Prompt(np.ones((1, n), np.int32)), Cache(model.config.text_config)))
    layer = 2 * d * ff + 2 * d * d
    assert made.flops == (14 * n + 2 * rest) * layer + (5 * n + rest) * 4 * n * d


# The way of a GPU


@pytest.mark.parametrize("case_id", [*case_ids("gen2")[:2], *case_ids("gen25")[:2], *case_ids("untied")[:1]])
def test_mlx_functions_give_the_references_logits_in_float32(case_id, golden, monkeypatch):
    case = golden(case_id)
    model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / case.checkpoint)
    assert model.model.vision_tower.encoder.layers[0].self_attn._fused is not None
    logits = np.array(logits_of(model, **case.inputs))[tuple(case.arrays["token_rows"].T)]
    assert np.abs(logits - case.arrays["logits"]).max() < 2e-5 * np.abs(case.arrays["logits"]).max()


def test_a_fused_product_keeps_names_and_numbers_without_a_copy(golden):
    case = golden("gen2-landscape")
    model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / "gen2")
    before = {name: np.array(array) for name, array in parameters(model).items()}
    expected = np.array(model.get_image_features(case.pixel_values, case.arrays["spatial_shapes"]).pooler_output[0])
    held = mx.get_active_memory()
    model.fuse()
    assert mx.get_active_memory() < held + 100_000
    after = parameters(model)
    assert after.keys() == before.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(np.array(array), before[name], err_msg=name)
    shared = np.array(model.get_image_features(case.pixel_values, case.arrays["spatial_shapes"]).pooler_output[0])
    np.testing.assert_allclose(shared, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_replaced_counts(golden):
    case = golden("gen2-landscape")
    results = []
    for share in (False, True):
        model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / "gen2")
        if share:
            model.fuse()
        attention = model.model.vision_tower.encoder.layers[0].self_attn
        attention.q_proj.weight = attention.q_proj.weight * 2
        results.append(model.get_image_features(case.pixel_values, case.arrays["spatial_shapes"]).pooler_output[0])
    np.testing.assert_allclose(np.array(results[0]), np.array(results[1]), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_before_fusing(golden):
    """Training takes the backend mlx, and may begin with a model that was loaded for inference."""
    case = golden("gen2-landscape")
    fused: Lfm2VlForConditionalGeneration = load_model(GOLDEN / "gen2")
    plain = copy.deepcopy(fused)
    for layer in plain.model.language_model.layers:
        if "conv" in layer:
            layer.conv.conv._columns = None
    found = []
    for model in (fused, plain):
        loss = lambda model: model(**case.inputs, labels=case.arrays["labels"]).loss  # noqa: E731
        found.append(dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1])))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 60
    for name, gradient in found[1].items():
        wanted = np.array(gradient)
        assert np.abs(wanted).max() > 0 or "position_embedding" in name, name
        np.testing.assert_allclose(np.array(found[0][name]), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max() + 1e-9)


def test_a_kernel_that_is_replaced_counts():
    """Its columns are cut once, at loading."""
    model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / "gen2")
    ids = np.array([[1, 6, 500, 501]])
    before = np.array(logits_of(model, ids))
    conv = model.model.language_model.layers[0].conv.conv
    conv.weight = conv.weight * 2
    assert np.abs(np.array(logits_of(model, ids)) - before).max() > 1e-3
