"""Writes samples of the demo's tasks as rows: what `lora` learns from, and what `evaluate` asks.

    python -m tools.demo.rows FOLDER                      # 500 held-out pictures of each task
    python -m tools.demo.rows FOLDER -n 50 --task count
    mlx-lfm2vl evaluate demo --task FOLDER/rows.jsonl     # how often the demo is right

Contract: FOLDER gets rows.jsonl and the pictures, which come from the split that training never draws. A row is right
if its answer is the wanted one to the letter. Of a conversation (`chat`) the last question is asked, after the right
earlier answers. `detect` asks the task of that name for the boxes of the pictures of `point`: right if each wanted one
is met and no other is told. `recall` and `overlap` ask the same where a box is wanted, and score the share that is met
and the mean overlap (IoU). `extract` fills a schema with the number of a shape (pictures of `count`), or with the
colours and sizes of the shapes of a scene that have no other of their kind (pictures of `describe`). The same rows come
out at every run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlx_lfm2vl.tasks.results import to_box

from . import tasks, tasks_more
from .tasks import Sample

FIRST = 10_000_000  # seed of the first held-out sample
PICTURES = "pictures"
BOXES = {"detect": "boxes", "recall": "recall", "overlap": "iou"}  # what is asked of `detect`, and its rule
OF_TASKS = {**dict.fromkeys(BOXES, ("point",)), "extract": ("count", "describe")}  # whose pictures they take
SCORED = (*tasks.BASIC, *tasks_more.FURTHER, *OF_TASKS)
Row = dict[str, Any]


def row(sample: Sample, turn: int) -> Row:
    """The row of one turn of a sample, without its pictures."""
    if len(sample.images) == 1 and (turn == 0 or sample.apart):
        question, answer = sample.turns[turn]
        return {"task": sample.task, "prompt": question, "answer": answer}
    if sample.apart:
        messages = Sample(sample.task, sample.images, (sample.turns[turn],)).messages()
    else:
        messages = sample.messages()[: 2 * turn + 2]
    return {"task": sample.task, "messages": messages}


def write_rows(file: Path, rows: Iterable[tuple[Sample, Row]]) -> None:
    """Writes a line for each row, and the pictures of its sample into a folder beside the file."""
    folder = file.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for number, (sample, made) in enumerate(rows):
            names = [f"{PICTURES}/{file.stem}-{number}-{at}.png" for at in range(len(sample.images))]
            for name, picture in zip(names, sample.images, strict=True):
                picture.save(file.parent / name, compress_level=1)
            print(json.dumps({**made, "image": names[0] if len(names) == 1 else names}), file=out)


def held_out(task: str, number: int, size: tuple[int, int] | None = None) -> Iterator[Sample]:
    """The first held-out samples of a task, or of those whose pictures it takes."""
    drawn = OF_TASKS.get(task, (task,))
    for seed in range(FIRST, FIRST + number):
        yield tasks.make(drawn[seed % len(drawn)], "test", seed, size)


def scored(task: str, number: int) -> Iterator[tuple[Sample, Row]]:
    """Held-out samples of a task and the row by which each is scored."""
    for sample in held_out(task, number):
        if task in BOXES:
            boxes = wanted_boxes(sample)
            if boxes or task == "detect":
                yield sample, {"task": task, "scoring": BOXES[task], "prompt": label_of(sample), "boxes": boxes}
        elif task == "extract":
            schema, answer = schema_of(sample)
            if answer:  # of some scenes no shape is the only one of its kind
                yield sample, {"task": task, "json_schema": schema, "answer": answer}
        else:
            yield sample, {**row(sample, len(sample.turns) - 1 if task == "chat" else 0), "task": task}


def label_of(sample: Sample) -> str:
    """What the first question of a sample of `point` asks for."""
    return sample.turns[0][0].removeprefix("Provide bounding boxes for the ").removesuffix(".")


def wanted_boxes(sample: Sample) -> list[list[float]]:
    """The exact boxes of that, in pixels."""
    found = (to_box("", box, 1000, sample.images[0].size) for box in sample.facts["boxes"])
    return [list(box.edges) for box in found if box is not None]


def schema_of(sample: Sample) -> tuple[Row, Row]:
    """A schema to fill from a sample's picture, and the right object."""
    fields: Row = {}
    wanted: Row = {}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=500, help="pictures a task")
    parser.add_argument("--task", action="append", choices=SCORED, help="repeatable; default: all")
    args = parser.parse_args()
    write_rows(args.folder / "rows.jsonl", (each for task in args.task or SCORED for each in scored(task, args.n)))


if __name__ == "__main__":
    main()
