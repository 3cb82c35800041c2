"""Keeps control tokens that a user types (`<image>`, `<|im_end|>`) plain text, while the template's own work as such.

Before a template is rendered, control tokens in the caller's strings are put between two private-use characters
(`mark`). The rendered text is then cut at these marks (`pieces`): what stands between a pair is encoded as text, all
else as usual. Marks that the caller's strings hold already are taken out first, so none can be forged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

START, END = "\U000f0000", "\U000f0001"


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the tokens, the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)")


class Marked(str):
    """A text in which the tokens that are meant as text are marked already: `mark` leaves it as it is."""


def mark(value: Any, tokens: re.Pattern[str]) -> Any:
    """`value` with the tokens marked in all its strings (of lists and mappings too, but not in keys)."""
    if isinstance(value, Marked):
        return value
    if isinstance(value, str):
        return tokens.sub(f"{START}\\g<0>{END}", value.replace(START, "").replace(END, ""))
    if isinstance(value, Mapping):
        return {key: mark(item, tokens) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mark(item, tokens) for item in value]
    return value


def pieces(text: str, tokens: re.Pattern[str]) -> list[tuple[str, bool]]:
    """The text cut at its marks: (piece, whether it is a marked token). Lone marks, left where a template took a marked
    token apart, vanish but still part the text, so that its sides cannot join to a token."""
    split = re.split(f"{START}({tokens.pattern}){END}|[{START}{END}]", text)
    return [(piece, bool(i % 2)) for i, piece in enumerate(split) if piece]


def unmarked(token: str) -> re.Pattern[str]:
    """Finds a token where it is not marked."""
    return re.compile(f"(?<!{START}){re.escape(token)}")
