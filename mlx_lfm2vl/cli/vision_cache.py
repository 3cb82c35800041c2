"""--vision-cache, of commands that answer about pictures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import VisionCache


def add_vision_cache(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--vision-cache",
        metavar="FOLDER",
        help="keep encoded pictures in this folder, at most 2 GiB of them: the next run does not encode them again",
    )


def vision_cache_folder(args: argparse.Namespace) -> str | None:
    """The folder that is named. Raises `OptionError` where ranks share the model."""
    from .. import OptionError

    folder: str | None = args.vision_cache
    if folder is not None and getattr(args, "group", None) is not None:
        raise OptionError("--vision-cache: ranks of mlx.launch that share a model keep no folders; leave it out")
    return folder


def chosen_vision_cache(args: argparse.Namespace) -> VisionCache | None:
    """A cache of pictures in the folder that is named; None for none. Raises `OptionError`."""
    from .. import VisionCache

    folder = vision_cache_folder(args)
    return None if folder is None else VisionCache(folder=folder)
