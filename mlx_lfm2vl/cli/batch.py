"""`mlx-lfm2vl batch`: many pictures and prompts to a file of JSON lines, which a second run goes on with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PromptError, counted
from .arguments import default_model, picture_overrides, sampling_options
from .inputs import DEFAULT_PROMPT, read_prompt
from .interrupt import Interrupt, RankInterrupt
from .options import add, add_decoding, add_model, add_pictures, add_prompt, add_sampling
from .stderr import Bars, note

if TYPE_CHECKING:
    from .ranks import Ranks
    from .rows import Rows

SUMMARY = "answer prompts about many pictures and videos into a file"
DESCRIPTION = """\
Answers a prompt about each picture and video of a folder or pattern, or the rows of a JSONL file, and writes a line of
JSON a row, in their order. If it is stopped, or the input has grown, the same command answers the rows that are
missing.

  mlx-lfm2vl batch photos --prompt "Describe the image." --output answers.jsonl
  mlx-lfm2vl batch rows.jsonl --output answers.jsonl --batch-size 16
  mlx-lfm2vl batch photos --task detect --prompt "red cars" --output boxes.jsonl

A row of a JSONL file has "prompt" or a picture or both: {"id": 7, "image": "a.png", "prompt": "Why?"}. "image" may be a
list, and so may "video", with "fps" beside it; paths are relative to the file. "system" is the row's own system prompt;
"max_tokens", "temperature", "seed", "stop" and the other options of sampling count for the row.
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
    add(parser, "--batch-size", "--fps")
    parser.add_argument(
        "--task",
        choices=("detect", "point", "read", "extract", "describe"),
        help="do this about each picture: rows get a typed result; --prompt, or a row's, names what to find",
    )
    add(parser, "--recipe", "--control-tokens")
    add_sampling(parser, None)
    add_decoding(parser)
    add(parser, "--vision-cache")
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
    from .. import GenerationOptions
    from ..distributed.links import Came, connect
    from .joining import joined_group, refuse_stdin
    from .output import settings
    from .ranks import Dealer, Ranks, answer_dealt
    from .row_answers import TASKS
    from .rows import Rows

    _check_task(args, any(name == "-" or name.endswith(".jsonl") for name in args.input))
    if args.max_tokens is None:
        args.max_tokens = 512 if args.task is None else TASKS[args.task].max_tokens
    options = GenerationOptions(**sampling_options(args))
    group = joined_group()
    if group is not None:
        refuse_stdin(args)
    prompt = read_prompt(args, args.input, "INPUT")
    if prompt is not None and not prompt.strip():
        raise PromptError("--prompt is empty")
    if args.overwrite and args.retry_failed:
        raise OptionError("--overwrite does all rows again, --retry-failed some; give one of them")
    rows = Rows(args, prompt, options)
    if args.overwrite and rows.reads(args.output):
        raise OptionError(f"--output {args.output}: is the input itself")
    chosen: dict[str, Any] = {**sampling_options(args), **picture_overrides(args), "system": args.system}
    chosen |= {"control_tokens": True} if args.control_tokens else {}
    chosen |= {"kv_bits": args.kv_bits} if args.kv_bits else {}
    chosen |= {"fps": args.fps} if args.fps else {}
    chosen |= {"task": args.task, "recipe": args.recipe} if args.task else {}
    chosen |= {"adapter": settings(args.adapter, None, {})} if args.adapter else {}
    digest = settings(default_model()[0] if args.model is None else args.model, args.revision, chosen)
    came, check = Came(), "" if group is None else rows.digest(chosen)
    links = {} if group is None else connect(group, came)
    try:
        if group is not None and group.rank():
            return answer_dealt(args, rows, Dealer(links[0], came, group.rank()), check)
        ranks = Ranks(links, 1 if group is None else group.size(), came, check)
        code = _write(args, rows, digest, ranks)
        ranks.tell({"bye": True})
        return code
    finally:
        for link in links.values():
            link.close()


