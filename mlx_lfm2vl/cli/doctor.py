"""`mlx-lfm2vl doctor`: what this machine is, and whether its numbers are right."""

from __future__ import annotations

import argparse
import json

from .options import add
from .stderr import Bars

SUMMARY = "check this machine's numbers; attach its output to a bug report"
DESCRIPTION = """\
Prints what matters of this machine and runs three small models on it, in float32, bfloat16, 8 bits and 4 bits, beside
the numbers of transformers. Exit code 1 if one is out of bounds. Attach the output to a bug report. Takes seconds, and
no network.

  mlx-lfm2vl doctor
  mlx-lfm2vl doctor --json
"""
BACKENDS = ("auto", "mlx", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what computes the float32 rows (default: MLX_LFM2VL_BACKEND, else auto: numpy on a CPU, mlx elsewhere)",
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..doctor.checks import diagnose

    with Bars() as bars:
        report = diagnose(args.backend, progress=lambda done, total: bars("checks", done, total))
    print(json.dumps(report.to_dict()) if args.json else report.table())
    return 0 if report.ok else 1
