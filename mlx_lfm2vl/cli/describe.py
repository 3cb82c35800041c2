"""`mlx-lfm2vl describe`: a description of pictures, in the words that the model knows best."""

from __future__ import annotations

import argparse

from .generate import for_stdout
from .tasks import add_task, do

SUMMARY = "describe pictures"
DESCRIPTION = """\
Describes a picture, or several together.

  mlx-lfm2vl describe --image photo.jpg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser, max_tokens=512)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import DescribeTask

    found = do(args, DescribeTask)
    found.print("text", lambda: print(for_stdout(found.result), flush=True))
    return 0
