"""Which module gets how many bits: recipes, overrides, what is recommended for which size, and the record of it."""

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.cli.convert import RECIPES as OFFERED
from mlx_lfm2vl.conversion.convert import convert as convert_and_measure
from mlx_lfm2vl.conversion.damage import module_errors
from mlx_lfm2vl.conversion.plan import RECIPES, Plan, QuantizationOptions, Rounding, make_plan, to_measure
from mlx_lfm2vl.conversion.rounding import measure_rounding
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.weights.load import load_model, open_model
from mlx_lfm2vl.weights.names import from_module
from mlx_lfm2vl.weights.quantize import MODES, Quantization, recorded

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
    return {from_module(path, "mlx"): spec and spec.bits for path, spec in plan.modules.items()}


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
    assert sorted(int(name.split(".")[1]) for name in high if name.endswith("w2")) == [0, 1, 4, 7, 10, 13, 14, 15]
    assert not any(name.endswith(("w1", "w3", "in_proj", "q_proj")) for name in high)


def rounding(path: str, error: float) -> Rounding:
    rows = {"w1": 4608, "w3": 4608, "in_proj": 3072}.get(path.rpartition(".")[2], 1024)
    return Rounding(error, rows * WIDTHS[path])


def test_a_recipe_gives_more_bits_to_the_layers_that_measure_worst():
    worst = {
        *(f"model.language_model.layers.{n}.feed_forward.w1" for n in (3, 4, 5)),
        *(f"model.language_model.layers.{n}.conv.in_proj" for n in (6, 7)),
        "model.language_model.layers.8.self_attn.q_proj",
    }
    options = QuantizationOptions(recipe="mixed_4_8")
    measured = {path: rounding(path, 0.2 if path in worst else 0.1) for path in to_measure(WIDTHS, options)}
    plan = make_plan(WIDTHS, SMALL, options, measured)
    wide = {path for path in measured if plan.modules[path].bits == 8}
    assert worst < wide
    # what room is left goes to those that have more bits unless something else measures worse
    assert wide - worst <= {path for path in measured if make_plan(WIDTHS, SMALL, options).modules[path].bits == 8}


@given(st.integers(0, 2**32), st.sampled_from([*RECIPES]))
@settings(deadline=None)
def test_whatever_is_measured_a_recipe_has_one_size(seed, recipe):
    options = QuantizationOptions(recipe=recipe)
    paths = to_measure(WIDTHS, options)
    errors = np.random.default_rng(seed).random(len(paths))
    measured = {path: rounding(path, error) for path, error in zip(paths, errors, strict=True)}
    plan, unmeasured = make_plan(WIDTHS, SMALL, options, measured), make_plan(WIDTHS, SMALL, options)

    def extra(plan: Plan) -> int:
        return sum(measured[path].weights for path in paths if plan.modules[path].bits == RECIPES[recipe][1])

    left = min(measured[path].weights for path in paths if plan.modules[path] == plan.base)
    assert extra(unmeasured) - left < extra(plan) <= extra(unmeasured)  # no other module would fit
    assert all(plan.modules[path] == unmeasured.modules[path] for path in plan.modules if path not in measured)


def test_only_a_recipe_measures_and_only_what_it_chooses_from():
    assert to_measure(WIDTHS, QuantizationOptions(bits=4)) == []
    found = to_measure(WIDTHS, QuantizationOptions(recipe="mixed_3_6", vision=True))
    assert len(found) == 16 * 3 + 6 * 2 + 10 * 2 and all("language" in path for path in found)
    assert not any(path.endswith(("k_proj", "v_proj", "embed_tokens")) for path in found)
    assert to_measure(WIDTHS | dict.fromkeys(found, 96), QuantizationOptions(recipe="mixed_3_6")) == []


def test_the_command_line_offers_the_recipes():
    assert set(OFFERED) == set(RECIPES)


