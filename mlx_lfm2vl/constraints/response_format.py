"""The form of an answer, as one frozen object. What cannot be held is refused when the object is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ..errors import ConstraintError, first_line
from . import check
from .grammar import checked_grammar

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
SEPARATORS = (", ", ": ")  # as `json.dumps` writes them


@dataclass(frozen=True)
class ResponseFormat:
    """The form that an answer holds to. Make it by one of the class methods.

    Attributes:
        kind: what `value` is.
        value: the schema as JSON text, the regular expression, the texts to choose from, or the grammar.
        separators: between items and behind keys in JSON, as those of `json.dumps`.
    """

    kind: Kind
    value: str | tuple[str, ...] = ""
    separators: tuple[str, str] = SEPARATORS

    def __post_init__(self) -> None:
        check.check_form(self.kind, self.value, self.separators)
        _ = self.grammar_text

    @property
    def grammar_text(self) -> str:
        """The form as llguidance's grammar."""
        return checked_grammar(self.kind, self.value, self.separators)

    @classmethod
    def json_schema(cls, schema: Any, *, separators: tuple[str, str] = SEPARATORS) -> Self:
        """JSON that is valid under a schema; keys come in the order in which the schema names them.

        Args:
            schema: a mapping, JSON text, the path of a file of it, or a class of pydantic's `BaseModel`.
            separators: between items and behind keys.

        Raises:
            ConstraintError: for a schema that cannot be held; it names the keyword and its place as a JSON pointer.
        """
        return cls("json_schema", _json_text(schema), separators)

    @classmethod
    def json_object(cls, *, separators: tuple[str, str] = SEPARATORS) -> Self:
        """Any JSON object."""
        return cls("json_object", '{"type": "object"}', separators)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        r"""A text that a regular expression matches as a whole. Its syntax is that of Rust's crate regex: Python's
        without look-around and back references; `\d` is 0 to 9. Raises `ConstraintError`."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Iterable[str]) -> Self:
        """One of several texts. Raises `ConstraintError`."""
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise ConstraintError(f"choice is {type(texts).__name__}, expected several texts")
        given = tuple(texts)
        if wrong := [text for text in given if not isinstance(text, str)]:
            raise ConstraintError(f"a choice is {type(wrong[0]).__name__}, expected text")
        return cls("choice", tuple(dict.fromkeys(given)))

    @classmethod
    def grammar(cls, text: str | os.PathLike[str]) -> Self:
        """A text that a context-free grammar derives from `start`, in llguidance's dialect of Lark; or from `root`, in
        llama.cpp's EBNF (GBNF), which is told by its `::=`. A path is read. Raises `ConstraintError`."""
        return cls("grammar", read_text(text) if isinstance(text, os.PathLike) else text)

    @classmethod
    def of(cls, given: Any) -> Self | None:
        """A form from what a caller gives.

        Args:
            given: a `ResponseFormat`; None or `{"type": "text"}`, which are no form; OpenAI's `{"type": "json_object"}`
                and `{"type": "json_schema", "json_schema": {"schema": ...}}`; alike `{"type": "regex", "regex": ...}`,
                "choice" and "grammar"; else what `json_schema` takes.

        Raises:
            ConstraintError
        """
        if given is None or isinstance(given, cls):
            return given
        if not isinstance(given, (Mapping, str, os.PathLike, bool, type)):
            raise ConstraintError(
                f"response_format is {type(given).__name__}, expected a ResponseFormat, a JSON schema as a mapping, "
                "text or file, or a pydantic model"
            )
        if not isinstance(given, Mapping) or given.get("type") not in _TYPES:
            return cls.json_schema(given)
        kind = given["type"]
        if kind == "text":
            return None
        if kind == "json_object":
            return cls.json_object()
        if kind not in given:
            raise ConstraintError(f'response_format of type "{kind}" needs the field "{kind}"')
        value = given[kind]
        if kind == "json_schema":
            if not isinstance(value, Mapping) or "schema" not in value:
                raise ConstraintError('response_format: "json_schema" needs an object with the field "schema"')
            schema = value["schema"]
            if isinstance(schema, (str, os.PathLike)) and not is_json(schema):  # a request names no file
                raise ConstraintError('response_format: "schema" is no object, expected a JSON schema')
            return cls.json_schema(schema)
        make = {"regex": cls.regex, "choice": cls.choice, "grammar": cls.grammar}[kind]
        return make(value)


def embedded_schema(schema: Any) -> str:
    """A schema as the JSON text that `%json` takes within a grammar: it holds just what `ResponseFormat.json_schema`
    holds, with the same separators. Raises `ConstraintError`."""
    grammar = json.loads(ResponseFormat.json_schema(schema).grammar_text)
    return json.dumps(grammar["grammars"][0]["json_schema"])


_TYPES = ("text", "json_object", "json_schema", "regex", "choice", "grammar")  # no types of JSON Schema


def _json_text(schema: Any) -> str:
    """The schema as JSON text. Raises `ConstraintError`."""
    of_model = getattr(schema, "model_json_schema", None)  # pydantic's
    if isinstance(schema, type) and callable(of_model):
        schema = of_model()
    if isinstance(schema, str) and not schema.strip():
        raise ConstraintError("schema is empty; give a JSON schema, or the name of a file")
    if isinstance(schema, str) and not is_json(schema):
        schema = Path(schema)
    if isinstance(schema, os.PathLike):
        schema = read_text(schema)
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, (Mapping, bool)):
        raise ConstraintError(
            f"schema is {type(schema).__name__}, expected a JSON schema as a mapping, text or file, or a pydantic model"
        )
    try:
        return json.dumps(schema if isinstance(schema, bool) else dict(schema), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"the JSON schema is no JSON: {first_line(error)}") from None


def is_json(schema: object) -> bool:
    """Whether it is a text of JSON, of a schema or not, and not the name of a file."""
    if not isinstance(schema, str):
        return False
    text = schema.strip()
    return text.startswith(("{", "[", '"')) or text in ("true", "false", "null")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file of at most `MAX_GRAMMAR` bytes. Raises `ConstraintError`."""
    name = os.fspath(path)
    try:
        with open(os.path.expanduser(name), "rb") as file:
            data = file.read(check.MAX_GRAMMAR + 1)
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no text" if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConstraintError(f"{name[:200]}: cannot be read as a schema or grammar ({why})") from None
