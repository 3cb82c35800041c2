"""A model and an adapter to one MLX folder: the weights with the adapter's changes in them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..adapters.adapter import Adapter
from ..adapters.read import read_adapter, unfinished
from ..config import config_in
from ..errors import OptionError
from ..hub import resolve_checked
from ..weights import quantize as q
from ..weights.atomic_folder import check_target, finished
from ..weights.load import StoredTensors, open_model
from .card import CardSource, write_card
from .check import check_result, check_texts
from .convert import FORMATS, Note, Progress, write_model
from .stream import dense_weight

AGAIN = "the fused weights are quantised again, which rounds the adapter too; --dequantize keeps it as it is"


@dataclass(frozen=True)
class FusedTensors(StoredTensors):
    """The tensors of a folder with an adapter in them, not read yet. `stored`: those of the folder. A quantised module
    that the adapter changes is quantised again as it was; or dense, where it is not in `widths`."""

    stored: StoredTensors
    adapter: Adapter

    @classmethod
    def of(cls, stored: StoredTensors, adapter: Adapter, dequantize: bool) -> FusedTensors:
        """`dequantize`: the changed modules become dense."""
        widths = stored.widths
        if dequantize:
            changed = {*adapter.layers, *(name.rpartition(".")[0] for name in adapter.saved)}
            widths = {path: width for path, width in widths.items() if path not in changed}
        return cls(**{**vars(stored), "widths": widths}, stored=stored, adapter=adapter)

    def read(self, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
        arrays = self.stored.read(dtype)
        for path, weights in self.adapter.layers.items():
            weight = dense_weight(self.stored, arrays, path)
            assert weight is not None  # `Adapter.check` has seen it
            self._put(arrays, path, weights.merged(weight))
        for name, array in self.adapter.saved.items():
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and path in self.stored.widths:
                dense_weight(self.stored, arrays, path)
                self._put(arrays, path, array.astype(self.dtype))
            else:
                arrays[name] = array.astype(arrays[name].dtype)
        return arrays

    def _put(self, arrays: dict[str, mx.array], path: str, weight: mx.array) -> None:
        """A module's weight in place of its tensors that were taken out."""
        spec = self.widths.get(path)
        made = {"weight": weight} if spec is None else q.encode(weight, spec)
        arrays.update({f"{path}.{part}": array for part, array in made.items()})


def fuse(
    source: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dequantize: bool = False,
    layout: str = "mlx",
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    overwrite: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
    on_note: Note | None = None,
) -> Path:
    """Writes a model with an adapter in its weights into a new folder, complete with its other files.

    Args:
        source: the adapter's model: folder, hub repository or `demo`; dense or quantised. Quantised modules that the
            adapter changes are quantised again in the same width.
        adapter: a folder with an adapter of PEFT or mlx-lm.
        target: the folder to write.
        dequantize: make a quantised source dense; then the adapter is not rounded.
        layout: "mlx", or "hub" for the names and kernels of the makers' repositories, which transformers reads.
        revision: branch, tag or commit of the repository.
        token: of the hub.
        local_files_only: ask no hub.
        overwrite: replace an old model folder.
        name: what the card calls the model. None is the target's name.
        progress: told of the bytes of the "weights".
        on_note: told what the user should know.

    Returns:
        The folder `target`.

    Raises:
        WeightsError: the adapter is of another model.
        OptionError, OutputError, HubError, and what loading raises.
    """
    if layout not in FORMATS:
        raise OptionError(f"layout is {layout!r}, expected one of {', '.join(FORMATS)}")
    on_note = on_note or (lambda note: None)
    change, target = read_adapter(adapter), Path(target).expanduser()
    check_target(target, None, overwrite)  # before anything is fetched
    folder = resolve_checked(source, config_in, revision=revision, token=token, local_files_only=local_files_only)
    check_target(target, folder, overwrite)
    model: nn.Module
    model, stored = open_model(folder)
    change.check(model)
    check_texts(folder)
    if dequantize and not stored.widths:
        raise OptionError(f"{folder}: is not quantised; there is nothing to dequantise")
    if layout != "mlx" and stored.widths and not dequantize:
        raise OptionError(
            f"{folder}: is quantised, and this layout is for dense models; add --dequantize (dequantize=True)"
        )
    stopped = unfinished(change.folder)
    for note in (*stored.notes, *([AGAIN] if stored.widths and not dequantize else [])):
        on_note(note)
    if stopped:
        on_note(f"{change.folder}: {stopped}; the command that began it goes on with it")
    fused = FusedTensors.of(stored, change, dequantize)
    with finished(target, overwrite) as part:
        write_model(fused, part, None, dequantize=dequantize, layout=layout, progress=progress)
        if layout == "mlx":
            write_card(part, CardSource.of(source, folder), name or target.name, fused=True, remark=stopped)
        for remark in check_result(part, target):
            on_note(remark)
    return target
