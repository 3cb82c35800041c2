"""Pictures of a prompt: those in its messages, which belongs to which `<image>`, what it expands to, where it ends up.

A placeholder becomes, with markers, `<|image_start|>`, then for each tile `<|img_row_r_col_c|>` and its image tokens,
then `<|img_thumbnail|>` and the thumbnail's, then `<|image_end|>`; a picture seen as one view has no inner markers. The
counts come from the same `ViewPlan` as the pixels. A marked `<image>` (control_tokens.py) is text, not a placeholder.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PromptError, counted
from .addresses import decode_base64
from .control_tokens import unmarked
from .conversation import SOURCES
from .fetch import SourcePolicy
from .geometry import ViewPlan
from .load_image import check_number, expand_pages, flatten
from .video import Video, load_video
from .video_items import SAMPLING, VIDEO_SOURCES


@dataclass(frozen=True)
class ImageMarkup:
    """The tokens that stand for pictures in text. `markers` False leaves the image tokens alone in the text."""

    image: str = "<image>"
    start: str = "<|image_start|>"
    end: str = "<|image_end|>"
    thumbnail: str = "<|img_thumbnail|>"
    markers: bool = True

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The tokens in whose place pictures and videos stand."""
        return (self.image,)

    def expand(self, plan: ViewPlan) -> str:
        """The text of one picture."""
        whole = self.image * plan.tokens_for_image
        if not self.markers:
            return self.image * plan.tokens
        if not plan.tiled:
            return f"{self.start}{whole}{self.end}"
        tile = self.image * plan.tokens_per_tile
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
    ends, gained, position = [], [0], 0
    for found, plan in zip(unmarked(*markup.placeholders).finditer(text), plans, strict=True):
        tokens = markup.expand(plan)
        out += [text[position : found.start()], tokens]
        position = found.end()
        ends.append(position)
        gained.append(gained[-1] + len(tokens) - len(found[0]))
    return Expanded("".join([*out, text[position:]]), tuple(ends), tuple(gained))


def assign_pictures(texts: Sequence[str], images: Any, *placeholders: str) -> list[list[Any]]:
    """The pictures of each text. `images` is None, one picture, a flat list, or a list a text; a flat list is dealt out
    by the texts' placeholders. Raises `PromptError` with both counts unless every placeholder has its picture."""
    wanted = [len(unmarked(*placeholders).findall(text)) for text in texts]
    tokens, videos = " or ".join(placeholders) or "image", " and videos" if len(placeholders) > 1 else ""
    nested = isinstance(images, (list, tuple)) and bool(images) and all(isinstance(i, (list, tuple)) for i in images)
    if nested:
        given = [flatten(entry) for entry in images]
        if [len(entry) for entry in given] == wanted:
            return given
        counts: Any = [len(entry) for entry in given]
    else:
        pictures = [] if images is None else flatten(images)
        if len(pictures) == sum(wanted):
            ends = [sum(wanted[: i + 1]) for i in range(len(wanted))]
            return [pictures[end - count : end] for end, count in zip(ends, wanted, strict=True)]
        counts = [len(pictures)]
    if len(wanted) == len(counts) == 1:
        raise PromptError(
            f"the text has {counted(wanted[0], f'{tokens} placeholder')} for {counted(counts[0], 'picture')}{videos}; "
            "one each is needed"
        )
    raise PromptError(
        f"the texts have {wanted} {tokens} placeholders for {counts} pictures{videos}; each text needs one a picture"
    )


