"""Runs the random checkpoint and the demo model in each width and measures how far they are from the reference."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import backends
from ..conversion.plan import QuantizationOptions, make_plan
from ..errors import OutputError, first_line
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.outputs import Lfm2VlCausalLMOutputWithPast
from ..pretrained import load
from ..weights.load import load_model
from ..weights.quantize import parameter_count, widths
from . import bounds, checkpoint, lfm3_checkpoint, reference
from .bounds import Width
from .report import OF_LARGEST, OF_ROUNDING, Report, Row
from .system import inspect

Arrays = list[tuple[np.ndarray, reference.Numbers]]  # what was computed, and the reference's numbers for it
Measured = tuple[dict[str, float], bool | None]  # distances by stage, and whether the answer is the same
Progress = Callable[[int, int], None]
CHECKPOINTS: dict[str, Any] = {"random": checkpoint, "lfm3": lfm3_checkpoint}  # by the names of their rows


def diagnose(backend: str | None = None, *, progress: Progress | None = None) -> Report:
    """Describes this machine, and how far its numbers are from the reference's.

    Runs a random checkpoint of each family and the demo model in float32, bfloat16, 8 bits and 4 bits on MLX's default
    device; see `doctor.bounds` for what is right. TF32 must be off for float32 rows where a device has it: set
    MLX_ENABLE_TF32=0 before anything is computed.

    Args:
        backend: what computes the float32 rows: "mlx", "numpy" or "auto"; None is the environment's MLX_LFM2VL_BACKEND.
            All other rows are MLX's.
        progress: told of the rows that are done, and of all.

    Returns:
        A report. What goes wrong in a row is said there.

    Raises:
        OptionError: for another backend.
        OutputError: where the temporary folder takes no checkpoint.
    """
    start = time.perf_counter()
    chosen = backends.choose(backend)
    system = inspect(chosen)
    device = system.machine.device_type
    rows: list[Row] = []
    with _checkpoint_folder() as folder:
        checks: dict[str, Callable[[Width, str], Measured]] = {
            **{name: partial(check_random, folder / name, name) for name in CHECKPOINTS},
            "demo": check_demo,
        }
        planned = [(model, width) for model in checks for width in bounds.widths(model, device)]
        for model, width in planned:
            by = chosen if width is bounds.FLOAT32 else "mlx"
            rows.append(_row(model, width, by, bounds.bound(model, width, device), checks[model]))
            if progress is not None:
                progress(len(rows), len(planned))
    return Report(system, tuple(rows), time.perf_counter() - start)


def _row(model: str, width: Width, by: str, bound: float, check: Callable[[Width, str], Measured]) -> Row:
    start = time.perf_counter()
    distances: dict[str, float] = {}
    answer, failure = None, None
    try:
        with np.errstate(all="ignore"):  # what is not finite is out of bounds
            distances, answer = check(width, by)
    except Exception as error:  # whatever a device does wrong is a finding
        failure = f"{type(error).__name__}: {first_line(error)}"
    unit = OF_ROUNDING if width.dtype == "bfloat16" else OF_LARGEST
    return Row(model, width.name, by, distances, bound, unit, answer, failure, time.perf_counter() - start)


@contextmanager
def _checkpoint_folder() -> Iterator[Path]:
    """A temporary folder with a folder of each random checkpoint. Raises `OutputError`."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="mlx-lfm2vl-")
    except OSError as error:
        raise OutputError(f"there is no folder for temporary files ({first_line(error)}); set TMPDIR to one") from None
    with temporary as name:
        for model in CHECKPOINTS:
            write_checkpoint(Path(name) / model, model)
        yield Path(name)


def write_checkpoint(folder: Path, name: str = "random") -> None:
    """Writes a random checkpoint of `CHECKPOINTS`, in bfloat16 and as published ones are. Raises `OutputError`."""
    made = CHECKPOINTS[name]
    weights = {name: mx.array(array).astype(mx.bfloat16) for name, array in made.tensors().items()}
    try:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(made.CONFIG), encoding="utf-8")
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{folder}: cannot be written ({first_line(error)})") from None


