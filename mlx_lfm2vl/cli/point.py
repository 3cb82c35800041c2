"""`mlx-lfm2vl point`: places of things that are named."""

from __future__ import annotations

import argparse

from .tasks import add_files, add_task, do, print_found

SUMMARY = "find things in pictures: points"
DESCRIPTION = """\
Finds all that WHAT names and prints the middle of each, in pixels of the upright picture.

  mlx-lfm2vl point --image screen.png "the button Save"
  mlx-lfm2vl point --image street.jpg "red cars" --draw found.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=2048, named=True)
    add_files(parser, "--draw")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import PointTask, draw_points

    found = do(args, lambda recipe: PointTask(recipe, args.what))
    rows = [(found.names[each.image], each.label, each.x, each.y) for each in found.result]
    found.print("points", lambda: print_found(("image", "label", "x", "y"), rows, len(found.names) > 1))
    found.note_none()
    found.draw(draw_points)
    return 0