def image_spans(
    input_ids: Sequence[int], plans: Sequence[ViewPlan], placeholders: Collection[int], markers: bool
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


def assistant_mask(offsets: Sequence[tuple[int, int]], text: Expanded, spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for every token that overlaps one of the spans, which count characters of the text before its expansion."""
    mask = np.zeros(len(offsets), dtype=np.int64)
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        mask |= (starts < text.position(end)) & (ends > text.position(start))
    return [int(flag) for flag in mask]


def with_page_items(
    conversations: Sequence[Sequence[Mapping[str, Any]]], images: Any, policy: SourcePolicy
) -> tuple[list[list[dict[str, Any]]], Any]:
    """The conversations and the pictures of `images`, each PDF document replaced by an item, or a picture, a page.
    Raises `ImageError` and `PromptError`."""
    given = [] if images is None else flatten(images)
    empty = sum(_is_empty(item) for messages in conversations for item in picture_items(messages)) if given else 0
    rest = iter(given if len(given) == empty else ())  # another count is refused later
    beside: list[Any] = []

    def expanded(item: Any) -> list[Any]:
        if not isinstance(item, Mapping) or item.get("type") != "image":
            return [item]
        sources = _sources(item, policy)
        if sources[0] is not None:
            pages = [page for source in sources for page in expand_pages(source, policy)]
            same = len(pages) == len(sources) and all(map(operator.is_, pages, sources))
            return [item] if same else [{"type": "image", "image": page} for page in pages]
        pages = [page for source in itertools.islice(rest, 1) for page in expand_pages(source, policy)]
        beside.extend(pages)
        return [item] * max(1, len(pages))

    made = [with_items(messages, expanded) for messages in conversations]
    check_number(sum(len(picture_items(messages)) for messages in made), policy)
    return made, beside if len(beside) > len(given) else images


def _is_empty(item: Mapping[str, Any]) -> bool:
    """Whether an image item only marks a place."""
    return all(item.get(name) is None for name in (*SOURCES, *VIDEO_SOURCES))


def picture_items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items of pictures and videos in messages."""
    contents = [message.get("content") for message in messages]
    items = (item for content in contents if isinstance(content, (list, tuple)) for item in content)
    return [item for item in items if isinstance(item, Mapping) and item.get("type") in ("image", "video")]


def pictures_of(conversations: Sequence[Sequence[Mapping[str, Any]]], images: Any, policy: SourcePolicy) -> Any:
    """The pictures of the conversations, a list each: those in their items, and in empty items those of `images`."""
    slots = [[source for item in picture_items(each) for source in _sources(item, policy)] for each in conversations]
    empty = sum(source is None for own in slots for source in own)
    if images is None or empty == sum(map(len, slots)):
        return [[source for source in own if source is not None] for own in slots] if images is None else images
    given = flatten(images)
    if len(given) != empty:
        empty_items = f"{counted(empty, 'image item')} of the conversation without one"
        raise PromptError(f"{counted(len(given), 'picture')} in images= for {empty_items}")
    rest = iter(given)
    return [[next(rest) if source is None else source for source in own] for own in slots]


def _sources(item: Mapping[str, Any], policy: SourcePolicy) -> list[Any]:
    """The sources that an image item holds, in the reference's order of names; [None] for an item that only marks a
    place."""
    if item.get("type") == "video":
        return [item["video"]]
    found = [item[name] for name in SOURCES[:3] if item.get(name) is not None]
    if item.get("base64") is not None:
        text = str(item["base64"])
        found.append(text if text.startswith("data:") else decode_base64(text, policy))
    return found or [None]


def replace_videos(
    messages: Sequence[Mapping[str, Any]], policy: SourcePolicy, made: Callable[[Video], Any], rates: Iterator[Any]
) -> list[dict[str, Any]]:
    """The messages with the items that are made of each video in place of its own; `rates` are the frames a second of
    videos that are lists or arrays. Raises `ImageError`, `PromptError`."""

    def replaced(item: Any) -> list[Any]:
        if not isinstance(item, Mapping) or item.get("type") != "video":
            return [item]
        sources = [item[name] for name in VIDEO_SOURCES if item.get(name) is not None]
        if len(sources) != 1:
            raise PromptError(f"a video item holds {len(sources)} videos, expected one under 'video', 'url' or 'path'")
        sampling = {name: item.get(name) for name in SAMPLING}
        return made(load_video(sources[0], policy=policy, frame_rate=next(rates, None), **sampling))

    return with_items(messages, replaced)


def with_items(messages: Sequence[Mapping[str, Any]], made: Callable[[Any], list[Any]]) -> list[dict[str, Any]]:
    """The messages with the items that are made of each item of their contents in place of it."""
    return [
        {**message, "content": [each for item in message["content"] for each in made(item)]}
        if isinstance(message.get("content"), (list, tuple))
        else dict(message)
        for message in messages
    ]
