"""`finetune`: rows in, an adapter out."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..adapters.read import CHECKPOINT, PEFT_WEIGHTS
from ..adapters.save import save_adapter
from ..backends.thread_state import computing
from ..config.files import one_run, writing
from ..errors import NotFiniteError, OptionError, OutputError, counted
from ..generation.arguments import ProcessorArguments
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load
from ..processing.processor import Lfm2VlProcessor
from . import plot
from .checkpoint import Progress, load_checkpoint, save_checkpoint
from .examples import Example, TrainingBatch, collate, encode_row
from .loss import gradients, loss_sum
from .memory import RowSize, check_training, training_bytes
from .options import TrainingOptions
from .prepare import learned, prepare, trainable
from .rows import DataFiles, TrainingRow, read_rows

VISION = ("model.vision_tower.", "model.multi_modal_projector.")
KEPT_BYTES = 2**30  # of image tokens, which are computed once
WARM_UP = 20  # the learning rate rises over one step of so many
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training: its folder, the steps done of all, an entry of each in `log` ("step", "loss",
    "learning_rate", "tokens", and "valid_loss" where it was measured), and the step whose adapter is in the folder."""

    folder: Path
    step: int
    steps: int
    log: tuple[dict[str, Any], ...]
    best_step: int | None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps


@computing
def finetune(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    valid: str | os.PathLike[str] | None = None,
    keep: str | os.PathLike[str] | None = None,
    options: TrainingOptions | None = None,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_report: Report | None = None,
    stop: Callable[[], bool] | None = None,
    **processor_arguments: Unpack[ProcessorArguments],
) -> TrainingResult:
    """Trains an adapter of a model on rows, and goes on with a training that was stopped or killed.

    Args:
        model: folder, hub repository or `demo`; dense, or quantised (QLoRA).
        data: a .jsonl file of rows, or a folder with train.jsonl and maybe valid.jsonl and keep.jsonl.
        output: the folder to write: an adapter of PEFT, the log, and the checkpoint that the same call goes on from.
        valid: a .jsonl file of rows to validate on. The adapter with the lowest loss on them is the one that stays.
        keep: a .jsonl file of rows that are to be answered as without the adapter. They are among those to train on,
            and their loss is how far the probabilities of the answer's tokens have gone from those of the model,
            times `keep_weight` of the options.
        options: how it is trained.
        dtype: of the weights, as for `load`. None is that of the file.
        revision: branch, tag or commit of the repository.
        overwrite: begin anew in a folder that holds a training.
        progress: told of the bytes of "weights", the "rows" that are looked at, and the steps of the "training".
        on_note: told what the user should know.
        on_report: told of each step's entry of the log.
        stop: asked after each step; if it returns true, the state is saved and the call returns.
        processor_arguments: as for `load`.

    Raises:
        OptionError: options, rows' files or the folder do not fit.
        PromptError, ImageError: of a row, naming its line.
        OutOfMemoryError: the training will not fit, said before it begins.
        NotFiniteError: the loss is no number.
        Lfm2VlError: another of the library's typed errors.
    """
    options = TrainingOptions() if options is None else options
    if not isinstance(options, TrainingOptions):
        raise OptionError(f"options is {type(options).__name__}, expected TrainingOptions")
    stop = stop or (lambda: False)
    on_note, on_report = on_note or (lambda note: None), on_report or (lambda entry: None)
    files = DataFiles.of(data, valid, keep)
    if files.keep is None and options.keep_weight != 1:
        raise OptionError("keep_weight is of rows to keep, and there are none; give keep")
    rows = [*read_rows(files.train), *([] if files.keep is None else read_rows(files.keep, kept=True))]
    valid_rows = [] if files.valid is None else read_rows(files.valid)
    settings = _settings(os.fspath(model), options, files, dtype, {"revision": revision, **processor_arguments})
    with writing(output) as folder:
        if (folder / "config.json").is_file():
            raise OutputError(f"{folder}: holds a model; give another folder")
        if not overwrite and not (folder / CHECKPOINT).is_file() and (folder / PEFT_WEIGHTS).is_file():
            raise OutputError(f"{folder}: holds an adapter of another training; give another folder, or overwrite it")
    with one_run(folder):
        loaded, processor = load(
            model, dtype=dtype, backend="mlx", revision=revision, progress=progress, **processor_arguments
        )
        if not loaded.config.placeholders:
            raise OptionError(f"{model}: is a text model; adapters are trained here for models with pictures")
        run = _Run(loaded, processor, options, rows, valid_rows, folder, os.fspath(model))
        run.look_at_rows(progress, on_note, stop)
        if overwrite:
            with writing(folder):
                (folder / CHECKPOINT).unlink(missing_ok=True)
        way = load_checkpoint(folder, loaded, run.optimizer, settings)
        way.steps = run.steps
        if way.step:
            on_note(f"{folder}: {way.step} of {run.steps} steps are there already")
        else:
            with writing(folder):  # from here on the folder is this training's
                save_checkpoint(folder, loaded, run.optimizer, way, settings)
        while way.step < run.steps and not stop():
            entry = run.step(way)
            on_report(entry)
            if progress is not None:
                progress("training", way.step, run.steps)
            stopped = stop()
            if way.step % options.save_every == 0 or way.step == run.steps or stopped:
                if not valid_rows:
                    run.save(way)
                with writing(folder):
                    save_checkpoint(folder, loaded, run.optimizer, way, settings)
            if stopped:
                break
        if plot.available() and way.log:
            with writing(folder):
                plot.plot_loss(way.log, folder / plot.FILE)
        return TrainingResult(folder, way.step, run.steps, tuple(way.log), way.best_step)


