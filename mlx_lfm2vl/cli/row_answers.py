"""The answers to rows of `batch`, by the model that its command line names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from .. import (
    Completion,
    GenerationRequest,
    Lfm2VlError,
    Lfm2VlProcessor,
    generate_batch,
)
from ..generation.options import MAX_TOKENS
from ..processing.load_image import stated_size
from .chosen import chosen_draft, chosen_vision_cache, load_model
from .row_tasks import RowTasks
from .rows import Row, Rows, Waiting


class RowAnswers:
    """Loads the model, then answers rows."""

    def __init__(self, args: argparse.Namespace, rows: Rows):
        self._pictures = chosen_vision_cache(args)
        rows.options = replace(rows.options, draft=chosen_draft(args))
        self._rows, self._batch_size = rows, args.batch_size
        self._model, self._processor = load_model(args)
        self._tasks = RowTasks(args, self._model, self._processor) if args.task else None

    def costs(self, numbers: Collection[int]) -> dict[int, int]:
        """About the tokens of these rows, by their numbers: of the prompt, the pictures and the longest answer."""
        return {
            row.number: 1 if row.question is None else _tokens(row.question, self._processor)
            for row in self._rows.only(frozenset(numbers))
        }

    def __call__(self, numbers: Collection[int], stop: Callable[[], bool]) -> Iterator[tuple[Row, Completion | None]]:
        """Each of these rows and its answer, None where it asks nothing, in their order; none after a `stop`."""
        waiting = Waiting(self._rows.only(frozenset(numbers)), self._tasks)
        questions, size = waiting.questions(), self._batch_size
        model, processor, kept = self._model, self._processor, self._pictures
        for made in generate_batch(model, processor, questions, batch_size=size, stop=stop, vision_cache=kept):
            if made.finish_reason == "cancelled":
                return
            yield from waiting.answered(made)
        for row in waiting.rest():
            yield row, None


def _tokens(question: GenerationRequest, processor: Lfm2VlProcessor) -> int:
    """A picture that is fetched, a document and one that cannot be read count as one view."""
    images = processor.image_processor
    total = (question.options.max_tokens or MAX_TOKENS) + len(processor.tokenizer.encode(str(question.prompt)))
    for picture in question.images or ():
        size = stated_size(picture, images.source_policy)
        try:
            total += images.config.max_image_tokens if size is None else images.plan(*size).tokens
        except Lfm2VlError:  # of a shape that is refused when it is read
            total += 1
    return total
