"""A JSON body read field by field: each has a type and a range, and none is passed over."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from ..config.files import parse_json
from ..errors import counted, did_you_mean
from .api_error import ApiError

NAME = re.compile(r"[a-zA-Z0-9_-]+")
MOST_DEPTH = 100  # of lists and objects in each other
NOTHING: tuple[Any, ...] = (None, False, [], "")  # values of a field that ask for nothing
TYPES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


class Fields:
    """The members of a JSON object. Each is taken once, by its name; null is as if absent. `close` refuses the rest, of
    the objects within, too."""

    def __init__(self, value: Any, where: str = ""):
        self.where = where
        if not isinstance(value, dict):
            raise ApiError(400, f"{where or 'the body'} is {kind(value)}, expected an object", param=where or None)
        self._left = {name: item for name, item in value.items() if item is not None}
        self._known: set[str] = set()
        self._inner: list[Fields] = []  # of the objects within

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """The names of what is left."""
        return list(self._left)

    def path(self, name: str) -> str:
        """The name of a field as errors have it, such as `messages[0].content`."""
        return f"{self.where}.{name}" if self.where else name

    def fail(self, name: str, message: str, code: str | None = "invalid_value") -> NoReturn:
        """Raises the error of a field."""
        raise ApiError(400, f"{self.path(name)} {message}", param=self.path(name), code=code)

    def unsupported(self, name: str, message: str) -> NoReturn:
        """Raises the error of a field that the protocol has and this server does not offer."""
        self.fail(name, message, "unsupported_parameter")

    def peek(self, name: str) -> Any:
        """A field that is still to be taken."""
        return self._left.get(name)

    def take(self, name: str) -> Any:
        """A field of any type, None if it is absent."""
        self._known.add(name)
        return self._left.pop(name, None)

    def _typed(self, name: str, expected: type, required: bool = False, words: str = "") -> Any:
        value = self.take(name)
        if value is None and required:
            self.fail(name, "is missing", "missing_required_parameter")
        right = isinstance(value, (int, float) if expected is float else expected)
        if value is not None and (not right or (isinstance(value, bool) and expected is not bool)):
            self.fail(name, f"is {kind(value)}, expected {words or TYPES[expected]}", "invalid_type")
        return value

    def text(self, name: str, *, required: bool = False, longest: int | None = None) -> Any:
        value = self._typed(name, str, required)
        if value is not None and longest is not None and len(value) > longest:
            self.fail(name, f"has {counted(len(value), 'character')}, expected at most {longest}")
        return value

    def choice(self, name: str, choices: Iterable[str], *, required: bool = False) -> Any:
        value = self._typed(name, str, required)
        if value is not None and value not in choices:
            self.fail(name, f"is {shown(value)}, expected one of {', '.join(choices)}")
        return value

    def name(self, name: str, longest: int) -> str:
        """The name of a tool or a schema."""
        value: str = self._typed(name, str, True)
        if not NAME.fullmatch(value) or len(value) > longest:
            self.fail(name, f"is {shown(value)}, expected 1 to {longest} of the characters a-z, A-Z, 0-9, _ and -")
        return value

    def type(self, choices: Iterable[str], *, required: bool = True) -> Any:
        """The field `type` of a part, an item or a tool. Protocols have more of them than are offered here."""
        value = self._typed("type", str, required)
        if value is not None and value not in choices:
            said = f"is {shown(value)}, which is not supported here; there is {', '.join(choices)}"
            self.unsupported("type", said)
        return value

    def flag(self, name: str) -> bool | None:
        return self._typed(name, bool)

    def whole(self, name: str, low: int, high: int, *, required: bool = False) -> Any:
        value = self._typed(name, float, required, "a whole number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, float) or not low <= value <= high):
            self.fail(name, f"is {shown(value)}, expected a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        value = self._typed(name, float)
        if value is not None and (not low <= value <= high or (above and value == low)):
            self.fail(name, f"is {shown(value)}, expected a number {'above' if above else 'from'} {low:g} to {high:g}")
        return value

    def list(self, name: str, most: int, *, required: bool = False) -> Any:
        value = self._typed(name, list, required)
        if value is not None and len(value) > most:
            self.fail(name, f"has {counted(len(value), 'item')}, expected at most {most}")
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of texts that are not empty."""
        values = self.list(name, most) or ()
        for number, value in enumerate(values):
            if not isinstance(value, str) or not 0 < len(value) <= longest:
                self.fail(f"{name}[{number}]", f"is {shown(value)}, expected a text of 1 to {longest} characters")
        return tuple(values)

    def object(self, name: str, *, required: bool = False) -> Any:
        """The fields of an object, None if it is absent."""
        value = self._typed(name, dict, required)
        return None if value is None else self._within(value, self.path(name))

    def inside(self, name: str) -> Fields:
        """The fields of an object, of which there are none if it is absent."""
        return self.object(name) or Fields({}, self.path(name))

    def objects(self, name: str, most: int, *, required: bool = False) -> Any:
        """The fields of each object of a list, None if it is absent."""
        values = self.list(name, most, required=required)
        return values and [self._within(value, f"{self.path(name)}[{n}]") for n, value in enumerate(values)]

    def _within(self, value: Any, where: str) -> Fields:
        self._inner.append(Fields(value, where))
        return self._inner[-1]

    def schema(self, name: str, most: int, *, required: bool = False) -> dict[str, Any] | None:
        """An object of free JSON, of at most `most` characters as JSON."""
        value = self._typed(name, dict, required)
        if value is not None and len(json.dumps(value)) > most:
            self.fail(name, f"has more than {most} characters of JSON; make it smaller")
        return value

    def arguments(self, name: str) -> str:
        """The arguments of a tool call: a text that holds a JSON object, or none."""
        value = self.text(name)
        if not value or not value.strip():
            return "{}"
        way_out = "expected an object of arguments; of a call that was cut off, leave out the call or complete it"
        try:
            said = parse_json(value)
        except ValueError as error:
            self.fail(name, f"is no JSON ({error}), {way_out}")
        if not isinstance(said, (dict, type(None))):
            self.fail(name, f"is {kind(said)}, {way_out}")
        return "{}" if said is None else str(value)

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuses fields that the protocol has and this server does not offer, unless they ask for nothing."""
        for name in names:
            if self._left.pop(name, None) not in NOTHING:
                self.unsupported(name, f"is not supported here; {reason}")

    def only(self, name: str, *values: Any) -> None:
        """Refuses all values of a field but these, which are what happens anyway."""
        value = self.take(name)
        if value is not None and (type(value), value) not in [(type(each), each) for each in values]:
            said = " or ".join(map(shown, values))
            self.unsupported(name, f"is {shown(value)}, which is not supported here; leave it out, or set it to {said}")

    def close(self) -> None:
        """Refuses what is left."""
        for inner in self._inner:
            inner.close()
        for name in self._left:
            near = did_you_mean([name[:100]], self._known)
            called = name if len(name) <= 100 else f"{name[:100]}..."
            self.fail(called, f"is not known; leave it out{near}", "unknown_parameter")


def shown(value: Any, length: int = 80) -> str:
    """A value for a message, as JSON, not longer than `length` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    return "null" if value is None else TYPES.get(type(value), type(value).__name__)


def parse_body(data: bytes) -> Fields:
    """The fields of a body. Raises `ApiError` for what is no JSON object, or holds NaN, a key twice or half a
    character."""
    try:
        value = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON ({error})") from None
    _check_values(value)
    return Fields(value)


def _check_values(value: Any) -> None:
    """Raises `ApiError` unless all numbers of a JSON value are finite and its lists and objects are few in each
    other."""
    level, depth = [value], 0
    while level:
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            raise ApiError(400, "the body holds NaN or Infinity, which are no JSON")
        lists = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level, depth = [item for items in lists for item in items], depth + 1
        if depth > MOST_DEPTH:
            raise ApiError(400, f"the body has more than {MOST_DEPTH} lists and objects in each other")
