"""The form of the answers: options of the commands, and fields of a row of `batch`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PromptError

FIELDS = ("response_format", "json_schema", "json_object", "regex", "choice", "grammar")  # of a row


def form_option(args: argparse.Namespace) -> dict[str, Any] | None:
    """`response_format` of `GenerationOptions` as the command line says it, files read. Raises `ConstraintError`."""
    given = {name: getattr(args, name) for name in FIELDS[1:] if getattr(args, name) not in (None, False)}
    return form_of(given, Path()) if given else None


def row_form(row: Mapping[str, Any], folder: Path) -> Any:
    """The form that a row of `batch` asks for, or None. Files are beside the input, in `folder`. Raises
    `PromptError`, `ConstraintError`."""
    given = {name: row[name] for name in FIELDS if row.get(name) not in (None, False)}
    if len(given) > 1:
        first, second, *_ = given
        raise PromptError(f'has both "{first}" and "{second}"; give one of them')
    return form_of(given, folder) if given else None


def form_of(given: dict[str, Any], folder: Path) -> Any:
    """`response_format` of `GenerationOptions` as one of `FIELDS` says it; files are in `folder`. Raises `PromptError`,
    `ConstraintError`."""
    from ..constraints.response_format import is_json

    [(name, value)] = given.items()
    if name == "response_format":
        return value
    if name == "json_object":
        if value is not True:
            raise PromptError('"json_object" is true or left out')
        return {"type": name}
    if name in ("json_schema", "grammar") and isinstance(value, str):
        value = _text(value, is_json(value) if name == "json_schema" else ":" in value, folder)
    return {"type": name, name: {"schema": value} if name == "json_schema" else value}


def _text(given: str, is_text: bool, folder: Path) -> str:
    """The text itself, or that of the file which has this name."""
    from ..constraints.response_format import read_text

    if not given.strip():
        raise PromptError("the form of the answer is empty; name a file, or write it")
    return given if is_text else read_text(folder / os.path.expanduser(given))
