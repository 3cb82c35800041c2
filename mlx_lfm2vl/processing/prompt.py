"""`PromptEncoder`: a rendered prompt and its pictures in, ids and patches out, by the parts of one checkpoint.

This is the whole way of a single question: the pictures in its messages, which belongs to which `<image>`, what that
becomes, where it ends up. processor.py adds what transformers' processors do beside it: several texts, padding, masks.

A placeholder becomes, with markers, `<|image_start|>`, then for each tile `<|img_row_r_col_c|>` and its image tokens,
then `<|img_thumbnail|>` and the thumbnail's, then `<|image_end|>`; a picture seen as one view has no inner markers. The
counts come from the same `ViewPlan` as the pixels. A marked `<image>` (control_tokens.py) is text, not a placeholder.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..errors import ImageError, PromptError, TemplateError, counted
from .batch_feature import BatchFeature
from .control_tokens import ControlTokens, unmarked
from .conversation import SAMPLING, SOURCES, VIDEO_SOURCES, numbered
from .fetch import SourcePolicy
from .image_processor import ImageProcessor
from .load_image import check_number, expand_pages, flatten
from .open_file import decode_base64
from .tokenizer import Tokenizer
from .video import PICTURES, Video, frames_as_pictures, held, load_video
from .view_plan import ViewPlan

if TYPE_CHECKING:
    from .template import ChatTemplate


SEEN = ("image", "video")  # types of items


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
    """Image processor, tokenizer and chat template of a checkpoint. `notes` are remarks on what the checkpoint's files
    said and was not obeyed. Not changed by calls, so it is safe to share between threads."""

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
        """Finds the tokens that steer the model in texts for the template. Raises as `template`; `TokenizerError`."""
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
        return ChatTemplate.from_folder(words.folder or Path(), words.chat_template, words.special_tokens_map, source)

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
        return replace_videos(messages, policy, lambda video: numbered(frames_as_pictures(video)))

    @property
    def frame_sampling(self) -> tuple[float, int, int]:
        """The frames of a video that the model sees, as `Video.indices` takes them: of a second, least and most."""
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
        image, start, end, thumbnail = self.tokenizer.image_tokens.values()
        return ImageMarkup((image,), start, end, thumbnail, markers)

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
        images, (plans,), (expanded,), known = self._expand([text], [pictures], markup, image_overrides)
        words = self.tokenizer
        ids = words.encode_marked(expanded.text) if marked else words.encode(expanded.text, add_special_tokens=False)
        return EncodedText(np.array(ids, np.int64), images, plans, image_spans(ids, plans, known, markup.markers))

    def _expand(
        self, texts: Sequence[str], images: Any, markup: ImageMarkup, image_overrides: Mapping[str, Any]
    ) -> tuple[BatchFeature, list[tuple[ViewPlan, ...]], list[Expanded], Sequence[int | None]]:
        """The arrays of all pictures; of each text the plans of its pictures, and the text with them expanded; the ids
        of the placeholders. Raises `TokenizerError` if there are pictures and no token for them."""
        pictures, words = assign_pictures(texts, images, *markup.placeholders), self.tokenizer
        patches, flat_plans = BatchFeature(), list[ViewPlan]()
        if any(pictures):
            patches, flat_plans = self.image_processor.encode(pictures, **image_overrides)
            known = list(map(words.id_of, markup.placeholders, ("image_token", "video_token")))
        else:
            self.image_processor.configured(**image_overrides)  # refuses bad options also where no picture is
            known = words.convert_tokens_to_ids(markup.placeholders)
        rest = iter(flat_plans)
        plans = [tuple(itertools.islice(rest, len(sample))) for sample in pictures]
        return patches, plans, [expand(text, plan, markup) for text, plan in zip(texts, plans, strict=True)], known


@dataclass(frozen=True)
class ImageMarkup:
    """The tokens that stand for pictures in text. In the place of `placeholders` stand pictures, and videos where there
    is a second one. `markers` False leaves the image tokens alone in the text."""

    placeholders: tuple[str, ...] = ("<image>",)
    start: str = "<|image_start|>"
    end: str = "<|image_end|>"
    thumbnail: str = "<|img_thumbnail|>"
    markers: bool = True

    def expand(self, plan: ViewPlan) -> str:
        """The text of one picture."""
        image = self.placeholders[0]
        if not self.markers:
            return image * plan.tokens
        whole = image * plan.tokens_for_image
        if not plan.tiled:
            return f"{self.start}{whole}{self.end}"
        tile = image * plan.tokens_per_tile
        tiles = (f"<|img_row_{r}_col_{c}|>{tile}" for r in range(1, plan.rows + 1) for c in range(1, plan.cols + 1))
        return "".join([self.start, *tiles, *([self.thumbnail, whole] if plan.thumbnail else []), self.end])


@dataclass(frozen=True)
class Expanded:
    """A text with its placeholders expanded. `ends` are the ends of the placeholders in the original text, `gained` the
    characters that the text before each position has grown by (one entry more than `ends`)."""

    text: str
    ends: tuple[int, ...]
    gained: tuple[int, ...]

    def position(self, character: int) -> int:
        """The place in the expanded text of a character of the original one."""
        return character + self.gained[bisect.bisect_right(self.ends, character)]


def expand(text: str, plans: Sequence[ViewPlan], markup: ImageMarkup) -> Expanded:
    """Replaces the placeholders by the pictures' tokens, in order; `text` has as many as there are `plans`."""
    out: list[str] = []
    ends, gained = [0], [0]
    for found, plan in zip(unmarked(*markup.placeholders).finditer(text), plans, strict=True):
        tokens = markup.expand(plan)
        out += [text[ends[-1] : found.start()], tokens]
        ends.append(found.end())
        gained.append(gained[-1] + len(tokens) - len(found[0]))
    return Expanded("".join([*out, text[ends[-1] :]]), tuple(ends[1:]), tuple(gained))


