"""Measures a model on the demo's held-out pictures with the shipped package (MLX), task by task.

    python -m tools.demo.score                       # the bundled demo, 500 pictures a task
    python -m tools.demo.score --q-bits 8 4          # and what quantising it costs
    python -m tools.demo.score -n 50 --model FOLDER --json

Contract: the pictures come from the split that training never draws; decoding is greedy and the answer is the whole
text that the package returns. "wholly right" counts answers equal to the wanted one, to the letter. In detail: for
descriptions, each object's size, colour, shape and place, found at the object's turn in the sentence; for texts, one
less the edit distance over the length; for boxes, the share of answers that are valid JSON of the asked form, the mean
overlap (IoU) over all wanted boxes, a missing one counting 0, and the share of them met by more than half. In `chat`
every question of a conversation is asked after the model's own earlier answers, and the rate is over all questions but
the first. `detect` and `extract` are those of the package (score_tasks.py).
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_lfm2vl import Box, GenerationOptions, GenerationRequest, convert, demo, generate_batch, load
from mlx_lfm2vl.tasks.geometry import to_box

from . import score_tasks, tasks, tasks_more

FIRST = 10_000_000  # seed of the first held-out sample
ROWS = 16  # pictures in one batch
OF_TASKS = {"detect": ("point",), "extract": ("count", "describe")}  # tasks of the package, and of their pictures
SCORED = (*tasks.BASIC, *tasks_more.FURTHER, *OF_TASKS)
_TOLD = re.compile(r"((?:at|in) the [a-z ]+?) (?:there is )?an? (\w+) (\w+) (\w+)")


def facts(answer: str, sample: tasks.Sample) -> tuple[int, int]:
    """(right, wanted) facts of a description, four an object; objects told beyond the real ones count as wanted too."""
    told = _TOLD.findall(answer.lower())
    wanted = [(tasks.PLACES[o.place], o.size, o.colour, o.shape) for o in sample.things[0]]
    right = sum(a == b for one, other in zip(told, wanted, strict=False) for a, b in zip(one, other, strict=True))
    return right, 4 * max(len(told), len(wanted))


def edits(one: str, other: str) -> int:
    """The Levenshtein distance of two texts."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def boxes(answer: str, size: tuple[int, int]) -> list[Box] | None:
    """The boxes of an answer by the recipe, in pixels of a picture of that width and height; None where it is no such
    JSON."""
    try:
        found = json.loads(answer)
    except json.JSONDecodeError:
        return None
    whole = isinstance(found, list) and all(
        isinstance(f, dict)
        and set(f) == {"image_id", "bbox_2d", "label"}
        and isinstance(f["bbox_2d"], list)
        and len(f["bbox_2d"]) == 4
        and all(isinstance(v, int) and 0 <= v <= 1000 for v in f["bbox_2d"])
        for f in found
    )
    if not whole:
        return None
    made = (to_box(f["label"], f["bbox_2d"], 1000, size) for f in found)
    return [box for box in made if box is not None]


def answers(
    model: Any, processor: Any, samples: list[tasks.Sample], turns: int, **overrides: Any
) -> Iterator[tuple[tasks.Sample, int, str]]:
    """(sample, turn, answer) of the first questions of each sample, in batches, a turn at a time; `overrides` as for
    the processor."""
    options = GenerationOptions(max_tokens=128)
    told: list[list[dict[str, Any]]] = [[] for _ in samples]
    for turn in range(turns):
        asked = [i for i, sample in enumerate(samples) if turn < len(sample.turns)]
        for i in asked:
            message = samples[i].messages()[2 * turn]
            pictures = iter(samples[i].images)
            content = [p if p["type"] == "text" else {**p, "image": next(pictures)} for p in message["content"]]
            told[i].append({"role": "user", "content": content})
        questions = [GenerationRequest(told[i], options=options, image_overrides=overrides) for i in asked]
        rows = generate_batch(model, processor, questions, batch_size=ROWS)
        for i, row in zip(asked, rows, strict=True):
            if row.error:
                raise row.error
            told[i].append({"role": "assistant", "content": row.text})
            yield samples[i], turn, row.text


