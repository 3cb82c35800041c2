"""Tools that a caller offers: their schemas, and whether the model may, must or must not call one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..constraints.response_format import ResponseFormat, embedded_schema
from ..processing.conversation import CALL_END, CALL_START
from .api_request import Rules, held
from .fields import Fields, shown

MOST_CALLS = 16  # of an answer whose calls are held to a form
MODES = ("auto", "none", "required")  # of OpenAI's tool_choice
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}  # of a tool that states none
NAMING_NONE = {"type", "title", "description", "$schema", "properties", "required"}  # keys of a schema without members


@dataclass(frozen=True)
class Tool:
    """`schema`: the tool as a template gets it. `strict`: whether all calls hold to its parameters."""

    schema: dict[str, Any]
    strict: bool


@dataclass(frozen=True)
class Tools:
    """`listed`: what the model is told of. `several`: whether it may call more than one at once. `held`: the form that
    holds its calls, None where they are free. `demanded`: whether the answer is a call."""

    listed: tuple[Tool, ...] = ()
    several: bool = True
    held: ResponseFormat | None = None
    demanded: bool = False

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """The tools as a template gets them, None for nothing."""
        return [tool.schema for tool in self.listed] or None

    def chosen(self, fields: Fields, mode: str | None, name: str | None = None) -> Tools:
        """The same under the choice in the field `tool_choice`: "auto", "none", "required", "named", or None where it
        is absent. Raises `ApiError`."""
        names = [tool.schema["name"] for tool in self.listed]
        if twice := next((each for number, each in enumerate(names) if each in names[:number]), None):
            fields.fail("tools", f"has two of the name {shown(twice, 140)}; give each a name of its own")
        if mode is not None and not self.listed:
            fields.fail("tool_choice", "is given without tools")
        if mode == "none":
            return Tools()
        if mode in (None, "auto"):
            if not any(tool.strict for tool in self.listed):
                return self
            return replace(self, held=held(fields, "tools", lambda: text_or_calls(self.listed, self.several)))
        tools = [tool for tool in self.listed if mode == "required" or tool.schema["name"] == name]
        if not tools:
            fields.fail("tool_choice", f"names {shown(name, 120)}, which is none of the tools")
        several = self.several and mode == "required"  # OpenAI's named function is called once
        form = held(fields, "tool_choice", lambda: demanded_calls(tools, several))
        return replace(self, several=several, held=form, demanded=True)

    def form(self, fields: Fields, asked: ResponseFormat | None) -> ResponseFormat | None:
        """The form of the answer, where a field asks for the form of its text. Raises `ApiError`."""
        if asked is None or not self.listed or self.demanded:  # an answer that is a call has no text
            return self.held or asked
        return held(fields, "tools", lambda: form_or_calls(asked, self.listed, self.several))


def openai_tools(fields: Fields, rules: Rules, nested: bool) -> Tools:
    """The tools of a body; what is said of a function stands in an object of its own (`nested`), or beside its type."""
    listed = fields.objects("tools", rules.limits.tools)
    tools = Tools(
        tuple(_function(tool, rules, nested) for tool in listed or ()),
        several=fields.flag("parallel_tool_calls") is not False,
    )
    choice = fields.take("tool_choice")
    if choice is None:
        return tools.chosen(fields, None)
    if isinstance(choice, str):
        return tools.chosen(fields, Fields({"tool_choice": choice}).choice("tool_choice", MODES))
    named = Fields(choice, "tool_choice")
    named.type(("function",))
    inner = named.object("function", required=True) if nested else named
    name = inner.text("name", required=True)
    named.close()
    return tools.chosen(fields, "named", name)


def _function(fields: Fields, rules: Rules, nested: bool) -> Tool:
    fields.type(("function",))
    function = fields.object("function", required=True) if nested else fields
    made = tool_of(function, rules, "parameters")
    if not nested:
        fields.only("defer_loading", False)
        fields.only("allowed_callers", ["direct"])
        fields.refuse(("output_schema",), "put what is told into the description")
    return made


def tool_of(fields: Fields, rules: Rules, parameters: str, longest: int = 64) -> Tool:
    """A tool, whose JSON schema stands in the field `parameters`, with a name of at most `longest` letters."""
    most = rules.limits.schema_characters
    made = {
        "name": fields.name("name", longest),
        "description": fields.text("description", longest=most),
        "parameters": fields.schema(parameters, most),
    }
    schema = {name: value for name, value in made.items() if value is not None}
    return Tool(schema, fields.flag("strict") or False)


def demanded_calls(tools: Sequence[Tool], several: bool) -> ResponseFormat:
    """The form of an answer that calls one of these tools, or `several` times some of them, in JSON. Raises
    `ConstraintError` for parameters that cannot be held."""
    return ResponseFormat.grammar(f"start: {_block(several)}\n{_call(tools, all_strict=True)}")


def text_or_calls(tools: Sequence[Tool], several: bool) -> ResponseFormat:
    """The form of an answer that is text, calls, or both; calls of strict tools hold to their parameters. Raises
    `ConstraintError`."""
    start = f"start: TEXT | TEXT? {_block(several)}\nTEXT: /(.|\\n)+/\n"
    return ResponseFormat.grammar(start + _call(tools, all_strict=False))


def form_or_calls(form: ResponseFormat, tools: Sequence[Tool], several: bool) -> ResponseFormat:
    """The form of an answer that is JSON of this form, or calls; those of strict tools hold to their parameters. Raises
    `ConstraintError`."""
    start = f"start: form | {_block(several)}\nform: %json {embedded_schema(form.value)}\n"
    return ResponseFormat.grammar(start + _call(tools, all_strict=False))


def _block(several: bool) -> str:
    """The block of calls in a grammar. A weak model would go on for ever."""
    more = f'("," " "? call){{0,{MOST_CALLS - 1}}}' if several else ""
    return f'{CALL_START} "[" call {more} "]" {CALL_END}'


def _call(tools: Sequence[Tool], all_strict: bool) -> str:
    """The rule `call` of a grammar, and those that it needs."""
    rules, calls = [], []
    for number, tool in enumerate(tools):
        own = _parameters(tool) if all_strict or tool.strict else {}
        begin = f'{{"name": {json.dumps(tool.schema["name"])}, "arguments": '
        calls.append(f'{json.dumps(begin)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {embedded_schema({'type': 'object', **own})}")
    return "\n".join([f"call: {' | '.join(calls)}", *rules, ""])


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema that calls hold to. Of a tool that states no parameters, or an object with an empty list of them, it
    is the empty object: as a JSON schema such a list allows any members."""
    stated: dict[str, Any] = tool.schema.get("parameters", NO_PARAMETERS)
    lists_none = stated.get("properties") == {} and not stated.get("required") and stated.keys() <= NAMING_NONE
    return NO_PARAMETERS if lists_none else stated
