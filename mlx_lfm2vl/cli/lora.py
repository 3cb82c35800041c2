"""`mlx-lfm2vl lora`: an adapter trained on a user's rows. Options are named as mlx-lm names them, where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..weights.choices import DTYPES
from .arguments import name_model, picture_overrides, source_policy
from .interrupt import Interrupt
from .options import add, add_pictures, real, whole
from .stderr import Bars, note

SUMMARY = "train an adapter (LoRA, DoRA) on your own pictures and answers"
DESCRIPTION = """\
Trains an adapter of a model, dense or quantised, on rows of questions and answers about pictures, and writes it as PEFT
does. The same command goes on with a training that was stopped or killed.

  mlx-lfm2vl lora --model LiquidAI/LFM2.5-VL-450M --data rows.jsonl --output adapter
  mlx-lfm2vl generate --model LiquidAI/LFM2.5-VL-450M --adapter adapter --image photo.jpg --prompt "What is it?"

The loss is said every twentieth part of --iters, without it every --save-every steps, and at each validation.

A row is one of `batch` with its answer: {"image": "a.png", "prompt": "What is it?", "answer": "A lathe."}. Paths are
relative to the file. {"messages": [...]} with the pictures in its items, or in "images", is read too.
"""
LINES = 20  # about so many lines of loss in all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help="folder, hub repository or 'demo', dense or quantised (default: as `generate`)"
    )
    add(parser, "--revision")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=".jsonl file, or folder with train.jsonl, maybe valid.jsonl and keep.jsonl",
    )
    parser.add_argument(
        "--valid", metavar="FILE", help=".jsonl file to validate on; the adapter that does best on it is kept"
    )
    parser.add_argument(
        "--keep", metavar="FILE", help=".jsonl file of rows to go on answering as before, learned among the others"
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder of the adapter, to write or go on with"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a training")
    parser.add_argument("--dtype", choices=DTYPES, help="type of dense weights (default: that of the file)")
    group = parser.add_argument_group("adapter")
    group.add_argument("--rank", type=whole(1), default=8, metavar="R", help="of the product beside a layer (8)")
    group.add_argument("--alpha", type=real(0, above=True), default=16.0, metavar="A", help="its factor is A / R (16)")
    group.add_argument("--dora", action="store_true", help="train the length of each row too (DoRA)")
    group.add_argument("--dropout", type=real(0, 0.99), default=0.0, metavar="P", help="of a layer's inputs (0)")
    group.add_argument(
        "--modules",
        action="append",
        metavar="PATTERN",
        help="layers, by shell pattern over names such as language_model.model.layers.0.feed_forward.w2; "
        "'vision_tower.*' is the tower; may be given again (default: all of the language model's layers)",
    )
    group.add_argument("--projector", action="store_true", help="train the projector's own weights, all of them")
    group = parser.add_argument_group("training")
    group.add_argument("--iters", type=whole(1), metavar="N", help="steps (default: three passes over the rows)")
    group.add_argument("--batch-size", type=whole(1), default=4, metavar="N", help="rows that run together (4)")
    group.add_argument("--grad-accumulation-steps", type=whole(1), default=1, metavar="N", help="batches of a step (1)")
    group.add_argument(
        "--grad-checkpoint", action="store_true", help="compute layers again on the way back: slower, less memory"
    )
    group.add_argument(
        "--learning-rate", type=real(0, above=True), default=1e-4, metavar="X", help="the highest (1e-4)"
    )
    group.add_argument("--weight-decay", type=real(0), default=0.0, metavar="X", help="of AdamW (0)")
    group.add_argument("--max-grad-norm", type=real(0, above=True), default=1.0, metavar="X", help="of a step (1)")
    group.add_argument(
        "--keep-weight", type=real(0, above=True), default=1.0, metavar="X", help="of the loss of rows of --keep (1)"
    )
    group.add_argument("--steps-per-eval", type=whole(1), default=50, metavar="N", help="between validations (50)")
    group.add_argument(
        "--save-every", type=whole(1), default=50, metavar="N", help="steps between two states to go on from (50)"
    )
    group.add_argument("--seed", type=whole(0, 2**31), default=0, metavar="N", help="of order and first weights (0)")
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from .. import TrainingOptions, finetune

    given = {name: getattr(args, name) for name in TrainingOptions.__dataclass_fields__}
    given["modules"] = tuple(args.modules or TrainingOptions.modules)
    options = TrainingOptions(**given)

    def show(entry: Mapping[str, Any]) -> None:
        step = entry["step"]
        every = max(1, (options.iters or options.save_every * LINES) // LINES)
        if "valid_loss" in entry or step % every == 0:
            valid = f", validation {entry['valid_loss']:.4g}" if "valid_loss" in entry else ""
            note(f"step {step}: loss {entry['loss']:.4g}{valid}")

    name_model(args)
    with Interrupt() as interrupt, Bars() as bars:
        done = finetune(
            args.model,
            args.data,
            args.output,
            valid=args.valid,
            keep=args.keep,
            options=options,
            dtype=args.dtype,
            revision=args.revision,
            overwrite=args.overwrite,
            progress=bars,
            on_note=note,
            on_report=show,
            stop=interrupt,
            source_policy=source_policy(args),
            **picture_overrides(args),
        )
    if not done.finished:
        note(f"stopped after {done.step} of {done.steps} steps; the same command goes on from there")
        return 130
    kept = f"the adapter of step {done.best_step}" if done.best_step != done.steps else "the last step's adapter"
    note(f"{done.folder}: {kept}, of {done.steps} steps")
    print(done.folder)
    return 0
