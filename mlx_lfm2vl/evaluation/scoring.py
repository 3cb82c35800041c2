"""Scores of answers, from 0 to 1, by the rule that a row names.

A rule of a text takes what the model said and the accepted answers; the rules of boxes and fields take the result of
the package's task, as JSON has it, and coordinates in pixels of the upright picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..tasks.results import Box
from .vqa import vqa_accuracy

HALF = 0.5  # of the overlap from which a box counts as found
MINUS = "\N{MINUS SIGN}"
_NUMBER = re.compile(rf"[-{MINUS}]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?|[-{MINUS}]?\.\d+")


def exact(text: str, answers: Sequence[str]) -> float:
    """1 where the answer is an accepted one to the letter, but for white space around it."""
    return float(text.strip() in [answer.strip() for answer in answers])


def contains(text: str, answers: Sequence[str]) -> float:
    """1 where an accepted answer stands in the answer, whatever the case: the rule of OCRBench (Liu et al., 2023,
    github.com/Yuliang-Liu/MultimodalOCR)."""
    said = text.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in said for answer in answers))


def formula(text: str, answers: Sequence[str]) -> float:
    """1 where an accepted formula stands in the answer, white space left out: OCRBench's rule for HME100k."""
    said = "".join(text.split())
    return float(any("".join(answer.split()) in said for answer in answers))


def number(text: str, answers: Sequence[str]) -> float:
    """1 where the last number of the answer is an accepted one. Commas between thousands are no part of it."""
    found = numbers(text)
    return float(bool(found) and any(math.isclose(found[-1], float(answer), rel_tol=1e-6) for answer in answers))


def numbers(text: str) -> list[float]:
    """The numbers of a text, in their order."""
    return [float(each.replace(",", "").replace(MINUS, "-")) for each in _NUMBER.findall(text)]


def anls(text: str, answers: Sequence[str]) -> float:
    """The normalised Levenshtein similarity with the nearest accepted answer, and 0 below one half: the rule of DocVQA
    (Mathew et al., WACV 2021; Biten et al., ICCV 2019). Case and the width of white space do not count."""
    best = max(_similarity(_plain(text), _plain(answer)) for answer in answers)
    return best if best >= HALF else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1 - edits(one, other) / longest if longest else 1.0


def edits(one: str, other: str) -> int:
    """The Levenshtein distance of two texts."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def choice(text: str, answers: Sequence[str]) -> float:
    """1 where the answer begins with the letter of an accepted choice: "B", "(B", "Option B", "The answer is B". The
    rule of MMStar (Chen et al., NeurIPS 2024, github.com/MMStar-Benchmark/MMStar)."""
    said = text.lower().strip().replace("\n", " ")
    starts = ("", "(", "option ", "the answer is ")
    return float(any(said.startswith(start + answer.lower().strip()) for answer in answers for start in starts))


def boxes(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> float:
    """1 where every wanted box is met by one of its own, by an overlap (IoU) of one half at least, and no further box
    is told."""
    best = overlaps(found, wanted)
    return float(len(found) == len(wanted) and all(value >= HALF for value in best))


def box(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> float:
    """1 where the first box overlaps (IoU) a wanted one by one half at least: the rule of RefCOCO (Yu et al., ECCV
    2016), Acc@0.5."""
    return float(any(_box(each).overlap(_wanted(edges)) >= HALF for each in found[:1] for edges in wanted))


def point(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> float:
    """1 where the middle of the first box lies in a wanted one: the rule of ScreenSpot (Cheng et al., SeeClick, ACL
    2024), where it is the place of the click."""
    middles = [_box(each).center for each in found[:1]]
    return float(
        any(left <= x <= right and top <= y <= bottom for x, y in middles for left, top, right, bottom in wanted)
    )


def iou(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> float:
    """The mean overlap (IoU) of the wanted boxes with their own, 0 for one that is missing; 1 where none is wanted and
    none told."""
    best = overlaps(found, wanted)
    return sum(best) / len(best) if best else float(not found)


def recall(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> float:
    """The share of the wanted boxes that one of its own meets by an overlap (IoU) of one half at least; 1 where none is
    wanted. Boxes beyond those do not count."""
    best = overlaps(found, wanted)
    return sum(value >= HALF for value in best) / len(best) if best else 1.0


def overlaps(found: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[float]]) -> list[float]:
    """For each wanted box the overlap (IoU) with its own found one: best pairs first, each box once."""
    own, others = map(_box, found), list(map(_wanted, wanted))
    pairs = sorted(((f.overlap(w), i, j) for i, f in enumerate(own) for j, w in enumerate(others)), reverse=True)
    best: dict[int, float] = {}
    used: set[int] = set()  # of those found
    for value, i, j in pairs:
        if i not in used and j not in best:
            used.add(i)
            best[j] = value
    return [best.get(j, 0.0) for j in range(len(wanted))]


def _wanted(edges: Sequence[float]) -> Box:
    left, top, right, bottom = edges
    return Box("", left, top, right, bottom)


def _box(data: Mapping[str, Any]) -> Box:
    return Box("", data["left"], data["top"], data["right"], data["bottom"])


def fields(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The share of the wanted fields whose values are equal."""
    return sum(name in found and found[name] == value for name, value in wanted.items()) / len(wanted)


TEXTS: dict[str, Callable[[str, Sequence[str]], float]] = {
    **{"exact": exact, "contains": contains, "number": number, "anls": anls, "vqa": vqa_accuracy, "choice": choice},
    **{"formula": formula},
}
BOXES: dict[str, Callable[[Sequence[Mapping[str, Any]], Sequence[Sequence[float]]], float]] = {
    **{"boxes": boxes, "box": box, "point": point, "iou": iou, "recall": recall}
}
RULES: dict[str, Callable[..., float]] = {**TEXTS, **BOXES, "fields": fields}
