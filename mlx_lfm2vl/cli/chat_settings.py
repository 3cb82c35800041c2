"""`/set` of `chat`: the options of the answers, by the names of `GenerationOptions`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from .. import GenerationOptions

NONE = "none"
_WORDS = {"temp": "temperature"}  # the command line's short name
_HIDDEN = ("logprobs", "top_logprobs", "logit_bias", "logits_processors")  # nothing that chat shows
_OPEN = {"max_tokens": "to the end of the context", "seed": NONE, "stop": NONE}  # what None is


def shown(options: GenerationOptions) -> list[str]:
    """A line for each option that can be set."""
    names = _names(options)
    width = max(map(len, names)) + 2
    return [f"{name:{width}}{_value(options, name)}" for name in names]


def changed(options: GenerationOptions, argument: str) -> tuple[GenerationOptions, str]:
    """The options with `NAME VALUE` as they say it, and the line that shows it. Raises `OptionError`."""
    given, _, text = argument.partition(" ")
    name = given.replace("-", "_")
    name, text = _WORDS.get(name, name), text.strip()
    if name not in _names(options):
        raise OptionError(f"/set {given}: no such option; there are {', '.join(_names(options))}")
    if not text:
        raise OptionError(f"/set {given} needs a value; {NONE} leaves it to the model")
    new = replace(options, **{name: _parsed(name, text)})
    return new, f"{name}: {_value(new, name)}"


def _names(options: GenerationOptions) -> list[str]:
    return [field.name for field in fields(options) if field.name not in _HIDDEN]


def _value(options: GenerationOptions, name: str) -> str:
    value = getattr(options, name)
    if name == "stop":
        return ", ".join(map(repr, value)) or NONE
    if name == "response_format":
        return NONE if value is None else value.kind
    if name == "draft" and not isinstance(value, str):
        return NONE if value is None else "a model"
    return _OPEN.get(name, "the model's own") if value is None else f"{value:g}" if type(value) is float else str(value)


def _parsed(name: str, text: str) -> Any:
    """The value that a text is, or the text, which `GenerationOptions` refuses where it is no value."""
    if text.lower() == NONE:
        return () if name == "stop" else None
    if name in ("stop", "response_format"):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
