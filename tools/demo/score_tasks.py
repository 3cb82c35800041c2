"""Measures the tasks of the package (`DetectTask`, `ExtractTask`) on the demo's held-out pictures; see score.py.

Contract: `detect` has the pictures and questions of `point`, through recipe, parser and pixels: a picture is right if
every wanted box is met by more than half, and no other box is told. `extract` fills a schema with the number of a shape
(pictures of `count`), and one with the colours and sizes of the shapes of a scene that have no other of their kind
(pictures of `describe`); it is right by the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlx_lfm2vl import AnswerError, Box, DetectTask, ExtractTask, generate_batch, recipe_of
from mlx_lfm2vl.tasks.geometry import to_box
from mlx_lfm2vl.tasks.task import Task

from . import tasks

Row = dict[str, Any]


def label_of(sample: tasks.Sample) -> str:
    """What the first question of a sample of `point` asks for."""
    return sample.turns[0][0].removeprefix("Provide bounding boxes for the ").removesuffix(".")


def wanted_boxes(sample: tasks.Sample) -> list[Box]:
    """The exact boxes of that, in pixels."""
    found = (to_box("", box, 1000, sample.images[0].size) for box in sample.facts["boxes"])
    return [box for box in found if box is not None]


def results(model: Any, processor: Any, jobs: Sequence[tuple[Task[Any], tasks.Sample]], rows: int) -> Iterator[Any]:
    """The result of each task about its sample's picture, or the `AnswerError` in its place; `rows` at a time."""
    asked = [(task, task.requests(list(sample.images))) for task, sample in jobs]
    answers = generate_batch(model, processor, (r for _, requests in asked for r in requests), batch_size=rows)
    for task, requests in asked:
        try:
            yield task.parse(requests, [next(answers) for _ in requests])
        except AnswerError as error:
            yield error


def detect(model: Any, processor: Any, samples: Sequence[tasks.Sample], rows: int) -> Row:
    """Counts over samples of `point`."""
    recipe = recipe_of(model)
    row: Row = {"questions": 0, "right": 0, "valid": 0, "boxes": 0, "iou": 0.0, "met": 0}
    jobs = [(DetectTask(recipe, label_of(sample)), sample) for sample in samples]
    for sample, found in zip(samples, results(model, processor, jobs, rows), strict=True):
        wanted = wanted_boxes(sample)
        told = [] if isinstance(found, AnswerError) else found
        best = overlaps(told, wanted)
        met = sum(value > 0.5 for value in best)
        row["questions"] += 1
        row["valid"] += not isinstance(found, AnswerError)
        row["right"] += met == len(wanted) == len(told)
        row["boxes"] += len(wanted)
        row["iou"] += sum(best)
        row["met"] += met
    return row


def extract(model: Any, processor: Any, samples: Sequence[tasks.Sample], rows: int) -> Row:
    """Counts over samples of `count` and `describe`, by the field."""
    recipe = recipe_of(model)
    row: Row = {"questions": 0, "right": 0}
    asked = [(*schema_of(sample), sample) for sample in samples]
    asked = [each for each in asked if each[1]]  # of some scenes no shape is the only one of its kind
    jobs = [(ExtractTask(recipe, schema), sample) for schema, _, sample in asked]
    for (_, wanted, _), found in zip(asked, results(model, processor, jobs, rows), strict=True):
        told = {} if isinstance(found, AnswerError) else found
        row["questions"] += len(wanted)
        row["right"] += sum(told.get(name) == value for name, value in wanted.items())
    return row


def schema_of(sample: tasks.Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema to fill from a sample's picture, and the right object."""
    fields: dict[str, Any] = {}
    wanted: dict[str, Any] = {}
    if sample.task == "count":
        shape = tasks.plural(sample.facts["target"])
        fields[shape] = {"type": "integer", "description": sample.turns[0][0]}
        wanted[shape] = sample.facts["number"]
    shapes = [thing.shape for thing in sample.things[0]]
    for thing in sample.things[0] if sample.task == "describe" else ():
        if shapes.count(thing.shape) == 1:
            colour, size = f"colour of the {thing.shape}", f"size of the {thing.shape}"
            fields[colour] = {"enum": list(tasks.COLOURS), "description": f"What colour is the {thing.shape}?"}
            fields[size] = {"enum": list(tasks.SIZES), "description": f"How big is the {thing.shape}?"}
            wanted |= {colour: thing.colour, size: thing.size}
    return {"type": "object", "properties": fields, "required": list(fields)}, wanted


def overlaps(found: Sequence[Box], wanted: Sequence[Box]) -> list[float]:
    """For each wanted box the overlap (IoU) with its own found one: best pairs first, each box once."""
    pairs = sorted(((f.overlap(w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)), reverse=True)
    best, used = [0.0] * len(wanted), set()
    for value, i, j in pairs:
        if ("found", i) not in used and ("wanted", j) not in used:
            used |= {("found", i), ("wanted", j)}
            best[j] = value
    return best
