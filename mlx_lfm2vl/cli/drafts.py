"""--draft, of commands that answer."""

from __future__ import annotations

import argparse


def add_draft(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--draft",
        choices=("ngram",),
        help="propose tokens and check several in one run of the model: what followed the last ones before, in prompt, "
        "answer and earlier answers; for answers that copy or repeat, which stay the same",
    )
