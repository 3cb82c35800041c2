"""JSON of an answer, read as far as it goes: models put words or a fence around it, and an answer may be cut off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from ..config.files import finite_number, no_number
from ..errors import AnswerError

_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(parse_constant=no_number)
_FINITE = json.JSONDecoder(parse_constant=no_number, parse_float=finite_number)


def value(text: str, start: str = "{") -> Any:
    """The first JSON value that begins with one of the characters `start`, its numbers finite. Raises `AnswerError`
    naming the place."""
    at = next((place for place, character in enumerate(text) if character in start), len(text))
    return _value(text, at, _FINITE)[0]


def items(text: str) -> Iterator[Any]:
    """The items of the first JSON list, or the object that stands in its place. Raises `AnswerError` behind the last
    item that is whole, naming the place, where the list does not go on or end as it should."""
    at = next((place for place, character in enumerate(text) if character in "[{"), len(text))
    if text.startswith("{", at):
        yield _value(text, at)[0]
        return
    if at == len(text):
        _fail(text, 0, "a JSON list")
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        return
    while True:
        found, at = _value(text, at)
        yield found
        at = _skip(text, at)
        if text.startswith("]", at):
            return
        if not text.startswith(",", at):
            _fail(text, at, "',' or ']'")
        at = _skip(text, at + 1)


def _value(text: str, at: int, decoder: json.JSONDecoder = _DECODER) -> tuple[Any, int]:
    try:
        found, end = decoder.raw_decode(text, at)
        return _whole(found) if "\\u" in text[at:end] else found, end
    except (ValueError, RecursionError, OverflowError):
        _fail(text, at, "a JSON value")


def _whole(value: Any) -> Any:
    """The value, in whose texts U+FFFD stands for half of a surrogate pair, which is no character."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(each) for name, each in value.items()}
    return value


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches nothing at least


def _fail(text: str, at: int, expected: str) -> NoReturn:
    there = f"{text[at : at + 20]!r}" if text[at:] else "the end"
    raise AnswerError(f"answer, character {at}: expected {expected}, found {there}")
