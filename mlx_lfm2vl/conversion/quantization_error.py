"""The cost of a quantisation: the dense and the quantised model run on the same questions, their weights compared.

The models are loaded one after the other; the dense one's distributions wait on disk. Both get the tokens and pixels
that the dense folder's processor makes, so that only the weights differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import backends
from ..errors import OutOfMemoryError, WeightsError
from ..generation.options import number_type
from ..generation.request import conversation
from ..pretrained import Lfm2VlForConditionalGeneration, load
from ..processing.processor import Lfm2VlProcessor
from ..weights import fit
from ..weights.atomic_folder import scratch
from ..weights.files import reading
from ..weights.load import StoredTensors, open_model
from ..weights.names import from_module
from ..weights.quantize import LANGUAGE, parameter_count, widths
from .calibration import Question, divided, questions
from .report import KEPT, ChangedAnswer, ModuleError, QuantizationReport
from .stream import dense_weight

TOKENS = 64  # of an answer at most
Progress = Callable[[str, int, int], None]  # stage ("weights" in bytes, "measuring" in tokens ...), done, in all
Inputs = dict[str, Any]


def measure(
    dense: Path,
    quantised: Path,
    *,
    calibration: Path | None = None,
    calibrated: bool = False,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Compares two folders of one model.

    Args:
        dense: the original.
        quantised: what was made of it.
        calibration: a folder or a .jsonl file instead of the bundled questions.
        calibrated: ask only those of them that a calibration leaves out (`calibration.divided`).
        progress: told of tokens.

    Raises:
        WeightsError, OptionError: the folders hold different models; the calibration cannot be used.
        OutOfMemoryError: before anything is loaded.
        Lfm2VlError: what loading and generating raise.
    """
    asked = divided(calibration)[1] if calibrated else questions(calibration)
    steps = Steps("measuring", 2 * len(asked), TOKENS + 2, progress)
    one: nn.Module
    other: nn.Module
    (one, stored), (other, restored) = open_model(dense), open_model(quantised)
    same_words = stored.config.text_config.vocab_size == restored.config.text_config.vocab_size
    if not same_words or widths(one) != widths(other):
        raise WeightsError(f"{quantised}: is another model than {dense}; they cannot be compared")
    way = "free memory, or compare them where there is more"
    chosen = [check_memory(each, way) for each in (stored, restored)]
    dtype = None if any(each is None for each in chosen) else mx.float32  # both in the same one
    errors = tuple(module_errors(dense, quantised))
    with scratch() as folder:
        model, processor = load_to_measure(dense, dtype)
        inputs = [encoded(processor, question) for question in asked]
        answers = []
        for index, prompt in enumerate(inputs):
            answers.append(greedy(model, prompt, steps))
            np.save(folder / f"{index}.npy", log_probabilities(model, prompt, answers[-1]))
            steps.next()
        ends, computed = model.generation_config, str(number_type(model)).removeprefix("mlx.core.")
        del model
        mx.clear_cache()
        model, _ = load_to_measure(quantised, dtype)
        model.generation_config = ends
        comparisons: list[Comparison] = []
        changed: list[ChangedAnswer] = []
        for index, prompt in enumerate(inputs):
            before = np.load(folder / f"{index}.npy")
            after = log_probabilities(model, prompt, answers[index])
            found = greedy(model, prompt, steps)
            comparisons.append(compare(before, after, answers[index], found))
            if (at := comparisons[-1].differs_at) is not None:
                was, now = (processor.decode(tokens, skip_special_tokens=True) for tokens in (answers[index], found))
                changed.append(ChangedAnswer(asked[index].prompt, asked[index].names, was, now, at))
            steps.next()
    label = "bundled set" if calibration is None else calibration.resolve().name  # of a card that is published
    divergences = np.concatenate([part.divergence for part in comparisons])
    alike = np.array([TOKENS if part.differs_at is None else part.differs_at for part in comparisons])
    size = sum(file.stat().st_size for file in restored.files)
    return QuantizationReport(
        calibration=label,
        questions=len(comparisons),
        positions=len(divergences),
        top1_agreement=float(np.concatenate([part.agree for part in comparisons]).mean()),
        kl_mean=float(divergences.mean()),
        kl_p99=float(np.quantile(divergences, 0.99)),
        perplexity_dense=float(np.exp(-np.concatenate([part.expected_dense for part in comparisons]).mean())),
        perplexity=float(np.exp(-np.concatenate([part.expected for part in comparisons]).mean())),
        identical_32=float(np.mean(alike >= 32)),
        identical_64=float(np.mean(alike >= 64)),
        bytes_dense=sum(file.stat().st_size for file in stored.files),
        bytes=size,
        bits_per_weight=8 * size / parameter_count(other),
        modules=errors,
        differing=len(changed),
        answers=tuple(sorted(changed, key=lambda answer: answer.first_difference)[:KEPT]),
        dtype=computed,
    )


