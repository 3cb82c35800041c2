"""`mlx-lfm2vl generate`: an answer about pictures, printed as it comes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PromptError, counted
from .arguments import chosen_draft, chosen_vision_cache, load_model, picture_overrides, sampling_options, source_policy
from .inputs import (
    DEFAULT_PROMPT,
    STDIN,
    default_prompt,
    load_pictures,
    load_videos,
    piped_prompt,
    read_prompt,
    shortened,
)
from .interrupt import answering
from .options import add, add_decoding, add_model, add_pictures, add_prompt, add_sampling, add_videos, whole
from .stderr import Spinner, note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .. import Completion, GenerationResponse, Lfm2VlProcessor, Statistics, Video

_OBEYED = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
BATCH = 8  # answers that are made at a time
SUMMARY = "answer a prompt about pictures"
DESCRIPTION = """\
Answers a prompt about one or several pictures, or about none, and prints the answer as it comes.

  mlx-lfm2vl generate --image photo.jpg
  mlx-lfm2vl generate --model LiquidAI/LFM2.5-VL-450M --image a.png b.png --prompt "What differs?"
  mlx-lfm2vl generate --video clip.mp4 --fps 1 --prompt "What happens?"
  mlx-lfm2vl generate --image 'scans/*.png' --prompt-file question.txt --json
  curl -s https://example.org/a.png | mlx-lfm2vl generate --image -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    pictures = (
        "file, pattern such as '*.png', http(s) URL, data URI, or - for stdin; several here, or by --image again; "
        "all pages of a PDF, or those in brackets: 'doc.pdf[2-5]'"
    )
    add(parser, "--image", default=[], help=pictures)
    add_videos(parser, "video file or animation (GIF, WebP); a model without video tokens sees its frames as pictures")
    add_prompt(parser, f"{DEFAULT_PROMPT!r}; needed without a picture")
    parser.add_argument("--verbose", action="store_true", help="print counts, speeds and memory on stderr at the end")
    add(parser, "--json", help="print one JSON object at the end: answer, tokens, counts, timings, model")
    parser.add_argument(
        "-n",
        type=whole(1, 256),
        default=1,
        metavar="N",
        help="answers, 1 to 256 (default: 1); the prompt is run once; with --seed, each has the next seed",
    )
    parser.add_argument(
        "--top-logprobs",
        type=whole(0, 100),
        default=0,
        metavar="K",
        help="with --json: the K likeliest tokens in each place, 0 to 100, and their logarithmic probabilities",
    )
    add(parser, "--control-tokens")
    add_sampling(parser)
    add_decoding(parser)
    add(parser, "--vision-cache")
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import GenerationOptions, GenerationRequest, generate_batch, stream_generate

    prompt = read_prompt(args, [*args.image, *args.video])
    alone = args.group is None  # what mlx.launch gives on stdin has no end
    if alone and prompt is None and STDIN not in (*args.image, *args.video):
        prompt = piped_prompt()
    if prompt is None and not args.image and not args.video:
        raise PromptError("nothing to answer: give --image, --prompt or both")
    if args.fps is not None and not args.video:
        raise OptionError("--fps needs --video, whose frames it counts")
    prompt = default_prompt(args.video, args.image) if prompt is None else prompt
    if args.top_logprobs and not args.json:
        raise OptionError("--top-logprobs needs --json, which prints them")
    options = GenerationOptions(**sampling_options(args), top_logprobs=args.top_logprobs)
    with Spinner("reading pictures"):  # a wrong name is said before a large model is loaded
        policy = source_policy(args)
        loaded = load_pictures(args.image, policy, args.color_management)
        videos = load_videos(args.video, args.fps, policy)
    pictures = [picture for _, picture in loaded]
    kept = chosen_vision_cache(args)
    options = replace(options, draft=chosen_draft(args))
    model, processor = load_model(args)
    if videos and not pictures and not processor.frames_as_pictures:
        check_picture_options(args)
    for name, video in videos:
        note_frames(name, video, *processor.frame_sampling)
    request = GenerationRequest(
        *(prompt, pictures or None, args.system),
        options=options,
        control_tokens=args.control_tokens,
        videos=[video for _, video in videos] or None,
    )
    with answering() as (interrupt, spinner):
        how: dict[str, Any] = {"stop": interrupt, "progress": spinner.count, "vision_cache": kept}
        answers = (
            _printed(stream_generate(model, processor, request, **how), spinner, args.json)
            if args.n == 1
            else generate_batch(model, processor, request.repeat(args.n), batch_size=BATCH, **how)
        )
        for number, answer in enumerate(answers):
            if answer.error is not None:
                raise answer.error
            spinner.close()
            if options.response_format is not None and answer.finish_reason == "length":
                note("the answer was cut off by --max-tokens, so it may not hold to its form; raise it")
            if args.json:
                made = as_object(args, processor, answer, loaded, videos)
                print(for_stdout(json.dumps(made, ensure_ascii=False)), flush=True)
            elif args.n > 1:
                print(f"{number + 1}: {for_stdout(answer.text + answer.tool_text)}", flush=True)
            if args.verbose and answer.statistics is not None:
                report(answer.statistics, options.draft is not None)
    return 130 if interrupt.happened else 0


