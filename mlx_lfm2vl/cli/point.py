"""`mlx-lfm2vl point`: places of things that are named."""

from __future__ import annotations

import argparse

from .inputs import shortened
from .tasks import (
    Sources,
    add_files,
    add_task,
    check_files,
    do,
    print_json,
    print_table,
    targets,
)

SUMMARY = "find things in pictures: points"
DESCRIPTION = """\
Finds all that WHAT names and prints the middle of each, in pixels of the upright picture.

  mlx-lfm2vl point --image screen.png "the button Save"
  mlx-lfm2vl point --image street.jpg "red cars" --draw found.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=2048, named=True)
    add_files(parser, "draw")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import PointTask, draw_points

    sources = Sources.of(args)
    drawn = targets(args.draw, len(sources.names))
    check_files(args, (), drawn)
    done = do(args, sources, lambda recipe: PointTask(recipe, args.what))
    if done is None:
        return 130
    points, about = done
    names = [shortened(name) for name in sources.names]
    if args.json:
        print_json({**about, "points": points})
    elif points:
        alone = len(names) == 1
        rows = [[names[each.image], each.label, f"{each.x:.1f}", f"{each.y:.1f}"] for each in points]
        print_table(("image", "label", "x", "y")[alone:], [row[alone:] for row in rows])
    sources.finish(args, points, drawn, draw_points)
    return 0
