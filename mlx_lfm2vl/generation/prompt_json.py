"""Encoded prompts as JSON, with the arrays of their pictures, for another process."""

from __future__ import annotations

import base64
from dataclasses import fields
from typing import Any

import numpy as np

from ..constraints.response_format import ResponseFormat
from .options import GenerationOptions
from .request import EncodedPicture, EncodedPrompt

NO_JSON = ("response_format", "logits_processors")
PLAIN = [field.name for field in fields(GenerationOptions) if field.name not in NO_JSON]


def as_json(prompt: EncodedPrompt) -> dict[str, Any]:
    """The prompt without its grammar, for `from_json` in another process."""
    options = {name: getattr(prompt.options, name) for name in PLAIN}
    if (form := prompt.options.response_format) is not None:
        options["response_format"] = [form.kind, form.value, form.separators]
    pictures = [[_packed(picture.spatial_shapes), _packed(picture.pixels)] for picture in prompt.pictures]
    return {"ids": _packed(prompt.ids), "options": options, "pictures": pictures, "places": prompt.places}


def from_json(data: dict[str, Any]) -> EncodedPrompt:
    """A prompt of `as_json`."""
    options = dict(data["options"])
    if (form := options.pop("response_format", None)) is not None:
        kind, value, separators = form
        value = tuple(value) if isinstance(value, list) else value
        options["response_format"] = ResponseFormat(kind, value, tuple(separators))
    pictures = tuple(_picture(*map(_unpacked, pair)) for pair in data["pictures"])
    places = tuple((start, end) for start, end in data["places"])
    return EncodedPrompt(_unpacked(data["ids"]), GenerationOptions(**options), pictures, places)


def _picture(shapes: np.ndarray, pixels: np.ndarray) -> EncodedPicture:
    return EncodedPicture(shapes, pixels, lambda: pixels)


def _packed(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]


def _unpacked(packed: list[Any]) -> np.ndarray:
    kind, shape, data = packed
    return np.frombuffer(base64.b64decode(data), kind).reshape(shape)
