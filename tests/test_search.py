"""Bits by measurement: what is bought first, targets kept or refused, and better than the same bits everywhere."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from mlx_lfm2vl import Lfm2VlConfig, demo
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.conversion import plot
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.conversion.quantization_error import measure
from mlx_lfm2vl.conversion.report import QuantizationReport
from mlx_lfm2vl.conversion.search import FILE, WIDTHS, greedy_upgrades, search
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.weights.names import from_module
from tools.compare.search import draw


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    shutil.copy(GOLDEN / "pictures" / "small.png", folder)
    (folder / "prompts.txt").write_text("small.png\tWhat is it?\n")
    return folder


@pytest.fixture(scope="module")
def uniform(few, tmp_path_factory) -> tuple[int, QuantizationReport]:
    """gen2 at 4 bits everywhere: bytes of its tensors, and its report."""
    out = convert(GOLDEN / "gen2", tmp_path_factory.mktemp("uniform") / "out", q_bits=4, q_group_size=32, verify=False)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    return index["metadata"]["total_size"], measure(GOLDEN / "gen2", out, calibration=few)


modules = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.integers(1, 1000), st.lists(st.floats(0, 10), min_size=len(WIDTHS), max_size=len(WIDTHS))),
    min_size=1,
)


@given(modules, st.floats(1, 3))
def test_purchases_widen_step_by_step_and_keep_to_the_limit(parts, room):
    weights = {name: size for name, (size, _) in parts.items()}
    predicted = {name: sorted(values, reverse=True) for name, (_, values) in parts.items()}

    def size(assignment: dict[str, int]) -> int:
        return sum(weights[name] * bits for name, bits in assignment.items())

    start = dict.fromkeys(weights, WIDTHS[0])
    steps = list(greedy_upgrades(start, predicted, size))
    assert steps[0] == start and steps[-1] == dict.fromkeys(weights, WIDTHS[-1])
    for before, after in itertools.pairwise(steps):
        changed = [name for name in before if before[name] != after[name]]
        assert len(changed) == 1 and after[changed[0]] > before[changed[0]]
    limit = room * size(start)
    *_, last = greedy_upgrades(start, predicted, size, limit=limit)
    assert size(last) <= limit


def test_the_module_that_saves_most_is_widened_first():
    predicted = {"a": [1.0, 0.9, 0.8, 0.7, 0.6], "b": [1.0, 0.1, 0.05, 0.02, 0.01]}
    _, first, *_ = greedy_upgrades({"a": 3, "b": 3}, predicted, lambda state: sum(state.values()))
    assert first == {"a": 3, "b": 4}


def test_a_size_is_kept_with_less_error_than_uniform_bits(few, uniform, tmp_path):
    total, report = uniform
    told: list = []
    out = convert(
        *(GOLDEN / "gen2", tmp_path / "out"),
        target_size=total / 1e9,
        q_group_size=32,
        calibration=few,
        progress=lambda *step: told.append(step),
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] <= total
    found = json.loads((out / FILE).read_text())
    assert found["chosen"]["size"] == index["metadata"]["total_size"]
    assert QuantizationReport.read(out).kl_mean < report.kl_mean
    assert QuantizationReport.read(out).kl_mean == pytest.approx(found["chosen"]["kl"], rel=0.05)
    assert {point["label"] for point in found["curve"]} == {*(f"{bits} bits" for bits in WIDTHS), "search", "chosen"}
    searched = [step for step in told if step[0] == "searching"]
    assert searched == sorted(searched) and searched[-1][1] == searched[-1][2]
    assert (out / plot.CURVE_FILE).exists() == plot.available()


def test_a_divergence_is_kept_with_less_than_the_width_that_would_do(few):
    result = search(GOLDEN / "gen2", target_kl=0.02, group_size=32, calibration=few)
    assert result.point.kl <= 0.02
    enough = [point for point in result.curve if point.label.endswith("bits") and point.kl <= 0.02]
    assert result.point.size <= min(point.size for point in enough)


def test_the_plan_is_recorded_for_every_module(few, tmp_path):
    result = search(GOLDEN / "gen2", target_size=0.00076, group_size=32, calibration=few)
    record = result.plan.record()
    for path, spec in result.plan.modules.items():
        assert spec is not None
        assert record.get(from_module(path, "mlx"), record)["bits"] == spec.bits
    assert not any("vision" in path or "projector" in path for path in result.plan.modules)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_size": 0.0001}, "target_size 0.0001 GB cannot be reached: 3 bits everywhere take"),
        ({"target_kl": 1e-12}, "target_kl 1e-12 cannot be reached: 8 bits everywhere leave"),
        ({"target_size": 1, "target_kl": 1}, "give one of"),
        ({"target_size": -1}, "target_size is -1, expected a number above 0"),
        ({"target_kl": float("nan")}, "target_kl is nan"),
        ({"target_size": 1, "q_bits": 4}, "find the bits themselves"),
        ({"target_size": 1, "dtype": "float16"}, "leave dtype out"),
    ],
)
def test_targets_that_cannot_be_kept_are_refused(options, says, few, tmp_path):
    with pytest.raises(OptionError, match=says):
        convert(GOLDEN / "gen2", tmp_path / "out", q_group_size=32, calibration=few, **options)
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_bits_reach_is_said_before_the_model_is_loaded(few, monkeypatch):
    monkeypatch.setattr("mlx_lfm2vl.conversion.search.load_to_measure", lambda *_: pytest.fail("loaded"))
    with pytest.raises(OptionError, match="cannot be reached"):
        search(GOLDEN / "gen2", target_size=0.0001, group_size=32, calibration=few)


def test_from_the_command_line(few, tmp_path, capsys):
    words = ["convert", "--hf-path", str(GOLDEN / "gen2"), "--mlx-path", str(tmp_path / "out"), "--target-kl", "0.1"]
    assert main([*words, "--q-group-size", "32", "--calibration", str(few), "--no-verify"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n" and "nats a token chosen" in err
    quantization = Lfm2VlConfig.from_pretrained(tmp_path / "out").quantization
    assert quantization is not None and quantization["group_size"] == 32


@pytest.mark.soak
def test_the_demo_model_beats_uniform_bits_on_unseen_questions(tmp_path):
    """Real folders of one size, measured on pictures of another split than those that the search was given."""
    own, held = draw(tmp_path / "own", "validate", 3), draw(tmp_path / "held", "test", 5)
    uniform = convert("demo", tmp_path / "4", q_bits=4, q_group_size=32, verify=False)
    total = json.loads((uniform / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    options = {"target_size": total / 1e9, "q_group_size": 32, "calibration": own, "verify": False}
    found = convert("demo", tmp_path / "found", **options)
    assert json.loads((found / "model.safetensors.index.json").read_text())["metadata"]["total_size"] <= total
    reports = [measure(demo.path(), folder, calibration=held) for folder in (uniform, found)]
    assert reports[1].kl_mean < 0.6 * reports[0].kl_mean
    assert reports[1].top1_agreement >= reports[0].top1_agreement
