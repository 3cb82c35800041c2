"""Tasks done by a model: `detect`, `point`, `read`, `extract`, `describe`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

from ..generation.batch import generate_batch
from ..generation.options import GenerationOptions
from ..generation.prompt_cache import PromptCache
from ..generation.request import GenerationRequest, check_pair
from ..generation.vision_cache import VisionCache
from ..generation.watch import Progress, Stop
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .boxes import DetectTask, PointTask
from .description import DescribeTask
from .extraction import ExtractTask
from .reading import ReadTask
from .recipes import Recipe, choose
from .results import Box, Point, Region, Size
from .task import Task, size

Result = TypeVar("Result")


class TaskArguments(TypedDict, total=False):
    """Options of a task that a model does."""

    options: GenerationOptions | None
    image_overrides: Mapping[str, Any] | None
    vision_cache: VisionCache | None
    prompt_cache: PromptCache | None
    stop: Stop | None
    progress: Progress | None


def recipe_of(model: Lfm2VlForConditionalGeneration, recipe: Recipe | str | None = None) -> Recipe:
    """The recipe by which a model is asked: the given one, a row's name or a `Recipe`, else the row of the table that
    matches the model's configuration and its name (`model.name_or_path`). Raises `OptionError` if there is none."""
    return choose(model.config, str(getattr(model, "name_or_path", "")), recipe)


def run(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    task: Task[Result],
    images: Any,
    **arguments: Unpack[TaskArguments],
) -> Result:
    """A task's result for pictures; arguments and errors as for `detect`."""
    check_pair(model, processor)
    others: dict[str, Any] = {**arguments}
    requests = task.iter_requests(
        images,
        options=others.pop("options", None),
        image_overrides=others.pop("image_overrides", None),
        source_policy=processor.image_processor.source_policy,
        image_config=processor.image_processor.config,
    )
    sizes: list[Size] = []

    def sized() -> Iterator[GenerationRequest]:
        for request in requests:
            sizes.append(size(request))
            yield request

    answers = list(generate_batch(model, processor, sized(), **others))
    return task.parse_by_sizes(sizes, answers)


def detect(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    images: Any,
    what: str,
    *,
    recipe: Recipe | str | None = None,
    **arguments: Unpack[TaskArguments],
) -> list[Box]:
    """The boxes of all that `what` names ("red cars"), in pixels of the upright pictures.

    Args:
        model: the model.
        processor: its processor.
        images: a picture or a list of them, as `generate` takes them; each is asked about by itself.
        what: the name of things.
        recipe: how the model is asked, a row's name or a `Recipe`; None is the row that matches the model.
        arguments: `options` (None: what the checkpoint recommends, up to 2048 tokens), `image_overrides` as for
            `Lfm2VlProcessor`; `vision_cache`, `prompt_cache`, `stop` and `progress` as for `generate_batch`.

    Returns:
        The boxes of all pictures, those of the first one first; `Box.image` counts the pictures from 0.

    Raises:
        AnswerError: an answer cannot be read. Of boxes that are left out beside others, an `AnswerWarning` tells.
        OptionError: the recipe has no boxes, or none is known for the model.
        Lfm2VlError: another of the library's typed errors.
    """
    return run(model, processor, DetectTask(recipe_of(model, recipe), what), images, **arguments)


def point(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    images: Any,
    what: str,
    *,
    recipe: Recipe | str | None = None,
    **arguments: Unpack[TaskArguments],
) -> list[Point]:
    """The places of all that `what` names: the middles of `detect`'s boxes, with the same arguments and errors."""
    return run(model, processor, PointTask(recipe_of(model, recipe), what), images, **arguments)


def read(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    images: Any,
    *,
    recipe: Recipe | str | None = None,
    **arguments: Unpack[TaskArguments],
) -> list[Region]:
    """The text of pictures in reading order, with the boxes of its regions where the recipe has a layout, else one
    region a picture. Arguments and errors as for `detect`; up to 4096 tokens."""
    return run(model, processor, ReadTask(recipe_of(model, recipe)), images, **arguments)


def extract(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    images: Any,
    schema: Any,
    *,
    recipe: Recipe | str | None = None,
    **arguments: Unpack[TaskArguments],
) -> dict[str, Any]:
    """One object of a JSON schema, from all pictures together. `schema` is that of an object, with "properties", whose
    descriptions tell the model what they hold: a mapping, JSON text, the path of a file of it, or a class of pydantic's
    `BaseModel`. Other arguments and errors as for `detect`; `ConstraintError` for a schema that cannot be held."""
    return run(model, processor, ExtractTask(recipe_of(model, recipe), schema), images, **arguments)


def describe(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    images: Any,
    *,
    recipe: Recipe | str | None = None,
    **arguments: Unpack[TaskArguments],
) -> str:
    """A description of all pictures together. Arguments and errors as for `detect`; up to 512 tokens."""
    return run(model, processor, DescribeTask(recipe_of(model, recipe)), images, **arguments)