def score(model: Any, processor: Any, task: str, number: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts of one task: pictures, questions scored, right ones, and what else the task has."""
    row: dict[str, Any] = {"task": task, "pictures": number, "questions": 0, "right": 0}

    def add(**counts: float) -> None:
        for name, value in counts.items():
            row[name] = row.get(name, 0) + value

    stop = FIRST + number
    if task in OF_TASKS:
        drawn = OF_TASKS[task]
        samples = [tasks.make(drawn[seed % len(drawn)], "test", seed, size) for seed in range(FIRST, stop)]
        return row | getattr(score_tasks, task)(model, processor, samples, ROWS)
    for start in tqdm(range(FIRST, stop, ROWS), desc=task, unit="batch", disable=None, leave=False):
        samples = [tasks.make(task, "test", seed, size) for seed in range(start, min(start + ROWS, stop))]
        for sample, turn, answer in answers(model, processor, samples, 4 if task == "chat" else 1):
            wanted = sample.turns[turn][1]
            if task != "chat" or turn > 0:
                add(questions=1, right=answer == wanted)
            if task == "describe":
                right, all_facts = facts(answer, sample)
                add(facts_right=right, facts=all_facts)
            elif task == "tiled":
                ((_, _, answer),) = answers(model, processor, [sample], 1, do_image_splitting=False)
                add(right_untiled=answer == wanted)
            elif task == "read":
                add(characters_right=max(0, len(wanted) - edits(answer, wanted)), characters=len(wanted))
            elif task == "point":
                boxed = score_tasks.wanted_boxes(sample)
                found = boxes(answer, sample.images[0].size)
                met = score_tasks.overlaps(found or [], boxed)
                add(valid=found is not None, boxes=len(boxed), iou=sum(met), met=sum(v > 0.5 for v in met))
    return row


def detail(row: dict[str, Any]) -> str:
    """What a task is measured by beside answers that are wholly right."""
    if "facts" in row:
        return f"facts {100 * row['facts_right'] / row['facts']:.1f} %"
    if "characters" in row:
        return f"characters {100 * row['characters_right'] / row['characters']:.1f} %"
    if "right_untiled" in row:
        return f"the same pictures without tiles {100 * row['right_untiled'] / row['questions']:.1f} %"
    if "boxes" in row:
        valid, iou, met = row["valid"] / row["questions"], row["iou"] / row["boxes"], row["met"] / row["boxes"]
        return f"valid JSON {100 * valid:.1f} %, mean IoU {iou:.2f}, recall {100 * met:.1f} %"
    return ""


def table(columns: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a task, of each model the share wholly right and the detail."""
    lines = [
        "| task | pictures |" + "".join(f" {name} | |" for name in columns),
        "| --- | ---: |" + " ---: | --- |" * len(columns),
    ]
    for rows in zip(*columns.values(), strict=True):
        cells = (f" {100 * row['right'] / row['questions']:.1f} % | {detail(row)} |" for row in rows)
        lines.append(f"| {rows[0]['task']} | {rows[0]['pictures']} |" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="folder or repository (default: the bundled demo)")
    parser.add_argument("-n", type=int, default=500, help="pictures a task")
    parser.add_argument("--task", action="append", choices=SCORED, help="repeatable; default: all")
    parser.add_argument("--q-bits", type=int, nargs="*", default=[], help="score the model quantised to these too")
    parser.add_argument("--json", action="store_true", help="one JSON object a model and task instead of the table")
    args = parser.parse_args()
    columns: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for bits in (None, *args.q_bits):
            folder, name = args.model, "dense"
            if bits is not None:
                name = f"{bits} bits"
                source = demo.path() if folder == "demo" else Path(folder)
                folder = str(convert(source, Path(work) / str(bits), q_bits=bits, verify=False))
            model, processor = load(folder)
            for task in args.task or SCORED:
                started = time.monotonic()
                row = score(model, processor, task, args.n)
                columns.setdefault(name, []).append(row)
                if args.json:
                    row = {"model": name, **row, "seconds": round(time.monotonic() - started, 1)}
                    print(json.dumps(row), flush=True)
    if not args.json:
        print(table(columns))


if __name__ == "__main__":
    main()
