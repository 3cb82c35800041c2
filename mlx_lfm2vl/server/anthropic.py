"""Anthropic's messages: bodies of `/v1/messages` to requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .api_error import unsupported
from .api_request import ApiRequest, Parts, Rules, deadline, joined, max_tokens, options, sampling, stops
from .fields import Fields, shown
from .pictures import Pictures
from .response_format import json_schema
from .tools import Tool, Tools, tool_of

ROLES = ("user", "assistant")
SOURCES = ("base64", "url")
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
    prompt, tools = _prompt(fields, rules)
    stop = stops(fields, "stop_sequences", rules.limits)
    longest = max_tokens(fields, "max_tokens", required=True)
    metadata = fields.object("metadata")
    if metadata is not None:
        metadata.text("user_id", longest=1000)
        metadata.close()
    fields.only("service_tier", "auto", "standard_only")
    given = sampling(fields) | {"response_format": tools.form(fields, _format(fields, rules))}
    asked = ApiRequest(
        **prompt,
        options=options(given, stop, longest),
        deadline=deadline(fields),
        stream=fields.flag("stream") or False,
    )
    fields.close()
    return asked


def parse_count(fields: Fields, rules: Rules) -> ApiRequest:
    """The request whose tokens are to be counted. Raises `ApiError`."""
    prompt, _ = _prompt(fields, rules)
    _format(fields, rules)
    fields.close()
    return ApiRequest(**prompt, options=options({}, (), None))


def _prompt(fields: Fields, rules: Rules) -> tuple[dict[str, Any], Tools]:
    """The prompt, as arguments of an `ApiRequest`."""
    pictures, parts = Pictures(rules.limits, rules.allow_urls), Parts(rules.limits)
    model = fields.text("model", required=True)
    messages = [*_system(fields, parts), *_messages(fields, rules, parts, pictures)]
    tools = _tools(fields, rules)
    overrides = pictures.overrides(fields)
    _hint(fields)
    thinking = fields.object("thinking")
    if thinking is not None:
        thinking.only("type", "disabled", "adaptive")  # how much a model thinks is its own choice: here none
        thinking.choice("display", ("summarized", "omitted"))
        thinking.close()
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.only("speed", "standard")
    prompt = {"model": model, "messages": messages, "tools": tools.schemas, "image_overrides": overrides}
    return prompt | {"several_calls": tools.several}, tools


def _hint(fields: Fields) -> None:
    """Takes what says where a cache may begin: the server finds that by itself."""
    hint = fields.object("cache_control")
    if hint is not None:
        hint.choice("type", ("ephemeral",), required=True)
        hint.text("ttl")
        hint.close()


def _system(fields: Fields, parts: Parts) -> list[dict[str, Any]]:
    given = fields.take("system")
    if given is None:
        return []
    text = given if isinstance(given, str) else _texts(Fields({"system": given}), "system", parts)
    return [{"role": "system", "content": text}] if text else []


def _texts(fields: Fields, name: str, parts: Parts) -> str:
    """A list of blocks of text, joined."""
    blocks = fields.objects(name, 10**6, required=True)
    parts.add(fields, name, len(blocks))
    texts = []
    for block in blocks:
        block.choice("type", ("text",), required=True)
        texts.append(_text(block))
    return "\n".join(texts)


def _text(block: Fields) -> str:
    text: str = block.text("text", required=True)
    block.refuse(("citations",), "leave it out")
    _hint(block)
    block.close()
    return text


def _messages(fields: Fields, rules: Rules, parts: Parts, pictures: Pictures) -> list[dict[str, Any]]:
    listed = fields.objects("messages", rules.limits.parts, required=True)
    if not listed:
        fields.fail("messages", "is empty, expected at least one message")
    parts.add(fields, "messages", len(listed))
    made = parts.in_order([message for each in listed for message in _message(each, parts, pictures)])
    if made[-1]["role"] == "assistant":
        raise unsupported(
            f"messages[{len(listed) - 1}]", "is the assistant's, and answers are not prefilled; end with a user's"
        )
    return made


def _message(fields: Fields, parts: Parts, pictures: Pictures) -> Iterator[dict[str, Any]]:
    """A message as templates know it: results of tools are messages of their own."""
    role = fields.choice("role", ROLES, required=True)
    content = fields.take("content")
    if isinstance(content, str):
        fields.close()
        yield {"role": role, "content": content}
        return
    blocks = Fields({"content": content}, fields.where).objects("content", 10**6, required=True)
    parts.add(fields, "content", len(blocks))
    fields.close()
    items: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.text("type", required=True)
        if kind == "tool_result" and role == "user":
            yield {"role": "tool", "content": _result(block, parts, pictures)}
        elif kind == "tool_use" and role == "assistant":
            calls.append(_past_call(block, parts))
        elif kind in THOUGHTS and role == "assistant":
            for name in THOUGHTS[kind]:  # of another model
                block.text(name)
            block.close()
        else:
            items.append(_item(block, kind, role, pictures))
    if items or calls or (blocks and role == "assistant"):
        yield {"role": role, "content": joined(items), **({"tool_calls": calls} if calls else {})}
    elif not blocks:
        fields.fail("content", "is empty, expected a text or blocks")


def _item(block: Fields, kind: str, role: str, pictures: Pictures) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": _text(block)}
    if kind not in ("image", "document") or role != "user":
        block.fail("type", f"is {shown(kind)}; a message of role {role} may not hold it")
    made = pictures.from_source(block.object("source", required=True), SOURCES)
    if kind == "document":
        _document(block)
    block.refuse(("transformations",), "leave it out")
    _hint(block)
    block.close()
    return made


def _document(block: Fields) -> None:
    """Takes what else may stand in a document, which is a PDF: its pages are seen as pictures, and none is cited."""
    block.refuse(("title", "context"), "put it into a text")
    citations = block.object("citations")
    if citations is not None:
        citations.only("enabled", False)
        citations.close()


def _result(block: Fields, parts: Parts, pictures: Pictures) -> Any:
    parts.take_result(block, "tool_use_id")
    block.flag("is_error")  # which its text says
    content = block.take("content")
    _hint(block)
    block.close()
    if content is None or isinstance(content, str):
        return content or ""
    blocks = Fields({"content": content}, block.where).objects("content", 10**6, required=True)
    parts.add(block, "content", len(blocks))
    return joined([_item(each, each.text("type", required=True), "user", pictures) for each in blocks])


def _past_call(block: Fields, parts: Parts) -> dict[str, Any]:
    parts.take_call(block, "id")
    name, given = block.text("name", required=True), block.schema("input", 10**9)
    _hint(block)
    block.close()
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(given or {}, ensure_ascii=False)}}


def _tools(fields: Fields, rules: Rules) -> Tools:
    listed = fields.objects("tools", rules.limits.tools)
    tools = Tools(tuple(_tool(tool, rules) for tool in listed or ()))
    choice = fields.object("tool_choice")
    if choice is None:
        return tools.chosen(fields, None)
    mode = choice.choice("type", ("auto", "any", "tool", "none"), required=True)
    name = choice.text("name", required=mode == "tool")
    tools = Tools(tools.listed, several=not choice.flag("disable_parallel_tool_use"))
    choice.close()
    return tools.chosen(fields, {"any": "required", "tool": "named"}.get(mode, mode), name)


def _tool(tool: Fields, rules: Rules) -> Tool:
    tool.only("type", "custom")
    made = tool_of(tool, rules, "input_schema", longest=128)
    _hint(tool)
    tool.only("defer_loading", False)
    tool.only("allowed_callers", ["direct"])
    tool.flag("eager_input_streaming")  # calls stream as they are written anyway
    tool.refuse(("input_examples",), "put them into the description")
    tool.close()
    return made


def _format(fields: Fields, rules: Rules) -> Any:
    """The form of the answer, which stands in `output_config`."""
    config = fields.object("output_config")
    if config is None:
        return None
    format = config.object("format")
    config.text("effort", longest=100)  # of thinking, which is none
    config.refuse(("task_budget",), "leave it out")
    config.close()
    if format is None:
        return None
    format.choice("type", ("json_schema",), required=True)
    made = json_schema(format, "schema", rules)
    format.close()
    return made
