"""The result of `explain`: an answer, and maps of the attention behind each of its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..errors import OptionError
from . import overlay

Span = str | int | tuple[int, int] | None  # a text of the answer, a token, tokens from and to, or all


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer, and where in the pictures the attention of its tokens lay.

    `tokens` are the answer's, `spans` the characters (start, end) of `text` that each of them wrote. `layers` are the
    numbers of the attention layers. `attention` holds for each picture (layers, tokens, rows, columns) float32, or
    (layers, heads, tokens, rows, columns): the weights of the image tokens, laid over the picture; those of a token and
    head sum to at most 1, the rest lay on text.
    """

    text: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]
    pictures: tuple[Image.Image, ...] = field(repr=False)
    attention: tuple[np.ndarray, ...] = field(repr=False)

    def tokens_of(self, span: Span = None) -> slice:
        """The tokens that a text of the answer, found at its first place, was written by; or a token by its number; or
        those from and to. Raises `OptionError`."""
        count = len(self.tokens)
        if span is None:
            return slice(0, count)
        if isinstance(span, str):
            found = re.search(rf"(?<!\w){re.escape(span)}(?!\w)", self.text, re.I) if span else None
            start = found.start() if found else self.text.find(span)
            if not span or start < 0:
                raise OptionError(f"{span!r} is not in the answer {self.text!r}")
            inside = self._writing(start, start + len(span))
            return slice(inside[0], inside[-1] + 1)
        first, last = (span, span + 1) if isinstance(span, int) else span
        if not 0 <= first < last <= count:
            raise OptionError(f"tokens {first} to {last} are not in the answer, which has {count}")
        return slice(first, last)

    def words(self) -> list[tuple[str, tuple[int, int]]]:
        """The words of the answer in order, each with the tokens (from, to) that wrote it."""
        found = []
        for word in re.finditer(r"\S+", self.text):
            inside = self._writing(*word.span())
            found.append((word[0], (inside[0], inside[-1] + 1)))
        return found

    def map(self, span: Span = None, picture: int = 0, layers: Sequence[int] | None = None) -> np.ndarray:
        """The attention of some tokens over a picture: the mean over them, over heads and over layers, (rows, columns)
        float32. Its sum is the share of the attention that lay on the picture.

        `layers`: some of `self.layers`; None means all. Raises `OptionError`.
        """
        if not 0 <= picture < len(self.pictures):
            raise OptionError(f"picture is {picture}, but there are {len(self.pictures)}")
        wanted = self.layers if layers is None else layers
        if not wanted or not set(wanted) <= set(self.layers):
            raise OptionError(f"layers are {list(wanted)}, expected some of {list(self.layers)}")
        chosen = self.attention[picture][[self.layers.index(layer) for layer in wanted]]
        chosen = chosen[..., self.tokens_of(span), :, :]
        return chosen.mean(axis=tuple(range(chosen.ndim - 2)))

    def overlay(
        self, span: Span = None, picture: int = 0, layers: Sequence[int] | None = None, *, scale: int = 1
    ) -> Image.Image:
        """A heat map of `map` over the picture, `scale` times as large as it. Raises `OptionError`."""
        if not isinstance(scale, int) or isinstance(scale, bool) or not 1 <= scale <= overlay.MOST_SCALE:
            raise OptionError(f"scale is {scale!r}, expected an integer from 1 to {overlay.MOST_SCALE}")
        attention, shown = self.map(span, picture, layers), self.pictures[picture]
        return overlay.heat_map(shown, attention, (shown.width * scale, shown.height * scale))

    def sheet(self, title: str = "", names: Sequence[str] = ()) -> Image.Image:
        """All pictures with the map of the whole answer and one of each of its words, and a legend. `title` stands for
        the answer above them; several pictures are told apart by their numbers, as "Media-1", and their `names`."""

        def panel(name: str, span: Span, picture: int) -> overlay.Panel:
            attention = self.map(span, picture)
            return name, f"{attention.sum():.0%}", attention

        made = []
        for number, picture in enumerate(self.pictures):
            name, share, attention = panel("the whole answer", None, number)
            of = "this picture" if len(self.pictures) > 1 else "the picture"
            whole = (name, f"{share} of the attention lay on {of}", attention)
            words = [panel(word, tokens, number) for word, tokens in self.words()]
            words = words if len(words) > 1 else []
            head = title or self.text
            if len(self.pictures) > 1:
                called = f", {names[number]}" if number < len(names) else ""
                head = f"Media-{number + 1}{called}. Answer: {head}"
            made.append(overlay.sheet(picture, head, whole, words))
        return made[0] if len(made) == 1 else overlay.stacked(made)

    def _writing(self, start: int, end: int) -> list[int]:
        """The tokens that wrote any of these characters."""
        return [n for n, (low, high) in enumerate(self.spans) if low < end and high > start]
