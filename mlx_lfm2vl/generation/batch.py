"""Many questions at once: pictures of all sizes through the tower together, one padded prefill, one decode.

A row's answer is the one it would have alone: padding is masked in attention and convolutions and shifts no position.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import Lfm2VlError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .features import FeatureCache, check_features
from .prefix import PrefixCache, check_prefixes
from .question import Prepared, Question, check_pair, prepare
from .run import GenerationPiece, Statistics
from .stream import run_rows
from .watch import Stop, check_callable

BATCH_SIZE = 8


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


def generate_batch(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    questions: Iterable[Question],
    *,
    batch_size: int = BATCH_SIZE,
    features: FeatureCache | None = None,
    prefixes: PrefixCache | None = None,
    stop: Stop | None = None,
) -> Iterator[Answer]:
    """Answers in the order of the questions, `batch_size` of them at a time; questions are read as they are needed.

    What questions begin with alike (a system prompt, a picture) is prefilled once, within a batch and from one to the
    next; `prefixes`: where such beginnings are kept (one of its own, unless given). A question whose pictures or prompt
    are wrong becomes an `Answer` with the error and hurts no other. `stop` ends the batch in hand with "cancelled" and
    reads no further. Raises `OptionError`.
    """
    check_pair(model, processor)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
    if not isinstance(questions, Iterable) or isinstance(questions, (str, Question)):
        raise OptionError(f"questions is {type(questions).__name__}, expected several Questions")
    check_features(features)
    check_prefixes(prefixes)
    check_callable("stop", stop)
    prefixes = prefixes if prefixes is not None else PrefixCache()
    group: list[Question] = []
    for question in questions:
        group.append(question)
        if len(group) == batch_size:
            yield from _answer(model, processor, group, features, prefixes, stop)
            group = []
            if stop is not None and stop():
                return
    if group:
        yield from _answer(model, processor, group, features, prefixes, stop)


def _answer(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    group: Sequence[Question],
    features: FeatureCache | None,
    prefixes: PrefixCache,
    stop: Stop | None,
) -> list[Answer]:
    started = time.perf_counter()
    mx.reset_peak_memory()
    answers: dict[int, Answer] = {}
    present: list[int] = []
    rows: list[Prepared] = []
    for index, question in enumerate(group):
        try:
            rows.append(prepare(model, processor, question))
            present.append(index)
        except Lfm2VlError as error:
            answers[index] = Answer(error=error)
    pieces: dict[int, list[GenerationPiece]] = {index: [] for index in present}

    def failed(at: int, error: Lfm2VlError) -> None:
        answers[present[at]] = Answer(error=error)

    if rows:
        try:
            for at, piece in run_rows(
                model,
                processor,
                rows,
                started=[started] * len(rows),
                features=features,
                prefixes=prefixes,
                stop=stop,
                failed=failed,
            ):
                pieces[present[at]].append(piece)
        except Lfm2VlError as error:
            if len(group) == 1:
                return [Answer(error=error)]
            # Whatever failed for all may be the fault of one.
            return [_answer(model, processor, [each], features, prefixes, stop)[0] for each in group]
    for index, made in pieces.items():
        if index not in answers:
            answers[index] = Answer(
                "".join(piece.text for piece in made),
                tuple(token for piece in made for token in piece.tokens),
                made[-1].finish_reason or "error",
                made[-1].statistics,
                tool_text="".join(piece.tool_text for piece in made),
            )
    return [answers[index] for index in range(len(group))]