def check_memory(stored: StoredTensors, way: str, search: bool = False, beside: int = 0) -> mx.Dtype | None:
    """Chooses the dtype to measure in: float32 where the weights fit in it, else None, that of the files.

    What 8 bits cost is less than what rounding to 16 bits costs, so other dtypes measure the latter. The backend numpy
    computes in float32 only.

    `search` counts a second copy of the language model, `beside` the bytes of other arrays. Raises `OutOfMemoryError`
    if they do not fit; `way` ends its message.
    """
    free, needed = fit.free_memory(), 0
    language = {name: info for name, info in stored.infos.items() if name.startswith(LANGUAGE)}
    dtypes = (mx.float32,) if backends.choose() == "numpy" else (mx.float32, None)
    for dtype in dtypes:
        needed = fit.weight_bytes(stored.infos, dtype) + (fit.weight_bytes(language, dtype) if search else beside)
        if free is None or needed <= free:
            return dtype
    what = "finding bits by measurement" if search else "measuring what quantising costs"
    form = " in float32, as NumPy computes" if len(dtypes) == 1 else ""
    found = f"{(free or 0) / 1e9:.3g} GB of memory are free"
    raise OutOfMemoryError(f"{what} takes {needed / 1e9:.3g} GB for the whole model{form}, and {found}; {way}")


def load_to_measure(folder: Path, dtype: mx.Dtype | None) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """As `load`, in a dtype that `check_memory` has chosen. On the backend numpy quantised weights are made dense, with
    the same values, if memory allows."""
    if backends.choose() == "mlx":
        return load(folder, dtype=dtype)
    model, processor = load(folder)
    if number_type(model) != mx.float32:
        del model
        model, processor = load(folder, dtype=mx.float32)
    return model, processor


def encoded(processor: Lfm2VlProcessor, question: Question) -> Inputs:
    """The tokens and pixels of a question; a text model is asked without the pictures."""
    pictures = list(question.pictures) if processor.placeholder_ids else None
    messages = conversation(question.prompt, pictures, question.system)
    return dict(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True))


class Steps:
    """Tells `progress` how many of `items` are done, and how much of the one that is being done: a streamer of
    `generate`, which is told of the prompt and of each token, and an item has at most `parts` of both."""

    def __init__(self, stage: str, items: int, parts: int, progress: Progress | None):
        self._stage, self._total, self._parts, self._progress = stage, items * parts, parts, progress
        self._done = self._within = 0

    def put(self, value: object) -> None:
        self._within = min(self._within + 1, self._parts - 1)
        self._tell()

    def end(self) -> None:
        """An answer's end is not its item's."""

    def next(self) -> None:
        """An item is done."""
        self._done, self._within = min(self._done + self._parts, self._total), 0
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._stage, min(self._done + self._within, self._total), self._total)


def greedy(model: Lfm2VlForConditionalGeneration, inputs: Inputs, streamer: Steps | None = None) -> np.ndarray:
    """The likeliest tokens after a prompt, at most `TOKENS`, with the end token if it comes."""
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.0, streamer=streamer)
    return np.array(out)[0, np.array(inputs["input_ids"]).shape[1] :]