def check_random(folder: Path, name: str, width: Width, backend: str) -> Measured:
    """Distances of the random checkpoint `name` in `folder`: of the image tokens, of a prompt with pictures, of the
    tokens behind it, and of both prompts in a batch."""
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype=width.dtype, backend=backend)
    _quantize(model, width.bits)
    numbers, prompts = reference.random_numbers(name), CHECKPOINTS[name].prompts()
    views = {"pixel_values": prompts.pixel_values, "spatial_shapes": prompts.spatial_shapes}
    padding = prompts.picture.shape[1] - prompts.text.shape[1]
    both = np.concatenate([prompts.picture, np.pad(prompts.text, ((0, 0), (padding, 0)))])
    mask = np.ones_like(both)
    mask[1, :padding] = 0

    features = mx.concatenate(model.get_image_features(*views.values()).pooler_output)
    alone = _logits(model, prompts.picture, None, views)[0]
    first, second = _logits(model, both, mask, views)
    image, picture, text = numbers["image"], numbers["picture"], numbers["text"]
    before = reference.Numbers(*(array[: -checkpoint.STEPS] for array in picture))
    behind = reference.Numbers(*(array[-checkpoint.STEPS :] for array in picture))
    stages: dict[str, Arrays] = {
        "image": [(_numpy(features)[image.rows], image)],
        "prompt": [(alone[before.rows], before)],
        "steps": [(alone[behind.rows], behind)],
        "batch": [(first[picture.rows], picture), (second[text.rows + padding], text)],
    }
    return {stage: distance(arrays, width) for stage, arrays in stages.items()}, None


def check_demo(width: Width, backend: str) -> Measured:
    """The distance of the demo model's logits at the tokens of the reference's answer, and whether its own answer is
    the same, from the picture on."""
    model, processor = load("demo", dtype=width.dtype, backend=backend)
    _quantize(model, width.bits)
    numbers = reference.demo_numbers()
    content = [{"type": "image", "path": str(reference.PICTURE)}, {"type": "text", "text": numbers.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    made = np.array(model.generate(**inputs, max_new_tokens=2 * len(numbers.answers[width.name]), do_sample=False))
    whole = np.concatenate([numbers.prompt, numbers.answers["float32"]])
    same = np.array_equal(made[0], np.concatenate([numbers.prompt, numbers.answers[width.name]]))

    views = {"pixel_values": inputs["pixel_values"], "spatial_shapes": inputs["spatial_shapes"]}
    logits = _numpy(_forward(model, whole[None], **views)[0])
    rows = np.arange(len(numbers.prompt) - 1, len(whole) - 1)
    exact = numbers.logits["float32" if width.bits is None else width.name]
    known = reference.Numbers(rows, exact, numbers.logits["bfloat16"])
    return {"prompt": distance([(logits[rows], known)], width)}, same


def distance(arrays: Arrays, width: Width) -> float:
    """The distance of arrays from the reference's, in the width's unit (see `bounds`)."""
    error = np.concatenate([(ours - known.exact).ravel() for ours, known in arrays])
    if width.dtype == "bfloat16":
        theirs = [(known.rounded - known.exact).ravel() for _, known in arrays]
        return float(np.sqrt(np.mean(error**2) / np.mean(np.concatenate(theirs) ** 2)))
    return float(np.abs(error).max() / max(np.abs(known.exact).max() for _, known in arrays))


def _quantize(model: Lfm2VlForConditionalGeneration, bits: int | None) -> None:
    """In memory, as the converter does it."""
    if bits is None:
        return
    plan = make_plan(widths(model), parameter_count(model), QuantizationOptions(bits=bits))

    def choose(path: str, _: nn.Module) -> bool | dict[str, Any]:
        spec = plan.modules.get(path)
        return False if spec is None else spec.to_dict()

    nn.quantize(model, class_predicate=choose)


def _logits(
    model: Lfm2VlForConditionalGeneration, ids: np.ndarray, mask: np.ndarray | None, views: dict[str, np.ndarray]
) -> np.ndarray:
    """(B, T, vocabulary) of a pass over all but the last tokens and of these one by one, from a cache."""
    cache, length = Cache(model.config.text_config), ids.shape[1]
    parts, begin = [], 0
    for end in range(length - checkpoint.STEPS, length + 1):
        seen = None if mask is None else mask[:, :end]
        given: dict[str, Any] = {} if begin else dict(views)
        parts.append(_forward(model, ids[:, begin:end], attention_mask=seen, past_key_values=cache, **given))
        begin = end
    return _numpy(mx.concatenate(parts, axis=1))


def _forward(model: Lfm2VlForConditionalGeneration, ids: np.ndarray, **inputs: Any) -> mx.array:
    out = model(ids, **inputs)
    assert isinstance(out, Lfm2VlCausalLMOutputWithPast) and out.logits is not None
    return out.logits


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))
