"""Answers of models to tasks: read as boxes, points, text with its layout, and fields of a schema."""

from __future__ import annotations

import json
import warnings
from typing import Any

from mlx_lfm2vl import RECIPES, AnswerError, AnswerWarning, Box, DetectTask, ExtractTask, PointTask, ReadTask, Region
from mlx_lfm2vl.generation.response import Completion
from mlx_lfm2vl.tasks.export import plain
from mlx_lfm2vl.tasks.task import Task

from .entrance import Entrance

SIZE = (640, 427)
SCHEMA = {"properties": {"total": {"type": "number"}, "lines": {"type": "array", "items": {"type": "string"}}}}
QUESTIONS = {
    "properties": {
        "count": {"type": "integer"},
        "weight": {"type": "number"},
        "seen": {"type": "boolean"},
        "colour": {"enum": ["red", "light blue", "an É."]},
    }
}
LINES = "\n".join(
    ["image_index=0 title [10, 20, 500, 80]", "Title", "", "image_index=0 table [1,2,3,999]", "<fcel>a", "b"]
)
TEXTS = {
    "demo boxes": '[{"image_id": 0, "bbox_2d": [10, 20, 510, 1000], "label": "red ring"}, {"image_id": 0, "bbox_2d": '
    '[0, 0, 10, 10], "label": "\\ud83d\\ude00"}]',
    "450m boxes": '```json\n[{"label": "cat", "bbox": [0.125, 0.5, 0.75, 1.0]}, {"label": "", "bbox": [0,0,1,1]}]\n```',
    "one box": '{"label": "cat", "bbox": [0.9, 0.5, 0.1, 0.2]}',
    "none": "[]",
    "layout": LINES,
    "fields": 'Here: {"total": 12.50, "lines": ["a", "b\\n"]}',
    "number": "-12.5",
    "yes": "Yes, there is one.",
    "choice": "A light blue.",
}


def tasks() -> list[Task[Any]]:
    made: list[Task[Any]] = []
    for recipe in RECIPES:
        made += [DetectTask(recipe, "ring"), PointTask(recipe, "ring")] if recipe.boxes else []
        made += [ReadTask(recipe)] if recipe.layout else []
        asked = QUESTIONS if recipe.extract == "questions" else SCHEMA
        names = asked["properties"] if recipe.extract == "questions" else [None]
        for name in names:
            made.append(ExtractTask(recipe, {"properties": {name: asked["properties"][name]}} if name else asked))
    return made


TASKS = tasks()


def run(data: bytes) -> int:
    """Reads the text as every task does; refused where none can."""
    text = data.decode("utf-8", "replace")
    refused: AnswerError | None = None
    read = 0
    for task in TASKS:
        for answer in (text, Completion(text, finish_reason="length")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", AnswerWarning)
                    result = task.parse_by_sizes([SIZE], [answer])
            except AnswerError as error:
                assert "\n" not in str(error) and len(str(error)) < 300, str(error)
                refused = error
                continue
            json.dumps(plain(result), ensure_ascii=False, allow_nan=False).encode()
            for each in result if isinstance(result, list) else []:
                box = each.box if isinstance(each, Region) else each
                if isinstance(box, Box):
                    assert 0 <= box.left < box.right <= SIZE[0] and 0 <= box.top < box.bottom <= SIZE[1], box
            read += 1
    if refused is not None and not read:
        raise refused
    return read


ENTRANCE = Entrance(
    "answer", lambda: {name: text.encode() for name, text in TEXTS.items()}, run, (AnswerError,), seconds=1.0
)
