"""Keeps control tokens that a user types (`<image>`, `<|im_end|>`) plain text, while the template's own work as such.

Before a template is rendered, control tokens in the caller's strings are put between two private-use characters
(`mark`), and a string that ends in the beginning of one gets the second of them there, so that it cannot be completed
by the string that a template writes behind it. The rendered text is then cut at these marks (`pieces`). Marks that the
caller's strings hold already are taken out first, so none can be forged. A token that a template begins itself, and a
caller's string ends, is the template's.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import PromptError

START, END = "\U000f0000", "\U000f0001"
DEEPEST = 20  # groups within groups of a pattern, which Python compiles recursively


class ControlTokens:
    """Finds `tokens` in texts, the longest first."""

    def __init__(self, tokens: frozenset[str]):
        self.tokens = tokens
        self.longest = max(map(len, tokens), default=0)
        self._sorted = sorted(tokens)

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(_any_of(self._sorted) if self._sorted else "(?!)")

    @functools.cached_property
    def marked(self) -> re.Pattern[str]:
        return re.compile(f"{START}({self.pattern.pattern}){END}")

    @functools.cached_property
    def _anywhere(self) -> re.Pattern[str]:
        return re.compile(f"(?=({self.pattern.pattern}))")

    def ends_in_beginning(self, text: str) -> bool:
        """Whether the text's last characters are the first ones of a token."""
        for length in range(1, min(self.longest, len(text) + 1)):
            end = text[-length:]
            at = bisect.bisect_right(self._sorted, end)  # behind the end itself, before all that go on from it
            if at < len(self._sorted) and self._sorted[at].startswith(end):
                return True
        return False

    def crosses(self, text: str, start: int, place: int) -> bool:
        """Whether a token in the text begins between `start` and a place and ends behind that."""
        first = max(start, place - self.longest)
        near = self._anywhere.finditer(text[first : place + self.longest])
        return any(found.start() < place - first < found.start() + len(found[1]) for found in near)


def _any_of(tokens: list[str], depth: int = 0) -> str:
    """The pattern of the longest of tokens (sorted, different) that stands at a place. What they begin with alike
    stands in it once: a tokenizer has hundreds, and a pattern that lists them whole takes long to compile."""
    if depth == DEEPEST:
        return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    pairs = enumerate(zip(tokens[0], tokens[-1], strict=False))
    alike = tokens[0][: next((at for at, (one, other) in pairs if one != other), None)]
    rest = [token[len(alike) :] for token in tokens if token != alike]
    if not rest:
        return re.escape(alike)
    ways = (_any_of(list(some), depth + 1) for _, some in itertools.groupby(rest, key=lambda token: token[0]))
    return f"{re.escape(alike)}(?:{'|'.join(ways)}){'?' if len(rest) < len(tokens) else ''}"


control_tokens_of = functools.lru_cache(maxsize=32)(ControlTokens)


class Marked(str):
    """A text in which the tokens that are meant as text are marked already: `mark` leaves it as it is."""


def mark(value: Any, tokens: ControlTokens) -> Any:
    """`value` with the tokens marked in all its strings (of lists and mappings too, and in their keys). What is no
    plain JSON becomes so, as a template sees it. Raises `PromptError` for what is nested too deeply."""
    if value is None or isinstance(value, (int, float, Marked)):
        return value
    if isinstance(value, str):
        made = tokens.pattern.sub(f"{START}\\g<0>{END}", value.replace(START, "").replace(END, ""))
        if tokens.ends_in_beginning(made):
            made += END
        words = made.rstrip()  # templates trim
        if len(words) < len(made) and tokens.ends_in_beginning(words):
            made = words + END + made[len(words) :]
        return made
    try:
        if isinstance(value, Mapping):
            return {mark(key, tokens): mark(item, tokens) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [mark(item, tokens) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return mark(plain(value), tokens)
    except RecursionError:
        raise PromptError("the conversation is nested too deeply") from None


def plain(value: Any) -> Any:
    """Plain JSON types only, so that a template finds no methods to call; pictures and the like become "<type>"."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if isinstance(value, list) else tuple(plain(item) for item in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def pieces(text: str, tokens: ControlTokens) -> list[tuple[str, bool]]:
    """The text cut at its marks: (piece, whether it is a marked token). Lone marks vanish; where the sides would join
    to a token they part them."""
    if START not in text and END not in text:
        return [(text, False)] if text else []
    made: list[tuple[str, bool]] = []
    for number, part in enumerate(tokens.marked.split(text)):
        if number % 2 == 1:
            made.append((part, True))
            continue
        parts = re.split(f"[{START}{END}]", part)
        whole, start = "".join(parts), 0
        for place in itertools.accumulate(map(len, parts[:-1])):
            if tokens.crosses(whole, start, place):
                made.append((whole[start:place], False))
                start = place
        made.append((whole[start:], False))
    return [(piece, is_token) for piece, is_token in made if piece]


@functools.lru_cache(maxsize=32)
def unmarked(*tokens: str) -> re.Pattern[str]:
    """Finds tokens where they are not marked; without any, nothing."""
    return re.compile(f"(?<!{START})(?:{'|'.join(map(re.escape, tokens)) or '(?!)'})")
