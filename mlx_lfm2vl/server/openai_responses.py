"""OpenAI's responses: bodies of `/v1/responses` to requests. Nothing is kept for a later request."""

from __future__ import annotations

from typing import Any

from ..generation.options import GenerationOptions
from .api_request import ApiRequest, Parts, Rules, deadline, max_tokens, past_call, response_format, sampling
from .fields import Fields, shown
from .openai_chat import close, likeliest, system_role
from .pictures import Pictures
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
    parts = Parts(rules)
    if fields.take("previous_response_id") is not None:
        fields.unsupported("previous_response_id", "is not known: no answer is kept; send the conversation in input")
    model = fields.text("model", required=True)
    instructions = fields.text("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    messages += _input(fields, parts)
    tools = openai_tools(fields, rules, nested=False)
    given = sampling(fields) | _logprobs(fields)
    text = fields.inside("text")
    given["response_format"] = tools.form(fields, response_format(text, "format", rules, nested=False))
    asked = ApiRequest(
        model,
        messages,
        tools.schemas,
        GenerationOptions(max_tokens=max_tokens(fields, "max_output_tokens"), **given),
        parts.pictures.overrides(fields),
        parts.pictures.detail,
        several_calls=tools.several,
        deadline=deadline(fields),
        stream=fields.flag("stream") or False,
        echo=echo | {"parallel_tool_calls": tools.several},
    )
    text.only("verbosity", "medium")
    fields.inside("stream_options").only("include_obfuscation", False)
    fields.inside("reasoning").only("effort", "none")
    fields.only("background", False)
    fields.only("truncation", "disabled")
    fields.refuse(NOT_OFFERED, "leave it out")
    close(fields)
    return asked


def _logprobs(fields: Fields) -> dict[str, Any]:
    included = fields.texts("include", 16, 100)
    for number, name in enumerate(included):
        if name not in (LOGPROBS, REASONING):
            fields.unsupported(f"include[{number}]", f"is {shown(name)}, of which only {LOGPROBS} is supported here")
    asked = LOGPROBS in included
    return {"logprobs": asked, "top_logprobs": likeliest(fields, asked, f"{LOGPROBS} in include")}


def _input(fields: Fields, parts: Parts) -> list[dict[str, Any]]:
    if isinstance(fields.peek("input"), str):
        return [{"role": "user", "content": fields.take("input")}]
    listed = parts.objects(fields, "input")
    if not listed:
        fields.fail("input", "is empty, expected a text or at least one item")
    made: list[dict[str, Any]] = []
    for item in listed:
        kind = item.type(ITEMS, required=False) or "message"
        item.text("id")
        item.text("status")
        if kind == "message":
            role = item.choice("role", ROLES, required=True)
            item.text("phase")
            made.append({"role": system_role(role), "content": _content(item, "content", role, parts)})
        elif kind == "function_call":
            if not made or made[-1]["role"] != "assistant":
                made.append({"role": "assistant", "content": ""})
            parts.take_call(item, "call_id")
            call = past_call(item.text("name", required=True), item.arguments("arguments"))
            made[-1].setdefault("tool_calls", []).append(call)
        else:
            parts.take_result(item, "call_id")
            made.append({"role": "tool", "content": _content(item, "output", "user", parts)})
    return parts.in_order(made)


def _content(item: Fields, name: str, role: str, parts: Parts) -> Any:
    return parts.content(item, name, lambda part: _part(part, role, parts.pictures))


def _part(part: Fields, role: str, pictures: Pictures) -> dict[str, Any]:
    kind = part.type(PARTS)
    if kind == ("output_text" if role == "assistant" else "input_text"):
        if role == "assistant":
            part.list("logprobs", 10**7)  # of an answer that is sent back as it came
            part.refuse(("annotations",), "leave it out")
        return {"type": "text", "text": part.text("text", required=True)}
    if kind == "input_image" and role == "user":
        part.refuse(("file_id",), "no files are kept; send the picture as a data URI")
        made = pictures.from_url(part, "image_url", part.text("image_url", required=True))
        pictures.set_detail(part)
        return made
    if kind == "input_file" and role == "user":
        return pictures.from_file(part, by_address=True)
    part.fail("type", f"is {shown(kind)}; a message of role {role} may not hold it")
