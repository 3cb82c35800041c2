"""`mlx-lfm2vl convert`: a Hugging Face checkpoint into an MLX folder. Options are named as mlx-lm names them."""

from __future__ import annotations

import argparse

from .options import add_revision, whole

SUMMARY = "convert a Hugging Face model to MLX, quantised if asked"
DESCRIPTION = """\
Converts a Hugging Face folder or repository into an MLX folder, complete with tokenizer, template and processor files.

  mlx-lfm2vl convert --hf-path LiquidAI/LFM2.5-VL-1.6B --mlx-path LFM2.5-VL-1.6B-8bit -q --q-bits 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", required=True, metavar="MODEL", help="folder or hub repository to convert"
    )
    parser.add_argument(
        "--mlx-path", default="mlx_model", metavar="FOLDER", help="folder to write (default: mlx_model)"
    )
    add_revision(parser)
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="type of the dense weights (default: as the checkpoint has them)",
    )
    parser.add_argument("-q", "--quantize", action="store_true", help="quantise the language model")
    parser.add_argument(
        "--q-bits", type=whole(1), choices=(4, 8), metavar="N", help="bits a weight with -q: 4 or 8 (default: 4)"
    )
    parser.add_argument(
        "--q-group-size",
        type=whole(1),
        choices=(32, 64, 128),
        metavar="N",
        help="weights that share a scale with -q: 32, 64 or 128 (default: 64)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import OptionError, convert

    if not args.quantize:
        for option, value in (("--q-bits", args.q_bits), ("--q-group-size", args.q_group_size)):
            if value is not None:
                raise OptionError(f"{option} {value} says how to quantise; add -q")
    folder = convert(
        args.hf_path,
        args.mlx_path,
        dtype=args.dtype,
        q_bits=(args.q_bits or 4) if args.quantize else None,
        q_group_size=args.q_group_size or 64,
        revision=args.revision,
        overwrite=args.overwrite,
    )
    print(folder)
    return 0
