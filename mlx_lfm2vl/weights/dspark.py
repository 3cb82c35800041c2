"""A folder with a DSpark drafter to the drafter in memory, checked against its configuration before it is read."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..backends.thread_state import computing
from ..config import DSparkConfig, read_json
from ..errors import WeightsError
from ..models.dspark import DSparkDraftModel
from . import quantize
from .files import DTYPES, FLOATING, reading
from .fit import check_weights
from .load import check_shapes, read_tensors
from .names import parameters
from .shards import Shards, read_shards

BORROWED = ("embed_tokens.", "lm_head.")  # copies of what a drafter takes from the model


@computing
def load_dspark(folder: Path) -> DSparkDraftModel:
    """The drafter of a folder: the makers' layout, or one of mlx-vlm, dense or quantised. Raises `ConfigError`,
    `WeightsError` and `OutOfMemoryError`."""
    config = DSparkConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    shards = read_shards(folder)
    names = _own_names(shards)
    infos = {own: shards.tensors[name] for own, name in names.items()}
    model = DSparkDraftModel(config)
    quantize.prepare(model, infos)
    missing = [name for name in parameters(model) if name not in infos]
    if missing and not shards.missing:  # else the file is named that is
        raise WeightsError(f"{folder}: tensor {missing[0]} is missing from the drafter's weight files")
    check_shapes(model, infos, folder, shards)
    check_weights(str(folder), infos)
    dtype = next(DTYPES[info.dtype] for info in infos.values() if info.dtype in FLOATING)
    with reading(folder):
        tensors = read_tensors(shards.files, {name: own for own, name in names.items()}, dtype)
        model.load_weights(list(tensors.items()), strict=True)
        mx.eval(model.parameters())
    model.eval()
    return model


def _own_names(shards: Shards) -> dict[str, str]:
    """The names of the drafter's parameters, to those of its own tensors in the files."""
    names: dict[str, str] = {}
    for name, info in shards.tensors.items():
        own = name.removeprefix("model.")
        if own in names:
            raise WeightsError(f"{info.file}: holds {own} twice, with 'model.' and without")
        if not own.startswith(BORROWED):
            names[own] = name
    return names
