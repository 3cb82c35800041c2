"""`mlx-lfm2vl generate`: an answer about pictures, printed as it comes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from .inputs import DEFAULT_PROMPT, STDIN, add_prompt, expand, load_pictures, piped_prompt, read_prompt
from .options import (
    add_control_tokens,
    add_model,
    add_pictures,
    add_sampling,
    chosen_model,
    load_model,
    note,
    sampling_options,
    source_policy,
)
from .progress import Spinner

if TYPE_CHECKING:
    from .. import GenerationResponse, Lfm2VlForConditionalGeneration, Lfm2VlProcessor, Statistics

_OBEYED = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SUMMARY = "answer a prompt about pictures"
DESCRIPTION = """\
Answers a prompt about one or several pictures, or about none, and prints the answer as it comes.

  mlx-lfm2vl generate --image photo.jpg
  mlx-lfm2vl generate --model LiquidAI/LFM2.5-VL-450M --image a.png b.png --prompt "What differs?"
  mlx-lfm2vl generate --image 'scans/*.png' --prompt-file question.txt --json
  curl -s https://example.org/a.png | mlx-lfm2vl generate --image -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="PICTURE",
        help="file, pattern such as '*.png', http(s) URL, data URI, or - for stdin; several here, or by --image again; "
        "all pages of a PDF, or those in brackets: 'doc.pdf[2-5]'",
    )
    add_prompt(parser, f"{DEFAULT_PROMPT!r}; needed without a picture")
    parser.add_argument("--verbose", action="store_true", help="print counts, speeds and memory on stderr at the end")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end: answer, tokens, counts, timings, model"
    )
    add_control_tokens(parser)
    add_sampling(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import GenerationOptions, PromptError, stream_generate
    from .interrupt import Interrupt

    prompt = read_prompt(args, args.image)
    if prompt is None and STDIN not in args.image:
        prompt = piped_prompt()
    if prompt is None and not args.image:
        raise PromptError("nothing to answer: give --image, --prompt or both")
    prompt = DEFAULT_PROMPT if prompt is None else prompt
    options = GenerationOptions(**sampling_options(args))
    with Spinner("reading pictures"):  # a wrong name is said before a large model is loaded
        loaded = load_pictures(expand(args.image), source_policy(args), args.color_management)
    pictures = [picture for _, picture in loaded]
    model, processor = load_model(args)
    if args.verbose:
        report_loading(model)
    pieces: list[GenerationResponse] = []
    with Interrupt() as interrupt, Spinner("reading the prompt") as spinner:
        answer = stream_generate(
            model,
            processor,
            prompt,
            pictures or None,
            system=args.system,
            options=options,
            stop=interrupt,
            progress=spinner.count,
            control_tokens=args.control_tokens,
        )
        try:
            for piece in answer:
                pieces.append(piece)
                if not args.json:
                    spinner.end()
                    print(for_stdout(piece.text + piece.tool_text), end="", flush=True)
        finally:  # also when interrupted twice: what there is stays a whole line
            if pieces and not args.json:
                print(flush=True)
    statistics = pieces[-1].statistics
    assert statistics is not None
    if args.json:
        images = [
            {"source": name if len(name) <= 200 else f"{name[:200]}...", "tokens": tokens}
            for (name, _), tokens in zip(loaded, image_tokens(processor, pictures), strict=True)
        ]
        print(for_stdout(json.dumps(as_object(chosen_model(args), pieces, images), ensure_ascii=False)), flush=True)
    if args.verbose:
        report(statistics)
    return 130 if interrupt.happened else 0


def for_stdout(text: str) -> str:
    """The words of a model as stdout gets them: on a terminal, what that would obey (escape sequences, changes of
    direction) is shown as its number, in JSON's spelling; a pipe or file gets the text itself."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if sys.stdout.isatty() else text


def image_tokens(processor: Lfm2VlProcessor, pictures: list[Any]) -> list[int]:
    """The number of tokens that each picture took."""
    from ..processing.geometry import plan
    from ..processing.pdf import PdfPage

    config, policy = processor.image_processor.config, processor.image_processor.source_policy
    sizes = (each.size(policy, config) if isinstance(each, PdfPage) else each.size for each in pictures)
    return [plan(height, width, config).tokens for width, height in sizes]


def as_object(model: str, pieces: list[GenerationResponse], images: list[dict[str, Any]]) -> dict[str, Any]:
    """The object that --json prints."""
    import dataclasses

    last = pieces[-1]
    assert last.statistics is not None
    made: dict[str, Any] = {
        "model": model,
        "text": "".join(piece.text for piece in pieces),
        "tokens": [token for piece in pieces for token in piece.tokens],
        "finish_reason": last.finish_reason,
        "images": images,
        **dataclasses.asdict(last.statistics),
    }
    if calls := "".join(piece.tool_text for piece in pieces):
        made["tool_text"] = calls
    return made


def report_loading(model: Lfm2VlForConditionalGeneration) -> None:
    """Prints on stderr what the weights became in memory, and what computes with them on a CPU."""
    if model.load_note:
        note(model.load_note)
    if model.backend == "numpy":
        note("computing on the CPU by NumPy (backend numpy; MLX_LFM2VL_BACKEND=mlx has MLX compute)")


def report(statistics: Statistics) -> None:
    """Prints what a run took, on stderr."""
    cached = f", {statistics.cached_tokens} known from before" if statistics.cached_tokens else ""
    speed = f" at {rate:.1f} tokens/s" if (rate := statistics.prompt_tokens_per_second) else ""
    note(f"prompt {statistics.prompt_tokens} tokens ({statistics.image_tokens} of pictures{cached}){speed}")
    note(
        f"answer {statistics.generated_tokens} tokens at {statistics.tokens_per_second:.1f} tokens/s, "
        f"the first after {statistics.time_to_first_token:.2f} s"
    )
    note(f"peak memory {statistics.peak_memory / 1e9:.3f} GB")
