"""Placeholders and pictures: which picture belongs to which `<image>`, what it expands to, and where it ends up.

A placeholder becomes, with markers, `<|image_start|>`, then for each tile `<|img_row_r_col_c|>` and its image tokens,
then `<|img_thumbnail|>` and the thumbnail's, then `<|image_end|>`; a picture seen as one view has no inner markers. The
counts come from the same `ViewPlan` as the pixels. A marked `<image>` (control_tokens.py) is text, not a placeholder.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PromptError, counted
from .control_tokens import unmarked
from .geometry import ViewPlan
from .pages import flatten


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
