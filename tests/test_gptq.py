"""GPTQ: one weight against a textbook of it, whole folders of every family, and what it gains on the demo model."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import convert, demo, load
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.conversion import gptq as g
from mlx_lfm2vl.conversion.calibration import Question, divided, questions
from mlx_lfm2vl.conversion.quantization_error import measure
from mlx_lfm2vl.conversion.report import QuantizationReport
from mlx_lfm2vl.errors import OptionError, OutOfMemoryError
from mlx_lfm2vl.weights.quantize import Quantization, decode, encode
from tools.compare.search import draw

OPTIONS: dict[str, Any] = {"q_group_size": 32, "q_method": "gptq", "verify": False}
BITS = st.sampled_from([2, 3, 4, 5, 6, 8])


def problem(seed: int, rows: int = 24, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A weight (rows, width), and inputs (200, width) that go together, with channels of very different size."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 8)) @ rng.normal(size=(8, width)) + 0.3 * rng.normal(size=(200, width))
    inputs *= np.exp(rng.normal(size=width))
    return rng.normal(size=(rows, width)).astype(np.float32), inputs.astype(np.float32)


def output_error(weight: np.ndarray, made: dict[str, mx.array], spec: Quantization, inputs: np.ndarray) -> float:
    change = np.array(decode(made, spec, mx.float32)) - weight
    return float(np.square(inputs @ change.T).sum())


def textbook(weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, biases: np.ndarray, spec) -> np.ndarray:
    """The weight that optimal brain quantisation gives, columns of large inputs first, in float64: after each column
    the inverse of the Hessian loses it."""
    weight, inverse = weight.astype(np.float64), np.linalg.inv(hessian.astype(np.float64))
    out = np.empty_like(weight)
    for column in np.argsort(-np.diag(hessian), kind="stable"):
        scale, bias = (array[:, column // spec.group_size] for array in (scales, biases))
        level = np.clip(np.rint((weight[:, column] - bias) / scale), 0, 2**spec.bits - 1)
        out[:, column] = level * scale + bias
        error = (weight[:, column] - out[:, column]) / inverse[column, column]
        weight -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return out


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), BITS, st.sampled_from([32, 64]))
def test_outputs_change_less_than_with_plain_rounding(seed, bits, group_size):
    weight, inputs = problem(seed)
    spec = Quantization(bits, group_size)
    made = g.gptq(mx.array(weight), mx.array(inputs.T @ inputs), spec, mx.float32)
    plain = encode(mx.array(weight), spec)
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        name: (array.shape, array.dtype) for name, array in plain.items()
    }
    assert output_error(weight, made, spec, inputs) < 0.8 * output_error(weight, plain, spec, inputs)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_levels_are_those_of_the_textbook(bits):
    weight, inputs = problem(bits)
    spec = Quantization(bits, 32)
    hessian = g.damped(mx.array(inputs.T @ inputs))
    made = g.gptq(mx.array(weight), mx.array(inputs.T @ inputs), spec, mx.float32)
    expected = textbook(weight, np.array(hessian), np.array(made["scales"]), np.array(made["biases"]), spec)
    found, steps = np.array(decode(made, spec, mx.float32)), np.repeat(np.array(made["scales"]), 32, axis=1)
    moved = np.abs(found - expected) > 0.01 * steps
    assert moved.mean() < 0.02, "but for ties, which float32 may break the other way"
    errors = [np.square(inputs @ (each - weight).T).sum() for each in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), BITS)
def test_inputs_that_have_drifted_are_made_up_for(seed, bits):
    weight, wanted = problem(seed)
    rng = np.random.default_rng(seed)
    given_ = (wanted @ (np.eye(64) + 0.05 * rng.normal(size=(64, 64)))).astype(np.float32)  # what layers before changed
    hessian, drift = mx.array(given_.T @ given_), mx.array((wanted - given_).T @ given_)
    spec = Quantization(bits, 32)
    outputs = [
        np.array(decode(g.gptq(mx.array(weight), hessian, spec, mx.float32, each), spec, mx.float32)) @ given_.T
        for each in (None, g.correction_of(hessian, drift))
    ]
    errors = [np.square(each - weight @ wanted.T).sum() for each in outputs]
    assert errors[1] < 0.8 * errors[0]


def test_without_drift_the_weight_is_what_it_was():
    _, inputs = problem(0)
    assert not np.array(g.correction_of(mx.array(inputs.T @ inputs), mx.zeros((64, 64)))).any()


@settings(deadline=None, max_examples=30)
@given(st.data(), BITS)
def test_packed_levels_are_read_by_mlx(data, bits):
    seed = data.draw(st.integers(0, 2**32 - 1))
    levels = np.random.default_rng(seed).integers(0, 2**bits, (3, 96)).astype(np.uint8)
    parts = {"weight": g.packed(levels, bits), "scales": mx.ones((3, 3)), "biases": mx.zeros((3, 3))}
    assert np.array_equal(np.array(decode(parts, Quantization(bits, 32), mx.float32)), levels)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_rounded_scales_are_made_up_for(dtype):
    weight, inputs = problem(0)
    spec = Quantization(4, 32)
    made = g.gptq(mx.array(weight), mx.array(inputs.T @ inputs), spec, dtype)
    plain = encode(mx.array(weight).astype(dtype), spec)
    assert made["scales"].dtype == made["biases"].dtype == dtype
    assert output_error(weight, made, spec, inputs) < 0.8 * output_error(weight, plain, spec, inputs)


@pytest.mark.parametrize("case", ["silent channels", "no input", "constant weight"])
def test_what_has_no_inverse_is_rounded_all_the_same(case):
    weight, inputs = problem(1)
    inputs[:, 3:9] = 0
    weight = np.full_like(weight, 0.5) if case == "constant weight" else weight
    hessian = np.zeros((64, 64), np.float32) if case == "no input" else inputs.T @ inputs
    spec = Quantization(4, 32)
    made = g.gptq(mx.array(weight), mx.array(hessian), spec, mx.float32)
    found = np.array(decode(made, spec, mx.float32))
    assert np.isfinite(found).all() and np.abs(found - weight).max() < np.abs(weight).max()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-7])
def test_a_group_of_no_range_hurts_no_other_group(dtype, size):
    weight, inputs = problem(2)
    weight[:, :32] *= size
    spec = Quantization(4, 32)
    made = g.gptq(mx.array(weight), mx.array(inputs.T @ inputs), spec, dtype)
    found, plain = (
        np.array(decode(each, spec, mx.float32)) for each in (made, encode(mx.array(weight).astype(dtype), spec))
    )
    assert np.abs(found[:, :32] - weight[:, :32]).max() < 1e-5
    assert np.square(found - weight).sum() < 4 * np.square(plain - weight).sum()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    shutil.copy(GOLDEN / "pictures" / "small.png", folder)
    (folder / "rows.jsonl").write_text(
        '{"image": "small.png", "prompt": "What is it?"}\n{"prompt": "Why?", "answer": "So."}\n'
        '{"images": ["small.png"]}\n'
    )
    return folder / "rows.jsonl"


@pytest.mark.sampled(2)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("checkpoint", ["gen25", "untied", "lfm3"])
def test_a_folder_is_as_plain_rounding_makes_it_but_for_levels(checkpoint, few, tmp_path):
    options: dict[str, Any] = {**OPTIONS, "q_bits": 4, "q_vision": True}
    folders = [convert(GOLDEN / checkpoint, tmp_path / name, calibration=few, **options) for name in ("a", "b")]
    plain = convert(GOLDEN / checkpoint, tmp_path / "plain", **{**options, "q_method": "rtn"})
    first, again, rounded = map(tensors, (*folders, plain))
    assert json.loads((folders[0] / "config.json").read_text()) == json.loads((plain / "config.json").read_text())
    assert {name: (array.shape, array.dtype) for name, array in first.items()} == {
        name: (array.shape, array.dtype) for name, array in rounded.items()
    }
    assert all(np.array_equal(np.array(first[name]), np.array(again[name])) for name in first), "deterministic"
    packed = {name for name, array in first.items() if array.dtype == mx.uint32}
    differ = {name for name in first if not np.array_equal(np.array(first[name]), np.array(rounded[name]))}
    assert packed <= differ and all(name.removesuffix("weight") + "scales" in first for name in packed)
    assert differ <= {name.removesuffix("weight") + part for name in packed for part in ("weight", "scales", "biases")}
    model, processor = load(folders[0])
    assert len(model.generate(**_inputs(processor), max_new_tokens=3, do_sample=False)[0]) > 3


def tensors(folder: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def _inputs(processor) -> dict:
    messages = [{"role": "user", "content": [{"type": "image", "path": str(GOLDEN / "pictures" / "small.png")}]}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)


def test_modules_that_no_question_reaches_are_rounded_plainly(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "prompts.txt").write_text("\tWhy?\n")
    options: dict[str, Any] = {**OPTIONS, "q_bits": 4, "q_vision": True}
    made = convert(GOLDEN / "gen25", tmp_path / "a", calibration=tmp_path / "words", **options)
    plain = convert(GOLDEN / "gen25", tmp_path / "b", **{**options, "q_method": "rtn"})
    one, other = tensors(made), tensors(plain)
    same = {name for name in one if np.array_equal(np.array(one[name]), np.array(other[name]))}
    quantised = {name for name in one if one[name].dtype == mx.uint32}
    assert same & quantised == {name for name in quantised if "language_model." not in name}


def test_a_recipe_is_calibrated_too(few, tmp_path):
    mixed = convert(GOLDEN / "gen25", tmp_path / "out", q_recipe="mixed_3_6", calibration=few, **OPTIONS)
    record = json.loads((mixed / "config.json").read_text())["quantization"]
    assert record["bits"] == 3 and {entry["bits"] for entry in record.values() if isinstance(entry, dict)} == {6}


@pytest.mark.soak
def test_widths_that_were_searched_are_calibrated_too(few, tmp_path):
    options: dict[str, Any] = {**OPTIONS, "target_kl": 0.5, "calibration": few}
    folders = [convert(GOLDEN / "gen25", tmp_path / name, **{**options, "q_method": name}) for name in ("gptq", "rtn")]
    records = [json.loads((path / "config.json").read_text())["quantization"] for path in folders]
    assert records[0] == records[1], "the search finds the same widths"
    weights = [(path / "model.safetensors").read_bytes() for path in folders]
    assert weights[0] != weights[1] and len(weights[0]) == len(weights[1])


def test_the_report_measures_questions_that_were_left_out(few, tmp_path):
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {**OPTIONS, "verify": True, "q_bits": 8, "calibration": few}
    out = convert(GOLDEN / "gen25", tmp_path / "out", progress=lambda *step: told.append(step), **options)
    report = QuantizationReport.read(out)
    assert (report.method, report.questions, report.calibrated_on, report.dtype) == ("gptq", 1, 2, "float32")
    assert "GPTQ, calibrated on 2 other questions of the same set" in (out / "README.md").read_text()
    for stage in ("answering", "calibrating"):
        steps = [step for step in told if step[0] == stage]
        assert steps == sorted(steps) and steps[-1][1] == steps[-1][2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_third_question_is_measured_and_no_other(count, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(count)))
    fitted, held = divided(tmp_path / "rows.jsonl")
    assert [question.prompt for question in held] == [str(number) for number in range(0, count, 3)]
    left = [str(number) for number in range(count) if number % 3] or ["0"]
    assert [question.prompt for question in fitted] == left


def test_bundled_questions_to_calibrate_on_are_others_than_those_measured():
    fitted, held = divided()
    assert held == questions() and len(fitted) == 18 and sum(not question.pictures for question in fitted) == 2
    pictures = {picture for question in fitted for picture in question.pictures}
    assert len(pictures) == 9 and not pictures & {picture for question in held for picture in question.pictures}
    assert sum(Path(picture).stat().st_size for picture in pictures) < 100_000


def test_rows_are_questions_and_mistakes_in_them_are_named(few, tmp_path):
    picture = str(few.parent / "small.png")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why\u2028so?"}\n')
    assert questions(tmp_path / "rows.jsonl") == [Question("Why\u2028so?")]
    assert questions(few) == [
        Question("What is it?", (picture,)),
        Question("Why?"),
        Question("Describe this image in detail.", (picture,)),
    ]
    for line, says in {
        "[1]": "line 2: is not an object",
        "{": "line 2: ",
        '{"question": "Why?"}': 'line 2: "question" is not read; call it "prompt"',
        '{"id": 3}': 'a row has a "prompt" or an "image"',
        '{"image": 3}': '"image" must be',
    }.items():
        (tmp_path / "bad.jsonl").write_text(f'{{"prompt": "Why?"}}\n{line}\n')
        with pytest.raises(OptionError, match=says):
            questions(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text("\n")
    with pytest.raises(OptionError, match="has no rows"):
        questions(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"q_method": "awq", "q_bits": 4}, "q_method is 'awq', expected one of rtn, gptq"),
        ({"q_method": "gptq"}, "q_method say how to quantise; add quantize"),
        ({"q_method": "gptq", "q_mode": "mxfp8"}, "q_method gptq is for the mode affine; leave q_mode mxfp8 out"),
    ],
)
def test_what_gptq_cannot_do_is_refused(options, says, tmp_path):
    with pytest.raises(OptionError, match=says):
        convert(GOLDEN / "gen25", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_quantised_source_is_refused(few, tmp_path):
    source = convert(GOLDEN / "gen25", tmp_path / "8", q_bits=8, q_group_size=32, verify=False)
    with pytest.raises(OptionError, match="is quantised already; calibrate the dense original"):
        convert(source, tmp_path / "out", q_bits=4, calibration=few, **OPTIONS)


def test_an_interrupt_while_calibrating_leaves_nothing(few, tmp_path):
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "calibrating" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(GOLDEN / "gen25", tmp_path / "out", q_bits=4, calibration=few, progress=interrupt, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(few, tmp_path, capsys):
    words = ["convert", "--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out"), "--q-method", "gptq"]
    assert main([*words, "--calibration", str(few)]) == 2
    assert "--q-method gptq says how to quantise; add -q" in capsys.readouterr().err
    assert main([*words, "-q", "--q-group-size", "32", "--calibration", str(few), "--no-verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


def test_a_model_that_leaves_no_room_is_refused_before_it_is_loaded(few, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_lfm2vl.weights.fit.free_memory", lambda: 10**6)
    with pytest.raises(OutOfMemoryError, match="with --q-method rtn and --no-verify a model of any size is converted"):
        convert(GOLDEN / "gen25", tmp_path / "out", q_bits=4, calibration=few, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_the_demo_model_loses_less_on_unseen_questions(tmp_path):
    """Calibrated on pictures of another split than those that are measured."""
    own, held = draw(tmp_path / "own", "validate", 5), draw(tmp_path / "held", "test", 8)
    for bits, most in ((4, 0.65), (3, 0.4)):
        options: dict[str, Any] = {"q_bits": bits, "q_group_size": 32, "verify": False, "calibration": own}
        gptq = convert("demo", tmp_path / f"gptq{bits}", q_method="gptq", **options)
        rtn = convert("demo", tmp_path / f"rtn{bits}", **{**options, "calibration": None})
        reports = [measure(demo.path(), folder, calibration=held) for folder in (gptq, rtn)]
        assert reports[0].bytes == reports[1].bytes and reports[0].kl_mean < most * reports[1].kl_mean
