"""The task of `batch --task`: what its rows ask, and the requests of a row."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import (
    Completion,
    DescribeTask,
    DetectTask,
    ExtractTask,
    GenerationRequest,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    OptionError,
    PointTask,
    PromptError,
    ReadTask,
    recipe_of,
)
from ..generation.response import NOTHING
from ..tasks.export import plain
from ..tasks.task import Task
from .chosen import picture_overrides

TASKS: dict[str, type[Any]] = {
    **{"detect": DetectTask, "point": PointTask, "read": ReadTask},
    **{"extract": ExtractTask, "describe": DescribeTask},
}
NAMED = ("detect", "point")  # whose rows name what to find, as their prompt


def check_task(args: argparse.Namespace, has_rows: bool) -> None:
    """Raises `OptionError` for options of a task that do not belong together. `has_rows`: the input is JSONL."""
    if args.task is None:
        if args.recipe is not None:
            raise OptionError("--recipe is for --task")
        return
    prompted = args.prompt is not None or args.prompt_file is not None
    formed = args.json_schema is not None
    others = [args.regex, args.choice, args.grammar, args.json_object or None]
    if args.system is not None:
        raise OptionError("--task has its own system prompt; leave --system out")
    if args.task in NAMED and not prompted and not has_rows:
        raise OptionError(f"--task {args.task} needs --prompt, the name of what to find")
    if args.task not in NAMED and prompted:
        raise OptionError(f"--task {args.task} asks by itself; leave --prompt out")
    if args.task == "extract" and not formed and not has_rows:
        raise OptionError("--task extract needs --json-schema")
    if any(each is not None for each in others) or (formed and args.task != "extract"):
        raise OptionError(f"--task {args.task} holds its answers to its own form; leave the other out")


def check_row(task: str, data: Any, prompt: str | None) -> None:
    """Raises `PromptError` for a row that the task cannot ask about; `prompt` is what its row or --prompt says."""
    if task in NAMED and not prompt:
        raise PromptError(f'{task} needs the name of what to find as "prompt"')
    if task not in NAMED and "prompt" in data:
        raise PromptError(f'{task} asks by itself; leave "prompt" out')
    if "system" in data:
        raise PromptError(f'{task} has its own system prompt; leave "system" out')


@dataclass
class RowTasks:
    """Makes tasks of rows."""

    args: argparse.Namespace
    model: Lfm2VlForConditionalGeneration
    processor: Lfm2VlProcessor

    def __post_init__(self) -> None:
        """Raises `OptionError` where the model is not known to do the task."""
        self._recipe = recipe_of(self.model, self.args.recipe)
        if self.args.task not in ("extract", *NAMED):
            TASKS[self.args.task](self._recipe)
        elif self.args.task in NAMED:
            TASKS[self.args.task](self._recipe, "it")

    def __call__(self, question: GenerationRequest) -> tuple[Task[Any], list[GenerationRequest]]:
        """The task of a row and its requests, pictures read. Raises `Lfm2VlError` for what is wrong with the row."""
        options = question.options
        if question.videos:
            raise OptionError(f"{self.args.task} is for pictures; ask about a video without --task")
        task: Task[Any]
        if self.args.task == "extract":
            if options.response_format is None or options.response_format.kind != "json_schema":
                raise OptionError('extract needs a "json_schema"')
            task = ExtractTask(self._recipe, options.response_format.value)
            options = replace(options, response_format=None)
        elif self.args.task in NAMED:
            task = TASKS[self.args.task](self._recipe, question.prompt)
        else:
            task = TASKS[self.args.task](self._recipe)
        pictures = self.processor.image_processor
        return task, task.requests(
            question.images,
            options=options,
            image_overrides=picture_overrides(self.args),
            source_policy=pictures.source_policy,
            image_config=pictures.config,
        )


def finish(task: Task[Any], requests: Sequence[GenerationRequest], answers: Sequence[Completion]) -> Any:
    """The result, as JSON has it. Raises `Lfm2VlError`."""
    return plain(task.parse(requests, answers))


def joined(answers: Sequence[Completion]) -> Completion:
    """Several answers as one: texts on lines of their own, counts added."""
    if len(answers) == 1:
        return answers[0]
    counts = [NOTHING, *(answer.statistics for answer in answers if answer.statistics is not None)]
    names = ("prompt_tokens", "image_tokens", "generated_tokens")
    total = replace(counts[-1], **{name: sum(getattr(each, name) for each in counts) for name in names})
    failed = next((answer for answer in answers if answer.error is not None), None)
    last = failed or next((answer for answer in answers if answer.finish_reason != "stop"), answers[-1])
    return replace(last, text="\n".join(answer.text for answer in answers), tokens=(), statistics=total)
