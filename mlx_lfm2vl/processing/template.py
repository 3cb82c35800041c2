"""Chat templates: a conversation to one string, in jinja2's sandbox. The only importer of `jinja2`.

The environment is that of Hugging Face: blocks trimmed, loop controls, `raise_exception`, `strftime_now`, `tojson` that
keeps order and characters, `{% generation %}` blocks. Templates come with model folders and are not trusted: they see
plain data only, and a rendering that takes more than `MAX_STEPS` loop rounds and macro calls, or makes a text longer
than `MAX_CHARACTERS`, ends with `TemplateError`. (Memory is not bounded beyond that.)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from ..config import read_json
from ..errors import ConfigError, TemplateError
from .conversation import plain

MAX_STEPS = 200_000
MAX_CHARACTERS = 16_000_000
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for a message's reasoning


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A rendered conversation. `generation_spans`: (start, end) in characters of each `{% generation %}` block."""

    text: str
    generation_spans: tuple[tuple[int, int], ...] = ()


class ChatTemplate:
    """A compiled template with the tokens it may name. Safe to share between threads.

    `source` is the template's text; `special_tokens` maps names such as "bos_token" to tokens; `where` names the
    template in messages. Raises `TemplateError` if the text is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None, where: str = "chat template"):
        self.source, self.special_tokens, self.where = source, dict(special_tokens or {}), where
        try:
            self._template, self.variables, self.literal_text = _compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{where}: line {error.lineno}: {_line(error)}") from None
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise TemplateError(f"{where}: cannot be compiled ({_line(error)})") from None

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        tokenizer_template: Any = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, else chat_template.json, else `tokenizer_template`, the
        entry of tokenizer_config.json (a text, or a list of {"name", "template"} with one named "default").

        Raises `TemplateError` if there is none.
        """
        jinja_file, json_file = Path(folder) / "chat_template.jinja", Path(folder) / "chat_template.json"
        try:
            if jinja_file.is_file():
                return cls(jinja_file.read_text(encoding="utf-8"), special_tokens, str(jinja_file))
            if json_file.is_file():
                return cls(
                    _default(read_json(json_file).get("chat_template"), json_file), special_tokens, str(json_file)
                )
        except ConfigError as error:
            raise TemplateError(str(error)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{jinja_file}: cannot be read ({_line(error)})") from None
        config_file = Path(folder) / "tokenizer_config.json"
        if tokenizer_template is not None:
            return cls(_default(tokenizer_template, config_file), special_tokens, str(config_file))
        raise TemplateError(
            f"{jinja_file}: no such file, and {config_file.name} holds no chat_template either; pass chat_template="
        )

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
        """Renders a list of messages (mappings with "role" and "content").

        `tools` are JSON schemas. `continue_final_message` leaves the last message open at its end (True: its "content";
        or the name of another field). `variables` are given to the template and win over special tokens of that name.
        Raises `TemplateError`, with the template's own words where it refuses the conversation.
        """
        try:
            messages = [_message(message) for message in conversation]
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
        state = _State()
        token = _STATE.set(state)
        try:
            for piece in self._template.generate(**given):
                state.add(piece)
        except TemplateError as error:
            raise TemplateError(f"{self.where}: {error}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"{self.where}: {_line(error)}") from None
        except (RecursionError, MemoryError) as error:
            raise TemplateError(f"{self.where}: cannot be rendered ({type(error).__name__})") from None
        except Exception as error:  # a template computes on whatever the conversation holds
            raise TemplateError(f"{self.where}: cannot render this conversation ({_line(error)})") from None
        finally:
            _STATE.reset(token)
        text = "".join(state.pieces)
        if continue_final_message:
            text = self._cut(text, tail)
        return Rendered(text, tuple(state.spans))

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

    def _cut(self, text: str, tail: str) -> str:
        mark = text.rfind(_CONTINUE.strip())
        if mark < 0 or tail.strip() not in text:
            raise TemplateError(f"{self.where}: leaves out the end of the last message, so that it cannot be continued")
        kept = text[:mark]
        return kept if text.startswith(_CONTINUE, mark) else kept.rstrip()  # the template trimmed the message


@dataclasses.dataclass
class _State:
    """One rendering: what came out so far, and how much work it was."""

    pieces: list[str] = dataclasses.field(default_factory=list)
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    characters: int = 0
    steps: int = 0

    def add(self, piece: str) -> None:
        self.characters += len(piece)
        if self.characters > MAX_CHARACTERS:
            raise TemplateError(f"makes a text of more than {MAX_CHARACTERS:,} characters")
        self.pieces.append(piece)

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateError(f"takes more than {MAX_STEPS:,} steps; it may never end")


_STATE: ContextVar[_State] = ContextVar("rendering")


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body and notes where it stands in the text."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        state = _STATE.get()
        text = caller()
        state.spans.append((state.characters, state.characters + len(text)))
        return text


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with a count of steps and a limit on what `+` and `*` make."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        repeated: list[jinja2.nodes.For | jinja2.nodes.Macro] = [
            *tree.find_all(jinja2.nodes.For),
            *tree.find_all(jinja2.nodes.Macro),
        ]
        for node in repeated:
            step = jinja2.nodes.Filter(jinja2.nodes.Const(None), "step", [], [], None, None)
            node.body.insert(0, jinja2.nodes.ExprStmt(step).set_lineno(node.lineno))
        return tree

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            size = sum(len(side) for side in (left, right) if isinstance(side, (str, list, tuple)))
        elif operator == "*":
            sides = (left, right)
            repeated = max((len(side) for side in sides if isinstance(side, (str, list, tuple))), default=0)
            size = repeated * max((side for side in sides if isinstance(side, int)), default=0)
        else:
            size = 0 if abs(left) < 2**64 and abs(right) < 256 else MAX_CHARACTERS + 1
        if size > MAX_CHARACTERS:
            raise TemplateError(f"makes a value larger than {MAX_CHARACTERS:,}")
        return super().call_binop(context, operator, left, right)


class _Dict:
    """`dict(...)` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` that takes no names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace cannot hold {name!r}")


@jinja2.pass_context  # so that it is not taken for a constant
def _step(context: jinja2.runtime.Context, value: Any) -> None:
    _STATE.get().step()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: order and characters kept, nothing escaped for HTML, ", " and ": " between."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str], str]:
    """The template, the names that it expects from outside, and the text that it writes itself (parted by NUL)."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters.update(tojson=tojson, step=_step)
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    tree = environment.parse(source)
    constants = [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    literals = [*(node.data for node in tree.find_all(jinja2.nodes.TemplateData)), *constants]
    names = jinja2.meta.find_undeclared_variables(tree)
    return environment.from_string(source), frozenset(names), "\0".join(literals)


def _default(template: Any, file: Path) -> str:
    """The one template of an entry that may hold several by name."""
    if isinstance(template, str):
        return template
    named: dict[str, Any] = {}
    if isinstance(template, Mapping):
        named = dict(template)
    elif isinstance(template, list):
        named = {
            entry["name"]: entry.get("template") for entry in template if isinstance(entry, Mapping) and "name" in entry
        }
    if not isinstance(named.get("default"), str):
        raise TemplateError(
            f"{file}: chat_template has no template named 'default' (there are: {', '.join(named) or 'none'})"
        )
    return str(named["default"])


def _message(message: Any) -> dict[str, Any]:
    data = plain(message)
    if not isinstance(data, dict):
        raise TemplateError(f"a message must be a mapping with 'role' and 'content', got {type(message).__name__}")
    reasoning = next((data[name] for name in _REASONING if data.get(name) is not None), None)
    return data if reasoning is None else {"thinking": reasoning, **data, "reasoning_content": reasoning}


def _line(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
