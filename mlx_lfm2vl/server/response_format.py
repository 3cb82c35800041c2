"""The form of an answer that a body asks for."""

from __future__ import annotations

from collections.abc import Callable

from ..constraints.response_format import ResponseFormat
from ..errors import ConstraintError
from .api_request import Rules
from .fields import Fields

TYPES = ("text", "json_object", "json_schema")


def response_format(fields: Fields, name: str, rules: Rules, nested: bool = True) -> ResponseFormat | None:
    """The form in OpenAI's spelling: a schema stands in the object `json_schema` (`nested`), or beside the type. Raises
    `ApiError`."""
    format = fields.object(name)
    if format is None:
        return None
    kind = format.choice("type", TYPES, required=True)
    made = None
    if kind == "json_object":
        made = ResponseFormat.json_object()
    elif kind == "json_schema":
        inner = format.object("json_schema", required=True) if nested else format
        inner.name("name", 64)
        inner.text("description")
        inner.flag("strict")  # an answer always holds to its schema
        made = json_schema(inner, rules)
    return made


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