def assign_pictures(texts: Sequence[str], images: Any, *placeholders: str) -> list[list[Any]]:
    """The pictures of each text. `images` is None, one picture, a flat list, or a list a text; a flat list is dealt out
    by the texts' placeholders. Raises `PromptError` with both counts unless every placeholder has its picture."""
    wanted = [len(unmarked(*placeholders).findall(text)) for text in texts]
    tokens, videos = " or ".join(placeholders) or "image", " and videos" if len(placeholders) > 1 else ""
    nested = isinstance(images, (list, tuple)) and bool(images) and all(isinstance(i, (list, tuple)) for i in images)
    given = [flatten(entry) for entry in (images if nested else [[] if images is None else images])]
    counts = [len(entry) for entry in given]
    if counts == (wanted if nested else [sum(wanted)]):
        rest = itertools.chain(*given)
        return [list(itertools.islice(rest, count)) for count in wanted]
    if len(wanted) == len(counts) == 1:
        raise PromptError(
            f"the text has {counted(wanted[0], f'{tokens} placeholder')} for {counted(counts[0], 'picture')}{videos}; "
            "one each is needed"
        )
    raise PromptError(
        f"the texts have {wanted} {tokens} placeholders for {counts} pictures{videos}; each text needs one a picture"
    )


def image_spans(
    input_ids: Sequence[int], plans: Sequence[ViewPlan], placeholders: Collection[int | None], markers: bool
) -> tuple[tuple[int, int], ...]:
    """(start, end) of each picture in the ids, markers included, so that `ids[start:end]` is the picture.
    `placeholders`: the ids that stand for pictures and videos.

    Raises `PromptError` if the ids hold another number of image tokens than the plans (cut off, for instance).
    """
    places = [i for i, id in enumerate(input_ids) if id in placeholders]
    total = sum(plan.tokens for plan in plans)
    if len(places) != total:
        raise PromptError(
            f"the ids hold {len(places)} image tokens where the pictures make {total}; pictures must not be cut off "
            "(raise max_length), and the tokenizer must know the image token"
        )
    spans, first = [], 0
    for plan in plans:
        before = (1 + plan.tiled) if markers else 0
        spans.append((places[first] - before, places[first + plan.tokens - 1] + 1 + markers))
        first += plan.tokens
    return tuple(spans)


