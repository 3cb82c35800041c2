"""--draft and --kv-bits, of commands that answer."""

from __future__ import annotations

import argparse


def add_decoding(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--draft",
        choices=("ngram",),
        help="propose tokens and check several in one run of the model: what followed the last ones before, in prompt, "
        "answer and earlier answers; for answers that copy or repeat, which stay the same",
    )
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=(8, 4),
        help="quantise keys and values, for long prompts and answers in less memory; answers may change a little",
    )
