"""Chat templates: a conversation to one string.

Templates come with model folders and are not trusted. They run in a sandbox (sandbox.py) and see plain data only. One
that takes too long or makes too large a text ends with `TemplateError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import read_json, read_text
from ..errors import ConfigError, TemplateError
from .control_tokens import plain
from .conversation import CALL_END, CALL_START
from .sandbox import Rendered, compiled

JINJA_FILE = "chat_template.jinja"
MORE = "additional_chat_templates/*.jinja"
TOKENIZER_FILE = "tokenizer_config.json"
PROCESSOR_PLACES = ("processor_config.json", "chat_template.json", JINJA_FILE, TOKENIZER_FILE)  # in transformers' order
TOKENIZER_PLACES = (JINJA_FILE, TOKENIZER_FILE, "chat_template.json", "processor_config.json")  # there the first two
TURN_END = "<|im_end|>"
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
_READS_FUNCTION = re.compile(r"""\.function\b|["']function["']""")  # of a tool call, as OpenAI nests it
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for a message's reasoning


class ChatTemplate:
    """A compiled template with the tokens it may name. Safe to share between threads.

    `source` is the template's text; `special_tokens` maps names such as "bos_token" to tokens; `where` names the
    template in messages. Raises `TemplateError` if the text is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None, where: str = "chat template"):
        self.source, self.special_tokens, self.where = source, dict(special_tokens or {}), where
        try:
            self._program = compiled(source)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from None
        self._needing_content: dict[str, bool] = {}  # roles, as they are asked for
        self.variables, self.literal_text = self._program.variables, self._program.literal_text

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        tokenizer_template: Any = None,
        special_tokens: Mapping[str, str] | None = None,
        wanted: str | None = None,
        with_tools: bool = False,
        places: Sequence[str] = PROCESSOR_PLACES,
    ) -> ChatTemplate:
        """The template of a model folder: that of the first of `places` which holds one.

        Args:
            folder: the model folder.
            tokenizer_template: the entry of tokenizer_config.json: a text, or a list of {"name", "template"} with one
                named "default".
            special_tokens: names such as "bos_token", and their tokens.
            wanted: a name of one of several templates, or a template's text, which is taken in place of the folder's.
            with_tools: take the one named "tool_use", if there is one.
            places: names of files; that of a processor goes before that of its tokenizer, as in transformers.

        Raises:
            TemplateError: there is none, or it is no template.
        """
        if wanted is not None and "{" in wanted:
            return cls(wanted, special_tokens)
        try:
            named, file = named_templates(Path(folder), tokenizer_template, places)
        except ConfigError as error:
            raise TemplateError(str(error)) from None
        name = "tool_use" if wanted is None and with_tools and "tool_use" in named else wanted
        if name is not None:
            return cls(named.get(name, name), special_tokens)
        if file is None:
            file = Path(folder) / JINJA_FILE
            raise TemplateError(
                f"{file}: no such file, and tokenizer_config.json holds no chat_template either; pass chat_template="
            )
        if "default" not in named:
            known = ", ".join(named) or "none"
            raise TemplateError(f"{file}: chat_template has no template named 'default' (there are: {known})")
        return cls(named["default"], special_tokens, str(file))

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, dict[str, str], str]]:
        return type(self), (self.source, self.special_tokens, self.where)  # a compiled template cannot be copied

    @property
    def marks_generation(self) -> bool:
        """Whether the template marks the assistant's words by `{% generation %}` blocks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(
        self,
        conversation: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> Rendered:
        """The conversation as one text.

        Args:
            conversation: messages, mappings with "role" and "content", in the spelling of `conversations_of`.
            tools: JSON schemas.
            documents: mappings, as the template wants them.
            add_generation_prompt: whether the text ends in the beginning of an answer.
            continue_final_message: leaves the last message open at its end. True means its "content", a name another
                field of it.
            variables: more for the template. They win over special tokens of that name.

        Raises:
            TemplateError: with the template's own words where it refuses the conversation.
        """
        try:
            messages = [self._message(message) for message in conversation]
            given = {
                **self.special_tokens,
                **plain(variables),
                "messages": messages,
                "tools": None if tools is None else plain(list(tools)),
                "documents": None if documents is None else plain(list(documents)),
                "add_generation_prompt": add_generation_prompt,
            }
        except RecursionError:
            raise TemplateError("the conversation is nested too deeply") from None
        tail = ""
        if continue_final_message:
            field = continue_final_message if isinstance(continue_final_message, str) else "content"
            if add_generation_prompt:
                raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
            tail = self._mark_end(messages, field)
        for tool in tools or ():
            if not isinstance(tool, Mapping):
                raise TemplateError(f"tools: expected JSON schemas (mappings), got {type(tool).__name__}")
        try:
            text, spans = self._program.render(given)
        except TemplateError as error:
            raise TemplateError(f"{self.where}: {error}") from None
        if continue_final_message:
            mark = text.rfind(_CONTINUE.strip())
            if mark < 0 or tail.strip() not in text:
                left_out = "leaves out the end of the last message, so that it cannot be continued"
                raise TemplateError(f"{self.where}: {left_out}")
            trimmed = not text.startswith(_CONTINUE, mark)  # by the template
            text = text[:mark].rstrip() if trimmed else text[:mark]
        return Rendered(text, spans)

    def _message(self, message: Any) -> dict[str, Any]:
        """A message as plain data, its reasoning under all names, and its tool calls as the template reads them, or in
        its content where it does not."""
        data = plain(message)
        if not isinstance(data, dict):
            raise TemplateError(f"a message must be a mapping with 'role' and 'content', got {type(message).__name__}")
        if "content" not in data and self._needs_content(data.get("role")):
            data["content"] = ""
        if "tool_calls" in data and _READS_FUNCTION.search(self.source):
            data["tool_calls"] = [_nested(call) for call in data["tool_calls"]]
        if data.get("role") == "assistant" and "tool_calls" in data and "tool_calls" not in self.source:
            calls, content = _written(data.pop("tool_calls")), data.get("content", "")
            if isinstance(content, str):
                thought, end, said = content.rpartition("</think>")
                data["content"] = thought + end + calls + said
            else:
                data["content"] = [{"type": "text", "text": calls}, *content]
        reasoning = next((data[name] for name in _REASONING if data.get(name) is not None), None)
        return data if reasoning is None else {"thinking": reasoning, **data, "reasoning_content": reasoning}

    def _needs_content(self, role: Any) -> bool:
        """Whether a turn of this role is closed if it has a content, be it empty, and not without one, as in the
        template of LFM2.5-VL-450M."""

        def closed(**content: str) -> int:
            call = {"type": "function", "function": {"name": "f", "arguments": {}}}
            message = {"role": role, **({"tool_calls": [call]} if role == "assistant" else {}), **content}
            given = {**self.special_tokens, "messages": [{"role": "user", "content": "x"}, message]}
            try:
                return self._program.render({**given, "tools": None, "documents": None})[0].count(TURN_END)
            except TemplateError:
                return -1

        if not isinstance(role, str):
            return False
        if role not in self._needing_content:
            self._needing_content[role] = closed(content="") > closed()
        return self._needing_content[role]

    def _mark_end(self, messages: list[dict[str, Any]], field: str) -> str:
        """Puts a mark behind the last message's text and returns that text."""
        if not messages or messages[-1].get(field) is None:
            raise TemplateError(f"continue_final_message: the last message has no {field!r} to continue")
        last, value = messages[-1], messages[-1][field]
        names = [name for name in _REASONING if last.get(name) == value] if field in _REASONING else [field]
        if not any(name in self.source for name in names):
            raise TemplateError(f"{self.where}: does not show {field!r}, so that it cannot be continued")
        if isinstance(value, str):
            last.update({name: value + _CONTINUE for name in names})
            return value
        for item in reversed(value if isinstance(value, (list, tuple)) else ()):
            if isinstance(item, dict) and isinstance(item.get("text"), str):
                text = str(item["text"])
                item["text"] = text + _CONTINUE
                return text
        raise TemplateError("continue_final_message: the last message has no text to continue")


def named_templates(
    folder: Path, tokenizer_template: Any, places: Sequence[str] = PROCESSOR_PLACES
) -> tuple[dict[str, str], Path | None]:
    """The templates of a model folder by name, and the file that holds the one named "default"; see
    `ChatTemplate.from_folder`. Raises `ConfigError`."""
    named: dict[str, str] = {}
    found = None
    for file in (folder / name for name in places):
        if file.name == TOKENIZER_FILE:
            template = tokenizer_template
        elif not file.is_file():
            template = None
        else:
            template = read_text(file) if file.name == JINJA_FILE else read_json(file).get("chat_template")
        if template is not None:
            named, found = _named(template), file
            break
    return named | {file.stem: read_text(file) for file in sorted(folder.glob(MORE))}, found


def _named(template: Any) -> dict[str, str]:
    """The templates of an entry by name: one text is "default"; a mapping, or a list of {"name", "template"}."""
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, Mapping) and isinstance(entry.get("name"), str))
        template = {entry["name"]: entry.get("template") for entry in entries}
    named = dict(template) if isinstance(template, Mapping) else {"default": template}
    return {name: text for name, text in named.items() if isinstance(text, str)}


def _nested(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with "function" around its name and arguments."""
    if "function" in call:
        return call
    beside = {key: value for key, value in call.items() if key not in ("name", "arguments")}
    return {"type": "function", **beside, "function": {"name": call["name"], "arguments": call["arguments"]}}


def _written(calls: Sequence[Mapping[str, Any]]) -> str:
    """Tool calls as LFM2 models write them, `<|tool_call_start|>[name(a="x", n=3)]<|tool_call_end|>`."""
    functions = [call.get("function", call) for call in calls]
    texts = [
        f"{function.get('name')}({', '.join(f'{name}={_literal(v)}' for name, v in function['arguments'].items())})"
        for function in functions
    ]
    return f"{CALL_START}[{', '.join(texts)}]{CALL_END}"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, list, tuple, dict)) else str(value)
