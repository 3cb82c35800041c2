"""A Hugging Face or MLX folder or repository to an MLX folder, dense or quantised, complete with its other files.

The target is written beside its place under a temporary name, checked, and renamed at the end: whatever interrupts the
work, no folder is left that looks finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..config import config_in, read_json
from ..errors import OptionError, OutOfMemoryError, OutputError, TemplateError
from ..hub import resolve_checked
from ..weights import quantize as q
from ..weights.atomic_folder import check_space, check_target, finished, scratch
from ..weights.choices import METHODS
from ..weights.files import reading
from ..weights.load import StoredTensors, dtype_of, open_model
from ..weights.save import write_json, write_tensors
from . import plot
from .calibration import divided, questions
from .card import CardSource, write_card
from .check import check_result, check_texts
from .config_files import config_json, write_config_files
from .layerwise import Parts, bytes_beside, quantize_layerwise
from .plan import Plan, QuantizationOptions, make_plan
from .quantization_error import Progress, check_memory, measure
from .report import QuantizationReport
from .search import search
from .stream import Widths, check_finite, translate

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
    q_method: str | None = None,
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
    """Writes a model into a new MLX folder, dense or quantised, complete with its other files.

    Memory: the largest tensor and its source; while measuring, one model, in float32 where it fits; while
    searching, two; with `q_method` "gptq" one model and what `conversion.layerwise` says.

    Args:
        source: folder, hub repository or `demo`; dense or quantised. A quantised one is quantised anew from what it
            holds, or with `dequantize` made dense, or else kept.
        target: the folder to write.
        dtype: "float32", "float16" or "bfloat16" for what stays dense. None keeps the source's.
        quantize: quantise the language model; so do `q_bits`, `q_mode` and `q_recipe`.
        q_bits: 2, 3, 4, 5, 6 or 8. None is what suits the model's size.
        q_group_size: weights that share a scale: 32, 64 or 128. None is the mode's.
        q_mode: "affine", "mxfp4", "mxfp8" or "nvfp4". None is "affine".
        q_recipe: two widths instead of `q_bits`, see `conversion.plan`.
        q_overrides: pairs of a pattern over module names and bits, "dense" or a mode.
        q_vision: quantise tower and projector too.
        q_method: "rtn" rounds each weight to the nearest level; "gptq" so that the outputs of each module change
            least on the answers to the calibration questions, in the mode affine. None is "rtn".
        target_size: find the bits of each module by measurement, for at most so many 10^9 bytes.
        target_kl: the same, for at most so many nats a token.
        dequantize: make a quantised source dense.
        layout: "mlx", or "hub" for the names and kernels of the makers' repositories, which transformers reads.
        revision: branch, tag or commit of the repository.
        token: of the hub.
        local_files_only: ask no hub.
        overwrite: replace an old model folder.
        verify: after quantising, measure the error; it goes into quantization_report.json and the model card.
        calibration: a folder of pictures, or a .jsonl file of rows as `batch` reads them, to calibrate and to measure
            on, instead of the bundled questions. With "gptq" every third question is measured, the others calibrate.
        name: what the card calls the model. None is the target's name.
        progress: told of a stage, how much of it is done, and how much there is in all.
        on_note: told what the user should know.

    Returns:
        The folder `target`.

    Raises:
        KeyboardInterrupt: at Ctrl-C; the folder is there, whole, if it came while measuring.
        OptionError, OutputError, HubError, and what loading raises. `NotFiniteError` names a tensor that holds NaN or
        infinity, or would in `dtype`. `OutOfMemoryError` comes before the work, if measuring will not fit.
    """
    if q_method is not None and q_method not in METHODS:
        raise OptionError(f"q_method is {q_method!r}, expected one of {', '.join(METHODS)}")
    calibrating = q_method == "gptq"
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
    if not asked and (q_group_size is not None or q_overrides or q_vision or q_method is not None):
        raise OptionError("q_group_size, q_overrides, q_vision and q_method say how to quantise; add quantize")
    if calibrating and q_mode not in (None, "affine"):
        raise OptionError(f"q_method gptq is for the mode affine; leave q_mode {q_mode} out")
    if asked and dequantize:
        raise OptionError("dequantize and quantising exclude each other")
    if layout not in FORMATS:
        raise OptionError(f"layout is {layout!r}, expected one of {', '.join(FORMATS)}")
    if asked and layout != "mlx":
        raise OptionError(f"layout {layout} is for dense models; leave quantising out")
    pictures = None if calibration is None else Path(calibration).expanduser()
    if pictures is not None:
        if not (asked and verify) and not searching and not calibrating:
            raise OptionError("calibration is for measuring what quantising costs; nothing is quantised or measured")
        questions(pictures)
    options = QuantizationOptions(q_bits, q_group_size, q_mode or "affine", q_recipe, tuple(q_overrides), q_vision)
    type_ = dtype_of(dtype)
    target = Path(target).expanduser()
    check_target(target, None, overwrite)  # before anything is fetched
    folder = resolve_checked(source, config_in, revision=revision, token=token, local_files_only=local_files_only)
    check_target(target, folder, overwrite)

    on_note = on_note or (lambda note: None)
    model: nn.Module
    model, stored = open_model(folder)
    check_texts(folder)  # what is damaged there is said of the source, and before the work
    if calibrating and stored.widths:
        raise OptionError(f"{folder}: is quantised already; calibrate the dense original (q_method gptq)")
    compute = None
    if searching or calibrating or (asked and verify):
        # said now: converting fits nearly everywhere, and measuring comes last
        without = ["--q-bits or --q-recipe"] * searching + ["--q-method rtn"] * calibrating + ["--no-verify"]
        way = f"with {' and '.join(without)}"
        beside = bytes_beside(stored, max(q.widths(model).values())) if calibrating else 0
        compute = check_memory(stored, f"{way} a model of any size is converted", searching, beside)
        with scratch():  # and a place for temporary files too
            pass
    for note in (*stored.notes, *([stored.mixed_note] if type_ is None and stored.mixed_note else [])):
        on_note(note)
    before = stored.widths
    found, plan = None, None
    if searching:
        check_space(target, int(1e9 * (target_size or 0)))
        found = search(
            folder,
            target_size=target_size,
            target_kl=target_kl,
            group_size=q_group_size,
            calibration=pictures,
            progress=progress,
        )
        plan = found.plan
        on_note(f"{found.point.size / 1e9:.4g} GB with a KL divergence of {found.point.kl:.2g} nats a token chosen")
    elif asked:
        plan = make_plan(q.widths(model), q.parameter_count(model), options)
    if before and layout != "mlx" and not dequantize:
        raise OptionError(
            f"{folder}: is quantised, and this layout is for dense models; add --dequantize (dequantize=True)"
        )
    if dequantize and not before:
        raise OptionError(f"{folder}: is not quantised; there is nothing to dequantise")
    for note in plan.notes if plan else ():
        on_note(note)
    quantised: Parts = {}
    if calibrating and plan:
        quantised = quantize_layerwise(
            folder,
            {path: spec for path, spec in plan.modules.items() if spec is not None},
            divided(pictures)[0],
            type_ or stored.dtype,
            compute=compute,
            progress=progress,
        )
    if asked and before:
        on_note(f"{folder} is quantised already and its losses stay; the dense original would give a better model")
    with finished(target, overwrite) as part:
        write_model(
            *(stored, part, plan, quantised),
            dtype=type_,
            dequantize=dequantize,
            layout=layout,
            progress=progress,
        )
        if found is not None:
            found.write(part)
            if plot.available():
                plot.plot_search(found, part / plot.CURVE_FILE)
        report, interrupt = None, None
        if plan and verify:
            try:
                report = _measured(folder, part, pictures, q_method or "rtn", progress, on_note)
            except KeyboardInterrupt as error:
                interrupt = error
                on_note(f"interrupted while measuring; {target} is whole, without the numbers of what quantising cost")
        if layout == "mlx":
            card = CardSource.of(source, folder)
            write_card(part, card, name or target.name, report, stored.config.quantization)
        for remark in check_result(part, target):
            on_note(remark)
    if interrupt is not None:
        raise interrupt
    return target


def _measured(
    dense: Path,
    quantised: Path,
    calibration: Path | None,
    method: str,
    progress: Progress | None,
    on_note: Note,
) -> QuantizationReport | None:
    """The quantization error, written beside the weights. None, with a note, of a model that answers no question."""
    try:
        report = measure(dense, quantised, calibration=calibration, calibrated=method != "rtn", progress=progress)
    except TemplateError as error:
        on_note(f"the quantization error was not measured, for no question can be asked of this model: {error}")
        return None
    except (OutOfMemoryError, OutputError) as error:
        on_note(f"the quantization error was not measured: {error}")
        return None
    if method != "rtn":
        report = replace(report, method=method, calibrated_on=len(divided(calibration)[0]))
    if calibration is not None:
        report = replace(report, answers=())  # the folder is made to be published, the user's questions are not
    report.write(quantised)
    if plot.available():
        plot.plot_errors(report, quantised / plot.ERRORS_FILE)
    return report


def write_model(
    stored: StoredTensors,
    target: Path,
    plan: Plan | None,
    quantised: Parts | None = None,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool = False,
    layout: str = "mlx",
    progress: Progress | None = None,
) -> None:
    """Weights, config.json and all other files into the existing folder `target`. `quantised`: as for `translate`."""
    source, before = stored.files[0].parent, stored.widths
    widths: Widths = plan.modules if plan else dict.fromkeys(before) if dequantize else {}
    if plan:
        # Modules that were quantised and are not spoken of (a projector, say) stay as they are, with their own record.
        plan = Plan(plan.base, {**before, **plan.modules}, plan.notes)
    quantization = plan.record() if plan else None if dequantize else stored.config.quantization
    with reading(source, "start again"):
        write_tensors(
            translate(stored, widths, dtype=dtype, layout=layout, quantised=quantised or {}),
            target,
            file_format=FORMATS[layout],
            check=partial(check_finite, stored, dtype or stored.dtype),
            progress=None if progress is None else lambda done, total: progress("weights", done, total),
        )
    stored.check_unchanged()
    record = dict(quantization) if quantization else None
    original = read_json(source / "config.json")
    write_json(target / "config.json", config_json(original, stored.config, dtype or stored.dtype, record, layout))
    write_config_files(source, target, stored.config)
