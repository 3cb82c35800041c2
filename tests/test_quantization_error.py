"""What a quantisation costs: the numbers against their definitions, the report, its place in folder and card."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, read_tensors

from mlx_lfm2vl.backends.cpu import weights
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.conversion import plot
from mlx_lfm2vl.conversion.calibration import questions
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.conversion.quantization_error import (
    compare,
    greedy,
    load_to_measure,
    log_probabilities,
    measure,
    module_errors,
)
from mlx_lfm2vl.conversion.report import FILE, ModuleError, QuantizationReport, escaped
from mlx_lfm2vl.errors import OptionError, OutOfMemoryError, WeightsError
from mlx_lfm2vl.generation.options import number_type
from mlx_lfm2vl.generation.request import conversation
from mlx_lfm2vl.pretrained import load
from mlx_lfm2vl.weights import fit
from mlx_lfm2vl.weights.load import open_model


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> Path:
    """Two questions, one of them about a picture."""
    folder = tmp_path_factory.mktemp("calibration")
    shutil.copy(GOLDEN / "pictures" / "small.png", folder)
    (folder / "prompts.txt").write_text("small.png\tWhat is it?\n\n\tSay something.\n")
    return folder


@pytest.fixture(scope="session")
def measured(few, tmp_path_factory) -> tuple[Path, QuantizationReport, list]:
    """gen2 at 4 bits, its report, and the progress that was told."""
    seen: list = []
    out = convert(
        *(GOLDEN / "gen2", tmp_path_factory.mktemp("measured") / "out"),
        q_bits=4,
        q_group_size=32,
        calibration=few,
        progress=lambda *step: seen.append(step),
    )
    return out, QuantizationReport.read(out), seen


def test_a_model_against_itself_is_unharmed(few):
    report = measure(GOLDEN / "gen25", GOLDEN / "gen25", calibration=few)
    assert (report.top1_agreement, report.identical_32, report.identical_64) == (1, 1, 1)
    assert report.kl_mean == report.kl_p99 == 0
    assert report.perplexity == report.perplexity_dense > 1
    assert report.modules == () and report.bytes == report.bytes_dense
    assert report.bits_per_weight == pytest.approx(32, rel=0.02)


def test_more_bits_harm_less(few, measured, tmp_path):
    four = measured[1]
    eight = measure(
        GOLDEN / "gen2",
        convert(GOLDEN / "gen2", tmp_path / "8", q_bits=8, q_group_size=32, verify=False),
        calibration=few,
    )
    assert 0 < eight.kl_mean < four.kl_mean and eight.kl_p99 < four.kl_p99
    assert eight.bytes > four.bytes and eight.bytes_dense == four.bytes_dense
    assert {m.bits for m in eight.modules} == {8} and {m.bits for m in four.modules} == {4}
    pairs = zip(eight.modules, four.modules, strict=True)
    assert all(a.name == b.name and 0 < a.error < 0.02 < b.error < 0.2 for a, b in pairs)


def test_the_numbers_are_what_their_definitions_say():
    before = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    after = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    answer = np.array([0, 1])
    found = compare(before, after, answer, np.array([0, 1, 2]))
    assert found.agree.tolist() == [False, True]
    np.testing.assert_allclose(found.divergence, [0.25 * np.log(2), 0], atol=1e-7)
    np.testing.assert_allclose(np.exp(found.expected), [0.25, 0.8], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.expected_dense), [0.5, 0.8], rtol=1e-6)
    assert found.differs_at == 2
    long = np.arange(50)
    other = np.where(long < 40, long, 0)
    flat = np.zeros((50, 50), np.float32)
    found = compare(flat, flat, long, other)
    assert found.differs_at == 40
    assert compare(flat, flat, long, long).differs_at is None


def test_the_error_of_a_module_is_that_of_its_weight(measured):
    dense = read_tensors(GOLDEN / "gen2" / "model.safetensors")["model.language_model.layers.0.feed_forward.w1.weight"]
    back = mx.dequantize(*mx.quantize(dense, group_size=32, bits=4), group_size=32, bits=4)
    expected = np.linalg.norm(np.array(back - dense)) / np.linalg.norm(np.array(dense))
    found = {module.name: module for module in module_errors(GOLDEN / "gen2", measured[0])}
    assert found["language_model.model.layers.0.feed_forward.w1"].error == pytest.approx(expected, rel=1e-5)
    assert "language_model.model.layers.0.feed_forward.w2" in found
    assert not any("vision" in name for name in found)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    """gen2 at 2 bits: its answers are others."""
    out = tmp_path_factory.mktemp("coarse") / "out"
    return convert(GOLDEN / "gen2", out, q_bits=2, q_group_size=32)


def test_an_image_token_in_an_answer_is_a_token_like_others():
    model, processor = load(GOLDEN / "gen2", dtype="float32")
    inputs = processor.apply_chat_template(
        conversation("What is it?", str(GOLDEN / "pictures" / "small.png")),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    found = log_probabilities(model, inputs, np.array([processor.image_token_id, 5, 6]))
    assert found.shape == (3, model.config.text_config.vocab_size)
    plain = log_probabilities(model, inputs, np.array([7, 5, 6]))
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    assert np.abs(found[1] - plain[1]).max() > 1e-3


@pytest.mark.backends("numpy")
def test_on_a_cpu_quantised_weights_are_measured_in_float32(coarse, tmp_path, monkeypatch):
    """Both give the numbers of the quantised products in float32."""
    narrow = convert(coarse, tmp_path / "narrow", dtype="bfloat16")
    exact, processor = load(narrow, dtype="float32")
    inputs = processor.apply_chat_template(
        conversation("Say something."), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    answer = np.array([5, 6, 7])
    expected = log_probabilities(exact, inputs, answer)
    for share, quantised in ((weights.MEMORY_SHARE, False), (0.0, True)):
        monkeypatch.setattr(weights, "MEMORY_SHARE", share)
        model, _ = load_to_measure(narrow, mx.float32)
        assert number_type(model) == mx.float32
        assert any(hasattr(module, "bits") for module in model.modules()) == quantised
        np.testing.assert_allclose(log_probabilities(model, inputs, answer), expected, atol=1e-4)


def test_answers_that_changed_are_kept_in_words(few, coarse):
    report = measure(GOLDEN / "gen2", coarse, calibration=few)
    assert report.differing == len(report.answers) == 2
    model, processor = load(GOLDEN / "gen2", dtype="float32")
    other, _ = load(coarse, dtype="float32")
    for answer in report.answers:
        inputs = processor.apply_chat_template(
            conversation(answer.question, answer.picture and str(few / answer.picture)),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        one, two = (greedy(each, inputs) for each in (model, other))
        assert answer.dense == processor.decode(one, skip_special_tokens=True)
        assert answer.quantised == processor.decode(two, skip_special_tokens=True) != answer.dense
        at = answer.first_difference
        assert one[:at].tolist() == two[:at].tolist() and one[at] != two[at]
    assert {(answer.question, answer.picture) for answer in report.answers} == {
        ("What is it?", "small.png"),
        ("Say something.", None),
    }


def test_report_and_card_show_the_answers_that_change_first(coarse):
    report = QuantizationReport.read(coarse)
    assert 5 <= report.differing <= 8 and len(report.answers) == 5
    places = [answer.first_difference for answer in report.answers]
    assert places == sorted(places)
    card = (coarse / "README.md").read_text()
    assert f"{report.differing} of 8 answers changed" in card
    table = card.split("| question | dense | quantised |\n| --- | --- | --- |\n")[1].split("\n\n")[0]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()] == [
        escaped(answer.question) for answer in report.answers[:2]
    ]


def test_texts_cannot_break_the_cards_table():
    assert escaped("a|b\nc <img src=x> `|` \\| [x](y) &lt;") == (r"a\|b<br>c \<img src=x\> \`\|\` \\\| \[x\](y) \&lt;")


def test_a_users_own_questions_are_not_published(measured, few):
    out, report, _ = measured
    assert report.calibration == few.name
    assert str(few) not in (out / FILE).read_text() + (out / "README.md").read_text()
    assert report.answers == () and "answers changed" not in (out / "README.md").read_text()
    assert "Say something" not in (out / FILE).read_text() + (out / "README.md").read_text()


def test_another_model_is_refused(few):
    with pytest.raises(WeightsError, match="is another model than"):
        measure(GOLDEN / "gen2", GOLDEN / "gen25", calibration=few)


def test_the_report_is_kept_with_the_folder_and_in_its_card(measured):
    out, report, seen = measured
    assert QuantizationReport.read(out) == report
    card = (out / "README.md").read_text()
    assert report.markdown() in card and "What quantising cost" in card
    steps = [step for step in seen if step[0] == "measuring"]
    assert steps == sorted(steps) and steps[-1][1] == steps[-1][2]
    assert len(steps) > 4 * 8, "the bar moves with each token of the four answers"
    assert f"{report.top1_agreement:.1%}" in report.table() and "nats" in report.table()


def test_the_bundled_questions_are_whole():
    asked = questions()
    assert len(asked) == 8 and sum(not question.pictures for question in asked) == 2
    assert sum(Path(picture).stat().st_size for question in asked for picture in question.pictures) < 200_000


def test_a_folder_of_pictures_is_enough_and_mistakes_are_named(tmp_path, few):
    (tmp_path / "pictures").mkdir()
    shutil.copy(GOLDEN / "pictures" / "small.png", tmp_path / "pictures" / "b.PNG")
    shutil.copy(GOLDEN / "pictures" / "small.png", tmp_path / "pictures" / "a.png")
    assert [question.pictures for question in questions(tmp_path / "pictures")] == [
        (str(tmp_path / "pictures" / name),) for name in ("a.png", "b.PNG")
    ]
    (tmp_path / "pictures" / "prompts.txt").write_text("Of every picture?\na.png\tOf one?\n")
    assert [question.prompt for question in questions(tmp_path / "pictures")] == ["Of every picture?"] * 2 + ["Of one?"]
    (tmp_path / "pictures" / "prompts.txt").write_text("\nc.png\tWhat?\n")
    with pytest.raises(OptionError, match=r"line 2: there is no picture c.png"):
        questions(tmp_path / "pictures")
    with pytest.raises(OptionError, match="is no folder"):
        convert(GOLDEN / "gen2", tmp_path / "out", q_bits=8, calibration=tmp_path / "nowhere")
    with pytest.raises(OptionError, match="nothing is quantised or measured"):
        convert(GOLDEN / "gen2", tmp_path / "out", calibration=few)
    assert not (tmp_path / "out").exists()


def test_verify_from_the_command_line(measured, few, tmp_path, capsys):
    words = ["verify", str(GOLDEN / "gen2"), str(measured[0]), "--calibration", str(few)]
    assert main([*words, "--report", str(tmp_path / "report")]) == 0
    report = QuantizationReport.read(tmp_path / "report")
    assert replace(report, answers=()) == measured[1]
    shown = capsys.readouterr().out
    assert shown == report.table() + "\n" + (f"\n{report.changes()}\n" if report.differing else "")


def test_changed_answers_are_printed_below_the_table(few, coarse, capsys):
    assert main(["verify", str(GOLDEN / "gen2"), str(coarse), "--calibration", str(few)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 answers changed" in shown and "small.png: What is it?" in shown
    assert main(["verify", str(GOLDEN / "gen2"), str(GOLDEN / "gen2"), "--calibration", str(few)]) == 0
    assert "changed" not in capsys.readouterr().out


def test_the_plot_of_errors_is_a_png(tmp_path):
    errors = tuple(
        ModuleError(f"language_model.model.layers.{n}.feed_forward.w{k}", 4, "affine", 0.05 + 0.01 * n)
        for n in range(4)
        for k in (1, 2)
    )
    embed = ModuleError("language_model.model.embed_tokens", 8, "affine", 0.01)
    report = QuantizationReport("few", 1, 1, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 10, 5, 4.5, (*errors, embed))
    assert plot.available()
    assert plot.plot_errors(report, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def with_free(monkeypatch, size: float) -> None:
    monkeypatch.setattr(fit, "free_memory", lambda: int(size))


def test_what_cannot_be_measured_is_said_before_anything_is_written(few, monkeypatch, tmp_path, capsys):
    _, stored = open_model(GOLDEN / "gen25")
    with_free(monkeypatch, 0.5 * fit.weight_bytes(stored.infos))
    words = ["convert", "--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out")]
    options = ["-q", "--q-bits", "4", "--q-group-size", "32"]
    assert main([*words, *options]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("mlx-lfm2vl: error: measuring what quantising costs takes 0.0") and out == ""
    assert line.endswith("GB of memory are free; with --no-verify a model of any size is converted")
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--target-kl", "0.1"]) == 2
    assert "with --q-bits or --q-recipe and --no-verify a model of any size" in capsys.readouterr().err
    assert main([*words, *options, "--no-verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(["verify", str(GOLDEN / "gen25"), str(tmp_path / "out")]) == 2
    assert "or compare them where there is more" in capsys.readouterr().err


def test_out_of_memory_costs_the_measurement_not_the_conversion(few, monkeypatch, tmp_path):
    told: list[str] = []

    def taken(stage: str, done: int, total: int) -> None:
        if stage == "weights":
            with_free(monkeypatch, 1000)

    out = convert(
        *(GOLDEN / "gen25", tmp_path / "out"),
        q_bits=4,
        q_group_size=32,
        calibration=few,
        progress=taken,
        on_note=told.append,
    )
    assert any(
        note.startswith("the quantization error was not measured: measuring what quantising costs takes")
        for note in told
    )
    assert not (out / FILE).exists() and "What quantising cost" not in (out / "README.md").read_text()


def test_a_search_needs_room_for_two(monkeypatch, few, tmp_path):
    _, stored = open_model(GOLDEN / "gen2")
    with_free(monkeypatch, 1.2 * fit.weight_bytes(stored.infos, mx.float32))
    with pytest.raises(OutOfMemoryError, match="finding bits by measurement takes"):
        convert(GOLDEN / "gen2", tmp_path / "out", target_kl=0.1, q_group_size=32, calibration=few)
    convert(GOLDEN / "gen2", tmp_path / "out", q_bits=8, q_group_size=32, calibration=few)
