"""`mlx-lfm2vl evaluate`: the benchmarks' own rules, intervals, and the command on the demo."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, jsonl
from hypothesis import given
from hypothesis import strategies as st

from mlx_lfm2vl import GenerationOptions, GenerationRequest, generate_batch, load
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.evaluation.intervals import Z, bootstrap, of_difference, of_mean, tango, wilson
from mlx_lfm2vl.evaluation.report import Report, Scores, score
from mlx_lfm2vl.evaluation.rows import read_rows
from mlx_lfm2vl.evaluation.scoring import BOXES, RULES, TEXTS, edits, numbers
from mlx_lfm2vl.generation.decode import GenerationBatch

EXAMPLES = Path(__file__).parents[1] / "examples"
SEPARATORS = "\x85\u2028\u2029"  # at which `str.splitlines` parts, and which JSON leaves as they are
both = pytest.mark.backends("mlx", "numpy")


def box(left: float, top: float, right: float, bottom: float) -> dict[str, object]:
    return {"label": "", "left": left, "top": top, "right": right, "bottom": bottom, "image": 0}


@pytest.mark.parametrize(
    ("rule", "answer", "accepted", "wanted"),
    [
        ("exact", " Blue.\n", ["Blue."], 1.0),
        ("exact", "blue.", ["Blue."], 0.0),
        ("contains", "It says\nCENTRE street", ["centre"], 1.0),
        ("contains", "It says center", ["centre", "middle"], 0.0),
        ("formula", "x ^ 2 + \\frac { 1 } { y }", ["x^2+\\frac{1}{y}"], 1.0),
        ("formula", "X^2", ["x^2"], 0.0),
        ("number", "There are 1,234.50 of 7,000", ["7000"], 1.0),
        ("number", "\N{MINUS SIGN}3", ["-3.0"], 1.0),
        ("number", "seven", ["7"], 0.0),
        ("number", "9" * 400, ["7"], 0.0),  # more than a float holds
        ("number", "0", ["0"], 1.0),
        ("anls", "1/8/93", ["1/8/93"], 1.0),
        ("anls", "Blue  SKY", ["blue sky", "red"], 1.0),
        ("anls", "abcd", ["abce"], 0.75),
        ("anls", "abxy", ["abcd"], 0.5),  # one half still counts, as in the challenge's evaluation
        ("anls", "axyz", ["abcd"], 0.0),
        ("vqa", "STOP", ["stop"] * 10, 1.0),
        ("vqa", "stop", ["stop"] * 3 + ["halt"] * 7, 0.9),  # of the three, two others said it
        ("vqa", "stop", ["stop"] + ["halt"] * 9, 0.3),
        ("vqa", "the two dont", ["2 don't"] * 10, 1.0),
        ("vqa", "go", ["stop"] * 10, 0.0),
        ("choice", "B: a red one", ["B"], 1.0),
        ("choice", "(b)", ["B"], 1.0),
        ("choice", "Option B", ["B"], 1.0),
        ("choice", "The answer is B.", ["B"], 1.0),
        ("choice", "It is B", ["B"], 0.0),
        ("choice", "", ["A"], 0.0),
    ],
)
def test_a_text_is_scored_by_the_rule_of_its_benchmark(rule, answer, accepted, wanted):
    assert TEXTS[rule](answer, accepted) == pytest.approx(wanted)


TEN = (0.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("rule", "found", "wanted", "right"),
    [
        ("boxes", [box(*TEN)], [TEN], 1.0),
        ("boxes", [box(0, 0, 10, 5)], [TEN], 1.0),  # one half is enough
        ("boxes", [box(0, 0, 10, 4.9)], [TEN], 0.0),
        ("boxes", [box(*TEN), box(20, 20, 30, 30)], [TEN], 0.0),
        ("boxes", [box(20, 0, 30, 10), box(*TEN)], [TEN, (20.0, 0.0, 30.0, 10.0)], 1.0),
        ("boxes", [box(*TEN), box(0, 0, 10, 9)], [TEN, (50.0, 50.0, 60.0, 60.0)], 0.0),
        ("boxes", [], [], 1.0),
        ("box", [box(*TEN), box(50, 50, 60, 60)], [TEN], 1.0),
        ("box", [box(50, 50, 60, 60), box(*TEN)], [TEN], 0.0),
        ("box", [], [TEN], 0.0),
        ("point", [box(8, 8, 12, 12)], [TEN], 1.0),
        ("point", [box(8, 8, 13, 12)], [TEN], 0.0),
        ("iou", [box(0, 0, 10, 5)], [TEN, (50.0, 50.0, 60.0, 60.0)], 0.25),
        ("iou", [], [], 1.0),
        ("iou", [box(*TEN)], [], 0.0),
        ("recall", [box(0, 0, 10, 5), box(70, 70, 80, 80)], [TEN, (50.0, 50.0, 60.0, 60.0)], 0.5),
        ("recall", [box(*TEN)], [TEN, (0.0, 0.0, 10.0, 9.0)], 0.5),  # a box meets one
        ("recall", [box(*TEN)], [], 1.0),
    ],
)
def test_boxes_are_scored_by_their_overlap(rule, found, wanted, right):
    assert BOXES[rule](found, wanted) == pytest.approx(right)


def test_fields_are_scored_by_the_share_that_is_equal():
    assert RULES["fields"]({"a": 1, "b": "x"}, {"a": 1, "b": "y", "c": None}) == pytest.approx(1 / 3)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(words, words, words)
def test_edits_are_a_distance(one, two, three):
    assert edits(one, two) == edits(two, one) <= max(len(one), len(two))
    assert (edits(one, two) == 0) is (one == two)
    assert edits(one, three) <= edits(one, two) + edits(two, three)


@given(st.lists(words.filter(str.strip), min_size=1, max_size=4), st.randoms())
def test_an_accepted_answer_is_right_by_every_rule_of_texts(accepted, chance):
    said = chance.choice(accepted)
    for rule in ("exact", "contains", "anls", "formula"):
        assert TEXTS[rule](said, accepted) == 1.0, rule
    assert TEXTS["vqa"](said, [said] * 10) == 1.0


@given(st.floats(-1e12, 1e12, allow_nan=False))
def test_a_number_is_found_however_it_is_written(value):
    for text in (f"It is {value:.4f}.", f"{value:,.4f}", f"3 of {value:.4f} g"):
        assert numbers(text)[-1] == pytest.approx(round(value, 4), abs=1e-4)


def test_wilsons_interval_is_that_of_the_formula():
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)  # Newcombe 1998's worked form
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def ends(interval: tuple[float, float] | None) -> tuple[float, float]:
    assert interval is not None
    return interval


@given(st.integers(1, 2000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_holds_the_share(counts):
    right, rows = counts
    low, high = wilson(right, rows)
    assert 0 <= low <= right / rows + 1e-12 and right / rows - 1e-12 <= high <= 1


def test_the_bootstraps_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).uniform(size=400)
    low, high = ends(bootstrap(values.tolist()))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=3e-3)
    assert bootstrap(values.tolist()) == (low, high), "the same at every call"


def test_right_or_wrong_gets_wilsons_interval_and_a_mean_the_bootstraps():
    assert of_mean([1.0, 0.0, 1.0]) == wilson(2, 3)
    several = [0.5, 1.0, 0.0] * 4
    assert of_mean(several) == bootstrap(several) is not None


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.7] * 4, [0.5] * 20, [0.0] * 20], ids=["one", "few", "equal", "none"])
def test_rows_that_do_not_tell_the_spread_have_no_interval(values):
    assert bootstrap(values) is None
    if values[0]:
        assert of_mean(values) is None
        assert of_difference(values, [0.25] * len(values)) is None


PAIRS = st.integers(1, 60).flatmap(
    lambda rows: st.integers(0, rows).flatmap(
        lambda better: st.tuples(st.just(better), st.integers(0, rows - better), st.just(rows))
    )
)


@given(PAIRS)
def test_the_interval_of_a_difference_is_mcnemars_at_0(pairs):
    """It holds 0 where (b - c)^2 / (b + c) is below z^2, holds the difference, and is mirrored as the models change
    places."""
    better, worse, rows = pairs
    low, high = tango(better, worse, rows)
    assert -1 <= low <= (better - worse) / rows <= high <= 1 and high - low > 0.01
    assert (low <= 0 <= high) == ((better - worse) ** 2 <= Z**2 * (better + worse))
    assert tango(worse, better, rows) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_up_to_three_rows_tell_no_difference(rows):
    low, high = ends(of_difference([0.0] * rows, [1.0] * rows))
    assert low == pytest.approx(-1.0) and high > 0


@pytest.mark.parametrize(("better", "worse"), [(0.1, 0.1), (0.3, 0.05), (0.02, 0.0), (0.0, 0.5)])
def test_the_interval_of_a_difference_holds_the_true_one(better, worse):
    """In 92 of 100 cases at least, counted over all that can come of 30 rows."""
    rows, held = 30, 0.0
    for first in range(rows + 1):
        for second in range(rows + 1 - first):
            rest = rows - first - second
            ways = math.comb(rows, first) * math.comb(rows - first, second)
            chance = ways * better**first * worse**second * (1 - better - worse) ** rest
            low, high = tango(first, second, rows)
            held += chance * (low <= better - worse <= high)
    assert held >= 0.92


def test_a_difference_is_taken_row_by_row():
    rng = random.Random(0)
    hard = [float(rng.random() < 0.5) for _ in range(400)]
    worse = [0.0 if number % 20 == 0 else one for number, one in enumerate(hard)]
    low, high = ends(of_difference(worse, hard))
    assert low < np.mean(worse) - np.mean(hard) < high < 0, "far narrower than both intervals"
    assert high - low < 0.04 < wilson(200, 400)[1] - wilson(200, 400)[0]


# --- the command


ROWS = (
    {"image": "scene.png", "prompt": "What is in this image?", "task": "say"}
    | {"answer": "At the left there is a large black ring, and at the bottom right a large pink square."},
    {"image": "count.png", "prompt": "How many stars are there?", "answers": ["7", "8"], "task": "say"},
    {"image": "scene.png", "prompt": "What colour is the ring?", "answer": "Red.", "task": "say"},
    {"image": "boxes.png", "prompt": "ring", "boxes": [[46, 77, 87, 118]], "task": "find"},
    {"image": "scene.png", "task": "fill", "answer": {"colour": "black", "size": "small"}}
    | {
        "json_schema": {
            "properties": {
                "colour": {"enum": ["black", "red"], "description": "What colour is the ring?"},
                "size": {"enum": ["small", "large"], "description": "How big is the ring?"},
            }
        }
    },
)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return jsonl(tmp_path, *({**row, "image": str(EXAMPLES / str(row["image"]))} for row in ROWS))


def evaluated(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@both
def test_the_demo_is_scored_by_text_box_and_field(task, capsys):
    code, out, _ = evaluated(capsys, "demo", "--task", task, "--json")
    (model,) = json.loads(out)["models"]
    rates = {name: (group["rows"], group["score"]) for name, group in model["groups"].items()}
    assert code == 0 and rates == {
        "say": (3, pytest.approx(2 / 3)),
        "find": (1, 1.0),
        "fill": (1, 0.5),
        "all": (5, pytest.approx(3.5 / 5)),
    }
    assert model["groups"]["say"]["interval"] == pytest.approx(wilson(2, 3))


def test_models_stand_side_by_side_with_their_difference(tmp_path, capsys):
    file = jsonl(tmp_path, *({**row, "image": str(EXAMPLES / str(row["image"]))} for row in ROWS[:3]))
    code, out, _ = evaluated(capsys, "demo", GOLDEN / "gen2", "--task", file, "--max-tokens", "4")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert code == 0 and all(len(line) <= 80 for line in out.splitlines() if line.startswith("|"))
    assert rows[0] == ["task", "", "rows", "right", "95 %", "beside A"]
    assert rows[2][:4] == ["say", "A", "3", "33.3"] and rows[2][5] == ""
    assert rows[3][:4] == ["", "B", "3", "0.0"] and rows[3][5].startswith("-33.3 (-79.2 to 41.5)")


def test_an_adapter_is_evaluated_beside_its_model(task, tmp_path, capsys):
    from test_adapters import ADAPTERS

    file = jsonl(tmp_path, {"prompt": "Hi", "answer": "x"})
    adapter = ADAPTERS / "lora"
    words = (GOLDEN / "gen25", "--adapter", adapter, "--task", file, "--max-tokens", "4", "--output", tmp_path / "o")
    code, out, _ = evaluated(capsys, *words, "--json")
    assert code == 0
    names = [model["model"] for model in json.loads(out)["models"]]
    assert names == [str(GOLDEN / "gen25"), f"{GOLDEN / 'gen25'} with {adapter}"]
    plain, changed = (json.loads(each.read_text())["text"] for each in sorted((tmp_path / "o").iterdir()))
    assert plain != changed


def test_kv_bits_are_evaluated_beside_the_model(task, tmp_path, capsys):
    file = jsonl(tmp_path, {"prompt": "Where is the ring? " * 20, "answer": "x"})
    words = ("demo", "--kv-bits", "8", "--kv-bits", "4", "--task", file, "--max-tokens", "9", "--output", tmp_path)
    code, out, _ = evaluated(capsys, *words, "--json")
    names = ["demo", "demo with kv-bits 8", "demo with kv-bits 4"]
    assert code == 0 and [model["model"] for model in json.loads(out)["models"]] == names
    question = GenerationRequest(
        "Where is the ring? " * 20, options=GenerationOptions(max_tokens=9, temperature=0.0, repetition_penalty=1.0)
    )
    for bits, name in ((None, "demo"), (8, "demo-with-kv-bits-8"), (4, "demo-with-kv-bits-4")):
        (answer,) = generate_batch(*load("demo", kv_bits=bits), [question])
        assert json.loads((tmp_path / f"{name}.jsonl").read_text())["text"] == answer.text


@pytest.mark.parametrize("draft", [("--draft", "ngram"), ("--draft-model", "demo")], ids=["ngram", "model"])
def test_drafts_change_no_score(tmp_path, capsys, monkeypatch, draft):
    """A question that comes again has the n-grams of its first answer."""
    verify, verified = GenerationBatch.verify, []

    def noted(self, *given, **named):
        verified.append(self)
        return verify(self, *given, **named)

    monkeypatch.setattr(GenerationBatch, "verify", noted)
    rows = ({**row, "image": str(EXAMPLES / str(row["image"]))} for row in (*ROWS, ROWS[0]))
    words = ("demo", "--task", jsonl(tmp_path, *rows), "--batch-size", 1, "--json", "--output")
    plain = evaluated(capsys, *words, tmp_path / "a")
    assert plain[0] == 0 and not verified and "drafts" not in plain[2]
    code, out, err = evaluated(capsys, *words, tmp_path / "b", *draft)
    assert (code, out) == plain[:2] and verified
    accepted, proposed = map(int, re.findall(r"demo: drafts: (\d+) of (\d+) proposed tokens were right\n", err)[0])
    assert 0 <= accepted <= proposed > 0
    one, other = (tmp_path / name / "demo.jsonl" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_draft_model_that_does_not_fit_is_refused_first(tmp_path, capsys):
    words = ("demo", "--task", jsonl(tmp_path, *ROWS), "--draft-model", GOLDEN / "gen2", "--output", tmp_path / "o")
    code, out, err = evaluated(capsys, *words)
    assert (code, out) == (2, "") and "the draft model has vocab_size 832, the model 1380" in err
    assert not any((tmp_path / "o").glob("*.jsonl"))


def test_the_same_command_goes_on_where_it_was_stopped(task, tmp_path, capsys):
    words = ("demo", "--task", task, "--output", tmp_path / "o")
    _, whole, _ = evaluated(capsys, *words)
    file = tmp_path / "o" / "demo.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept[:2]) + kept[2][:9])
    code, out, err = evaluated(capsys, *words)
    assert code == 0 and out == whole and "2 rows are there already" in err
    assert file.read_bytes().splitlines(keepends=True) == kept
    code, out, err = evaluated(capsys, *words)
    assert out == whole and "5 rows are there already" in err


@both
def test_separators_within_a_text_do_not_part_its_line(tmp_path, capsys):
    file = jsonl(tmp_path, *({"prompt": f"Say{mark}hi.", "answer": "x", "task": "a"} for mark in SEPARATORS))
    words = (GOLDEN / "gen25", "--task", file, "--max-tokens", "2", "--output", tmp_path / "o", "--json")
    code, out, err = evaluated(capsys, *words)
    assert code == 0 and json.loads(out)["rows"] == len(SEPARATORS), err


def test_answers_of_other_settings_are_refused(task, tmp_path, capsys):
    words = ("demo", "--task", task, "--output", tmp_path / "o")
    evaluated(capsys, *words)
    code, _, err = evaluated(capsys, *words, "--max-tokens", "99")
    assert code == 2 and "was made with another model, prompt or other options" in err
    code, _, _ = evaluated(capsys, *words, "--max-tokens", "99", "--overwrite")
    assert code == 0


def test_a_row_that_cannot_be_asked_counts_as_wrong(tmp_path, capsys):
    file = jsonl(
        tmp_path,
        {"image": str(EXAMPLES / "count.png"), "prompt": "How many stars are there?", "answer": "7"},
        {"image": "nowhere.png", "prompt": "Why?", "answer": "So."},
    )
    code, out, err = evaluated(capsys, "demo", "--task", file, "--json")
    (model,) = json.loads(out)["models"]
    assert code == 1 and model["failed"] == 1 and model["groups"]["all"]["score"] == 0.5
    first = f"{file}, line 2: {tmp_path / 'nowhere.png'}: no such picture"
    assert f"1 row with an error, counted as wrong; the first is {first}" in " ".join(err.split())


POLICY = {
    "http://127.0.0.1:9/a.png": "http://127.0.0.1:9/a.png: 127.0.0.1 is a private address",
    "/dev/zero": "/dev/zero: is not a regular file but a device or pipe",
    "../rows.jsonl": "rows.jsonl: not a picture in a format",
    "data:image/png;base64,AAAA": "data:image/png;base64,AAAA: not a picture in a format",
}


@both
@pytest.mark.parametrize("image", POLICY)
@pytest.mark.parametrize("asked", [{"prompt": "Why?", "answer": "So."}, {"prompt": "cat", "boxes": []}])
def test_pictures_of_rows_come_under_the_models_policy(tmp_path, capsys, image, asked):
    (tmp_path / "in").mkdir()
    jsonl(tmp_path, "no picture")
    file = jsonl(tmp_path / "in", {"image": image, **asked})
    code, out, err = evaluated(capsys, "demo", "--task", file, "--json")
    assert code == 1 and json.loads(out)["models"][0]["failed"] == 1
    assert f"the first is {file}, line 1: " in " ".join(err.split()) and POLICY[image] in " ".join(err.split())


def test_answers_to_another_schema_are_not_taken(tmp_path, capsys):
    row = {**ROWS[4], "image": str(EXAMPLES / "scene.png")}
    words = ("demo", "--task", jsonl(tmp_path, row), "--output", tmp_path / "o")
    assert evaluated(capsys, *words)[0] == 0
    jsonl(tmp_path, {**row, "json_schema": {"properties": {"colour": {"enum": ["black", "red"]}}}})
    code, _, err = evaluated(capsys, *words)
    assert code == 2 and "was made with another model, prompt or other options" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo", "demo"), "would have the file of another model"),
        (("demo", str(GOLDEN / "gen2"), "--adapter", "a"), "--adapter is for one MODEL"),
        (("demo", str(GOLDEN / "gen2"), "--kv-bits", "8"), "--kv-bits is for one MODEL"),
        (("demo", "--overwrite"), "--overwrite begins the answers of --output anew"),
        (("demo", "--images", "."), "are for the file of a benchmark"),
        (("demo", "--format", "docvqa"), "rows.jsonl, line 1: is none of docvqa"),
        (("nowhere/./x",), "nowhere"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(task, capsys, words, said):
    code, out, err = evaluated(capsys, *words, "--task", task)
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1


def test_a_report_of_one_group_has_one_line(tmp_path):
    rows = read_rows(jsonl(tmp_path, {"prompt": "a", "answer": "a"}, {"prompt": "b", "answer": "b"}))
    report = Report(tuple(rows), (Scores("m", (1.0, 0.0)),))
    assert [line.split("|")[1].strip() for line in report.table().splitlines() if line.startswith("|")][2:] == ["all"]
    assert score(rows[0], {"error": "no"}) == 0.0 and score(rows[0], {"text": "a"}) == 1.0
