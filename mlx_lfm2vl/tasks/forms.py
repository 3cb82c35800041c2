"""The forms that answers are held to while they are generated, made of recipes.

Between the numbers of a box a space may stand before the comma, and none behind it: so neither is ever forced, and a
model writes both in its own tokens.
"""

from __future__ import annotations

import json
import re

from ..constraints.response_format import ResponseFormat
from .recipes import BoxRecipe, LayoutRecipe

_LABEL = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]){1,80}"'
_BETWEEN = " ?, ?"


def box_form(form: BoxRecipe) -> ResponseFormat:
    """A JSON list of boxes within one picture, its keys in the recipe's order."""
    corners = _BETWEEN.join([_number(form.scale, form.step)] * 4)
    values = {"label": _LABEL, form.box: rf"\[{corners}\]", form.image: "0"}
    item = ", ".join(f"{json.dumps(key)}: {values[key]}" for key in form.keys)
    return ResponseFormat.regex(rf"\[(\{{{item}\}}(, \{{{item}\}})*)?\]")


def layout_form(form: LayoutRecipe) -> ResponseFormat:
    """Regions of one picture: a line with the kind and the box, lines of content, and a blank line before the next."""
    corners = ", ".join([_number(form.scale, 1)] * 4)
    region = rf"image_index=0 ({'|'.join(map(re.escape, form.labels))}) \[{corners}\](\n[^\n]+)*"
    return ResponseFormat.regex(rf"({region}(\n\n{region})*)?")


def _number(scale: int, step: int | None) -> str:
    """A pattern of the numbers from 0 to `scale`, a power of ten: multiples of the power `step`, or any with up to six
    decimals."""
    zeros = len(str(step or 1)) - 1
    digits = len(str(scale)) - 1 - zeros  # before these zeros, of numbers below `scale`
    below = rf"[1-9][0-9]{{0,{digits - 1}}}{'0' * zeros}" if digits else ""
    whole = "|".join(("0", below) if below else ("0",))
    if step is not None:
        return f"({whole}|{scale})"
    return rf"(({whole})(\.[0-9]{{1,6}})?|{scale}(\.0{{1,6}})?)"
