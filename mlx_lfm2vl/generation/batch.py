"""Many questions at once: pictures of all sizes through the tower together, one padded prefill, one decode.

A row's answer is the one it would have alone: padding is masked in attention and convolutions and shifts no position.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import mlx.core as mx

from ..errors import Lfm2VlError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .features import FeatureCache, check_features
from .prefix import PrefixCache, check_prefixes
from .question import Prepared, Question, check_pair, prepare
from .response import Completion, GenerationResponse
from .scheduler import Scheduler, drive
from .start import RowsStart
from .watch import Stop, check_callable

BATCH_SIZE = 8


def generate_batch(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    questions: Iterable[Question],
    *,
    batch_size: int = BATCH_SIZE,
    features: FeatureCache | None = None,
    prefixes: PrefixCache | None = None,
    stop: Stop | None = None,
) -> Iterator[Completion]:
    """Answers in the order of the questions, `batch_size` of them at a time; questions are read as they are needed.

    What questions begin with alike (a system prompt, a picture) is prefilled once, within a batch and from one to the
    next; `prefixes`: where such beginnings are kept (one of its own, unless given). A question whose pictures or prompt
    are wrong becomes a `Completion` with the error and hurts no other. `stop` ends the batch in hand with "cancelled"
    and reads no further. Raises `OptionError`.
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
) -> list[Completion]:
    started = time.perf_counter()
    mx.reset_peak_memory()
    answers: dict[int, Completion] = {}
    present: list[int] = []
    prepared: list[Prepared] = []
    for index, question in enumerate(group):
        try:
            prepared.append(prepare(model, processor, question))
            present.append(index)
        except Lfm2VlError as error:
            answers[index] = Completion(error=error)
    if prepared:
        scheduler = Scheduler(model, processor.tokenizer)
        options = [each.options for each in prepared]
        start = RowsStart(model, prepared, features, prefixes)
        rows = scheduler.add(start, options, started=[started] * len(options), stop=stop)
        responses: dict[int, list[GenerationResponse]] = {index: [] for index in present}
        for at, item in drive(scheduler, rows, stop):
            if isinstance(item, GenerationResponse):
                responses[present[at]].append(item)
            elif not isinstance(item, Lfm2VlError):
                raise item
            elif responses[present[at]] or len(group) == 1:
                answers[present[at]] = Completion(error=item)
            else:  # what failed for several may be the fault of one
                answers[present[at]] = _answer(model, processor, [group[present[at]]], features, prefixes, stop)[0]
        for index, made in responses.items():
            if index not in answers:
                answers[index] = Completion.of(made)
    return [answers[index] for index in range(len(group))]
