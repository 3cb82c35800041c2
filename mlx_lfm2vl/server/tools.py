"""Tools that a caller offers: their schemas, and whether the model may, must or must not call one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..constraints.response_format import SEPARATORS, ResponseFormat
from ..processing.conversation import CALL_END, CALL_START
from .api_request import Rules
from .fields import Fields
from .response_format import held

MODES = ("auto", "none", "required")  # of OpenAI's tool_choice


@dataclass(frozen=True)
class Tools:
    """`schemas`: what the model is told of, None for nothing. `several`: whether it may call more than one at once.
    `forced`: the form of an answer that must be a call, else None."""

    schemas: list[dict[str, Any]] | None = None
    several: bool = True
    forced: ResponseFormat | None = None

    def chosen(self, fields: Fields, mode: str, name: str | None = None) -> Tools:
        """The same under the choice in the field `tool_choice`: "auto", "none", "required" or "named". Raises
        `ApiError`."""
        if self.schemas is None:
            fields.fail("tool_choice", "is given without tools")
        if mode == "none":
            return replace(self, schemas=None)
        if mode == "auto":
            return self
        schemas = [each for each in self.schemas if mode == "required" or each["name"] == name]
        if not schemas:
            fields.fail("tool_choice", f"names {name!r:.120}, which is none of the tools")
        return replace(self, several=False, forced=held(fields, "tool_choice", lambda: a_call(schemas)))

    def form(self, fields: Fields, name: str, asked: ResponseFormat | None) -> ResponseFormat | None:
        """The form of the answer, where the field `name` asks for one. Raises `ApiError` for two forms."""
        if self.forced is not None and asked is not None:
            fields.fail(name, "asks for a form, and tool_choice for a call; give one of them")
        return self.forced or asked


def openai_tools(fields: Fields, rules: Rules, nested: bool) -> Tools:
    """The tools of a body; what is said of a function stands in an object of its own (`nested`), or beside its type."""
    listed = fields.objects("tools", rules.limits.tools)
    tools = Tools(
        [_function(tool, rules, nested) for tool in listed] if listed else None,
        several=fields.flag("parallel_tool_calls") is not False,
    )
    choice = fields.take("tool_choice")
    if choice is None:
        return tools
    if isinstance(choice, str):
        return tools.chosen(fields, Fields({"tool_choice": choice}).choice("tool_choice", MODES))
    named = Fields(choice, "tool_choice")
    named.choice("type", ("function",), required=True)
    inner = named.object("function", required=True) if nested else named
    name = inner.text("name", required=True)
    inner.close()
    named.close()
    return tools.chosen(fields, "named", name)


def _function(fields: Fields, rules: Rules, nested: bool) -> dict[str, Any]:
    fields.choice("type", ("function",), required=True)
    function = fields.object("function", required=True) if nested else fields
    made = function_schema(function, rules, "parameters")
    function.only("strict", False)
    function.close()
    fields.close()
    return made


def function_schema(fields: Fields, rules: Rules, parameters: str) -> dict[str, Any]:
    """A tool as a template gets it; its JSON schema stands in the field `parameters`."""
    most = rules.limits.schema_characters
    made = {
        "name": fields.text("name", required=True, longest=256),
        "description": fields.text("description", longest=most),
        "parameters": fields.schema(parameters, most),
    }
    return {name: value for name, value in made.items() if value is not None}


def a_call(schemas: list[dict[str, Any]]) -> ResponseFormat:
    """The form of an answer that calls one of these tools, in JSON. Raises `ConstraintError` for parameters that cannot
    be held."""
    item, key = SEPARATORS
    style = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}  # else blanks may never end
    rules, calls = [], []
    for number, schema in enumerate(schemas):
        parameters = {"type": "object", **schema.get("parameters", {})}
        ResponseFormat.json_schema(parameters)
        begin = f'{{"name": {json.dumps(schema["name"])}, "arguments": '
        calls.append(f'{json.dumps(begin)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {json.dumps(parameters | {'x-guidance': style})}")
    start = f'start: {CALL_START} "[" call "]" {CALL_END}'
    return ResponseFormat.grammar("\n".join([start, f"call: {' | '.join(calls)}", *rules, ""]))
