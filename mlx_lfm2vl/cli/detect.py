"""`mlx-lfm2vl detect`: boxes of things that are named, as a table, JSON, a drawing, COCO or CSV."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Iterable

from .stderr import note
from .tasks import add_files, add_task, do, print_found, write_file

ANY = {"all", "any", "anything", "everything", "item", "object", "thing"}  # words that any label answers
SUMMARY = "find things in pictures: boxes"
DESCRIPTION = """\
Finds all that WHAT names and prints a box for each, in pixels of the upright picture.

  mlx-lfm2vl detect --image street.jpg "red cars"
  mlx-lfm2vl detect --image street.jpg "red cars" --draw found.png --json
  mlx-lfm2vl detect --image 'street/*.jpg' "people" --coco people.json --csv people.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=2048, named=True)
    add_files(parser, "--draw", "--coco", "--csv")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import DetectTask, draw_boxes, to_coco
    from ..tasks.export import COLUMNS, to_rows

    found = do(args, lambda recipe: DetectTask(recipe, args.what))
    boxes, names = found.result, found.names
    if others := unasked(args.what, [box.label for box in boxes]):
        note(f"{', '.join(others)}: labels of the model's own, where {args.what!r} was asked for; look at the boxes")
    found.print("boxes", lambda: print_found(COLUMNS, to_rows(boxes, names), len(names) > 1))
    found.note_none()
    found.draw(draw_boxes)
    if args.coco:
        made = to_coco(boxes, names, [picture.size for picture in found.pictures])
        write_file(args.coco, (json.dumps(made, ensure_ascii=False) + "\n").encode(), args.overwrite)
    if args.csv:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *to_rows(boxes, names)])
        write_file(args.csv, file.getvalue().encode("utf-8", "backslashreplace"), args.overwrite)
    return 0


def unasked(what: str, labels: Iterable[str]) -> list[str]:
    """The labels, each once, that have no word in common with what was asked for, plural or not. Whoever asks for
    objects of any kind has asked for all."""
    asked = _words(what)
    if asked & ANY:
        return []
    return [label for label in dict.fromkeys(labels) if not _words(label) & asked]


def _words(text: str) -> set[str]:
    return {re.sub(r"(?<=..)e?s?$", "", word) for word in re.findall(r"\w+", text.lower())}