def test_overrides_count_in_their_order_and_reach_the_tower():
    overrides = [
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
            assert recorded(record, path) == spec


def test_a_plan_that_quantises_nothing_is_refused():
    with pytest.raises(OptionError, match="no module would be quantised"):
        make_plan(WIDTHS, LARGE, QuantizationOptions(bits=4, overrides=[("*", "dense")]))


# --- the plan in a folder ---------------------------------------------------------------------------------------------


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


def widths_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        path: (module.bits, module.group_size, module.mode)
        for path, module in load_model(folder, dtype="auto").named_modules()
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


def test_what_a_recipe_measures_is_the_error_that_its_lower_width_would_make(tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_bits=4, q_group_size=32)
    expected = {module.name: module.error for module in module_errors(GOLDEN / "gen2", out)}
    paths = [f"model.language_model.layers.{n}.feed_forward.w2" for n in range(4)]
    told: list = []
    found = measure_rounding(
        open_model(GOLDEN / "gen2")[1], paths, Quantization(4, 32), progress=lambda *step: told.append(step)
    )
    for path in paths:
        assert found[path].error == pytest.approx(expected[from_module(path, "mlx")], rel=1e-5)
        assert found[path].weights == 64 * 96
    assert told == [("measuring weights", n, 4) for n in (1, 2, 3, 4)]
    again = measure_rounding(open_model(out)[1], paths, Quantization(8, 32))  # of what is quantised already
    assert 0 < max(rounding.error for rounding in again.values()) < 0.01


def test_a_conversion_by_recipe_measures_the_weights(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "source"))
    tensors = mx.load(str(source / "model.safetensors"))
    name = "model.language_model.layers.1.feed_forward.w1.weight"
    tensors[name] = 1e3 * tensors[name] ** 3  # many weights round to nothing beside a few
    mx.save_safetensors(str(source / "model.safetensors"), tensors, {"format": "pt"})
    told: list = []
    out = convert(
        *(source, tmp_path / "out"), q_recipe="mixed_4_8", q_group_size=32, progress=lambda *step: told.append(step)
    )
    plain = convert(GOLDEN / "gen2", tmp_path / "plain", q_recipe="mixed_4_8", q_group_size=32)
    assert widths_of(out)["model.language_model.layers.1.feed_forward.w1"][0] == 8
    assert widths_of(plain)["model.language_model.layers.1.feed_forward.w1"][0] == 4
    assert [stage for stage, *_ in told if stage == "measuring weights"]


def test_dequantising_gives_the_numbers_of_the_quantised_model_without_quantisation(tmp_path):
    quantised = convert(GOLDEN / "gen2", tmp_path / "q", q_bits=4, q_group_size=32)
    dense = convert(quantised, tmp_path / "dense", dequantize=True)
    assert widths_of(dense) == {}
    config = json.loads((dense / "config.json").read_text())
    assert "quantization" not in config and "quantization_config" not in config
    np.testing.assert_allclose(logits(dense), logits(quantised), atol=2e-4 * np.abs(logits(dense)).max())
    assert (dense / "model.safetensors").stat().st_size > (GOLDEN / "gen2" / "model.safetensors").stat().st_size * 0.9


def test_quantising_anew_replaces_widths_keeps_what_it_does_not_speak_of_and_says_so(tmp_path):
    first = convert(GOLDEN / "gen2", tmp_path / "8", q_bits=8, q_group_size=32, q_vision=True)
    notes: list[str] = []
    second = convert(first, tmp_path / "6", q_bits=6, q_group_size=32, on_note=notes.append)
    assert [note for note in notes if "losses stay" in note]
    found = widths_of(second)
    assert {kind for path, kind in found.items() if "language_model" in path} == {(6, 32, "affine")}
    assert {kind for path, kind in found.items() if "language_model" not in path} == {(8, 32, "affine")}
    before, after = mx.load(str(first / "model.safetensors")), mx.load(str(second / "model.safetensors"))
    for name in before:
        if "language_model" not in name:
            assert mx.array_equal(before[name], after[name]).item(), name


def test_the_hub_layout_goes_to_the_makers_names_and_back(tmp_path):
    mlx = convert(GOLDEN / "gen2", tmp_path / "mlx")
    back = convert(mlx, tmp_path / "back", layout="hub")
    original, again = mx.load(str(GOLDEN / "gen2" / "model.safetensors")), mx.load(str(back / "model.safetensors"))
    assert set(original) == set(again)
    for name, array in original.items():
        assert array.shape == again[name].shape and mx.array_equal(array, again[name]).item(), name
