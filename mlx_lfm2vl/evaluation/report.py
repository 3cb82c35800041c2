"""The result of an evaluation: scores of each model and group, as JSON and as a table to paste."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..benchmark.report import aligned
from .intervals import Interval, of_difference, of_mean
from .rows import EvaluationRow
from .scoring import RULES, TEXTS

ALL = "all"
CAPTION = "right: the mean score in per cent, with its 95 % interval"
BESIDE = "; beside A: what it has more, row by row"


@dataclass(frozen=True)
class Scores:
    """The scores of a model, a row each, and how many rows have an error or an answer that was cut off; `error` is the
    first one's, with its place."""

    model: str
    scores: tuple[float, ...]
    failed: int = 0
    cut_off: int = 0
    error: str = ""


def score(row: EvaluationRow, made: Mapping[str, Any]) -> float:
    """The score of a row's answer, a line as `batch` writes it. An error, or an answer that cannot be read, is 0."""
    answer = made.get("text") if row.scoring in TEXTS else made.get("result")
    return 0.0 if answer is None else RULES[row.scoring](answer, row.accepted)


def scores(model: str, rows: Sequence[EvaluationRow], lines: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores of a model's answers, which are in the order of the rows."""
    pairs = list(zip(rows, lines, strict=True))
    errors = [f"{row.where}: {made['error']}" for row, made in pairs if "error" in made]
    cut_off = sum(made.get("finish_reason") == "length" for made in lines)
    return Scores(model, tuple(score(*pair) for pair in pairs), len(errors), cut_off, "".join(errors[:1]))


@dataclass(frozen=True)
class Report:
    """Scores of one model or several on the same rows; the first is what the others are compared with."""

    rows: tuple[EvaluationRow, ...]
    models: tuple[Scores, ...]

    def groups(self) -> dict[str, list[int]]:
        """The places of each group's rows, in their order, and of all where there are several groups."""
        found: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row.group, []).append(place)
        if len(found) > 1:
            return {**found, ALL: list(range(len(self.rows)))}
        return {name or ALL: places for name, places in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """All numbers, scores from 0 to 1."""
        first = self.models[0]
        made = []
        for model in self.models:
            groups = {}
            for name, places in self.groups().items():
                own = [model.scores[place] for place in places]
                groups[name] = {"rows": len(own), "score": statistics.fmean(own), "interval": of_mean(own)}
                if model is not first:
                    other = [first.scores[place] for place in places]
                    groups[name]["difference"] = statistics.fmean(own) - statistics.fmean(other)
                    groups[name]["difference_interval"] = of_difference(own, other)
            made.append({"model": model.model, "failed": model.failed, "cut_off": model.cut_off, "groups": groups})
        return {"rows": len(self.rows), "models": made}

    def table(self) -> str:
        """A table of at most 80 columns where names of groups are short: a row a group and model."""
        several = len(self.models) > 1
        letters = [chr(ord("A") + number) if number < 26 else str(number) for number in range(len(self.models))]
        heading = ("task", *([""] if several else []), "rows", "right", "95 %", *(["beside A"] if several else []))
        lines, models = [heading], self.to_dict()["models"]
        for group in self.groups():
            for letter, model in zip(letters, models, strict=True):
                found = model["groups"][group]
                row = [group if letter == "A" else "", *([letter] if several else []), str(found["rows"])]
                row += [f"{100 * found['score']:.1f}", _interval(found["interval"])]
                if several:
                    row.append(
                        _beside(found["difference"], found["difference_interval"]) if "difference" in found else ""
                    )
                lines.append(tuple(row))
        caption = CAPTION + BESIDE if several else CAPTION
        named = [f"{letter}: {model.model}" for letter, model in zip(letters, self.models, strict=True)]
        return "\n".join([*(named if several else [self.models[0].model]), "", *aligned(lines), "", caption])


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else " to ".join(f"{100 * edge:.1f}" for edge in interval)


def _beside(difference: float, interval: Interval | None) -> str:
    return f"{100 * difference:+.1f} ({_interval(interval)})"
