"""A Hugging Face or MLX folder or repository to an MLX folder, dense or quantised, complete with its other files.

The target is written beside its place under a temporary name, checked, and renamed at the end: whatever interrupts the
work, no folder is left that looks finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..config import read_json
from ..errors import OptionError, OutOfMemoryError, TemplateError
from ..hub import resolve
from ..weights import quantize as q
from ..weights.files import reading
from ..weights.load import StoredTensors, dtype_of, open_model
from ..weights.place import check_target, finished
from ..weights.save import SHARD_BYTES, write_json, write_tensors
from . import plot
from .calibration import questions
from .card import CardSource, write_card
from .check import check_result, check_texts
from .companions import config_json, write_companions
from .damage import check_memory, measure
from .plan import Plan, QuantizationOptions, Rounding, lower_width, make_plan, to_measure
from .report import DamageReport
from .rounding import measure_rounding
from .search import search
from .stream import Widths, dense_dtype, stored_widths, translate

Progress = Callable[[str, int, int], None]  # stage ("weights" in bytes, "measuring" in answers ...), done, in all
Note = Callable[[str], None]
FORMATS = {"mlx": "mlx", "hub": "pt"}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    q_recipe: str | None = None,
    q_overrides: Sequence[tuple[str, int | str]] = (),
    q_vision: bool = False,
    target_size: float | None = None,
    target_kl: float | None = None,
    dequantize: bool = False,
    layout: str = "mlx",
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    overwrite: bool = False,
    verify: bool = True,
    calibration: str | os.PathLike[str] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    on_note: Note | None = None,
) -> Path:
    """Writes the model `source` (folder, repository or `demo`; dense or quantised) to the folder `target`, its result.

    `dtype`: `float32`, `float16` or `bfloat16` for what stays dense; None keeps the source's. `quantize`, or any of
    `q_bits` (2, 3, 4, 5, 6, 8), `q_mode` (affine, mxfp4, mxfp8, nvfp4) and `q_recipe` (see `plan`), quantises the
    language model, in groups of `q_group_size` (32, 64, 128); `q_vision` tower and projector too. `q_overrides`: pairs
    of a pattern over module names and bits, "dense" or a mode. `target_size` (10^9 bytes) or `target_kl` (nats a token)
    instead finds the bits of each module by measurement (see `search`). A quantised source is quantised anew from what
    it holds, or with `dequantize` made dense, or else kept. `layout`: `mlx`, or `hub` for the names and kernels of the
    makers' repositories, which transformers reads (dense only).

    After quantising, `verify` measures the damage (see `damage`) on the bundled questions or on `calibration`, a folder
    of pictures, and writes it to quantization_report.json and the model card. `name` is what the card calls the model
    (default: the target's name). An existing target is replaced only with `overwrite`. `progress` and `on_note` are
    told how far the work is and what the user should know. Memory: the largest tensor and its source; while measuring,
    one model, on a CPU in float32; while searching, two. Raises `OptionError`, `OutputError`, `OutOfMemoryError` before
    the work if measuring will not fit, and what loading raises.
    """
    searching = target_size is not None or target_kl is not None
    asked = quantize or searching or q_bits is not None or q_mode is not None or q_recipe is not None
    if searching and (q_bits is not None or q_mode is not None or q_recipe is not None or q_overrides or q_vision):
        raise OptionError(
            "target_size and target_kl find the bits themselves; of q_... only q_group_size goes with them"
        )
    if target_size is not None and target_kl is not None:
        raise OptionError("give one of target_size and target_kl")
    if searching and dtype is not None:
        raise OptionError("target_size and target_kl count the checkpoint's own dtype; leave dtype out")
    if not asked and (q_group_size is not None or q_overrides or q_vision):
        raise OptionError("q_group_size, q_overrides and q_vision say how to quantise; add quantize or q_bits")
    if asked and dequantize:
        raise OptionError("dequantize and quantising exclude each other")
    if layout not in FORMATS:
        raise OptionError(f"layout is {layout!r}, expected one of {', '.join(FORMATS)}")
    if asked and layout != "mlx":
        raise OptionError(f"layout {layout} is for dense models; leave quantising out")
    if calibration is not None:
        if not (asked and verify) and not searching:
            raise OptionError("calibration is for measuring what quantising costs; nothing is quantised or measured")
        questions(Path(calibration).expanduser())
    options = QuantizationOptions(q_bits, q_group_size, q_mode or "affine", q_recipe, tuple(q_overrides), q_vision)
    type_ = dtype_of(dtype)
    target = Path(target).expanduser()
    check_target(target, None, overwrite)  # before anything is fetched
    folder = resolve(source, revision=revision, token=token, local_files_only=local_files_only)
    check_target(target, folder, overwrite)

    def tell(note: str) -> None:
        if on_note is not None:
            on_note(note)

    model: nn.Module
    model, stored = open_model(folder)
    check_texts(folder)  # what is damaged there is said of the source, and before the work
    if searching or (asked and verify):
        # said now: converting fits nearly everywhere, and measuring comes last
        way = "with --q-bits or --q-recipe and --no-verify" if searching else "with --no-verify"
        check_memory(stored, f"{way} a model of any size is converted", searching)
    before = stored_widths(stored)
    found, plan = None, None
    if searching:
        where = None if calibration is None else Path(calibration).expanduser()
        found = search(
            folder,
            target_size=target_size,
            target_kl=target_kl,
            group_size=q_group_size,
            calibration=where,
            progress=progress,
        )
        tell(f"{found.point.size / 1e9:.4g} GB with a KL divergence of {found.point.kl:.2g} nats a token chosen")
    if found is not None:
        plan = found.plan
    elif asked:
        measured = _roundings(model, stored, options, type_, progress)
        plan = make_plan(q.widths(model), q.parameter_count(model), options, measured)
    if before and layout != "mlx" and not dequantize:
        raise OptionError(f"{folder}: is quantised; the layout {layout} is for dense models, add dequantize")
    if dequantize and not before:
        raise OptionError(f"{folder}: is not quantised; there is nothing to dequantise")
    for note in plan.notes if plan else ():
        tell(note)
    if asked and before:
        tell(f"{folder} is quantised already and its losses stay; the dense original would give a better model")
    with finished(target, overwrite) as part:
        write_model(folder, stored, part, plan, dtype=type_, dequantize=dequantize, layout=layout, progress=progress)
        if found is not None:
            found.write(part)
            if plot.available():
                plot.plot_search(found, part / plot.CURVE_FILE)
        report = None
        if plan and verify:
            report = _measured(folder, part, calibration, progress, tell)
        if layout == "mlx":
            write_card(part, CardSource.of(source, folder), name or target.name, report)
        for remark in check_result(part, target):
            tell(remark)
    return target


def _roundings(
    model: nn.Module,
    stored: StoredTensors,
    options: QuantizationOptions,
    dtype: mx.Dtype | None,
    progress: Progress | None,
) -> dict[str, Rounding]:
    """What a recipe must know of the weights, nothing for other options."""
    if options.recipe is None:
        return {}
    paths = to_measure(q.widths(model), options)
    return measure_rounding(stored, paths, lower_width(options.recipe, options), dtype=dtype, progress=progress)


def _measured(
    dense: Path,
    quantised: Path,
    calibration: str | os.PathLike[str] | None,
    progress: Progress | None,
    tell: Note,
) -> DamageReport | None:
    """The damage, written beside the weights. A model that cannot be asked anything is told of and left unmeasured."""
    where = None if calibration is None else Path(calibration).expanduser()
    try:
        report = measure(dense, quantised, calibration=where, progress=progress)
    except TemplateError as error:
        tell(f"the damage was not measured, for no question can be asked of this model: {error}")
        return None
    except OutOfMemoryError as error:
        tell(f"the damage was not measured: {error}")
        return None
    if where is not None:
        report = replace(report, answers=())  # the folder is made to be published, the user's questions are not
    report.write(quantised)
    if plot.available():
        plot.plot_errors(report, quantised / plot.ERRORS_FILE)
    return report


def write_model(
    source: Path,
    stored: StoredTensors,
    target: Path,
    plan: Plan | None,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool = False,
    layout: str = "mlx",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Weights, config.json and all other files into the existing folder `target`."""
    before = stored_widths(stored)
    widths: Widths = plan.modules if plan else dict.fromkeys(before) if dequantize else {}
    if plan:
        # What was quantised and is not spoken of (a projector, say) stays as it is and is recorded by itself.
        plan = Plan(plan.base, {**before, **plan.modules}, plan.notes)
    quantization = plan.record() if plan else None if dequantize else stored.config.quantization
    with reading(source, "start again"):
        write_tensors(
            translate(stored, widths, dtype=dtype, layout=layout),
            target,
            shard_bytes=shard_bytes,
            file_format=FORMATS[layout],
            progress=None if progress is None else lambda done, total: progress("weights", done, total),
        )
    stored.check_unchanged()
    record = dict(quantization) if quantization else None
    original = read_json(source / "config.json")
    write_json(target / "config.json", config_json(original, stored.config, dense_dtype(stored, dtype), record, layout))
    write_companions(source, target, stored.config)
