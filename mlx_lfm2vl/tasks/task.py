"""A task: requests for pictures, and the result of their answers.

    task = DetectTask(recipe, "red circle")
    requests = task.requests("a.png")
    result = task.parse(requests, [answers of generate_batch, of an engine or of a server])

Nothing here runs a model, so that whatever does can be used.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NoReturn, TypedDict, TypeVar, Unpack

from PIL import Image

from ..config import ImageProcessorConfig
from ..constraints.response_format import ResponseFormat
from ..errors import AnswerError, AnswerWarning, OptionError, PromptError, counted
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest, checked_pictures
from ..generation.response import Completion
from ..processing.conversation import numbered
from ..processing.fetch import DEFAULT_POLICY, SourcePolicy
from ..processing.image_processor import Lfm2VlImageProcessor
from ..processing.load_image import load_image, pages_of
from ..processing.open_file import LabelledBytes
from .recipes import Recipe
from .results import Size

Result = TypeVar("Result")
CUT_OFF = "the answer was cut off by max_tokens; raise it"
_SEEN = ("color_management", "exif", "min_image_tokens", "max_image_tokens", "do_image_splitting")


class RequestArguments(TypedDict, total=False):
    """Options of a task's requests."""

    options: GenerationOptions | None
    image_overrides: Mapping[str, Any] | None
    source_policy: SourcePolicy
    image_config: ImageProcessorConfig | None


@dataclass(frozen=True)
class Task(ABC, Generic[Result]):
    """Something to find out about pictures, asked by a recipe. `max_tokens` is the longest answer where the caller does
    not say it; `partial` says whether the beginning of an answer that was cut off is a result."""

    max_tokens: ClassVar[int]
    partial: ClassVar[bool] = True

    recipe: Recipe

    @abstractmethod
    def questions(self, pictures: Iterable[Image.Image]) -> Iterable[GenerationRequest]:
        """The requests for upright pictures, with no other option than the form of the answer. Where each picture is
        asked about by itself, it is read as its request is taken."""

    @abstractmethod
    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> Result:
        """The result of the texts of the answers. `sizes`: width and height of the first picture of each request, in
        pixels. Raises `AnswerError`."""

    def parse(self, requests: Sequence[GenerationRequest], answers: Sequence[str | Completion]) -> Result:
        """The result. An `AnswerWarning` tells of an answer that was cut off by its length.

        Args:
            requests: what `requests` returned.
            answers: one for each, as text or as a `Completion`.

        Raises:
            AnswerError: an answer cannot be read. Its message names the place, and max_tokens where that cut it off.
            Lfm2VlError: the error of a `Completion`.
        """
        return self.parse_by_sizes([size(request) for request in requests], answers)

    def parse_by_sizes(self, sizes: Sequence[Size], answers: Sequence[str | Completion]) -> Result:
        """`parse`, where the requests are no longer kept. `sizes`: what `size` says of each."""
        if len(sizes) != len(answers):
            raise OptionError(f"{counted(len(answers), 'answer')} for {counted(len(sizes), 'request')}; give one each")
        for answer in answers:
            if isinstance(answer, Completion) and answer.error is not None:
                raise answer.error
            if isinstance(answer, Completion) and answer.finish_reason in ("cancelled", "deadline"):
                raise AnswerError(f"the answer was stopped ({answer.finish_reason}) before it was whole")
        cut = any(isinstance(answer, Completion) and answer.finish_reason == "length" for answer in answers)
        if cut and not self.partial:
            raise AnswerError(CUT_OFF)
        try:
            made = self.result(sizes, [each.text if isinstance(each, Completion) else each for each in answers])
        except AnswerError as error:
            if cut:
                raise AnswerError(f"{CUT_OFF} ({error})") from None
            raise
        if cut:
            warnings.warn(CUT_OFF, AnswerWarning, stacklevel=3)
        return made

    def requests(self, images: Any, **arguments: Unpack[RequestArguments]) -> list[GenerationRequest]:
        """Asks about pictures: one request or several, for an engine or a server. Arguments and errors as for
        `iter_requests`, which takes less memory where many pictures are asked about one by one."""
        return list(self.iter_requests(images, **arguments))

    def iter_requests(
        self,
        images: Any,
        *,
        options: GenerationOptions | None = None,
        image_overrides: Mapping[str, Any] | None = None,
        source_policy: SourcePolicy = DEFAULT_POLICY,
        image_config: ImageProcessorConfig | None = None,
    ) -> Iterator[GenerationRequest]:
        """Asks about pictures, for `generate_batch`: each picture is read as its request is taken.

        Args:
            images: a picture or a list of them, as `generate` takes them. They are upright in the requests, where
                `parse` finds their sizes.
            options: how to generate. None is what the checkpoint recommends, with a length that suits the task.
            image_overrides: as for `Lfm2VlProcessor`.
            source_policy: where pictures may come from.
            image_config: the picture policy of the processor, by which pictures are read and PDF pages drawn. None is
                that of LFM2-VL.

        Raises:
            ImageError, PromptError, OptionError
        """
        overrides = dict(image_overrides or {})
        config = _configured(image_config, overrides)
        given = pages_of(checked_pictures(images), source_policy)
        if not given:
            raise PromptError("there is no picture; give one or several")
        if options is not None and not isinstance(options, GenerationOptions):
            raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
        chosen = options or GenerationOptions(max_tokens=self.max_tokens)
        if chosen.response_format is not None:
            raise OptionError("options have a response_format; a task holds its answers to its own")
        pictures = (_read(picture, source_policy, config, image_config is not None) for picture in given)
        return (
            replace(
                question,
                options=replace(chosen, response_format=question.options.response_format),
                image_overrides=overrides,
            )
            for question in self.questions(pictures)
        )

    def _unknown(self, what: str) -> NoReturn:
        raise OptionError(
            f"the recipe {self.recipe.name} has no {what}: the model is not known to do it; recipe= takes that of "
            "another model"
        )


def _read(picture: Any, policy: SourcePolicy, config: ImageProcessorConfig, known: bool) -> Any:
    """A picture that has been read, for a request. Bytes in memory stay what they are, with the picture's size: decoded
    they may be a thousand times as large, and the request may wait for long. Only where the processor's policy is
    `known` they will be the same picture again. Raises `ImageError`."""
    made = load_image(picture, policy, config)
    return replace(picture, size=made.size) if known and isinstance(picture, LabelledBytes) else made


def _configured(config: ImageProcessorConfig | None, overrides: Mapping[str, Any]) -> ImageProcessorConfig:
    """The policy with what is overridden; of an unknown one, with what cannot contradict it. Raises `OptionError`."""
    names = _SEEN if config is None else ImageProcessorConfig.__dataclass_fields__
    chosen = {name: overrides[name] for name in names if name in overrides}
    return Lfm2VlImageProcessor(config, **chosen).config


def size(request: GenerationRequest) -> Size:
    """Width and height of the first picture of a request; (0, 0) where its pictures stand in its messages."""
    return request.images[0].size if request.images else (0, 0)


def together(
    pictures: Sequence[Image.Image], text: str, system: str | None = None, form: ResponseFormat | None = None
) -> GenerationRequest:
    """One question about all pictures; several are called Media-1, Media-2 and so on, as the models learnt it."""
    content = numbered(pictures)[1 if len(pictures) == 1 else 0 :]
    content += [{"type": "text", "text": text}] if text else []
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    options = GenerationOptions(response_format=form)
    return GenerationRequest([*messages, {"role": "user", "content": content}], options=options)
