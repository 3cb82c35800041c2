"""`mlx-lfm2vl read`: the text of pictures, with its layout where the model is known to give it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import OptionError
from .generate import for_stdout
from .stderr import note
from .tasks import add_files, add_task, do

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
    add_files(parser, "--draw")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import ReadTask, draw_boxes

    def task(recipe: Recipe) -> ReadTask:
        if args.draw and recipe.layout is None:
            raise OptionError(f"--draw: this model (recipe {recipe.name}) reads text without boxes; leave --draw out")
        return ReadTask(recipe)

    def show() -> None:
        for number, name in enumerate(found.names):
            own = [region.text for region in found.of(number) if region.text]
            if not own:
                note(f"{name}: no text found")
            elif len(found.names) > 1:
                print(f"{for_stdout(name)}:")
            if own:
                print(for_stdout("\n\n".join(own)), flush=True)

    found = do(args, task)
    found.print("regions", show)
    found.draw(lambda picture, regions: draw_boxes(picture, [each.box for each in regions if each.box is not None]))
    return 0