def _settings(
    model: str,
    options: TrainingOptions,
    files: DataFiles,
    dtype: str | mx.Dtype | None,
    loading: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings that a training which goes on must share with its beginning. save_every may differ, and where
    pictures may come from."""
    own = {name: value for name, value in options.as_dict().items() if name != "save_every"}
    known = None if dtype is None else str(dtype).removeprefix("mlx.core.")
    read = {name: value for name, value in loading.items() if name != "source_policy" and value is not None}
    return {"model": model, **files.digests, "dtype": known, **own, **read}


def order(rows: int, seed: int, start: int) -> Iterator[int]:
    """The rows' numbers in their random order, one pass after another, from the one at `start` on."""
    for epoch in itertools.count(start // rows):
        shuffled = np.random.default_rng([seed, epoch]).permutation(rows).tolist()
        yield from shuffled[start % rows if epoch == start // rows else 0 :]


@dataclass
class _Run:
    """A training at work."""

    model: Lfm2VlForConditionalGeneration
    processor: Lfm2VlProcessor
    options: TrainingOptions
    rows: list[TrainingRow]
    valid_rows: list[TrainingRow]
    folder: Path
    name: str

    def __post_init__(self) -> None:
        self.untrained = prepare(self.model, self.options)
        self.steps = self.options.steps(len(self.rows))
        warm = math.ceil(self.steps / WARM_UP)
        high = self.options.learning_rate
        rise = optim.linear_schedule(high / warm, high, warm)
        fall = optim.cosine_decay(high, max(1, self.steps - warm))
        self.optimizer = optim.AdamW(
            optim.join_schedules([rise, fall], [warm]), weight_decay=self.options.weight_decay, bias_correction=True
        )
        self.optimizer.init(self.model.trainable_parameters())
        self._vision_is_frozen = not any(name.startswith(VISION) for name in trainable(self.model))
        self._known: dict[str, tuple[Example, list[mx.array]]] = {}
        self._room = KEPT_BYTES
        ids = self.processor.tokenizer
        self._pad = ids.pad_token_id if ids.pad_token_id is not None else ids.eos_token_id

    def look_at_rows(
        self,
        progress: Callable[[str, int, int], None] | None,
        on_note: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        """Encodes every row once, so that one which cannot be used, or a batch that will not fit, is told now. Leaves
        off where `stop` returns true."""
        sizes: list[RowSize] = []
        both = [*self.rows, *self.valid_rows]
        for number, row in enumerate(both, 1):
            if stop():
                return
            sizes.append(RowSize.of(encode_row(self.model, self.processor, row)))
            if progress is not None:
                progress("rows", number, len(both))
        needed = training_bytes(self.model, self.options, sizes)
        work = f"{counted(self.steps, 'step')} over {counted(len(self.rows), 'row')}"
        on_note(f"{work}, about {needed / 1e9:.2g} GB of memory")
        check_training(needed)

    def _batches(self, rows: list[TrainingRow]) -> list[TrainingBatch]:
        """The rows as batches, those of like length together: the shorter have the less padding."""
        size, batches = self.options.batch_size, []
        known = sorted((self._encoded(row) for row in rows), key=lambda each: len(each[0].ids))
        for start in range(0, len(rows), size):
            part = known[start : start + size]
            tokens = [array for _, own in part for array in own] if self._vision_is_frozen else None
            batches.append(collate([example for example, _ in part], self._pad, tokens))
        return batches

    def _encoded(self, row: TrainingRow) -> tuple[Example, list[mx.array]]:
        """A row's arrays and no image tokens; or without patches and with them, which stay the same while tower and
        projector are frozen. They are kept as far as there is room, and computed alone: so they do not depend on the
        batch."""
        if row.where in self._known:
            return self._known[row.where]
        example, tokens = encode_row(self.model, self.processor, row), list[mx.array]()
        if not self._vision_is_frozen:
            return example, tokens
        if len(example.spatial_shapes):
            tokens = self.model.get_image_features(example.pixel_values, example.spatial_shapes).pooler_output
            mx.eval(tokens)
        made = replace(example, pixel_values=example.pixel_values[:0]), tokens
        size = sum(array.nbytes for array in tokens)
        if size < self._room:
            self._room -= size
            self._known[row.where] = made
        return made

    def step(self, way: Progress) -> dict[str, Any]:
        """One step of the optimiser, and a validation where it is its turn. Returns the step's entry of the log."""
        options = self.options
        count = options.batch_size * options.grad_accumulation_steps
        chosen = itertools.islice(order(len(self.rows), options.seed, way.step * count), count)
        batches = self._batches([self.rows[at] for at in chosen])
        mx.random.seed(options.seed * 2**32 + way.step)  # of dropout: the same in a run that goes on
        loss, grads = gradients(self.model, batches, self.untrained, options.keep_weight)
        grads, _ = optim.clip_grad_norm(grads, options.max_grad_norm)  # type: ignore[no-untyped-call]
        self.optimizer.update(self.model, grads)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, loss)
        way.step += 1
        value = float(loss)
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss of step {way.step} is {value}; use a lower learning_rate, or dtype float32")
        entry: dict[str, Any] = {
            "step": way.step,
            "loss": value,
            "learning_rate": float(self.optimizer.learning_rate),
            "tokens": sum(len(batch.targets) for batch in batches),
        }
        if self.valid_rows and (way.step % options.steps_per_eval == 0 or way.step == self.steps):
            entry["valid_loss"] = self.validate()
            if way.best is None or entry["valid_loss"] < way.best:
                way.best = entry["valid_loss"]
                self.save(way)
        way.log.append(entry)
        return entry

    def validate(self) -> float:
        """The mean loss of all answers' tokens of the rows to validate on."""
        self.model.eval()
        total, count, size = 0.0, 0, self.options.batch_size
        for start in range(0, len(self.valid_rows), size):
            (batch,) = self._batches(self.valid_rows[start : start + size])
            total += float(loss_sum(self.model, batch))
            count += len(batch.targets)
        self.model.train()
        if not math.isfinite(total):
            raise NotFiniteError("the loss of the rows to validate on is no number; use a lower learning_rate")
        return total / count

    def save(self, way: Progress) -> None:
        """Writes the adapter as it is."""
        way.best_step = way.step
        save_adapter(learned(self.model, self.folder, self.name), self.folder, dropout=self.options.dropout)
