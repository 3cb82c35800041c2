"""`PromptEncoder`: a rendered prompt and its pictures in, ids and patches out, by the parts of one checkpoint.

This is the whole way of a single question. processor.py adds what transformers' processors do beside it: several texts,
padding, masks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..errors import ImageError, TemplateError
from .batch_feature import BatchFeature
from .control_tokens import ControlTokens
from .fetch import SourcePolicy
from .image_processor import ImageProcessor
from .prompt import Expanded, ImageMarkup, assign_pictures, expand, image_spans, picture_items, replace_videos
from .special_tokens import IMAGE_TOKENS, image_token
from .tokenizer import Tokenizer
from .video import PICTURES, Video, frames_as_pictures, held
from .video_items import as_frames
from .view_plan import ViewPlan

if TYPE_CHECKING:
    from .template import ChatTemplate


class EncodedText(NamedTuple):
    """A text with its pictures as arrays.

    Attributes:
        ids: (n,) int64.
        images: what `ImageProcessor.encode` makes of the pictures; empty without any.
        plans: the `ViewPlan` of each picture.
        spans: (start, end) of each picture in `ids`, markers included.
    """

    ids: np.ndarray
    images: BatchFeature
    plans: tuple[ViewPlan, ...]
    spans: tuple[tuple[int, int], ...]


class PromptEncoder:
    """Image processor, tokenizer and chat template of a checkpoint.

    `notes` are remarks on what the checkpoint's files said and was not obeyed. Not changed by calls, so it is safe to
    share between threads.
    """

    frames_as_pictures: ClassVar[bool] = True  # False where the model has tokens for videos

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        use_image_special_tokens: bool = True,
        notes: tuple[str, ...] = (),
    ):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.use_image_special_tokens, self.notes = use_image_special_tokens, notes
        self._chat_template = chat_template

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The compiled chat template. Raises `TemplateError` naming the file that is missing or damaged."""
        return self._compiled(self._chat_template)

    @functools.cached_property
    def control_tokens(self) -> ControlTokens:
        """Finds the tokens that steer the model in texts for the template. Raises as `template`, and
        `TokenizerError`."""
        return self.tokenizer.control_tokens(self.template.literal_text)

    @property
    def chat_template(self) -> str | None:
        """The template's text, None if the checkpoint has none."""
        try:
            return self.template.source
        except TemplateError:
            return None

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self._chat_template = source
        for made in ("template", "control_tokens"):
            self.__dict__.pop(made, None)

    def _compiled(self, source: str | None) -> ChatTemplate:
        from .template import ChatTemplate  # jinja2, which those who only process pictures do not need

        words = self.tokenizer
        if source is None and words.folder is None and words.chat_template is None:
            raise TemplateError("this processor has no chat template; pass chat_template=")
        return ChatTemplate.from_folder(
            words.folder or Path(), words.chat_template, words.special_tokens_map, wanted=source
        )

    @property
    def image_token(self) -> str:
        """The token that stands for a picture."""
        return str(self.tokenizer.image_token)

    @property
    def image_token_id(self) -> int:
        """Raises `TokenizerError` if the tokenizer does not know the image token."""
        return self.tokenizer.id_of(self.image_token, "image_token")

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The ids of the tokens in whose place pictures and videos stand. Raises `TokenizerError`."""
        return (self.image_token_id,)

    def with_videos(self, messages: Sequence[Mapping[str, Any]], policy: SourcePolicy) -> list[dict[str, Any]]:
        """The messages with their videos as the model takes them: their frames as pictures, each behind "Media-1: " and
        so on. Raises `ImageError`, `PromptError`."""
        if not any(item["type"] == "video" for item in picture_items(messages)):
            return [dict(message) for message in messages]
        return replace_videos(messages, policy, as_frames, iter(()))

    @property
    def frame_sampling(self) -> tuple[float, int, int]:
        """How the frames of a video that the model sees are sampled: frames of a second, least and most in all, as
        `Video.indices` takes them."""
        return PICTURES

    def video_tokens(self, video: Video) -> int:
        """The tokens of a video, without its times and markers. Its frames are as large as the first, the only one that
        is read. Raises `ImageError`."""
        indices = video.indices(*self.frame_sampling)
        first = next(video.read(indices[:1]), None)
        if first is None:
            raise ImageError(f"{video.label}: has no frames")
        return self._tokens_of_frames(video.times(indices), *(video.size or (first.height, first.width)))

    def _tokens_of_frames(self, moments: Sequence[float], height: int, width: int) -> int:
        return len(moments) * self.image_processor.plan(height, width).tokens

    def held(self, video: Video, image_config: Any) -> Video:
        """A video with copies of the frames that the model sees, which needs its source no longer. `image_config`: the
        picture policy. Raises `ImageError`."""
        frames = [frame.copy() for frame in frames_as_pictures(video)]
        return held(video.label, frames, video.frame_rate, video.numbers_of(video.indices(*PICTURES)))

    def markup(self, use_image_special_tokens: bool | None = None) -> ImageMarkup:
        """The tokens that stand for pictures in this checkpoint's texts."""
        markers = self.use_image_special_tokens if use_image_special_tokens is None else use_image_special_tokens
        config, named = self.tokenizer.config, self.tokenizer.special_tokens_map
        image, start, end, thumbnail = (str(image_token(name, config, named)) for name in IMAGE_TOKENS)
        return ImageMarkup(image, start, end, thumbnail, markers)

    def encode_text(
        self,
        text: str,
        pictures: Sequence[Any],
        *,
        marked: bool,
        use_image_special_tokens: bool | None = None,
        **image_overrides: Any,
    ) -> EncodedText:
        """Arrays of one text with one image token a picture.

        Args:
            text: a rendered chat template, which writes all special tokens itself.
            pictures: whatever `load_image` reads.
            marked: whether control tokens in the text may be marked as plain text (control_tokens.py).
            use_image_special_tokens: whether markers stand around pictures; None means as the checkpoint says.
            image_overrides: fields of `ImageProcessorConfig`.

        Raises:
            PromptError, ImageError, OptionError, TokenizerError: naming what is wrong.
        """
        markup = self.markup(use_image_special_tokens)
        images, (plans,), (expanded,) = self._expand([text], [pictures], markup, image_overrides)
        tokenizer = self.tokenizer
        ids = tokenizer.encode_marked(expanded.text) if marked else tokenizer.encode(expanded.text, False)
        return EncodedText(np.array(ids, np.int64), images, plans, self._spans(ids, plans, markup))

    def _expand(
        self, texts: Sequence[str], images: Any, markup: ImageMarkup, image_overrides: Mapping[str, Any]
    ) -> tuple[BatchFeature, list[tuple[ViewPlan, ...]], list[Expanded]]:
        """The arrays of all pictures; of each text the plans of its pictures, and the text with them expanded."""
        pictures = assign_pictures(texts, images, *markup.placeholders)
        patches, flat_plans = BatchFeature(), list[ViewPlan]()
        if any(pictures):
            patches, flat_plans = self.image_processor.encode(pictures, **image_overrides)
        elif image_overrides:
            self.image_processor.configured(**image_overrides)  # refuses bad options also where no picture is
        rest = iter(flat_plans)
        plans = [tuple(next(rest) for _ in sample) for sample in pictures]
        return patches, plans, [expand(text, plan, markup) for text, plan in zip(texts, plans, strict=True)]

    def _spans(self, ids: Sequence[int], plans: Sequence[ViewPlan], markup: ImageMarkup) -> tuple[tuple[int, int], ...]:
        """Places of the pictures in the ids. Raises `TokenizerError` if there are any and no token for them."""
        words, tokens = self.tokenizer, markup.placeholders
        names = zip(tokens, ("image_token", "video_token"), strict=False)
        known = [words.id_of(*each) for each in names] if plans else words.convert_tokens_to_ids(tokens)
        return image_spans(ids, plans, known, markup.markers)
