"""`mlx-lfm2vl bench`: how fast a model is on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ..errors import OptionError
from .arguments import name_model
from .options import add, whole
from .stderr import Bars, note

SUMMARY = "measure a model's speed on this machine"
DESCRIPTION = """\
Measures a model on this machine: the time to the first token and its parts, tokens a second, pictures a second of
batches, memory, and how much of the memory's speed is used. Prints a table to paste. Close other programs first.

  mlx-lfm2vl bench LiquidAI/LFM2.5-VL-450M
  mlx-lfm2vl bench LiquidAI/LFM2.5-VL-1.6B --sizes 512x512 text --json
"""
SIZES = ((256, 256), (512, 512), (1500, 1000), None)
BATCH_SIZES = (1, 4, 8)
LARGEST = 8192


def size(text: str) -> tuple[int, int] | None:
    """An argparse type: WIDTHxHEIGHT, or `text` for None."""
    if text == "text":
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not all(1 <= int(side) <= LARGEST for side in found.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'text' nor WIDTHxHEIGHT with sides from 1 to {LARGEST}")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,  # else it would take --model back
        metavar="MODEL",
        help="folder, hub repository or 'demo', the small bundled model (default: as `generate`)",
    )
    model.add_argument("--model", metavar="MODEL", help="the same, by an option")
    add(parser, "--adapter", "--revision")
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=size,
        default=SIZES,
        metavar="SIZE",
        help="pictures as WIDTHxHEIGHT, or 'text' for none (default: 256x256 512x512 1500x1000 text)",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="*",
        type=whole(1, 1024),
        default=BATCH_SIZES,
        metavar="N",
        help="pictures answered together, 1 or more; none after the option: no batches (default: 1 4 8)",
    )
    parser.add_argument(
        "--tokens", type=whole(2), default=64, metavar="N", help="length of the answers, 2 or more (default: 64)"
    )
    parser.add_argument(
        "--repeats", type=whole(1), default=3, metavar="N", help="runs of each kind after a warm-up (default: 3)"
    )
    parser.add_argument(
        "--constraints", action="store_true", help="also what a form of the answer (a JSON schema) costs and saves"
    )
    parser.add_argument("--draft", action="store_true", help="also what drafts of n-grams save, and cost")
    parser.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="also what drafts of this model save: a DSpark drafter, or a smaller model of the same tokens",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="also the wait for the first token of a second question about a picture, and after 5 seconds without work",
    )
    parser.add_argument(
        "--against", metavar="FILE", help="also compare with an earlier run, which --json wrote into a file"
    )
    add(parser, "--json")
    parser.add_argument("--plot", metavar="FILE", help="also draw the times into a .png, .pdf or .svg file")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..benchmark import plot
    from ..benchmark.measure import Plan, benchmark
    from ..benchmark.report import comparison, read
    from .interrupt import Interrupt

    file = None if args.plot is None else Path(args.plot).expanduser()
    if file is not None:
        plot.check_file(file)
    earlier = None if args.against is None else read(Path(args.against).expanduser())
    if earlier is not None and args.json:
        raise OptionError("--against compares in the table; leave --json out")
    name_model(args, "model")
    plan = Plan(
        tuple(args.sizes),
        tuple(args.batch_sizes),
        args.tokens,
        args.repeats,
        constraints=args.constraints,
        drafts=args.draft,
        draft_model=args.draft_model,
        again=args.again,
    )
    with Interrupt() as interrupt, Bars() as bars:
        report = benchmark(
            args.model,
            plan,
            adapter=args.adapter,
            revision=args.revision,
            progress=lambda done, total: bars("runs", done, total),
            stop=interrupt,
        )
    print(json.dumps(report.to_dict()) if args.json else report.table())
    if earlier is not None:
        print("", *comparison(earlier, report), sep="\n")
    if file is not None:
        plot.plot(report, file)
    if interrupt.happened:
        note("stopped; what was measured until then is above")
        return 130
    return 0
