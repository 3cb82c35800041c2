"""SECURITY.md names a test for each promise: they are there."""

import re
from pathlib import Path
from typing import Any

import pytest
from matrix.test_matrix import TABLES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = [line for line in TEXT.splitlines() if line.startswith("| ") and "`tests/" in line]


def test_every_promise_names_its_test():
    tables = re.findall(r"^\| [^|\n]*\|[^\n]*\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)", TEXT, re.M)
    rows = [line for table in tables for line in table.splitlines()]
    assert len(rows) > 15 and all("`tests/" in row or "](#" in row for row in rows), rows


@pytest.mark.parametrize("line", PROMISES)
def test_the_named_tests_are_there(line):
    for file, words in re.findall(r"`(tests/[\w/.]+)`((?:,? \"[^\"]+\")*)", line):
        assert (ROOT / file).exists(), file
        for word in re.findall(r'"([^"]+)"', words):
            if file.startswith("tests/matrix/"):
                names = [row.name for row in TABLES[Path(file).stem]]
                assert any(word in name for name in names), f"no row of {file} is about {word!r}"
            else:
                assert word in (ROOT / file).read_text(encoding="utf-8"), f"nothing in {file} is about {word!r}"


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["processor"].image_processor.source_policy.allow_urls is False
