"""`/set` of `chat`: the options of the answers, by the names of `GenerationOptions`; their form, by those of the
command line's options."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Lfm2VlError, OptionError, short
from .arguments import FIELDS, form_of

if TYPE_CHECKING:
    from .. import GenerationOptions

NONE = "none"
_WORDS = {"temp": "temperature"}  # the command line's short name
_HIDDEN = ("logprobs", "top_logprobs", "logit_bias", "logits_processors")  # nothing that chat shows
_FORMS = FIELDS[1:]  # of the answer, in place of response_format
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
    if name in _FORMS:
        new = replace(options, response_format=_form(name, text))
    else:
        new = replace(options, **{name: _parsed(name, text)})
    return new, f"{name}: {_value(new, name)}"


def _names(options: GenerationOptions) -> list[str]:
    names = [field.name for field in fields(options) if field.name not in _HIDDEN]
    at = names.index("response_format")
    return [*names[:at], *_FORMS, *names[at + 1 :]]


def _form(name: str, text: str) -> Any:
    """The form of this name that a text says, as on the command line; the texts of a choice are its words, those with
    blanks in quotes. Raises `PromptError`, `ConstraintError` and `OptionError`."""
    if text.lower() == NONE:
        return None
    if name == "json_object":
        return form_of({name: text.lower() == "true"}, Path())
    try:
        return form_of({name: shlex.split(text) if name == "choice" else text}, Path())
    except ValueError as error:
        if isinstance(error, Lfm2VlError):
            raise
        raise OptionError(f"/set {name}: a quote is not closed") from None


def _value(options: GenerationOptions, name: str) -> str:
    if name in _FORMS:
        form = options.response_format
        if form is None or form.kind != name:
            return NONE
        return "true" if name == "json_object" else short(shlex.join(form.value) if name == "choice" else form.value)
    value = getattr(options, name)
    if name == "stop":
        return ", ".join(map(repr, value)) or NONE
    if name == "draft" and not isinstance(value, str):
        return NONE if value is None else "a model"
    return _OPEN.get(name, "the model's own") if value is None else f"{value:g}" if type(value) is float else str(value)


def _parsed(name: str, text: str) -> Any:
    """The value that a text is, or the text, which `GenerationOptions` refuses where it is no value."""
    if text.lower() == NONE:
        return () if name == "stop" else None
    if name == "stop":
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
