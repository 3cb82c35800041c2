"""The state of a training on disk: one file, which holds what a run that was killed goes on with, to the bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from ..adapters.read import CHECKPOINT
from ..adapters.save import replace_tensors
from ..config.files import AGAIN, parse_json
from ..errors import OptionError, WeightsError, first_line
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..weights.files import read_header
from .prepare import trainable

LOG = "log.jsonl"
_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass
class Progress:
    """The way of a training so far: steps done of all (0 in older checkpoints), what each reported, and the lowest
    validation loss with its step."""

    step: int = 0
    steps: int = 0
    best: float | None = None
    best_step: int | None = None
    log: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    model: Lfm2VlForConditionalGeneration,
    optimizer: Optimizer,
    progress: Progress,
    settings: dict[str, Any],
) -> None:
    """Writes the checkpoint and log.jsonl, each in place of an older one. `settings`: those that a run must share."""
    tensors = {_MODEL + name: array for name, array in trainable(model).items()}
    states = cast(list[tuple[str, mx.array]], tree_flatten(optimizer.state))
    tensors |= {_OPTIMIZER + name: array for name, array in states}
    replace_tensors(
        folder / CHECKPOINT, tensors, {"state": json.dumps(vars(progress)), "settings": json.dumps(settings)}
    )
    part = folder / f".{LOG}.part"
    part.write_text("".join(json.dumps(entry) + "\n" for entry in progress.log), encoding="utf-8")
    part.replace(folder / LOG)


def load_checkpoint(
    folder: Path, model: Lfm2VlForConditionalGeneration, optimizer: Optimizer, settings: dict[str, Any]
) -> Progress:
    """Puts the folder's checkpoint into model and optimiser; without one, changes nothing.

    Raises:
        OptionError: the folder's run has other settings.
        WeightsError: the checkpoint is damaged.
    """
    file = folder / CHECKPOINT
    if not file.is_file():
        return Progress()
    read_header(file)
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        way, before = Progress(**parse_json(metadata["state"])), parse_json(metadata["settings"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file}: is no checkpoint of a training ({first_line(error)}); {AGAIN}") from None
    for name in {**settings, **before}:
        known, value = before.get(name), settings.get(name)
        if known != value:
            raise OptionError(
                f"{folder}: holds a training with {name} {known!r}, not {value!r}; give another folder, or begin it "
                "anew (--overwrite)"
            )
    model.load_weights(_part(arrays, _MODEL), strict=False)
    optimizer.init(model.trainable_parameters())
    optimizer.state = tree_unflatten(_part(arrays, _OPTIMIZER))
    mx.eval(model.parameters(), optimizer.state)
    return way


def _part(arrays: dict[str, mx.array], prefix: str) -> list[tuple[str, mx.array]]:
    return [(name.removeprefix(prefix), array) for name, array in arrays.items() if name.startswith(prefix)]
