"""The rows of a task file: JSON lines to questions with what is accepted, nothing of a picture read.

A row is one that `lora` learns from: {"image": "a.png", "prompt": "Why?", "answer": "So."}, or "messages" whose last
one is the answer. "answers" is a list of all that are accepted, "scoring" the rule, "task" the group in which it is
reported. A row with "boxes", [[left, top, right, bottom], ...] in pixels, asks `detect` for what "prompt" names; one
with "json_schema" asks `extract`, and its answer is an object. Paths are relative to the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConstraintError, OptionError, PromptError, did_you_mean
from ..processing.json_lines import each_row
from ..tasks.extraction import object_schema
from ..training.rows import row_messages
from .scoring import BOXES, RULES, TEXTS, numbers

_OWN = ("id", "answers", "scoring", "task", "boxes", "json_schema")


@dataclass(frozen=True)
class EvaluationRow:
    """A question and what is accepted.

    Attributes:
        id: the row's own, or its line's number.
        messages: the question.
        scoring: a rule of `RULES`.
        accepted: texts; for a rule of boxes their corners in pixels; for fields an object.
        group: in which the row is reported.
        schema: of the fields that are asked for.
        where: the file and the place in it, for errors.
    """

    id: Any
    messages: list[dict[str, Any]]
    scoring: str
    accepted: Any
    group: str = ""
    schema: Any = None
    where: str = ""

    @property
    def text(self) -> str:
        """The words of the question."""
        return _words(self.messages[-1])

    @property
    def pictures(self) -> list[Any]:
        """The names of the pictures of the question's last message."""
        content = self.messages[-1]["content"]
        return [] if isinstance(content, str) else [item["image"] for item in content if item["type"] == "image"]

    def placed(self, number: int, where: str) -> EvaluationRow:
        """The row at a place of a file, with the place's number as its id where it has none."""
        return replace(self, id=number if self.id is None else self.id, where=where)


def read_rows(file: Path, scoring: str | None = None) -> list[EvaluationRow]:
    """All rows of a task file; `scoring` is the rule of those that name none, None `exact`. Raises `PromptError` for a
    line that is no row, and `OptionError` for a file that cannot be read or is empty."""
    rows = each_row(file, lambda data, folder: _row(data, folder, scoring))
    return [row.placed(number, f"{file}, line {number}") for number, row in rows]


def _row(data: Any, folder: Path, scoring: str | None) -> EvaluationRow:
    if not isinstance(data, Mapping):
        raise PromptError("is not an object")
    rule = data.get(
        "scoring", "boxes" if "boxes" in data else "fields" if "json_schema" in data else scoring or "exact"
    )
    check_rule(rule)
    group = data.get("task", "")
    if not isinstance(group, str):
        raise PromptError('"task" must be a string')
    given = {name: value for name, value in data.items() if name not in _OWN}
    accepted: Any
    if rule in BOXES:
        accepted = boxes(data.get("boxes"))
    elif rule == "fields":
        accepted = given.pop("answer", None)
        _check_fields(data.get("json_schema"), accepted)
    else:
        accepted = _accepted(data, rule)
    if "messages" not in given:
        given["answer"] = accepted[0] if rule in TEXTS else "-"  # which is not asked
    messages = row_messages(given, folder)
    if rule not in TEXTS:
        if "messages" in given or "system" in given or not EvaluationRow(0, messages[:-1], rule, ()).pictures:
            raise PromptError(f'a row of {rule} has "image", and neither "messages" nor "system"')
        if rule in BOXES and not given.get("prompt"):
            raise PromptError(f'a row of {rule} names what to find as "prompt"')
    return EvaluationRow(data.get("id"), messages[:-1], rule, accepted, group, data.get("json_schema"))


def check_rule(rule: Any) -> None:
    """Raises `PromptError` for what is no rule."""
    if not isinstance(rule, str) or rule not in RULES:
        near = did_you_mean([rule], RULES) if isinstance(rule, str) else ""
        raise PromptError(f'"scoring" is {rule!r}, expected one of {", ".join(RULES)}{near}')


def _check_fields(schema: Any, accepted: Any) -> None:
    """Raises `PromptError` unless they are the schema of an object and an object."""
    if not isinstance(schema, Mapping) or not isinstance(accepted, dict) or not accepted:
        raise PromptError('a row of fields has a "json_schema" and an object as "answer"')
    try:
        object_schema(schema)
    except (ConstraintError, OptionError) as error:
        raise PromptError(str(error)) from None


def _accepted(data: Mapping[str, Any], rule: str) -> tuple[str, ...]:
    """The accepted answers of a row in text."""
    if "answers" in data and "answer" in data:
        raise PromptError('has both "answer" and "answers"; give one of them')
    if "messages" in data and not {"answer", "answers"} & set(data):
        last = data["messages"][-1] if isinstance(data["messages"], list) and data["messages"] else None
        found: Any = _words(last) if isinstance(last, Mapping) and last.get("role") == "assistant" else None
    else:
        found = data.get("answers", data.get("answer"))
    given = texts(found)
    if rule == "number" and not all(len(numbers(each)) == 1 for each in given):
        raise PromptError("a row of number accepts one number an answer")
    return tuple(str(numbers(each)[0]) for each in given) if rule == "number" else given


def _words(message: Mapping[str, Any]) -> str:
    """The text of a message, also of one that nobody has checked."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    items = [item for item in content if isinstance(item, Mapping)] if isinstance(content, list) else []
    return "".join(item["text"] for item in items if isinstance(item.get("text"), str))


def texts(given: Any, blanks: bool = False) -> tuple[str, ...]:
    """Accepted answers as text: a text, a number, or a list of them. `blanks`: some may be empty, which people said.
    Raises `PromptError`."""
    found = [str(each) if _is_number(each) else each for each in (given if isinstance(given, list) else [given])]
    good = [isinstance(each, str) and bool(each.strip()) for each in found]
    if not any(good) or not (all(good) or (blanks and all(isinstance(each, str) for each in found))):
        raise PromptError('has no accepted "answer"; give a text, or a list of them as "answers"')
    return tuple(found)


def boxes(given: Any) -> tuple[tuple[float, ...], ...]:
    """Wanted boxes. Raises `PromptError`."""
    if not isinstance(given, list) or not all(map(_is_box, given)):
        raise PromptError('"boxes" must be a list of [left, top, right, bottom] in pixels')
    return tuple(tuple(map(float, each)) for each in given)


def _is_box(given: Any) -> bool:
    whole = isinstance(given, list) and len(given) == 4 and all(map(_is_number, given))
    return whole and given[0] < given[2] and given[1] < given[3]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def spread(rows: list[EvaluationRow], limit: int | None) -> list[EvaluationRow]:
    """At most so many rows, evenly spread over the file."""
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise OptionError(f"limit is {limit}, expected at least 1")
    return [rows[number * len(rows) // limit] for number in range(limit)]