def log_probabilities(
    model: Lfm2VlForConditionalGeneration,
    inputs: Inputs,
    answer: np.ndarray,
    images: mx.array | None = None,
    least: int = 0,
) -> np.ndarray:
    """(tokens, vocabulary) float32: what the model expected at each token of the answer, or at `least` of them and of
    the question's last ones. `images`: the image tokens, where they are known."""
    images = image_features(model, inputs) if images is None else images
    hidden = model.model.language_model(embedded(model, np.array(inputs["input_ids"]), images, answer))
    logits = model.logits(hidden[:, -max(least, len(answer)) :])[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def image_features(model: Lfm2VlForConditionalGeneration, inputs: Inputs) -> mx.array | None:
    """(image tokens, hidden) of the pictures in `inputs`, None without one."""
    pixels, shapes = model.model.views_of(dict(inputs), inputs["input_ids"])
    return None if pixels is None else mx.concatenate(model.get_image_features(pixels, shapes).pooler_output)


def embedded(
    model: Lfm2VlForConditionalGeneration, ids: np.ndarray, images: mx.array | None, answer: np.ndarray
) -> mx.array:
    """(1, length, hidden) of a question's `ids` (1, n) and all tokens of its answer but the last. An image token that
    the model wrote is no place of a picture."""
    parts = [model.model.embed(ids, images)]
    if len(answer) > 1:
        parts.append(model.model.embed(answer[None, :-1]))
    return mx.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Comparison:
    """One question: (positions,) arrays; for how many tokens the greedy answers agree, None if they are the same."""

    agree: np.ndarray
    divergence: np.ndarray
    expected: np.ndarray
    expected_dense: np.ndarray
    differs_at: int | None


def compare(before: np.ndarray, after: np.ndarray, answer: np.ndarray, other: np.ndarray) -> Comparison:
    """Log-probabilities (positions, vocabulary) of the dense and the quantised model on the dense model's `answer`, and
    the quantised model's own. Divergence is KL(dense || quantised)."""
    rows = np.arange(len(answer))
    both = min(len(answer), len(other))
    parted = np.flatnonzero(answer[:both] != other[:both])
    ends = None if len(answer) == len(other) else both
    return Comparison(
        agree=before.argmax(axis=-1) == after.argmax(axis=-1),
        divergence=divergence(before, after),
        expected=after[rows, answer].astype(np.float64),
        expected_dense=before[rows, answer].astype(np.float64),
        differs_at=int(parted[0]) if len(parted) else ends,
    )


def divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """KL(before || after) in nats of log-probabilities (positions, vocabulary), a number a position."""
    found = (np.exp(before) * (before - after)).sum(axis=-1, dtype=np.float64)
    return np.maximum(found, 0.0)  # rounding can leave it a hair below


def module_errors(dense: Path, quantised: Path) -> Iterator[ModuleError]:
    """The relative change of every module that is quantised in the second folder, one at a time: the Frobenius norm of
    the difference over that of the dense weight, in float32. Raises `WeightsError`."""
    model: nn.Module
    model, after = open_model(quantised)
    before = open_model(dense)[1]
    specs = after.widths
    arrays, originals = after.read(), before.read()
    for path in widths(model):
        if path not in specs:
            continue
        new = dense_weight(after, arrays, path)
        was = dense_weight(before, originals, path)
        if was is None or new is None or was.shape != new.shape:
            raise WeightsError(f"{quantised}: {from_module(path, 'mlx')} is another than in {dense}")
        was = was.astype(mx.float32)
        with reading(f"{dense} or {quantised}", "start again"):
            error = mx.linalg.norm(new.astype(mx.float32) - was) / mx.maximum(mx.linalg.norm(was), 1e-30)
            mx.eval(error)
        yield ModuleError(from_module(path, "mlx"), specs[path].bits, specs[path].mode, float(np.array(error)))
        del new, was
