"""`mlx-lfm2vl verify`: what a quantised folder lost against the dense one it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.files import writing
from .stderr import Bars

SUMMARY = "measure what a quantised model lost"
DESCRIPTION = """\
Lets two models answer the same questions about pictures and compares what they expect, token by token, and their
weights. The second is usually a quantised copy of the first.

  mlx-lfm2vl verify LiquidAI/LFM2.5-VL-1.6B LFM2.5-VL-1.6B-4bit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dense", metavar="A", help="folder or hub repository of the dense model")
    parser.add_argument("quantised", metavar="B", help="folder or hub repository of the quantised model")
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="ask about these pictures (and prompts.txt), or the rows of a .jsonl file, instead of the bundled ones",
    )
    parser.add_argument(
        "--report", metavar="FOLDER", help="also write quantization_report.json, and a plot, to a folder"
    )


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..conversion import plot
    from ..conversion.quantization_error import measure
    from ..hub import resolve

    calibration = Path(args.calibration).expanduser() if args.calibration else None
    with Bars() as bars:
        report = measure(resolve(args.dense), resolve(args.quantised), calibration=calibration, progress=bars)
    print(report.table())
    if changes := report.changes():
        print(f"\n{changes}")
    if args.report:
        with writing(args.report) as folder:
            report.write(folder)
            if plot.available():
                plot.plot_errors(report, folder / plot.ERRORS_FILE)
    return 0
