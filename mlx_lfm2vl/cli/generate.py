"""`mlx-lfm2vl generate`: an answer about pictures, printed as it comes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import (
    DEMO,
    add_model,
    add_pictures,
    add_sampling,
    note,
    picture_overrides,
    sampling_options,
)

if TYPE_CHECKING:
    from .. import Statistics

SUMMARY = "answer a prompt about pictures"
DESCRIPTION = """\
Answers a prompt about one or several pictures, or about none, and prints the answer as it comes.

  mlx-lfm2vl generate --image photo.jpg
  mlx-lfm2vl generate --model LiquidAI/LFM2.5-VL-450M --image a.png --image b.png --prompt "What differs?"
"""
DEFAULT_PROMPT = "What is in this image?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PICTURE",
        help="file, http(s) URL or data URI; give it again for several pictures",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help=f"what to ask (default with a picture: {DEFAULT_PROMPT!r}; needed without one)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt (default: none)")
    parser.add_argument("--verbose", action="store_true", help="print counts, speeds and memory on stderr at the end")
    add_sampling(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import GenerationOptions, PromptError, load, stream_generate
    from ..processing.source import load_image

    if args.prompt is None and not args.image:
        raise PromptError("nothing to answer: give --image, --prompt or both")
    prompt = DEFAULT_PROMPT if args.prompt is None else args.prompt
    options = GenerationOptions(**sampling_options(args))
    pictures = [load_image(picture) for picture in args.image]  # a wrong name is said before a large model is loaded
    if args.model is None:
        note("no --model given: using the bundled demo model, which only knows simple drawings")
    model, processor = load(
        DEMO if args.model is None else args.model, revision=args.revision, **picture_overrides(args)
    )
    for line in processor.notes:
        if args.tiling is None or "do_image_splitting" not in line:  # who chose need not be told
            note(line)
    statistics, begun = None, False
    try:
        for piece in stream_generate(model, processor, prompt, pictures or None, system=args.system, options=options):
            begun = True
            print(piece.text, end="", flush=True)
            statistics = piece.statistics or statistics
    finally:  # also when interrupted: what there is stays a whole line
        if begun:
            print(flush=True)
    if args.verbose and statistics is not None:
        report(statistics)
    return 0


def report(statistics: Statistics) -> None:
    note(
        f"prompt {statistics.prompt_tokens} tokens ({statistics.image_tokens} of pictures) "
        f"at {statistics.prompt_tokens_per_second:.1f} tokens/s"
    )
    note(
        f"answer {statistics.generated_tokens} tokens at {statistics.tokens_per_second:.1f} tokens/s, "
        f"the first after {statistics.time_to_first_token:.2f} s"
    )
    note(f"peak memory {statistics.peak_memory / 1e9:.3f} GB")
