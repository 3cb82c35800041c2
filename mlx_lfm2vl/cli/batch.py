"""`mlx-lfm2vl batch`: many pictures and prompts to a file of JSON lines, which a second run goes on with."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import counted
from .argument_types import whole
from .decoding import add_decoding, with_draft
from .inputs import DEFAULT_PROMPT, add_control_tokens, add_prompt, read_prompt
from .options import (
    add_model,
    add_pictures,
    add_sampling,
    chosen_model,
    load_model,
    note,
    picture_overrides,
    sampling_options,
)
from .tasks import add_recipe
from .videos import add_fps

SUMMARY = "answer prompts about many pictures and videos into a file"
DESCRIPTION = """\
Answers a prompt about each picture and video of a folder or pattern, or the rows of a JSONL file, and writes a line of
JSON a row, in their order. If it is stopped, or the input has grown, the same command answers the rows that are
missing.

  mlx-lfm2vl batch photos --prompt "Describe the image." --output answers.jsonl
  mlx-lfm2vl batch rows.jsonl --output answers.jsonl --batch-size 16
  mlx-lfm2vl batch photos --task detect --prompt "red cars" --output boxes.jsonl

A row of a JSONL file has "prompt" or a picture or both: {"id": 7, "image": "a.png", "prompt": "Why?"}. "image" may be a
list, and so may "video", with "fps" beside it; paths are relative to the file. "system" is the row's own system prompt.
Other fields are copied to the answer.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="folder, pattern, pictures, videos, or one .jsonl file; - is its rows on stdin",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="JSONL file to write, or to go on with; .csv also makes a table of it",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin the output anew")
    parser.add_argument("--retry-failed", action="store_true", help="also do again the rows that ended with an error")
    parser.add_argument("--recursive", action="store_true", help="also the pictures of a folder's subfolders")
    add_model(parser)
    add_prompt(parser, f"{DEFAULT_PROMPT!r}; a row's own prompt comes first")
    parser.add_argument(
        "--batch-size", type=whole(1), default=8, metavar="N", help="rows answered together, 1 or more (default: 8)"
    )
    add_fps(parser)
    parser.add_argument(
        "--task",
        choices=("detect", "point", "read", "extract", "describe"),
        help="do this about each picture: rows get a typed result; --prompt, or a row's, names what to find",
    )
    add_recipe(parser)
    add_control_tokens(parser)
    add_sampling(parser, None)
    add_decoding(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Returns 1 where rows have an error. Raises `Lfm2VlError` for whatever concerns more than a row."""
    args.output = os.path.expanduser(args.output)
    if not args.output.lower().endswith(".csv"):
        return _answer(args)
    from .table import check_table, write_table

    table, args.output = args.output, f"{args.output}.jsonl"
    check_table(table, args.output)
    code = _answer(args)
    if code in (0, 1):
        write_table(table, args.output)
    return code


def _answer(args: argparse.Namespace) -> int:
    from .. import GenerationOptions, OptionError, PromptError, generate_batch
    from .answers import Output, settings
    from .interrupt import Interrupt
    from .progress import Bars
    from .row_tasks import TASKS, RowTasks, check_task
    from .rows import Rows, Waiting

    check_task(args, any(name == "-" or name.endswith(".jsonl") for name in args.input))
    if args.max_tokens is None:
        args.max_tokens = 512 if args.task is None else TASKS[args.task].max_tokens
    options = GenerationOptions(**sampling_options(args))
    prompt = read_prompt(args, args.input, "INPUT")
    if prompt is not None and not prompt.strip():
        raise PromptError("--prompt is empty")
    if args.overwrite and args.retry_failed:
        raise OptionError("--overwrite does all rows again, --retry-failed some; give one of them")
    rows = Rows(args.input, prompt, args.system, options, args.control_tokens, args.recursive, args.task, args.fps)
    if args.overwrite and rows.reads(args.output):
        raise OptionError(f"--output {args.output}: is the input itself")
    chosen: dict[str, Any] = {**sampling_options(args), **picture_overrides(args), "system": args.system}
    chosen |= {"control_tokens": True} if args.control_tokens else {}
    chosen |= {"kv_bits": args.kv_bits} if args.kv_bits else {}
    chosen |= {"fps": args.fps} if args.fps else {}
    chosen |= {"task": args.task, "recipe": args.recipe} if args.task else {}
    chosen |= {"adapter": settings(args.adapter, None, {})} if args.adapter else {}
    digest = settings(chosen_model(args), args.revision, chosen)
    with Output(args.output, args.overwrite, digest) as output, Interrupt() as interrupt, Bars() as bars:
        output.match(lambda: rows)
        done = output.rows
        again = frozenset(output.failed) if args.retry_failed else frozenset()
        if output.failed and not again:
            note(
                f"{args.output}: {len(output.failed)} of these rows have an error, the first in line "
                f"{min(output.lines[number] for number in output.failed)}; --retry-failed does them again"
            )
        if done == len(rows) and not again:
            every = "all " if done > 1 else ""
            note(f"{args.output}: {every}{counted(done, 'row', be=True)} there already")
            return 1 if output.failed else 0
        rows.options = with_draft(rows.options, args)
        model, processor = load_model(args)
        tasks = RowTasks(args, model, processor) if args.task else None

        def work(waiting: Waiting, into: Output, total: int, stage: str) -> bool:
            """Writes each row as it is answered. False where Ctrl-C came before the last."""
            into.begin()
            bars(stage, into.rows, total)
            questions = waiting.questions()
            for made in generate_batch(model, processor, questions, batch_size=args.batch_size, stop=interrupt):
                if made.finish_reason == "cancelled":
                    return False
                for row, answer in waiting.answered(made):
                    into.write(row, answer)
                bars(stage, into.rows, total)
            for row in waiting.rest():
                into.write(row, None)
            bars(stage, into.rows, total)
            return into.rows == total

        others: Output | None = None
        finished = work(Waiting(output.missing(rows), tasks), output, len(rows), "rows")
        if finished and again:
            # Beside the output until all are there, so that a run which is stopped in between loses none.
            with output.beside(lambda: rows.only(again)) as others:
                waiting = Waiting(others.missing(rows.only(again)), tasks)
                finished = work(waiting, others, len(again), "failed rows")
            if finished:
                output.take_over(others)
        if not finished:
            of = (
                f"{others.rows} of {counted(len(again), 'failed row')}"
                if others
                else f"{output.rows} of {counted(len(rows), 'row')}"
            )
            note(f"stopped after {of}; the same command goes on from there")
            return 130
        failed = f", {len(output.failed)} with an error" if output.failed else ""
        note(f"{args.output}: {counted(output.rows, 'row')}{failed}")
    return 1 if output.failed else 0
