"""`mlx-lfm2vl fuse`: a model and an adapter to one MLX folder."""

from __future__ import annotations

import argparse

from .interrupt import terminable
from .options import add
from .stderr import Bars, note

SUMMARY = "write a model with an adapter in its weights"
DESCRIPTION = """\
Writes an MLX folder of a model and an adapter of PEFT or mlx-lm. A quantised model is quantised again as it was, or
with --dequantize made dense.

  mlx-lfm2vl fuse --model LiquidAI/LFM2.5-VL-450M --adapter adapters --mlx-path LFM2.5-VL-450M-mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="MODEL", help="the adapter's model: folder or hub repository")
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="the adapter's folder")
    add(parser, "--mlx-path", "--revision")
    parser.add_argument("--dequantize", action="store_true", help="make a quantised model dense")
    add(parser, "--hf", "--overwrite")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import fuse

    with terminable(), Bars() as bars:
        folder = fuse(
            args.model,
            args.adapter,
            args.mlx_path,
            dequantize=args.dequantize,
            layout="hub" if args.hf else "mlx",
            revision=args.revision,
            overwrite=args.overwrite,
            progress=bars,
            on_note=note,
        )
    print(folder)
    return 0
