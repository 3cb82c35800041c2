"""The answers of `batch` as a CSV file: made of its JSON lines, a column a field, when all rows are there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from typing import Any

from .. import OutputError
from .output import replaced
from .rows import RESULT

COLUMNS = [name for name in RESULT if name != "settings"]


def check_table(table: str, lines: str) -> None:
    """Raises `OutputError` where `table` is a file that `write_table` has not made of the file `lines`."""
    if os.path.exists(table) and not (os.path.isfile(table) and os.path.exists(lines) and _header(table)):
        raise OutputError(f"{table}: exists already and is no table of {lines}; choose another --output")


def write_table(table: str, lines: str) -> None:
    """Writes the rows of the file `lines` to `table`: texts as they are, other values as JSON. Raises
    `OutputError`."""
    names: dict[str, None] = {}
    for row in _rows(lines):
        names |= dict.fromkeys(name for name in row if name not in RESULT)
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with replaced(table, lines) as new, open(new, "w", **how) as file:
        writer = csv.writer(file)
        writer.writerow([*names, *COLUMNS])
        for row in _rows(lines):
            writer.writerow([_cell(row.get(name)) for name in (*names, *COLUMNS)])


def _rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _header(path: str) -> bool:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return next(csv.reader(file), [])[-len(COLUMNS) :] == COLUMNS