def with_page_items(
    conversations: Sequence[Sequence[Mapping[str, Any]]], images: Any, policy: SourcePolicy
) -> tuple[list[list[dict[str, Any]]], Any]:
    """The conversations with `images` in their items that hold no picture, and each PDF document replaced by an item a
    page; and None, or `images` where there is another number of such items. Raises `ImageError` and `PromptError`."""
    empty = [
        sum(all(item.get(name) is None for name in (*SOURCES, *VIDEO_SOURCES)) for item in picture_items(messages))
        for messages in conversations
    ]
    given = [] if images is None else flatten(images)
    nested = bool(given) and isinstance(images, (list, tuple)) and all(isinstance(i, (list, tuple)) for i in images)
    fits = [len(flatten(own)) for own in images] == empty if nested else len(given) == sum(empty)
    rest, images = (iter(given), None) if fits else (iter(()), images)
    made: list[list[dict[str, Any]]] = []
    for messages in conversations:
        replaced: list[list[Any]] = []
        for item in picture_items(messages):
            own = _sources(item, policy) if item["type"] == "image" else []
            sources = itertools.islice(rest, 1) if own and own[0] is None else own
            pages = [page for source in sources for page in expand_pages(source, policy)]
            same = len(pages) == len(own) and all(map(operator.is_, pages, own))
            replaced.append([{"type": "image", "image": page} for page in pages] if pages and not same else [item])
        made.append(with_items(messages, replaced))
    check_number(sum(len(picture_items(messages)) for messages in made), policy)
    return made, images


def picture_items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items of pictures and videos in messages."""
    contents = [message.get("content") for message in messages]
    items = (item for content in contents if isinstance(content, (list, tuple)) for item in content)
    return [item for item in items if isinstance(item, Mapping) and item.get("type") in SEEN]


def pictures_of(conversations: Sequence[Sequence[Mapping[str, Any]]], images: Any, policy: SourcePolicy) -> Any:
    """The pictures in the conversations' items, a list each; or `images`, which then stand in no items, if no item
    holds a picture."""
    slots = [[source for item in picture_items(each) for source in _sources(item, policy)] for each in conversations]
    empty = sum(source is None for own in slots for source in own)
    if images is None:
        return [[source for source in own if source is not None] for own in slots]
    if empty < sum(map(len, slots)):
        empty_items = f"{counted(empty, 'image item')} of the conversation without one"
        way = "give one each, in one list or in a list a conversation"
        raise PromptError(f"{counted(len(flatten(images)), 'picture')} in images= for {empty_items}; {way}")
    return images


def _sources(item: Mapping[str, Any], policy: SourcePolicy) -> list[Any]:
    """The sources that an image item holds, in the reference's order of names; [None] for an item that only marks a
    place."""
    if item.get("type") == "video":
        return [next((item[name] for name in VIDEO_SOURCES if item.get(name) is not None), None)]
    found = [item[name] for name in SOURCES[:3] if item.get(name) is not None]
    if item.get("base64") is not None:
        text = str(item["base64"])
        found.append(text if text.startswith("data:") else decode_base64(text, policy))
    return found or [None]


def replace_videos(
    messages: Sequence[Mapping[str, Any]],
    policy: SourcePolicy,
    made: Callable[[Video], Any],
    rates: Iterable[Any] = (),
) -> list[dict[str, Any]]:
    """The messages with the items that are made of each video in place of its own; `rates` are the frames a second of
    videos that are lists or arrays. Raises `ImageError`, `PromptError`."""
    replaced, rest = list[list[Any]](), iter(rates)
    for item in picture_items(messages):
        if item["type"] != "video":
            replaced.append([item])
            continue
        sources = [item[name] for name in VIDEO_SOURCES if item.get(name) is not None]
        if len(sources) != 1:
            raise PromptError(f"a video item holds {len(sources)} videos, expected one under 'video', 'url' or 'path'")
        sampling = {name: item.get(name) for name in SAMPLING}
        replaced.append(made(load_video(sources[0], policy=policy, frame_rate=next(rest, None), **sampling)))
    return with_items(messages, replaced)


def with_items(messages: Sequence[Mapping[str, Any]], replaced: Sequence[list[Any]]) -> list[dict[str, Any]]:
    """The messages with others in place of each of their `picture_items`, in order."""
    made, rest = [dict(message) for message in messages], iter(replaced)
    for message in made:
        if isinstance(message.get("content"), (list, tuple)):
            content, message["content"] = message["content"], []
            for item in content:
                seen = isinstance(item, Mapping) and item.get("type") in SEEN
                message["content"] += next(rest) if seen else [item]
    return made
