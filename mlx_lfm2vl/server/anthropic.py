"""Anthropic's messages: bodies of `/v1/messages` to requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..generation.options import GenerationOptions
from .api_request import ApiRequest, Parts, Rules, deadline, joined, json_schema, max_tokens, past_call, sampling, stops
from .fields import Fields, shown
from .pictures import Pictures
from .tools import Tool, Tools, tool_of

ROLES = ("user", "assistant")
NOT_OFFERED = (
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "prefill",
    "thread",
)
THOUGHTS = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}  # blocks, and their texts


def parse(fields: Fields, rules: Rules) -> ApiRequest:
    """The request of a body. Raises `ApiError`."""
    asked, tools = _prompt(fields, rules)
    given = sampling(fields) | {
        "stop": stops(fields, "stop_sequences", rules.limits),
        "max_tokens": max_tokens(fields, "max_tokens", required=True),
        "response_format": tools.form(fields, _format(fields, rules)),
    }
    fields.inside("metadata").text("user_id", longest=1000)
    fields.only("service_tier", "auto", "standard_only")
    stream = fields.flag("stream") or False
    asked = replace(asked, options=GenerationOptions(**given), deadline=deadline(fields), stream=stream)
    fields.close()
    return asked


def parse_count(fields: Fields, rules: Rules) -> ApiRequest:
    """The request whose tokens are to be counted. Raises `ApiError`."""
    asked, _ = _prompt(fields, rules)
    _format(fields, rules)
    fields.close()
    return asked


def _prompt(fields: Fields, rules: Rules) -> tuple[ApiRequest, Tools]:
    """The request with its prompt alone."""
    parts = Parts(rules)
    model = fields.text("model", required=True)
    system = parts.content(fields, "system", _text_only, required=False)
    messages = [{"role": "system", "content": system}] if system else []
    messages += _messages(fields, parts)
    tools = _tools(fields, rules)
    overrides = parts.pictures.overrides(fields)
    _hint(fields)
    thinking = fields.inside("thinking")
    thinking.only("type", "disabled", "adaptive")  # how much a model thinks is its own choice: here none
    thinking.choice("display", ("summarized", "omitted"))
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.only("speed", "standard")
    several = tools.several
    return ApiRequest(model, messages, tools.schemas, GenerationOptions(), overrides, several_calls=several), tools


def _hint(fields: Fields) -> None:
    """Takes what says where a cache may begin: the server finds that by itself."""
    hint = fields.object("cache_control")
    if hint is not None:
        hint.choice("type", ("ephemeral",), required=True)
        hint.text("ttl")


def _text_only(block: Fields) -> dict[str, Any]:
    block.choice("type", ("text",), required=True)
    return _text(block)


def _text(block: Fields) -> dict[str, Any]:
    made = {"type": "text", "text": block.text("text", required=True)}
    block.refuse(("citations",), "leave it out")
    _hint(block)
    return made


def _messages(fields: Fields, parts: Parts) -> list[dict[str, Any]]:
    listed = parts.messages(fields)
    made = parts.in_order([message for each in listed for message in _message(each, parts)])
    if made[-1]["role"] == "assistant":
        last = f"messages[{len(listed) - 1}]"
        fields.unsupported(last, "is the assistant's, and answers are not prefilled; end with a user's")
    return made


def _message(fields: Fields, parts: Parts) -> Iterator[dict[str, Any]]:
    """A message as templates know it: results of tools are messages of their own."""
    role = fields.choice("role", ROLES, required=True)
    if isinstance(fields.peek("content"), str):
        yield {"role": role, "content": fields.take("content")}
        return
    blocks = parts.objects(fields, "content")
    items: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.text("type", required=True)
        if kind == "tool_result" and role == "user":
            yield {"role": "tool", "content": _result(block, parts)}
        elif kind == "tool_use" and role == "assistant":
            calls.append(_past_call(block, parts))
        elif kind in THOUGHTS and role == "assistant":
            for name in THOUGHTS[kind]:  # of another model
                block.text(name)
        else:
            items.append(_item(block, kind, role, parts.pictures))
    if items or calls or (blocks and role == "assistant"):
        yield {"role": role, "content": joined(items), **({"tool_calls": calls} if calls else {})}
    elif not blocks:
        fields.fail("content", "is empty, expected a text or blocks")


def _item(block: Fields, kind: str, role: str, pictures: Pictures) -> dict[str, Any]:
    if kind == "text":
        return _text(block)
    if kind not in ("image", "document") or role != "user":
        block.fail("type", f"is {shown(kind)}; a message of role {role} may not hold it")
    made = pictures.from_source(block.object("source", required=True))
    if kind == "document":  # a PDF, whose pages are seen as pictures; none is cited
        block.refuse(("title", "context"), "put it into a text")
        block.inside("citations").only("enabled", False)
    block.refuse(("transformations",), "leave it out")
    _hint(block)
    return made


def _result(block: Fields, parts: Parts) -> Any:
    def item(each: Fields) -> dict[str, Any]:
        return _item(each, each.text("type", required=True), "user", parts.pictures)

    parts.take_result(block, "tool_use_id")
    block.flag("is_error")  # which its text says
    _hint(block)
    return parts.content(block, "content", item, required=False) or ""


def _past_call(block: Fields, parts: Parts) -> dict[str, Any]:
    parts.take_call(block, "id")
    name, given = block.text("name", required=True), block.schema("input", 10**9)
    _hint(block)
    return past_call(name, json.dumps(given or {}, ensure_ascii=False))


def _tools(fields: Fields, rules: Rules) -> Tools:
    listed = fields.objects("tools", rules.limits.tools)
    tools = Tools(tuple(_tool(tool, rules) for tool in listed or ()))
    choice = fields.object("tool_choice")
    if choice is None:
        return tools.chosen(fields, None)
    mode = choice.choice("type", ("auto", "any", "tool", "none"), required=True)
    name = choice.text("name", required=mode == "tool")
    tools = Tools(tools.listed, several=not choice.flag("disable_parallel_tool_use"))
    return tools.chosen(fields, {"any": "required", "tool": "named"}.get(mode, mode), name)


def _tool(tool: Fields, rules: Rules) -> Tool:
    tool.only("type", "custom")
    made = tool_of(tool, rules, "input_schema", longest=128)
    _hint(tool)
    tool.only("defer_loading", False)
    tool.only("allowed_callers", ["direct"])
    tool.flag("eager_input_streaming")  # calls stream as they are written anyway
    tool.refuse(("input_examples",), "put them into the description")
    return made


def _format(fields: Fields, rules: Rules) -> Any:
    """The form of the answer, which stands in `output_config`."""
    config = fields.inside("output_config")
    config.text("effort", longest=100)  # of thinking, which is none
    config.refuse(("task_budget",), "leave it out")
    format = config.object("format")
    if format is None:
        return None
    format.choice("type", ("json_schema",), required=True)
    return json_schema(format, rules)
