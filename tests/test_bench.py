"""`mlx-lfm2vl bench`: what it says of the demo model is so."""

import dataclasses
import json
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from conftest import GOLDEN, statistics_of
from test_cli import MODULE, ROOT, cli  # noqa: F401

from mlx_lfm2vl import GenerationOptions, load, stream_generate
from mlx_lfm2vl.benchmark import measure
from mlx_lfm2vl.benchmark.ask import PROMPT, TEXT_PROMPT, ask, draw
from mlx_lfm2vl.benchmark.machine import memory_bandwidth
from mlx_lfm2vl.benchmark.measure import Plan, benchmark
from mlx_lfm2vl.benchmark.plot import plot
from mlx_lfm2vl.benchmark.report import COLUMNS, PARTS, Again
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.generation.decode import GenerationBatch

QUICK = ("--tokens", "4", "--repeats", "1")


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    """Of 16 MiB: those beyond any cache, with which `report` is made, take seconds."""
    monkeypatch.setattr(measure, "memory_bandwidth", partial(memory_bandwidth, 2**24))


@pytest.fixture(scope="module")
def report():
    return benchmark("demo", Plan(sizes=((96, 64), None), batch_sizes=(2,), tokens=5, repeats=2))


def test_the_parts_are_the_time_to_the_first_token(report):
    for answer in report.answers:
        assert list(answer.parts) == list(PARTS)
        assert all(seconds >= 0 for seconds in answer.parts.values())
        assert sum(answer.parts.values()) == pytest.approx(answer.first_token)  # medians of two are means
        assert answer.from_start == pytest.approx(report.import_seconds + report.load_seconds + answer.first_token)
    picture, text = report.answers
    assert picture.parts["read"] > 0 and picture.parts["vision"] > 0
    assert text.parts["vision"] < picture.parts["vision"]


def test_a_run_is_the_sum_of_its_parts_and_answers_alike(tmp_path):
    model, processor = load("demo")
    for file, prompt in ((draw((96, 64), 0, tmp_path), PROMPT), (None, TEXT_PROMPT)):
        run = ask(model, processor, file, 6)
        options = GenerationOptions(max_tokens=6, temperature=0)
        pieces = list(stream_generate(model, processor, prompt, file, options=options))
        said = [token for piece in pieces for token in piece.tokens]
        assert list(run.tokens[: len(said)]) == said and len(run.tokens) == 6
        assert sum(run.parts.values()) == pytest.approx(run.first_token)
        assert run.prompt_tokens == statistics_of(pieces[-1]).prompt_tokens
        assert run.image_tokens == statistics_of(pieces[-1]).image_tokens


def test_speed_counts_the_tokens_after_the_first(monkeypatch):
    """A clock that goes on by one second with each token."""
    now, step = 100.0, GenerationBatch.step

    def stepping(*given, **named):
        nonlocal now
        now += 1.0
        return step(*given, **named)

    monkeypatch.setattr(GenerationBatch, "step", stepping)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    run = ask(*load("demo"), None, 6)
    assert (run.first_token, run.tokens_per_second) == (1.0, 1.0)
    assert ask(*load("demo"), None, 1).tokens_per_second == 0.0


def test_tokens_sizes_and_bytes_are_counted(report):
    model, _ = load("demo")
    picture, text = report.answers
    assert (picture.picture, text.picture) == ("96x64", "text")
    assert picture.generated_tokens == text.generated_tokens == 5
    assert text.image_tokens == 0 < picture.image_tokens < picture.prompt_tokens
    weights = sum(report.weights.values())
    assert sum(array.nbytes for _, array in _arrays(model)) == weights
    language = sum(array.nbytes for name, array in _arrays(model) if ".language_model." in name)
    for answer in report.answers:
        assert language < answer.bytes_per_token < 1.5 * language  # with keys, values and convolution states
        assert answer.bandwidth_share == pytest.approx(
            answer.bytes_per_token * answer.tokens_per_second / report.bandwidth
        )
        assert answer.peak_memory > weights
    longer, shorter = sorted((picture, text), key=lambda answer: -answer.prompt_tokens)
    assert longer.bytes_per_token > shorter.bytes_per_token  # by the keys and values of a longer past
    (batch,) = report.batches
    assert (batch.size, batch.generated_tokens, batch.picture) == (2, 10, "256x256")
    assert batch.pictures_per_second == pytest.approx(2 / batch.seconds)
    assert batch.tokens_per_second == pytest.approx(10 / batch.seconds)
    assert report.complete and report.repeats == 2