def _write(args: argparse.Namespace, rows: Rows, digest: str, ranks: Ranks) -> int:
    """Answers the rows that the output lacks, with the other ranks."""
    from .output import InOrder, Output, line_of
    from .row_answers import RowAnswers

    interrupt = Interrupt() if ranks.alone else RankInterrupt(lambda: bool(ranks.lost))
    with Output(args.output, args.overwrite, digest) as output, interrupt, Bars() as bars:
        output.match(lambda: rows)
        done = len(output.lines)
        again = frozenset(output.failed) if args.retry_failed else frozenset()
        if output.failed and not again:
            note(
                f"{args.output}: {len(output.failed)} of these rows have an error, the first in line "
                f"{min(output.lines[number].number for number in output.failed)}; --retry-failed does them again"
            )
        if done == len(rows) and not again:
            return 1 if output.failed else 0
        answers, cut_off = RowAnswers(args, rows), []

        def work(into: Output, numbers: Collection[int], what: str) -> bool:
            """Writes each row as it is answered. False where Ctrl-C came before the last."""
            total = len(numbers)
            into.begin()
            with InOrder(into, sorted(numbers), lambda: rows.only(numbers)) as order:

                def stop() -> bool:
                    ranks.take(order)
                    bars(f"{what}s", total - order.left, total)
                    return interrupt()

                bars(f"{what}s", total - order.left, total)
                own = ranks.deal(order, into.path.removeprefix(args.output), digest, answers.costs, stop)
                for row, answer in answers(own, stop):
                    order.put(row.number, *line_of(digest, row, answer))
                    formed = row.question is not None and row.question.options.response_format is not None
                    if formed and answer is not None and answer.finish_reason == "length":
                        cut_off.append(row.number)
                    bars(f"{what}s", total - order.left, total)
                if not ranks.wait(order, stop):
                    ranks.tell({"stop": True})
                if order.left and interrupt.happened:
                    of = f"{total - order.left} of {counted(total, what)}"
                    note(f"stopped after {of}; the same command goes on from there")
                else:
                    ranks.check_complete(into.path, order)
            return not order.left

        finished = work(output, range(1, len(rows) + 1), "row")
        if finished and again:
            # Beside the output until all are there, so that a run which is stopped in between loses none.
            with output.beside(".retry", lambda: rows.only(again)) as others:
                finished = work(others, again, "failed row")
            if finished:
                output.take_over(others)
        if not finished:
            return 130
        if cut_off:
            many = f"{counted(len(cut_off), 'answer', be=True)} cut off by the longest answer"
            note(f"{many}, so may not hold to a form (row {min(cut_off)} first); raise --max-tokens")
        failed = ""
        if output.failed:
            first = min(output.failed)
            error = output.error(first)
            place = "" if error.startswith(f"line {first}: ") else f"row {first}: "
            failed = f", {len(output.failed)} with an error; the first is {place}{error}"
        note(f"{args.output}: {counted(len(output.lines), 'row')}{failed}")
    return 1 if output.failed else 0


def _check_task(args: argparse.Namespace, has_rows: bool) -> None:
    """Raises `OptionError` for options of a task that do not belong together. `has_rows`: the input is JSONL."""
    from .rows import NAMED

    if args.task is None:
        if args.recipe is not None:
            raise OptionError("--recipe is for --task")
        return
    prompted = args.prompt is not None or args.prompt_file is not None
    formed = args.json_schema is not None
    others = [args.regex, args.choice, args.grammar, args.json_object or None]
    if args.system is not None:
        raise OptionError("--task has its own system prompt; leave --system out")
    if args.task in NAMED and not prompted and not has_rows:
        raise OptionError(f"--task {args.task} needs --prompt, the name of what to find")
    if args.task not in NAMED and prompted:
        raise OptionError(f"--task {args.task} asks by itself; leave --prompt out")
    if args.task == "extract" and not formed and not has_rows:
        raise OptionError("--task extract needs --json-schema")
    if any(each is not None for each in others) or (formed and args.task != "extract"):
        raise OptionError(f"--task {args.task} holds its answers to its own form; leave the other out")
