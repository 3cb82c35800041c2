"""OpenAI's responses: bodies of `/v1/responses` to requests. Nothing is kept for a later request."""

from __future__ import annotations

from typing import Any

from .api_error import unsupported
from .api_request import ApiRequest, Parts, Rules, deadline, joined, max_tokens, options, sampling
from .fields import Fields, shown
from .logprobs import likeliest
from .openai_chat import system_role, tags
from .pictures import Pictures
from .response_format import response_format
from .tools import openai_tools

ITEMS = ("message", "function_call", "function_call_output")
PARTS = ("input_text", "output_text", "input_image", "input_file")
ROLES = ("system", "developer", "user", "assistant")
LOGPROBS = "message.output_text.logprobs"
REASONING = "reasoning.encrypted_content"  # of which there is never any
NOT_OFFERED = (
    "context_management",
    "conversation",
    "image",
    "max_tool_calls",
    "moderation",
    "prompt",
    "prompt_cache_options",
)
TAGS = ("user", "safety_identifier", "prompt_cache_key")
ECHOED = (
    "instructions",
    "metadata",
    "temperature",
    "top_p",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "text",
    "user",
)


def parse(fields: Fields, rules: Rules) -> ApiRequest:
    """The request of a body. Raises `ApiError`."""
    echo = {name: value for name in ECHOED if (value := fields.peek(name)) is not None}
    pictures, parts = Pictures(rules.limits, rules.allow_urls), Parts(rules.limits)
    if fields.take("previous_response_id") is not None:
        raise unsupported("previous_response_id", "is not known: no answer is kept; send the conversation in input")
    model = fields.text("model", required=True)
    instructions = fields.text("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    messages += _input(fields, parts, pictures)
    tools = openai_tools(fields, rules, nested=False)
    given = sampling(fields) | _logprobs(fields)
    format = None
    if (text := fields.object("text")) is not None:
        format = response_format(text, "format", rules, nested=False)
        text.only("verbosity", "medium")
        text.close()
    given["response_format"] = tools.form(fields, format)
    asked = ApiRequest(
        model,
        messages,
        tools.schemas,
        options(given, (), max_tokens(fields, "max_output_tokens")),
        pictures.overrides(fields),
        pictures.detail,
        several_calls=tools.several,
        deadline=deadline(fields),
        stream=fields.flag("stream") or False,
        echo=echo | {"parallel_tool_calls": tools.several},
    )
    tags(fields, TAGS)
    if (settings := fields.object("stream_options")) is not None:
        settings.only("include_obfuscation", False)
        settings.close()
    if (reasoning := fields.object("reasoning")) is not None:
        reasoning.only("effort", "none")
        reasoning.close()
    fields.only("background", False)
    fields.only("service_tier", "auto", "default")
    fields.only("store", False)
    fields.only("truncation", "disabled")
    fields.only("prompt_cache_retention", "in_memory")
    fields.refuse(NOT_OFFERED, "leave it out")
    fields.close()
    return asked


def _logprobs(fields: Fields) -> dict[str, Any]:
    included = fields.texts("include", 16, 100)
    for number, name in enumerate(included):
        if name not in (LOGPROBS, REASONING):
            raise unsupported(f"include[{number}]", f"is {shown(name)}, of which only {LOGPROBS} is supported here")
    asked = LOGPROBS in included
    return {"logprobs": asked, "top_logprobs": likeliest(fields, asked, f"{LOGPROBS} in include")}


def _input(fields: Fields, parts: Parts, pictures: Pictures) -> list[dict[str, Any]]:
    given = fields.take("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    listed = Fields({"input": given}).objects("input", 10**6, required=True)
    if not listed:
        fields.fail("input", "is empty, expected a text or at least one item")
    parts.add(fields, "input", len(listed))
    made: list[dict[str, Any]] = []
    for item in listed:
        kind = item.type(ITEMS, required=False) or "message"
        item.text("id")
        item.text("status")
        if kind == "message":
            made.append(_message(item, parts, pictures))
        elif kind == "function_call":
            if not made or made[-1]["role"] != "assistant":
                made.append({"role": "assistant", "content": ""})
            made[-1].setdefault("tool_calls", []).append(_call(item, parts))
        else:
            parts.take_result(item, "call_id")
            made.append({"role": "tool", "content": _content(item, "output", "user", parts, pictures)})
        item.close()
    return parts.in_order(made)


def _message(item: Fields, parts: Parts, pictures: Pictures) -> dict[str, Any]:
    role = item.choice("role", ROLES, required=True)
    item.text("phase")
    return {"role": system_role(role), "content": _content(item, "content", role, parts, pictures)}


def _content(item: Fields, name: str, role: str, parts: Parts, pictures: Pictures) -> Any:
    """A text, or a list of items where there are pictures or files."""
    given = item.take(name)
    if isinstance(given, str):
        return given
    listed = Fields({name: given}, item.where).objects(name, 10**6, required=True)
    parts.add(item, name, len(listed))
    return joined([_part(part, role, pictures) for part in listed])


def _part(part: Fields, role: str, pictures: Pictures) -> dict[str, Any]:
    kind = part.type(PARTS)
    if kind == ("output_text" if role == "assistant" else "input_text"):
        made = {"type": "text", "text": part.text("text", required=True)}
        if role == "assistant":
            part.list("logprobs", 10**7)  # of an answer that is sent back as it came
            part.refuse(("annotations",), "leave it out")
    elif kind == "input_image" and role == "user":
        part.refuse(("file_id",), "no files are kept; send the picture as a data URI")
        made = pictures.from_url(part, "image_url", part.text("image_url", required=True))
        pictures.set_detail(part)
    elif kind == "input_file" and role == "user":
        made = pictures.from_file(part, by_address=True)
    else:
        part.fail("type", f"is {shown(kind)}; a message of role {role} may not hold it")
    part.close()
    return made


def _call(item: Fields, parts: Parts) -> dict[str, Any]:
    parts.take_call(item, "call_id")
    function = {"name": item.text("name", required=True), "arguments": item.arguments("arguments")}
    return {"type": "function", "function": function}
