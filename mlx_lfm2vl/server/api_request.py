"""A request of any protocol, read: what the engine is asked, and how the answer is to come."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..constraints.response_format import ResponseFormat
from ..errors import ConstraintError
from ..generation.options import MAX_TOKENS, GenerationOptions
from .fields import Fields, shown
from .limits import Limits
from .pictures import Pictures

LONGEST_STOP = 1000
MOST = 10**6  # objects that are made of one list
FORM_TYPES = ("text", "json_object", "json_schema")
DEADLINES = 86400.0  # seconds


@dataclass(frozen=True)
class Rules:
    """The part of the server's settings that decides what a body may hold."""

    limits: Limits = field(default_factory=Limits)
    allow_urls: bool = False


@dataclass(frozen=True)
class ApiRequest:
    """A request as a body has it. `deadline`: seconds from when the body was here."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    options: GenerationOptions
    image_overrides: dict[str, Any]
    detail: str = "auto"
    choices: int = 1
    several_calls: bool = True  # an answer may call more than one tool
    deadline: float | None = None
    stream: bool = False
    stream_usage: bool = False
    echo: dict[str, Any] = field(default_factory=dict)  # fields that the response repeats


def sampling(fields: Fields) -> dict[str, Any]:
    """Arguments of `GenerationOptions` that all protocols spell alike, and those that only this server has."""
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    return {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "min_p": fields.number("min_p", 0, 1),
        "top_k": fields.whole("top_k", 0, 2**31),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
        "seed": None if seed is None else seed % 2**64,
    }


def max_tokens(fields: Fields, *names: str, required: bool = False) -> int | None:
    """The longest answer, in whichever of these fields it stands."""
    given = {name: fields.whole(name, 1, MAX_TOKENS, required=required) for name in names}
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        fields.fail(names[0], f"and {names[1]} differ; give one of them")
    return min(values, default=None)


def stops(fields: Fields, name: str, limits: Limits) -> tuple[str, ...]:
    """Texts at which the answer ends."""
    return fields.texts(name, limits.stops, LONGEST_STOP)


def deadline(fields: Fields) -> float | None:
    """Seconds after which the answer is cut."""
    return fields.number("deadline", 0, DEADLINES, above=True)


def response_format(fields: Fields, name: str, rules: Rules, nested: bool = True) -> ResponseFormat | None:
    """The form in OpenAI's spelling: a schema stands in the object `json_schema` (`nested`), or beside the type. Raises
    `ApiError`."""
    format = fields.object(name)
    if format is None:
        return None
    kind = format.choice("type", FORM_TYPES, required=True)
    if kind != "json_schema":
        return ResponseFormat.json_object() if kind == "json_object" else None
    inner = format.object("json_schema", required=True) if nested else format
    inner.name("name", 64)
    inner.text("description")
    inner.flag("strict")  # an answer always holds to its schema
    return json_schema(inner, rules)


def json_schema(fields: Fields, rules: Rules) -> ResponseFormat:
    """The form of the JSON schema in the field `schema`. Raises `ApiError`."""
    schema = fields.schema("schema", rules.limits.schema_characters, required=True)
    return held(fields, "schema", lambda: ResponseFormat.json_schema(schema))


def held(fields: Fields, name: str, make: Callable[[], ResponseFormat]) -> ResponseFormat:
    """A form, if it can be held. Raises `ApiError` naming the field."""
    try:
        return make()
    except ConstraintError as error:
        fields.fail(name, f"cannot be held: {error}")


def joined(items: list[dict[str, Any]]) -> Any:
    """A text, or the items where there are pictures or videos."""
    if any(item["type"] != "text" for item in items):
        return items
    return "\n".join(item["text"] for item in items)


def past_call(name: str, arguments: str) -> dict[str, Any]:
    """A call of an assistant's message, as templates know it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


class Parts:
    """The messages of a request: counts them, items of their content and tool calls, has their `pictures`, and knows
    the ids of the calls."""

    def __init__(self, rules: Rules):
        self.pictures = Pictures(rules.limits, rules.allow_urls)
        self._most, self._count = rules.limits.parts, 0
        self._calls: dict[str, int] = {}
        self._numbers = itertools.count()
        self._results: list[int] = []  # which call each is of

    def objects(self, fields: Fields, name: str, most: int = MOST, *, required: bool = True) -> list[Fields]:
        """The fields of each object of a list, which count."""
        listed = fields.objects(name, most, required=required) or []
        self._count += len(listed)
        if self._count > self._most:
            fields.fail(name, f"brings the request to more than {self._most} messages and parts")
        return listed

    def messages(self, fields: Fields) -> list[Fields]:
        """The fields of each of the messages, of which there is one at least."""
        listed = self.objects(fields, "messages", self._most)
        if not listed:
            fields.fail("messages", "is empty, expected at least one message")
        return listed

    def content(
        self, fields: Fields, name: str, item: Callable[[Fields], dict[str, Any]], *, required: bool = True
    ) -> Any:
        """A text, or a list of items, each read by `item`, where there are pictures or videos; None if it is absent."""
        given = fields.peek(name)
        if isinstance(given, str) or (given is None and not required):
            return fields.take(name)
        return joined([item(each) for each in self.objects(fields, name)])

    def take_call(self, fields: Fields, name: str) -> None:
        """Takes the id of a tool call, which stands in this field."""
        self._calls[fields.text(name, required=True)] = next(self._numbers)

    def take_result(self, fields: Fields, name: str) -> None:
        """Takes the id of the call that a result is of. Raises `ApiError` where there was no such call."""
        id = fields.text(name, required=True)
        if id not in self._calls:
            fields.fail(name, f"is {shown(id)}, which is the id of no tool call before it")
        self._results.append(self._calls[id])

    def in_order(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages of these parts, in which results that follow each other are in the order of their calls, as
        templates do not show ids."""
        calls = iter(self._results)
        made: list[dict[str, Any]] = []
        for is_result, some in itertools.groupby(messages, lambda message: message["role"] == "tool"):
            group = list(some)
            if is_result:
                group = [result for result, _ in sorted(zip(group, calls, strict=False), key=lambda pair: pair[1])]
            made += group
        return made
