"""`mlx-lfm2vl evaluate`: how often models are right on a task file, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.files import writing
from ..errors import OptionError, counted
from .arguments import chosen_draft, load_model, picture_overrides
from .interrupt import Interrupt
from .options import add, add_drafts, add_pictures, whole
from .stderr import Bars, note

if TYPE_CHECKING:
    from .. import GenerationRequest, Lfm2VlForConditionalGeneration, Lfm2VlProcessor
    from ..evaluation.rows import EvaluationRow
    from .row_answers import Asked
    from .rows import Row

SUMMARY = "measure how often models are right, on a task file or a benchmark"
DESCRIPTION = """\
Asks each model the questions of a task file, greedily, and prints how many answers are right, with 95 % intervals.
Several models are compared with the first one, row by row.

  mlx-lfm2vl evaluate LiquidAI/LFM2.5-VL-450M my-450m-4bit --task rows.jsonl --output answers
  mlx-lfm2vl evaluate LiquidAI/LFM2.5-VL-450M --task OCRBench.json --format ocrbench --output answers

A row has a question and what is accepted: {"image": "a.png", "prompt": "How many?", "answers": ["7", "seven"]}. Its
"scoring" is exact, contains, number, anls, vqa or choice; a row with "boxes" is asked by `detect`, one with
"json_schema" by `extract`. With --output the same command goes on where it was stopped.
"""
MAX_TOKENS = 256  # of an answer in text
FORMATS = ("ocrbench", "docvqa", "textvqa", "refcoco", "screenspot", "mmstar")
SCORINGS = ("exact", "contains", "number", "anls", "vqa", "choice")  # of rows in text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, hub repository or 'demo'; may be several")
    adapted = "also evaluate the one MODEL with this adapter, beside itself; may be given again"
    add(parser, "--adapter", action="append", default=[], help=adapted)
    quantised = "also evaluate the one MODEL with keys and values quantised, beside itself; may be given again"
    add(parser, "--kv-bits", action="append", default=[], help=quantised)
    add(parser, "--revision")
    parser.add_argument("--task", required=True, metavar="FILE", help="JSONL file of rows, or a benchmark's file")
    parser.add_argument("--format", choices=FORMATS, help="the benchmark that FILE is of (default: rows)")
    parser.add_argument("--images", metavar="FOLDER", help="pictures of the benchmark (default: beside FILE)")
    parser.add_argument("--scoring", choices=SCORINGS, help="the rule of rows that name none (default: exact)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="ask N rows only, evenly spread over the file")
    parser.add_argument(
        "--output", metavar="FOLDER", help="keep the answers, a file a model, and go on with those that are there"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin the answers anew")
    add(parser, "--batch-size")
    longest = f"longest answer in tokens (default: {MAX_TOKENS}, and what suits the task for boxes and fields)"
    add(parser, "--max-tokens -m", help=longest)
    add(parser, "--recipe")
    add_drafts(parser)
    add(parser, "--json")
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Returns 1 where rows have an error. Raises `Lfm2VlError` for whatever the user can put right."""
    from ..evaluation.benchmarks import read_task
    from ..evaluation.report import Report, scores
    from ..evaluation.rows import spread

    for option, given in (("--adapter", args.adapter), ("--kv-bits", args.kv_bits)):
        if given and len(args.models) > 1:
            raise OptionError(f"{option} is for one MODEL; leave the others out")
    if args.overwrite and args.output is None:
        raise OptionError("--overwrite begins the answers of --output anew; give it")
    task = Path(args.task).expanduser()
    pictures = None if args.images is None else Path(args.images).expanduser()
    rows = spread(read_task(task, args.format, pictures, args.scoring), args.limit)
    asked: list[tuple[str, dict[str, Any], str]] = [(model, {}, model) for model in args.models]
    asked += [(args.models[0], {"adapter": each}, f"{args.models[0]} with {each}") for each in args.adapter]
    asked += [(args.models[0], {"kv_bits": each}, f"{args.models[0]} with kv-bits {each}") for each in args.kv_bits]
    names = [name for *_, name in asked]
    made = []
    draft = cache(lambda: chosen_draft(args))
    with contextlib.ExitStack() as stack:
        with writing(args.output or stack.enter_context(tempfile.TemporaryDirectory(prefix="mlx-lfm2vl-"))) as folder:
            files = _files(folder, names)
        for (model, own, name), file in zip(asked, files, strict=True):
            one = argparse.Namespace(**{**vars(args), "model": model, "adapter": None, "kv_bits": None, **own})
            lines = _answers(one, rows, file, draft)
            if lines is None:
                return 130
            made.append(scores(name, rows, lines))
    report = Report(tuple(rows), tuple(made))
    print(json.dumps(report.to_dict()) if args.json else report.table())
    for each in made:
        if each.failed:
            failed = f"{counted(each.failed, 'row')} with an error, counted as wrong"
            note(f"{each.model}: {failed}; the first is {each.error}")
        if each.cut_off:
            note(f"{each.model}: {counted(each.cut_off, 'answer', be=True)} cut off; --max-tokens makes room")
    return 1 if any(each.failed for each in made) else 0


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """A file a model. Raises `OptionError` for two models of one file."""
    files = [folder / (re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".jsonl") for name in names]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise OptionError(f"{names[number]}: its answers would have the file of another model, {file.name}")
    return files


