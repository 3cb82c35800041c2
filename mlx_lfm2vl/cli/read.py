"""`mlx-lfm2vl read`: the text of pictures, with its layout where the model is known to give it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .generate import for_stdout
from .inputs import shortened
from .options import note
from .tasks import Sources, add_files, add_task, check_files, do, print_json, targets, write_picture

if TYPE_CHECKING:
    from .. import ReadTask
    from ..tasks.recipes import Recipe

SUMMARY = "read the text of pictures"
DESCRIPTION = """\
Prints the text of pictures in reading order. --json tells the kind and the box of each region, too, where the model is
known to give them (LFM2.5-VL-3B).

  mlx-lfm2vl read --image page.png
  mlx-lfm2vl read --model LiquidAI/LFM2.5-VL-3B --image page.png --json --draw layout.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=4096)
    add_files(parser, "draw")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import OptionError, ReadTask, draw_boxes

    sources = Sources.of(args)
    drawn = targets(args.draw, len(sources.names))
    check_files(args, (), drawn)

    def task(recipe: Recipe) -> ReadTask:
        if drawn and recipe.layout is None:
            raise OptionError(f"--draw: this model (recipe {recipe.name}) reads text without boxes; leave --draw out")
        return ReadTask(recipe)

    done = do(args, sources, task)
    if done is None:
        return 130
    regions, about = done
    if args.json:
        print_json({**about, "regions": regions})
    else:
        for number, name in enumerate(sources.names):
            own = [region.text for region in regions if region.image == number and region.text]
            if not own:
                note(f"{shortened(name)}: no text found")
            elif len(sources.names) > 1:
                print(f"{for_stdout(shortened(name))}:")
            if own:
                print(for_stdout("\n\n".join(own)), flush=True)
    for number, path in enumerate(drawn):
        boxes = [region.box for region in regions if region.image == number and region.box is not None]
        write_picture(path, draw_boxes(sources.pictures[number], boxes), args.overwrite)
    return 0
