"""--draft, --draft-model and --kv-bits, of commands that answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .progress import Spinner

if TYPE_CHECKING:
    from .. import GenerationOptions


def add_decoding(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, model: bool = True) -> None:
    """The options of decoding; --draft-model with `model`."""
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument(
        "--draft",
        choices=("ngram", "auto"),
        help="propose tokens and check several in one run of the model: what followed the last ones before, in prompt, "
        "answer and earlier answers; for answers that copy or repeat, which stay the same; auto: only while it "
        "saves time",
    )
    if model:
        drafts.add_argument(
            "--draft-model",
            metavar="MODEL",
            help="let a DSpark drafter of the model propose them, or a smaller model of the same tokens: folder, hub "
            "repository or 'demo'",
        )
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=(8, 4),
        help="quantise keys and values, for long prompts and answers in less memory; answers may change a little",
    )


def with_draft(options: GenerationOptions, args: argparse.Namespace) -> GenerationOptions:
    """The options with what --draft or --draft-model names, which is loaded. Raises `Lfm2VlError`."""
    from dataclasses import replace

    from .. import load_draft

    draft: Any = args.draft
    if args.draft_model is not None:
        with Spinner("loading the draft model"):
            draft = load_draft(args.draft_model)
    return replace(options, draft=draft)