def _answers(
    args: argparse.Namespace, rows: Sequence[EvaluationRow], file: Path, draft: Callable[[], Any]
) -> list[dict[str, Any]] | None:
    """The answers of a model as `batch` writes them, in the order of the rows; None where Ctrl-C came before the
    last. `draft`: loads what proposes tokens, where a row has no answer yet."""
    from .. import generate_batch
    from ..generation.draft_model import check_draft
    from .output import Output, settings
    from .row_answers import answered

    asked = [_row(row, number, args) for number, row in enumerate(rows, 1)]
    chosen: dict[str, Any] = {**picture_overrides(args), "max_tokens": args.max_tokens, "recipe": args.recipe}
    chosen |= {"adapter": settings(args.adapter, None, {})} if args.adapter else {}
    chosen |= {"kv_bits": args.kv_bits} if args.kv_bits else {}
    digest = settings(args.model, args.revision, chosen)
    with Output(str(file), args.overwrite, digest) as output, Interrupt() as interrupt, Bars() as bars:
        output.match(lambda: asked)
        stage = args.model if args.adapter is None else args.adapter
        if len(output.lines) < len(asked):
            model, processor = load_model(args)
            proposing = draft()
            check_draft(model.config, proposing)
            output.begin()
            bars(stage, len(output.lines), len(asked))
            ask = partial(generate_batch, model, processor, batch_size=args.batch_size, stop=interrupt)
            requests = partial(_asked, args, model, processor, proposing)
            drafted = accepted = 0  # tokens
            for row, answer in answered(output.missing(asked), ask, requests):
                for counts in (made.statistics for made in row.answers):
                    if counts is not None:
                        drafted += counts.drafted_tokens
                        accepted += counts.accepted_tokens
                output.write(row, answer)
                bars(stage, len(output.lines), len(asked))
            if len(output.lines) < len(asked):
                note(f"stopped after {len(output.lines)} of {counted(len(asked), 'row')} of {stage}")
                return None
            if drafted:
                note(f"{stage}: drafts: {accepted} of {drafted} proposed tokens were right")
        return [json.loads(output.taken(row.number)[0]) for row in asked]


def _row(row: EvaluationRow, number: int, args: argparse.Namespace) -> Row:
    """A row for `batch`'s machinery. The prompt of one that is a task's is what it names, in text; its options have the
    schema. Answers to another schema are no answers to it."""
    from .. import GenerationOptions, GenerationRequest
    from ..evaluation.scoring import TEXTS
    from .rows import Row

    fields = {"id": row.id, "prompt": row.text}
    options = GenerationOptions(max_tokens=args.max_tokens or MAX_TOKENS, temperature=0.0, repetition_penalty=1.0)
    if row.scoring in TEXTS:
        return Row(fields, GenerationRequest(row.messages, options=options), number=number)
    if row.schema is not None:
        form = {"type": "json_schema", "json_schema": {"schema": row.schema}}
        options = replace(options, response_format=form)
    asked = json.dumps(row.schema)
    return Row(fields, GenerationRequest(row.text, row.pictures, options=options), prompt=asked, number=number)


def _asked(
    args: argparse.Namespace,
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    draft: Any,
    question: GenerationRequest,
) -> Asked:
    """The requests of a row: the question itself, or those of `detect` and `extract`. `draft`: as of
    `GenerationOptions`. Raises `Lfm2VlError` for what is wrong with the row, or where the model is not known to do the
    task."""
    from .. import DetectTask, ExtractTask, recipe_of
    from .row_answers import asked_of

    question = replace(question, options=replace(question.options, draft=draft))
    if not isinstance(question.prompt, str):
        return None, [question]
    recipe, form = recipe_of(model, args.recipe), question.options.response_format
    task = DetectTask(recipe, question.prompt) if form is None else ExtractTask(recipe, form.value)
    options = replace(question.options, response_format=None, max_tokens=args.max_tokens or task.max_tokens)
    return asked_of(task, question, options, processor, args)