def _printed(answer: Iterator[GenerationResponse], spinner: Spinner, quiet: bool) -> Iterator[Completion]:
    """The answer, printed as it comes unless `quiet`."""
    from .. import Completion

    pieces: list[GenerationResponse] = []
    try:
        for piece in answer:
            pieces.append(piece)
            if not quiet:
                spinner.close()
                print(for_stdout(piece.text + piece.tool_text), end="", flush=True)
    finally:  # also when interrupted twice: what there is stays a whole line
        if pieces and not quiet:
            print(flush=True)
    yield Completion.of(pieces)


def for_stdout(text: str) -> str:
    """The words of a model as stdout gets them: on a terminal, what that would obey (escape sequences, changes of
    direction) is shown as its number, in JSON's spelling; a pipe or file gets the text itself."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if sys.stdout.isatty() else text


def note_frames(name: str, video: Video, fps: float, least: int, most: int) -> None:
    """Says how many frames of a video are seen, where these are not all, and what the model takes, where that
    decides."""
    seen = len(video.indices(fps, least, most))
    if seen != video.count:
        bounded = seen != len(video.indices(fps, 1, video.count))
        limits = f"; the model takes {least} to {most}" if bounded else ""
        note(f"{shortened(name)}: {seen} of {counted(video.count, 'frame')} are seen{limits}")


def check_picture_options(args: argparse.Namespace) -> None:
    """Raises `OptionError` for an option of pictures."""
    if given := [*picture_overrides(args).items()]:
        name, value = given[0]
        tiling = "--tiling" if value else "--no-tiling"
        option = tiling if name == "do_image_splitting" else f"--{name.replace('_', '-')}"
        raise OptionError(f"{option} is for pictures, which videos of this model are not; leave it out")


def as_object(
    args: argparse.Namespace,
    processor: Lfm2VlProcessor,
    answer: Completion,
    loaded: list[tuple[str, Any]],
    videos: list[tuple[str, Video]],
) -> dict[str, Any]:
    """The object that --json prints."""
    from ..processing.geometry import plan
    from ..processing.pdf import PdfPage

    assert answer.statistics is not None
    config, policy = processor.image_processor.config, processor.image_processor.source_policy
    sizes = [each.size(policy, config) if isinstance(each, PdfPage) else each.size for _, each in loaded]
    made: dict[str, Any] = {
        "model": args.model,
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "images": [
            {"source": shortened(name), "tokens": plan(height, width, config).tokens}
            for (name, _), (width, height) in zip(loaded, sizes, strict=True)
        ],
        "videos": [
            {
                "source": shortened(name),
                "frames": len(video.indices(*processor.frame_sampling)),
                "tokens": processor.video_tokens(video),
            }
            for name, video in videos
        ],
        **asdict(answer.statistics),
    }
    if answer.top_logprobs is not None:
        made["logprobs"] = answer.logprobs
        made["top_logprobs"] = [[each._asdict() for each in top] for top in answer.top_logprobs]
    if answer.tool_text:
        made["tool_text"] = answer.tool_text
    return made


def report(statistics: Statistics, drafts: bool = False) -> None:
    """Prints what a run took, on stderr. `drafts`: whether it was to have some."""
    cached = f", {statistics.cached_tokens} known from before" if statistics.cached_tokens else ""
    speed = f" at {rate:.1f} tokens/s" if (rate := statistics.prompt_tokens_per_second) else ""
    seen = f"{statistics.image_tokens} of pictures and videos{cached}"
    note(f"prompt {counted(statistics.prompt_tokens, 'token')} ({seen}){speed}")
    note(
        f"answer {counted(statistics.generated_tokens, 'token')} at {statistics.tokens_per_second:.1f} tokens/s, "
        f"the first after {statistics.time_to_first_token:.2f} s"
    )
    if drafts:
        note(f"drafts: {_drafts(statistics)}")
    note(f"peak memory {statistics.peak_memory / 1e9:.3f} GB")


def _drafts(statistics: Statistics) -> str:
    steps, without = statistics.model_steps, statistics.undrafted_steps
    if not statistics.drafted_tokens:
        return "none, they did not pay" if without else "none were proposed"
    right = f"{statistics.accepted_tokens} of {statistics.drafted_tokens} proposed tokens were right; "
    return right + f"{steps} runs of the model" + (f", {without} without drafts, which did not pay" if without else "")
