"""The library's tasks over HTTP: `/v1/detect`, `/v1/point`, `/v1/read`, `/v1/extract`, `/v1/describe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import ImageProcessorConfig, ModelConfig
from ..errors import AnswerError
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest
from ..generation.response import Completion
from ..processing.fetch import SourcePolicy
from ..tasks.boxes import DetectTask, PointTask
from ..tasks.description import DescribeTask
from ..tasks.export import plain
from ..tasks.extraction import ExtractTask
from ..tasks.reading import ReadTask
from ..tasks.recipes import Recipe, choose
from ..tasks.task import Task
from .api_error import ApiError
from .api_request import Rules, deadline, max_tokens, sampling
from .fields import Fields
from .openai_chat_answer import usage
from .pictures import Pictures

MAKE: dict[str, Callable[[Recipe, Any], Task[Any]]] = {
    "detect": DetectTask,
    "point": PointTask,
    "read": lambda recipe, _: ReadTask(recipe),
    "extract": ExtractTask,
    "describe": lambda recipe, _: DescribeTask(recipe),
}


@dataclass(frozen=True)
class TaskRequest:
    """A task as a body asks for it. `about`: what is to be found, or a schema. `longest`: None is what suits the task;
    `given`: what is said of sampling."""

    kind: str
    model: str
    images: list[Any]
    about: Any
    given: dict[str, Any]
    longest: int | None
    image_overrides: dict[str, Any]
    deadline: float | None

    def made(
        self, config: ModelConfig, source: str, policy: SourcePolicy, image_config: ImageProcessorConfig
    ) -> tuple[Task[Any], list[GenerationRequest]]:
        """The task by the recipe of a model, and its requests; reads the pictures and checks the schema, which takes
        long. Raises `ImageError`, `OptionError` and `ConstraintError`."""
        task = MAKE[self.kind](choose(config, source), self.about)
        chosen = GenerationOptions(max_tokens=self.longest or task.max_tokens, **self.given)
        return task, task.requests(
            self.images,
            options=chosen,
            image_overrides=self.image_overrides,
            source_policy=policy,
            image_config=image_config,
        )


def parse(kind: str, fields: Fields, rules: Rules) -> TaskRequest:
    """The request of the body of a task. Raises `ApiError`."""
    pictures = Pictures(rules.limits, rules.allow_urls)
    model = fields.text("model", required=True)
    about: Any = None
    if kind in ("detect", "point"):
        about = fields.text("what", required=True, longest=1000)
    elif kind == "extract":
        about = fields.schema("schema", rules.limits.schema_characters, required=True)
    urls = fields.texts("images", rules.limits.pictures, rules.limits.body_bytes)
    if not urls:
        fields.fail("images", "is empty, expected pictures as data URIs")
    made = TaskRequest(
        kind,
        model,
        [pictures.from_url(fields, f"images[{n}]", url)["image"] for n, url in enumerate(urls)],
        about,
        sampling(fields),
        max_tokens(fields, "max_tokens"),
        pictures.overrides(fields),
        deadline(fields),
    )
    fields.close()
    return made


def response(
    asked: TaskRequest, task: Task[Any], requests: Sequence[GenerationRequest], answers: Sequence[Completion]
) -> dict[str, Any]:
    """The body of a result: for `extract` and `describe` it is the data itself, for the others a list of objects. Its
    `finish_reason` is "length" where an answer was cut off, else "stop". Raises `AnswerError`, and `ApiError` where an
    answer was cut off before there was a result."""
    cut = any(answer.finish_reason == "length" for answer in answers)
    try:
        result = task.parse(requests, answers)
    except AnswerError as error:
        if cut:
            raise ApiError(422, str(error), param="max_tokens", code="answer_cut_off") from None
        raise
    statistics = [answer.statistics for answer in answers if answer.statistics is not None]
    return {
        "object": asked.kind,
        "model": asked.model,
        "data": plain(result),
        "finish_reason": "length" if cut else "stop",
        "usage": usage(statistics, prompts=True),
    }
