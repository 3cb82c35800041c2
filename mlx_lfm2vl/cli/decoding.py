"""--draft, --draft-model and --kv-bits, of commands that answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .progress import Spinner

if TYPE_CHECKING:
    from .. import GenerationOptions


def add_decoding(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options of decoding."""
    add_drafts(parser)
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=(8, 4),
        help="quantise keys and values, for long prompts and answers in less memory; answers may change a little",
    )


def add_drafts(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--draft and --draft-model."""
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument(
        "--draft",
        choices=("ngram", "auto"),
        help="propose tokens and check several in one run of the model: what followed the last ones before, in prompt, "
        "answer and earlier answers; for answers that copy or repeat, which stay the same; auto: only while it "
        "saves time",
    )
    drafts.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="let a DSpark drafter of the model propose them, or a smaller model of the same tokens: folder, hub "
        "repository or 'demo'",
    )


def chosen_draft(args: argparse.Namespace) -> Any:
    """The draft that --draft or --draft-model names, loaded; None for none. Raises `Lfm2VlError`."""
    from .. import OptionError, load_draft

    shared = getattr(args, "group", None) is not None
    if shared and args.draft == "auto":
        raise OptionError("--draft auto goes by the clock, which ranks that share a model do not have; use ngram")
    if args.draft_model is None:
        return args.draft
    if shared:
        raise OptionError("--draft-model: ranks of mlx.launch that share a model take none; leave it out")
    with Spinner("loading the draft model"):
        return load_draft(args.draft_model)


def with_draft(options: GenerationOptions, args: argparse.Namespace) -> GenerationOptions:
    """The options with the draft that is chosen. Raises `Lfm2VlError`."""
    from dataclasses import replace

    return replace(options, draft=chosen_draft(args))
