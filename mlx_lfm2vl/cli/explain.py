"""`mlx-lfm2vl explain`: an answer about pictures, and where in them the attention lay while it was written."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .arguments import load_model, sampling_options, source_policy
from .generate import for_stdout
from .inputs import DEFAULT_PROMPT, check_output, load_pictures, read_prompt, shortened
from .interrupt import answering
from .options import add, add_model, add_pictures, add_prompt, add_sampling, nonempty
from .stderr import Spinner, note

if TYPE_CHECKING:
    from .. import Explanation

SUMMARY = "show where in a picture the attention of an answer lay"
DESCRIPTION = """\
Answers a prompt about pictures, prints the answer, and draws where in them the model's attention lay: one heat map for
the whole answer and one for each of its words. It is where the model read from, not why it answered so.

  mlx-lfm2vl explain --image photo.jpg --prompt "What is on the table?" --draw evidence.png
  mlx-lfm2vl explain --image photo.jpg --word table --draw table.png
  mlx-lfm2vl explain --image photo.jpg --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    pictures = "file, pattern, URL, data URI, pages of a PDF, or - for stdin; several here, or by --image again"
    add(parser, "--image", required=True, help=pictures)
    add_prompt(parser, repr(DEFAULT_PROMPT))
    parser.add_argument("--draw", metavar="FILE", help="write the heat maps to this file (png, jpg, webp)")
    parser.add_argument("--overwrite", action="store_true", help="replace this file if it is there")
    parser.add_argument(
        "--word",
        action="append",
        type=nonempty,
        metavar="WORD",
        help="draw one heat map, of a word or longer text of the answer, as large as the picture, which is enlarged "
        "below 640 pixels; given again, one more below it",
    )
    add(parser, "--json", help="print one JSON object: answer, and of each word the share and the maps")
    add(parser, "--control-tokens")
    add_sampling(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import GenerationOptions, explain
    from ..explanation import overlay
    from ..tasks.drawing import enlargement

    path = None if args.draw is None else overlay.check_file(args.draw, args.overwrite)
    if path is not None:
        check_output(path, args.image)
    if args.word is not None and path is None:
        raise OptionError("--word chooses what --draw draws; give --draw, too")
    prompt = read_prompt(args, args.image)
    prompt = DEFAULT_PROMPT if prompt is None else prompt
    options = GenerationOptions(**sampling_options(args))
    with Spinner("reading pictures"):
        loaded = load_pictures(args.image, source_policy(args), args.color_management)
    model, processor = load_model(args)
    with answering() as (interrupt, spinner):
        made = explain(
            *(model, processor, prompt, [picture for _, picture in loaded]),
            system=args.system,
            options=options,
            stop=interrupt,
            progress=lambda done, total: spinner.count(done, total // 2),  # the prompt runs once more, in the end
            control_tokens=args.control_tokens,
        )
    if path is not None and args.word is not None:
        maps = [
            made.overlay(word, number, scale=enlargement(picture.size))
            for word in args.word
            for number, picture in enumerate(made.pictures)
        ]
        overlay.save(overlay.stacked(maps), path)
    elif path is not None:
        overlay.save(made.sheet(names=[shortened(os.path.basename(name) or name) for name, _ in loaded]), path)
    if args.json:
        names = [shortened(name) for name, _ in loaded]
        print(json.dumps(_as_object(args.model, made, names), ensure_ascii=False), flush=True)
    else:
        print(for_stdout(made.text), flush=True)
    if path is not None:
        note(f"{path}: the heat maps")
    return 0


def _as_object(model: str, made: Explanation, names: list[str]) -> dict[str, Any]:
    """The object that --json prints."""
    words = []
    for word, tokens in made.words():
        maps = [made.map(tokens, number) for number in range(len(names))]
        shares = [round(float(each.sum()), 4) for each in maps]
        words.append({"word": word, "shares": shares, "maps": [each.round(5).tolist() for each in maps]})
    return {"model": model, "text": made.text, "tokens": list(made.tokens), "images": names, "words": words}
