"""Which module gets how many bits: recipes, overrides, what is recommended for which size, and the record of it."""

import json
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, read_tensors
from hypothesis import given
from hypothesis import strategies as st

from mlx_lfm2vl.conversion.convert import convert as convert_and_measure
from mlx_lfm2vl.conversion.plan import Plan, QuantizationOptions, make_plan
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.choices import MODES
from mlx_lfm2vl.weights.load import load_model
from mlx_lfm2vl.weights.names import from_module
from mlx_lfm2vl.weights.quantize import Quantization

convert = partial(convert_and_measure, verify=False)  # measuring has its own tests
IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])
ATTENTION = (2, 5, 8, 10, 12, 14)


def modules_of_450m() -> dict[str, int]:
    """The modules of LFM2.5-VL-450M that can be quantised, with their row lengths."""
    widths = {"model.language_model.embed_tokens": 1024}
    for layer in range(16):
        path = f"model.language_model.layers.{layer}."
        names = (
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
            if layer in ATTENTION
            else ["conv.in_proj", "conv.out_proj"]
        )
        widths |= {path + name: 1024 for name in [*names, "feed_forward.w1", "feed_forward.w3"]}
        widths[path + "feed_forward.w2"] = 4608
    widths |= {"model.vision_tower.encoder.layers.0.mlp.fc1": 768, "model.multi_modal_projector.linear_1": 3072}
    return widths


WIDTHS = modules_of_450m()
SMALL, LARGE = 448_718_848, 1_596_625_904


def bits(plan: Plan) -> dict[str, int | None]:
    return {from_module(path, "mlx"): None if spec is None else spec.bits for path, spec in plan.modules.items()}


@pytest.mark.parametrize(
    ("parameters", "options", "width", "says"),
    [
        (SMALL, QuantizationOptions(), 8, ["8 bits chosen: the model has 449 million parameters"]),
        (SMALL, QuantizationOptions(bits=4), 4, ["--q-bits 8 or --q-recipe mixed_4_8"]),
        (SMALL, QuantizationOptions(mode="mxfp4"), 4, ["--q-bits 8 or --q-recipe mixed_4_8"]),
        (SMALL, QuantizationOptions(bits=6), 6, []),
        (SMALL, QuantizationOptions(recipe="mixed_4_8"), 4, []),
        (LARGE, QuantizationOptions(), 4, []),
        (LARGE, QuantizationOptions(bits=4), 4, []),
    ],
)
def test_small_models_are_steered_to_more_bits_and_told_why(parameters, options, width, says):
    plan = make_plan(WIDTHS, parameters, options)
    assert plan.base.bits == width
    assert len(plan.notes) == len(says)
    for note, words in zip(plan.notes, says, strict=True):
        assert words in note


def test_a_recipe_gives_more_bits_to_what_it_hurts():
    plan = bits(make_plan(WIDTHS, SMALL, QuantizationOptions(recipe="mixed_4_8")))
    assert set(plan.values()) == {4, 8}
    assert not any("vision" in name or "projector" in name for name in plan)
    high = {name.removeprefix("language_model.model.") for name, width in plan.items() if width == 8}
    assert "embed_tokens" in high
    assert {f"layers.{n}.self_attn.{kind}_proj" for n in ATTENTION for kind in "kv"} <= high
    for leaf in ("w2", "out_proj"):
        layers = sorted(int(name.split(".")[1]) for name in high if name.endswith(leaf))
        assert layers == [0, 1, 4, 7, 10, 13, 14, 15]
    assert not any(name.endswith(("w1", "w3", "in_proj", "q_proj")) for name in high)


def test_overrides_count_in_their_order_and_reach_the_tower():
    overrides: list[tuple[str, int | str]] = [
        ("*.w2", 8),
        ("*.layers.3.*", "dense"),
        ("*.layers.3.feed_forward.w2", "6"),
        ("vision_tower.*.fc1", "mxfp8"),
    ]
    plan = make_plan(WIDTHS, LARGE, QuantizationOptions(bits=4, overrides=overrides))
    found = bits(plan)
    assert found["language_model.model.layers.2.feed_forward.w2"] == 8
    assert found["language_model.model.layers.3.feed_forward.w1"] is None
    assert found["language_model.model.layers.3.feed_forward.w2"] == 6
    assert found["language_model.model.layers.4.feed_forward.w1"] == 4
    assert plan.modules["model.vision_tower.encoder.layers.0.mlp.fc1"] == Quantization(8, 32, "mxfp8")
    assert "multi_modal_projector.linear_1" not in found


