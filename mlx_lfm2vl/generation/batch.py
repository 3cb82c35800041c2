"""Many questions at once: pictures of all sizes through the tower together, one padded prefill, one decode.

A row's answer is the one it would have alone: padding is masked in attention and convolutions and shifts no position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import Lfm2VlError, OptionError
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .decode import Prompt
from .features import FeatureCache
from .options import GenerationOptions
from .run import GenerationPiece, Statistics, positions_left, resolved, run
from .stream import conversation
from .watch import Stop

BATCH_SIZE = 8


@dataclass(frozen=True)
class Question:
    """One row: what `stream_generate` takes. `image_overrides` as for `Lfm2VlProcessor`."""

    prompt: str | Sequence[Mapping[str, Any]]
    images: Any = None
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    image_overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of a row: text and tokens (`tool_text` as in `GenerationPiece`), or the error of its pictures or
    prompt."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: str = "error"
    statistics: Statistics | None = None
    error: Lfm2VlError | None = None
    tool_text: str = ""


@dataclass(frozen=True)
class Prepared:
    """A question as arrays: `ids` (n,), and its views or None."""

    ids: np.ndarray
    pixel_values: np.ndarray | None
    spatial_shapes: np.ndarray | None
    options: GenerationOptions


def prepare(model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, question: Question) -> Prepared:
    """Reads, resizes and tokenises one question. Raises the library's typed errors."""
    inputs = processor.apply_chat_template(
        conversation(question.prompt, question.images, question.system),
        tools=question.tools,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        **question.image_overrides,
    )
    ids = inputs["input_ids"][0]
    positions_left(model, len(ids))
    return Prepared(ids, inputs.get("pixel_values"), inputs.get("spatial_shapes"), resolved(model, question.options))


def run_prepared(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    rows: Sequence[Prepared],
    *,
    started: float,
    features: FeatureCache | None = None,
    stop: Stop | None = None,
    row_stop: Callable[[int], bool] | None = None,
) -> Iterator[tuple[int, GenerationPiece]]:
    """Pieces of all rows, as `run` yields them."""
    length = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), length), processor.tokenizer.pad_token_id or 0, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        ids[index, length - len(row.ids) :] = row.ids
        mask[index, length - len(row.ids) :] = 1
    pixels, shapes = _views(rows)
    return run(
        model,
        processor.tokenizer,
        Prompt(ids, mask, pixels, shapes),
        [row.options for row in rows],
        started=started,
        features=features,
        stop=stop,
        row_stop=row_stop,
    )


def _views(rows: Sequence[Prepared]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The views of all rows in order, padded to one number of patches."""
    with_pictures = [row for row in rows if row.pixel_values is not None and row.spatial_shapes is not None]
    if not with_pictures:
        return None, None
    patches = max(int(row.spatial_shapes.prod(axis=1).max()) for row in with_pictures)  # type: ignore[union-attr]
    shapes = np.concatenate([row.spatial_shapes for row in with_pictures])  # type: ignore[misc]
    pixels = np.zeros((len(shapes), patches, with_pictures[0].pixel_values.shape[2]), np.float32)  # type: ignore[union-attr]
    start = 0
    for row in with_pictures:
        own = row.pixel_values[:, :patches]  # type: ignore[index]
        pixels[start : start + len(own), : own.shape[1]] = own
        start += len(own)
    return pixels, shapes


def generate_batch(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    questions: Iterable[Question],
    *,
    batch_size: int = BATCH_SIZE,
    features: FeatureCache | None = None,
    stop: Stop | None = None,
) -> Iterator[Answer]:
    """Answers in the order of the questions, `batch_size` of them at a time; questions are read as they are needed.

    A question whose pictures or prompt are wrong becomes an `Answer` with the error and hurts no other. `stop` ends the
    batch in hand with "cancelled" and reads no further. Raises `OptionError`.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
    group: list[Question] = []
    for question in questions:
        group.append(question)
        if len(group) == batch_size:
            yield from _answer(model, processor, group, features, stop)
            group = []
            if stop is not None and stop():
                return
    if group:
        yield from _answer(model, processor, group, features, stop)


def _answer(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    group: Sequence[Question],
    features: FeatureCache | None,
    stop: Stop | None,
) -> list[Answer]:
    started = time.perf_counter()
    mx.reset_peak_memory()
    answers: dict[int, Answer] = {}
    rows: dict[int, Prepared] = {}
    for index, question in enumerate(group):
        try:
            rows[index] = prepare(model, processor, question)
        except Lfm2VlError as error:
            answers[index] = Answer(error=error)
    pieces: dict[int, list[GenerationPiece]] = {index: [] for index in rows}
    if rows:
        present = list(rows)
        prepared = list(rows.values())
        for at, piece in run_prepared(model, processor, prepared, started=started, features=features, stop=stop):
            pieces[present[at]].append(piece)
    for index, made in pieces.items():
        answers[index] = Answer(
            "".join(piece.text for piece in made),
            tuple(token for piece in made for token in piece.tokens),
            made[-1].finish_reason or "error",
            made[-1].statistics,
            tool_text="".join(piece.tool_text for piece in made),
        )
    return [answers[index] for index in range(len(group))]
