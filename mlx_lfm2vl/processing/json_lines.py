"""The rows of a file of JSON lines, for training, evaluation and calibration."""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from ..config import parse_json
from ..errors import OptionError, PromptError

Row = TypeVar("Row")


def fault(error: ValueError) -> str:
    """What is wrong with the JSON of a line, whose number is known: of the place in it only the column, from 1."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, JSONDecodeError) else str(error)


def each_row(file: Path, read: Callable[[Any, Path], Row]) -> list[tuple[int, Row]]:
    """All rows of a file, in UTF-8 with or without a byte order mark; empty lines are none.

    Args:
        file: of JSON lines.
        read: makes a row of the JSON of a line and the file's folder. It raises `PromptError` for what is none.

    Returns:
        The line's number, from 1, and the row.

    Raises:
        PromptError: a line is no row; it names the first.
        OptionError: the file cannot be read or has no rows.
    """
    if file.is_dir():
        raise OptionError(f"{file}: is a folder; give a .jsonl file")
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            data = parse_json(line.decode("utf-8-sig"))
        except ValueError as error:
            raise PromptError(f"{where}: is not JSON ({fault(error)})") from None
        try:
            rows.append((number, read(data, file.parent)))
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    if not rows:
        raise OptionError(f"{file}: has no rows")
    return rows
