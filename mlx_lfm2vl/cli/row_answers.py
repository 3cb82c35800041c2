"""The answers to rows of `batch` and `evaluate`, by the model that their command line names."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .. import (
    Completion,
    DescribeTask,
    DetectTask,
    ExtractTask,
    GenerationOptions,
    GenerationRequest,
    Lfm2VlError,
    Lfm2VlProcessor,
    OptionError,
    PointTask,
    ReadTask,
    generate_batch,
    recipe_of,
)
from ..generation.options import MAX_TOKENS
from ..generation.response import NOTHING
from ..processing.load_image import stated_size
from ..tasks.export import plain
from ..tasks.task import Task
from .arguments import chosen_draft, chosen_vision_cache, load_model, picture_overrides
from .rows import NAMED, Row, Rows

TASKS: dict[str, type[Any]] = {
    **{"detect": DetectTask, "point": PointTask, "read": ReadTask},
    **{"extract": ExtractTask, "describe": DescribeTask},
}
Asked = tuple[Task[Any] | None, list[GenerationRequest]]  # a row's task, and what the model is asked for it


class RowAnswers:
    """Loads the model, then answers rows. Raises `OptionError` where it is not known to do the task of --task."""

    def __init__(self, args: argparse.Namespace, rows: Rows):
        self._pictures = chosen_vision_cache(args)
        rows.options = replace(rows.options, draft=chosen_draft(args))
        self._args, self._rows = args, rows
        self._model, self._processor = load_model(args)
        if args.task:
            self._recipe = recipe_of(self._model, args.recipe)
            if args.task != "extract":
                self._task("it")

    def costs(self, numbers: Collection[int]) -> dict[int, int]:
        """About the tokens of these rows, by their numbers: of the prompt, the pictures and the longest answer."""
        return {
            row.number: 1 if row.question is None else _tokens(row.question, self._processor)
            for row in self._rows.only(frozenset(numbers))
        }

    def __call__(self, numbers: Collection[int], stop: Callable[[], bool]) -> Iterator[tuple[Row, Completion | None]]:
        """Each of these rows and its answer, None where it asks nothing, in their order; none after a `stop`."""
        how: dict[str, Any] = {"batch_size": self._args.batch_size, "stop": stop, "vision_cache": self._pictures}
        ask = partial(generate_batch, self._model, self._processor, **how)
        return answered(self._rows.only(frozenset(numbers)), ask, self._asked)

    def _asked(self, question: GenerationRequest) -> Asked:
        """Raises `Lfm2VlError` for what is wrong with the row."""
        options = question.options
        if not self._args.task:
            return None, [question]
        if question.videos:
            raise OptionError(f"{self._args.task} is for pictures; ask about a video without --task")
        if self._args.task != "extract":
            return asked_of(self._task(question.prompt), question, options, self._processor, self._args)
        if options.response_format is None or options.response_format.kind != "json_schema":
            raise OptionError('extract needs a "json_schema"')
        task = ExtractTask(self._recipe, options.response_format.value)
        return asked_of(task, question, replace(options, response_format=None), self._processor, self._args)

    def _task(self, what: Any) -> Task[Any]:
        task: Task[Any] = TASKS[self._args.task](self._recipe, *([what] if self._args.task in NAMED else []))
        return task


def asked_of(
    task: Task[Any],
    question: GenerationRequest,
    options: GenerationOptions,
    processor: Lfm2VlProcessor,
    args: argparse.Namespace,
) -> Asked:
    """A task and its requests about a question's pictures, which are read. Raises `Lfm2VlError`."""
    return task, task.requests(
        question.images,
        options=options,
        image_overrides=picture_overrides(args),
        source_policy=processor.image_processor.source_policy,
        image_config=processor.image_processor.config,
    )


def answered(
    rows: Iterable[Row],
    ask: Callable[[Iterator[GenerationRequest]], Iterable[Completion]],
    asked: Callable[[GenerationRequest], Asked],
) -> Iterator[tuple[Row, Completion | None]]:
    """Each row and its answer, None where it asks nothing, in their order; none after an answer that was cancelled.

    Args:
        rows: are read when they are needed.
        ask: answers requests.
        asked: makes the requests of a row's question. Its `Lfm2VlError` is the row's.
    """
    begun: deque[Row] = deque()

    def requests() -> Iterator[GenerationRequest]:
        for row in rows:
            if row.question is not None:
                try:
                    row.task, row.requests = asked(row.question)
                except Lfm2VlError as error:
                    row.error = str(error)
            begun.append(row)
            yield from row.requests

    for made in ask(requests()):
        if made.finish_reason == "cancelled":
            return
        while not begun[0].requests:
            yield begun.popleft(), None
        row = begun[0]
        row.answers.append(made)
        if len(row.answers) == len(row.requests):
            begun.popleft()
            if row.task is not None:
                try:
                    row.result = plain(row.task.parse(row.requests, row.answers))
                except Lfm2VlError as error:
                    row.error = str(error)
            yield row, _joined(row.answers)
    for row in begun:
        yield row, None


def _joined(answers: Sequence[Completion]) -> Completion:
    """Several answers as one: texts on lines of their own, counts added."""
    if len(answers) == 1:
        return answers[0]
    counts = [NOTHING, *(answer.statistics for answer in answers if answer.statistics is not None)]
    names = ("prompt_tokens", "image_tokens", "generated_tokens")
    total = replace(counts[-1], **{name: sum(getattr(each, name) for each in counts) for name in names})
    failed = next((answer for answer in answers if answer.error is not None), None)
    last = failed or next((answer for answer in answers if answer.finish_reason != "stop"), answers[-1])
    return replace(last, text="\n".join(answer.text for answer in answers), tokens=(), statistics=total)


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