@given(
    st.sampled_from([*MODES]).flatmap(
        lambda mode: st.tuples(st.just(mode), st.sampled_from(MODES[mode][0]), st.sampled_from(MODES[mode][1]))
    ),
    st.lists(
        st.tuples(st.sampled_from(["*.w2", "*.layers.1?.*", "*embed*", "vision*"]), st.sampled_from([8, 3, "dense"]))
    ),
    st.booleans(),
)
def test_the_record_says_of_every_module_what_was_planned(kind, overrides, vision):
    mode, width, group = kind
    plan = make_plan(WIDTHS, LARGE, QuantizationOptions(width, group, mode, None, overrides, vision))
    record = json.loads(json.dumps(plan.record()))
    assert [record[key] for key in ("mode", "bits", "group_size")] == [mode, width, group]
    for path, spec in plan.modules.items():
        if spec is None:
            assert record[from_module(path, "mlx")] is False
        else:
            assert {key: record[key] for key in ("mode", "bits", "group_size")} | record.get(
                from_module(path, "mlx"), {}
            ) == spec.to_dict()


def test_a_plan_that_quantises_nothing_is_refused():
    with pytest.raises(OptionError, match="no module would be quantised"):
        make_plan(WIDTHS, LARGE, QuantizationOptions(bits=4, overrides=[("*", "dense")]))


# --- the plan in a folder ---------------------------------------------------------------------------------------------


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


def widths_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype="auto")
    return {
        path: (module.bits, module.group_size, module.mode)
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


@pytest.mark.parametrize(("mode", "kind"), [("mxfp4", (4, 32)), ("mxfp8", (8, 32)), ("nvfp4", (4, 16))])
def test_modes(mode, kind, tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_mode=mode)
    assert set(widths_of(out).values()) == {(*kind, mode)}
    dense = logits(GOLDEN / "gen2")
    assert np.abs(logits(out) - dense).max() < {4: 0.8, 8: 0.3}[kind[0]] * np.abs(dense).max()


def test_a_recipe_with_overrides_and_vision(tmp_path):
    out = convert(
        *(GOLDEN / "gen2", tmp_path / "out"),
        q_recipe="mixed_4_8",
        q_group_size=32,
        q_vision=True,
        q_overrides=[("language_model.*.self_attn.q_proj", 6), ("multi_modal_projector.*", "dense")],
    )
    found = widths_of(out)
    assert found["model.language_model.embed_tokens"] == (8, 32, "affine")
    assert found["model.language_model.layers.1.self_attn.q_proj"][0] == 6
    assert found["model.language_model.layers.1.feed_forward.w1"][0] == 4
    assert found["model.vision_tower.encoder.layers.0.mlp.fc2"][0] == 8
    assert not any("projector" in path or "position" in path for path in found)
    dense = logits(GOLDEN / "gen2")
    assert np.abs(logits(out) - dense).max() < 0.8 * np.abs(dense).max()


def test_dequantising_keeps_the_numbers_of_the_quantised_model(tmp_path):
    quantised = convert(GOLDEN / "gen2", tmp_path / "q", q_bits=4, q_group_size=32)
    dense = convert(quantised, tmp_path / "dense", dequantize=True)
    assert widths_of(dense) == {}
    config = json.loads((dense / "config.json").read_text())
    assert "quantization" not in config and "quantization_config" not in config
    np.testing.assert_allclose(logits(dense), logits(quantised), atol=2e-4 * np.abs(logits(dense)).max())
    assert (dense / "model.safetensors").stat().st_size > (GOLDEN / "gen2" / "model.safetensors").stat().st_size * 0.9


def test_quantising_anew_replaces_the_named_widths_on_record(tmp_path):
    first = convert(GOLDEN / "gen2", tmp_path / "8", q_bits=8, q_group_size=32, q_vision=True)
    notes: list[str] = []
    second = convert(first, tmp_path / "6", q_bits=6, q_group_size=32, on_note=notes.append)
    assert [note for note in notes if "losses stay" in note]
    found = widths_of(second)
    assert {kind for path, kind in found.items() if "language_model" in path} == {(6, 32, "affine")}
    assert {kind for path, kind in found.items() if "language_model" not in path} == {(8, 32, "affine")}
    before, after = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    for name in before:
        if "language_model" not in name:
            assert mx.array_equal(before[name], after[name]).item(), name


def test_the_hub_layout_goes_to_the_makers_names_and_back(tmp_path):
    mlx = convert(GOLDEN / "gen2", tmp_path / "mlx")
    back = convert(mlx, tmp_path / "back", layout="hub")
    original, again = read_tensors(GOLDEN / "gen2" / "model.safetensors"), read_tensors(back / "model.safetensors")
    assert set(original) == set(again)
    for name, array in original.items():
        assert array.shape == again[name].shape and mx.array_equal(array, again[name]).item(), name
