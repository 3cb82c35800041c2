"""The tables of tools/compare/peers: what they say of measurements, and that its rows ask each side for the same."""

import json
import subprocess
import sys

import pytest

from tools.compare.peers.__main__ import Failed, check_same, run
from tools.compare.peers.environments import ROOT
from tools.compare.peers.rows import HF, OURS, ROWS, VLM, Number, Row, median
from tools.compare.peers.sides import PACKAGES, SIDES
from tools.compare.peers.table import put_in, render, versions, written

FIRST = Number("first token", median("first"), targets={VLM: 0.2, HF: 1.0})
SPEED = Number("decoding", median("speed"), "tokens/s", less=False, targets={VLM: 2.0})
ROW = Row("256x256", (FIRST, SPEED), ROWS[0].task)


def line(side: str, blas: bool = True, row: str = "256x256", busy: int = 0, **result: object) -> dict:
    """A line of results.jsonl; `timeout` in place of a result."""
    made = result if "timeout" in result else {"result": result}
    versions = {"mlx": "0.32"} if side != HF else {"torch": "2.13"}
    shared = {"row": row, "side": side, "blas": blas, "busy": busy, "versions": versions}
    return {**shared, "date": "2026-01-02T10:00:00+00:00", "machine": "a box, 2 cores", **made}


def test_a_row_has_medians_ratios_and_targets():
    lines = [
        *(line(OURS, first=[1.0, 5.0, 2.0], speed=[10.0]), line(OURS, first=[4.0], speed=[30.0])),
        line(VLM, first=[10.0], speed=[8.0]),
        line(HF, first=[6.0], speed=[5.0]),
    ]
    *_, first, speed = render(lines, True, (ROW,)).splitlines()
    assert first == (
        "| 256x256 | first token | 3.00 s | 10.00 s | 0.30 (missed: at most 0.2) | 6.00 s | 0.50 (at most 1) |"
    )
    assert speed == (
        "| 256x256 | decoding | 20.00 tokens/s | 8.00 tokens/s | 2.50 (at least 2) | 5.00 tokens/s | 4.00 |"
    )


def test_a_timeout_is_shown_as_a_bound_and_no_measurement_as_a_dash():
    lines = [line(OURS, first=[3.0], speed=[10.0]), line(VLM, timeout=600.0)]
    *_, first, speed = render(lines, True, (ROW,)).splitlines()
    assert first == "| 256x256 | first token | 3.00 s | none in 600 s | below 0.005 (at most 0.2) | - | - |"
    assert speed == "| 256x256 | decoding | 10.00 tokens/s | none in 600 s | - | - | - |"


def test_a_limit_of_our_own_stands_beside_our_number():
    row = Row("import", (Number("import", median("seconds"), limit=0.15),), ROWS[0].task)
    for seconds, shown in ((0.1, "0.100 s (at most 0.15)"), (0.2, "0.200 s (missed: at most 0.15)")):
        assert shown in render([line(OURS, row="import", seconds=[seconds])], True, (row,))


def test_the_heading_says_when_where_and_under_what_load():
    lines = [
        line(OURS, busy=0, first=[1.0], speed=[1.0]),
        line(HF, busy=3, first=[1.0], speed=[1.0]) | {"date": "2026-01-04T10:00:00+00:00"},
    ]
    heading = render(lines, True, (ROW,)).splitlines()[0]
    assert heading.startswith("2026-01-02 to 2026-01-04, a box, 2 cores; mlx 0.32, torch 2.13; ")
    assert "with OpenBLAS" in heading and "1 round in turn" in heading and heading.endswith("began: 0 to 3.")


def test_versions_that_differ_are_named_with_their_side():
    lines = [line(side) | {"versions": {"mlx": version}} for side, version in ((OURS, "0.32"), (VLM, "0.31"))]
    assert versions(lines) == ["mlx 0.32 (mlx-lfm2vl)", "mlx 0.31 (mlx-vlm)"]
    assert versions(lines[:1]) == ["mlx 0.32"]


def test_measurements_with_and_without_openblas_are_not_mixed():
    lines = [line(OURS, blas=False, first=[9.0], speed=[1.0]), line(OURS, first=[1.0], speed=[1.0])]
    assert "9.00 s" in render(lines, False, (ROW,)) and "9.00 s" not in render(lines, True, (ROW,))
    assert render([], True) == "nothing measured yet\n"


@pytest.mark.parametrize(
    ("amount", "shown"), [(0.0123, "0.012 s"), (0.9, "0.900 s"), (1.0, "1.00 s"), (12.345, "12.35 s"), (157.3, "157 s")]
)
def test_numbers_have_three_digits_or_so(amount, shown):
    assert written(amount, "s") == shown


def test_other_tokens_than_ours_are_a_failure():
    row = Row("256x256", (FIRST,), ROWS[0].task, same=(HF,))
    lines = [line(OURS, tokens=[1, 2]), line(VLM, tokens=[9, 9]), line(HF, tokens=[1, 2])]
    check_same(row, lines)
    with pytest.raises(Failed, match="transformers answers"):
        check_same(row, [*lines, line(HF, tokens=[1, 3])])


def test_another_text_than_ours_is_a_failure():
    row = next(row for row in ROWS if row.name == "process")
    lines = [line(OURS, row="process", text="a ring\n"), line(VLM, row="process", text="===\na ring\nPrompt: 3\n")]
    check_same(row, lines)
    with pytest.raises(Failed):
        check_same(row, [lines[0], line(VLM, row="process", text="a square")])


def test_every_row_asks_all_sides_for_the_same_but_for_their_names():
    assert len({row.name for row in ROWS}) == len(ROWS) and set(SIDES) == set(PACKAGES) == {OURS, VLM, HF}
    for row in ROWS:
        assert row.sides[0] == OURS and set(row.same) < set(row.sides)
        tasks = [row.task(side, "/work") for side in row.sides]
        if tasks[0]["kind"] not in ("import", "process"):
            assert all(task == tasks[0] for task in tasks)


def test_a_process_is_clocked_weighed_and_ended(tmp_path):
    program = "import sys, time; data = b'x' * 50_000_000; time.sleep(0.3); print('done')"
    # Linux lets a child's peak begin with its parent's, and this process may be large: a small one asks.
    code = "import json, sys, tools.compare.peers.__main__ as p; print(json.dumps(p.run(sys.argv[1:], {}, 30)))"
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    made = json.loads(done.stdout)
    assert made["output"] == "done\n" and 0.3 <= made["clock"] < 10 and 50e6 < made["peak"] < 1e9
    assert run([sys.executable, "-c", "import time; time.sleep(30)"], {}, 0.5) == {"timeout": 0.5}
    with pytest.raises(Failed, match="wrong"):
        run([sys.executable, "-c", "raise ValueError('wrong')"], {}, 30)


def test_the_tables_are_put_between_a_pages_marks_again_and_again():
    page = "A\n<!-- with OpenBLAS -->\nold\n<!-- end -->\nB\n<!-- without OpenBLAS -->\n<!-- end -->\nC\n"
    once = put_in(page, {True: "| 1 |\n", False: "| 2 |\n"})
    assert once == put_in(once, {True: "| 1 |\n", False: "| 2 |\n"}) and "old" not in once
    assert (
        once.split() == page.replace("old", "| 1 |").replace("BLAS -->\n<!-- end", "BLAS -->\n| 2 |\n<!-- end").split()
    )
    with pytest.raises(SystemExit, match="no marks"):
        put_in("A page", {True: "", False: ""})