def _arrays(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def test_the_machine_is_named(report):
    machine = report.machine
    assert (
        machine.device_type in ("cpu", "metal", "cuda")
        and machine.backend == "mlx"
        and machine.name
        and machine.cores > 0
    )
    assert machine.memory > 2**28 and set(machine.versions) >= {"mlx", "mlx-lfm2vl", "numpy"}
    assert report.bandwidth > 1e7 and report.import_seconds > 0 and report.load_seconds > 0


def test_the_tables_fit_80_columns_with_a_row_a_measurement(report):
    lines = report.table().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    kinds = [answer.picture for answer in report.answers]
    names = ["picture", *kinds, "picture", *kinds, "pictures at once", "2 of 256x256"]
    assert [row[0].rstrip() for row in rows if "--" not in row[0]] == names
    assert [len(row) for row in rows] == [7] * 4 + [6] * 4 + [4] * 3
    assert report.machine.name in " ".join(lines) and "model demo: " in report.table()
    largest = dataclasses.replace(
        report.answers[0],
        **{"picture": "8192x8192", "prompt_tokens": 32768, "first_token": 123.456, "from_start": 234.567},
        **{"tokens_per_second": 1234.5, "bytes_per_token": 6_543_210_000, "peak_memory": 123_450_000_000},
        parts=dict.fromkeys(report.answers[0].parts, 123.456),
    )
    assert max(map(len, dataclasses.replace(report, answers=(largest,)).table().splitlines())) <= COLUMNS == 80


@pytest.mark.backends("numpy")
def test_json_has_the_reports_fields(cli):  # noqa: F811
    code, out, err = cli("bench", "demo", "--sizes", "text", "--batch-sizes", "--json", *QUICK)
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert set(made) == {
        *("model", "machine", "bandwidth", "weights", "repeats", "import_seconds", "load_seconds"),
        *("answers", "batches", "constraints", "drafts", "draft_model", "again", "complete"),
    }
    assert made["model"] == "demo" and made["batches"] == [] and len(made["answers"]) == 1
    assert made["answers"][0]["generated_tokens"] == 4


@pytest.mark.backends("numpy")
def test_an_answer_of_six_fields_takes_fewer_steps_by_its_form(cli):  # noqa: F811
    words = ("bench", "demo", "--sizes", "--batch-sizes", "--constraints", "--json", *QUICK)
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert made["complete"] and set(made["constraints"]) == {"step", "masked_step", "tokens", "model_steps"}
    assert made["constraints"]["tokens"] > 1.5 * made["constraints"]["model_steps"] > 9
    assert made["constraints"]["step"] > 0 and made["constraints"]["masked_step"] > 0


@pytest.mark.backends("numpy")
def test_drafts_take_fewer_steps_where_a_question_is_asked_again(cli):  # noqa: F811
    words = ("bench", "demo", "--sizes", "--batch-sizes", "--draft", "--json", "--repeats", 1, "--tokens", 64)
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    first, again, auto, wrong = json.loads(out)["drafts"]
    assert [made["answer"] for made in (first, again, auto, wrong)] == ["first", "again", "again, auto", "all wrong"]
    assert wrong["accepted_tokens"] == 0 and 1 <= wrong["drafted_tokens"] <= 16
    for made in (first, again, auto, wrong):
        assert made["tokens"] == 64 == made["model_steps"] + made["accepted_tokens"]
        assert made["drafted_tokens"] >= made["accepted_tokens"] and min(made["plain"], made["drafting"]) > 0
    assert again["model_steps"] <= 32


@pytest.mark.backends("numpy")
def test_drafts_of_a_model_are_measured(cli):  # noqa: F811
    """Of the model itself, which is right until the clock ends them."""
    words = ("bench", "demo", "--sizes", "--batch-sizes", "--draft-model", "demo", *QUICK, "--tokens", 16)
    code, out, err = cli(*words, "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert [each["answer"] for each in made["drafts"]] == ["first, model", "again, model"] and made["complete"]
    for each in made["drafts"]:
        assert each["tokens"] == 16 == each["model_steps"] + each["accepted_tokens"]
        assert each["accepted_tokens"] == each["drafted_tokens"] > 0
    code, out, err = cli(*words)
    assert code == 0 and "; draft model demo\n" in out and "| again, model |" in out


@pytest.mark.backends("numpy")
def test_a_draft_model_that_does_not_fit_is_told_first(cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr("mlx_lfm2vl.benchmark.measure.ask", None)  # is not called
    code, out, err = cli("bench", "demo", "--draft-model", GOLDEN / "gen2", *QUICK)
    assert (code, out) == (2, "") and "the draft model has vocab_size 832, the model 1380" in err


@pytest.mark.backends("numpy")
def test_a_second_question_and_one_after_idling_are_timed(cli, report, monkeypatch):  # noqa: F811
    monkeypatch.setattr("mlx_lfm2vl.benchmark.extras.IDLE", 0.2)
    code, out, err = cli("bench", "demo", "--sizes", "--batch-sizes", "--again", "--json", *QUICK)
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert made["complete"] and set(made["again"]) == {"first", "second", "idle", "idle_seconds"}
    assert made["again"]["idle_seconds"] == 0.2 and min(made["again"].values()) > 0
    assert max(map(len, dataclasses.replace(report, again=Again(123.4, 123.4, 123.4, 5.0)).table().splitlines())) <= 80


@pytest.mark.backends("numpy")
def test_a_run_is_compared_with_an_earlier_one(cli, tmp_path):  # noqa: F811
    words = ("bench", "demo", "--sizes", "text", "--batch-sizes", *QUICK)
    earlier = json.loads(cli(*words, "--json")[1])
    earlier["answers"][0]["tokens_per_second"] = 1e6
    earlier["machine"]["name"] = "Another one"
    file = tmp_path / "before.json"
    file.write_text(json.dumps(earlier))
    code, out, err = cli(*words, "--against", file)
    assert (code, err) == (0, "")
    shown = out.split("\n\n")[-2:]
    assert shown[0] == "before: name Another one"
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in shown[1].splitlines()]
    assert rows[0] == ["measured", "before", "now", "ratio"]
    named = {row[0]: row[1:] for row in rows[2:]}
    assert set(named) == {f"answers text {what}" for what in ("first token", "tokens per second", "peak memory")}
    assert named["answers text tokens per second"][0] == "1000000"
    assert named["answers text tokens per second"][2] == "0.00"
    assert named["answers text peak memory"][0] == f"{earlier['answers'][0]['peak_memory'] / 1e9:.3f} GB"


@pytest.mark.parametrize(
    "held", ["", "{}", "[1]", "\xff", '{"model": "a", "machine": {}, "answers": [], "batches": []}']
)
def test_a_file_without_measurements_is_refused(cli, tmp_path, held):  # noqa: F811
    file = tmp_path / "before.json"
    file.write_text(held)
    code, out, err = cli("bench", "demo", "--against", file, *QUICK)
    assert (code, out) == (2, "") and str(file) in err and err.count("\n") == 1
    assert err.endswith("; mlx-lfm2vl bench --json > before.json writes one\n") and "model folder" not in err


def test_a_file_to_compare_with_that_is_not_there_is_refused(cli, tmp_path):  # noqa: F811
    for file, said in ((tmp_path / "nowhere.json", "No such file or directory"), (tmp_path, "Is a directory")):
        code, out, err = cli("bench", "demo", "--against", file, *QUICK)
        assert (code, out) == (2, "")
        assert err.endswith(f"{file}: cannot be read ({said}); mlx-lfm2vl bench --json > {file.name} writes one\n")


@pytest.mark.backends("numpy")
def test_the_plot_is_a_picture(cli, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    from PIL import Image

    file = tmp_path / "speed.png"
    code, out, _ = cli("bench", "demo", "--sizes", "64x64", "--batch-sizes", "1", "--plot", file, *QUICK)
    assert code == 0 and "| 64x64 " in out
    with Image.open(file) as picture:
        assert picture.width > 500


def test_without_a_model_the_demo_is_measured_and_said(cli):  # noqa: F811
    code, out, err = cli("bench", "--sizes", "text", "--batch-sizes", *QUICK)
    assert code == 0 and "model demo: " in out and "bundled demo model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "12"], "neither 'text' nor WIDTHxHEIGHT"),
        (["--sizes", "0x4"], "neither 'text' nor WIDTHxHEIGHT"),
        (["--sizes", "99999x4"], "neither 'text' nor WIDTHxHEIGHT"),
        (["--sizes", "--batch-sizes"], "nothing to measure"),
        (["--batch-sizes", "0"], "not a whole number"),
        (["--tokens", "1"], "not a whole number of at least 2"),
        (["--repeats", "0"], "not a whole number of at least 1"),
        (["--plot", "speed.txt"], "png, pdf, svg"),
        (["--plot", "nowhere/speed.png"], "nowhere: no such folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(cli, words, said):  # noqa: F811
    code, out, err = cli("bench", "demo", *words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and said in err


def test_a_model_that_is_not_there_is_one_line(cli):  # noqa: F811
    code, out, err = cli("bench", "nowhere", *QUICK)
    assert (code, out) == (2, "") and "nowhere: no such folder" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("values", [{"repeats": 0}, {"tokens": 1}, {"batch_sizes": (0,)}])
def test_a_plan_out_of_range_is_refused(values):
    with pytest.raises(OptionError, match=next(iter(values))):
        Plan(**{"sizes": (None,), "batch_sizes": (), "tokens": 4, "repeats": 1, **values})


def test_the_plot_s_legend_and_labels_cover_no_bar(report, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    seen: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: seen.append(self))
    slow = dataclasses.replace(report.answers[0], parts=dict.fromkeys(PARTS, 9.0))
    plot(dataclasses.replace(report, answers=(slow, report.answers[1])), tmp_path / "a.png")
    times, batches = seen[0].axes
    seen[0].draw_without_rendering()
    legend = times.get_legend().get_window_extent()
    labels = [label.get_window_extent() for label in times.texts]
    for bar in times.patches:
        box = bar.get_window_extent()
        assert not box.overlaps(legend) and not any(box.shrunk(0.99, 0.99).overlaps(label) for label in labels)
    assert all(label.x1 <= times.get_window_extent().x1 for label in labels)
    assert list(batches.get_xticks()) == [2]
    assert batches.get_ylim() == (0, pytest.approx(1.1 * report.batches[0].pictures_per_second))


# Sends itself a Ctrl-C with the third question: nothing is printed before the end, so none can be timed from outside.
INTERRUPTED = f"""
import functools, os, sys
from mlx_lfm2vl import backends
backends.require()
from mlx_lfm2vl.benchmark import measure
from mlx_lfm2vl.cli import main
ask, calls = measure.ask, []
def watched(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), {int(signal.SIGINT)})
    return ask(*arguments)
measure.ask = watched
measure.memory_bandwidth = functools.partial(measure.memory_bandwidth, 2**24)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_what_was_measured():
    words = ("bench", "demo", "--sizes", "64x64", "text", "--json", *QUICK)
    watch = [sys.executable, "-c", INTERRUPTED, *words]
    done = subprocess.run(watch, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 130 and "stopped" in done.stderr and "Traceback" not in done.stderr
    made = json.loads(done.stdout)
    assert made["complete"] is False and made["batches"] == []
    assert [answer["picture"] for answer in made["answers"]] == ["64x64"]


def test_a_stop_before_the_first_answer_leaves_a_report_that_says_so():
    told = []
    plan = Plan(sizes=(None,), batch_sizes=(), tokens=4, repeats=2)
    report = benchmark("demo", plan, progress=lambda *steps: told.append(steps), stop=lambda: True)
    assert not report.complete and report.answers == () and "stopped early" in report.table()
    assert told == [(step, plan.steps) for step in (1, 2, 3)]  # the memory's speed, an import, a load


def test_progress_reaches_its_total():
    told = []
    plan = Plan(sizes=(None,), batch_sizes=(1,), tokens=4, repeats=1)
    assert benchmark("demo", plan, progress=lambda *steps: told.append(steps)).complete
    assert told == [(step, plan.steps) for step in range(1, plan.steps + 1)]


def test_importing_the_command_line_starts_no_measurement():
    program = (
        "import sys, mlx_lfm2vl.cli; sys.exit(any(m.startswith(('mlx.', 'mlx_lfm2vl.bench')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
