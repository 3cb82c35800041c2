"""Fields of a JSON schema, filled from pictures.

All pictures are asked about together. A recipe asks in one of three ways: with the schema in the prompt, with a list of
the fields in the system prompt, or with one question a field, which is the field's description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from ..constraints.check import refuse
from ..constraints.response_format import ResponseFormat
from ..errors import AnswerError, OptionError
from ..generation.request import GenerationRequest
from . import answer_json
from .results import Size
from .task import Task, together

Schema = Mapping[str, Any]
_WORDS = ("description", "title", "default", "examples", "$comment")  # that restrict nothing
_WHOLE = {"type", "properties", "required", "additionalProperties", "$schema", "$id", "$defs", *_WORDS}
_QUESTION = {"type", "enum", *_WORDS}  # of a field that is asked for, and above of the schema around it
_NUMBERS = {"integer": "-?[0-9]{1,15}", "number": r"-?[0-9]{1,15}(\.[0-9]{1,15})?"}
_ARTICLE = re.compile(r"(an?|the) +")


@dataclass(frozen=True)
class ExtractTask(Task[dict[str, Any]]):
    """An object of a schema. `schema` is a JSON schema with "properties", as a mapping, as text, the path of a file of
    it, or a class of pydantic's `BaseModel`; afterwards it is a mapping. Where it says nothing of them, all properties
    are required, and no others may come."""

    max_tokens: ClassVar[int] = 2048
    partial: ClassVar[bool] = False

    schema: Any

    def __post_init__(self) -> None:
        if self.recipe.extract is None:
            self._unknown("extraction")
        object.__setattr__(self, "schema", object_schema(self.schema))
        if self.recipe.extract == "questions":
            _check_questions(self.schema)

    def questions(self, pictures: Iterable[Image.Image]) -> list[GenerationRequest]:
        pictures = list(pictures)
        properties = self.schema["properties"]
        if self.recipe.extract == "questions":
            fields = properties.items()
            return [together(pictures, _described(name, field), form=_question_form(field)) for name, field in fields]
        form = ResponseFormat.json_schema(self.schema)
        if self.recipe.extract == "fields":
            return [together(pictures, "", "\n".join(_lines(properties)), form)]
        asked = f"Fill in this JSON schema from the image. Answer with the JSON only.\n{form.value}"
        return [together(pictures, asked, form=form)]

    def result(self, sizes: Sequence[Size], found: Sequence[str]) -> dict[str, Any]:
        """The object. That it holds to the schema is what generation sees to; here it is an object of JSON."""
        if self.recipe.extract == "questions":
            fields = self.schema["properties"].items()
            return {name: _answer(name, field, text) for (name, field), text in zip(fields, found, strict=True)}
        return answer_json.value(found[0])


def object_schema(schema: Any) -> dict[str, Any]:
    """The schema of an object as `ExtractTask` asks for it, closed where it says nothing of it.

    Args:
        schema: as for `ExtractTask`.

    Raises:
        OptionError: it is none of an object with properties.
        ConstraintError: it cannot be held.
    """
    given = json.loads(str(ResponseFormat.json_schema(schema).value))
    properties = given.get("properties") if isinstance(given, Mapping) else None
    if not isinstance(properties, Mapping) or not properties or given.get("type", "object") != "object":
        raise OptionError('schema: expected a JSON schema of an object, with "properties"')
    made = {"type": "object", "required": list(properties), "additionalProperties": False} | given
    for name, field in properties.items():
        if not isinstance(field, Mapping):
            refuse(("properties", name), f"is {json.dumps(field)}, expected an object")
    ResponseFormat.json_schema(made)
    return made


def _described(name: str, field: Schema) -> str:
    """The contents of a field, on one line: its description, else its title or its name in words."""
    text = field.get("description") or field.get("title") or name.replace("_", " ")
    return " ".join(str(text).split())


def _lines(properties: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Fields as lines `name: description`; those of an object within are below it, indented. Values that are given to
    choose from stand behind the description."""
    lines = []
    for name, field in properties.items():
        inner = field.get("properties") if isinstance(field, Mapping) else None
        if isinstance(inner, Mapping):
            lines += [f"{'  ' * depth}{name}:", *_lines(inner, depth + 1)]
            continue
        choices = [str(value) for value in field.get("enum", ())] if isinstance(field, Mapping) else []
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else "".join(choices)
        lines.append(f"{'  ' * depth}{name}: {_described(name, field)}{f', select from {listed}' if listed else ''}")
    return lines


def _check_questions(schema: Schema) -> None:
    """Raises `ConstraintError` for a schema that one question a field cannot fill."""
    properties = schema["properties"]
    if unheld := sorted(schema.keys() - _WHOLE):
        refuse((unheld[0],), "this model answers a question a field, and cannot be held to it")
    if unnamed := [name for name in schema["required"] if name not in properties]:
        refuse(("required",), f"this model answers a question a field, and {unnamed[0]!r} is none of the properties")
    for name, field in properties.items():
        good = field.get("type") in ("string", "integer", "number", "boolean")
        if "enum" in field:
            good = isinstance(field["enum"], (list, tuple)) and all(isinstance(each, str) for each in field["enum"])
        if not good:
            wanted = "the type string, integer, number or boolean, or an enum of strings"
            refuse(("properties", name), f"this model answers a question a field; expected {wanted}")
        if unheld := sorted(field.keys() - _QUESTION):
            refuse(("properties", name, unheld[0]), "this model answers a question a field, and cannot be held to it")


def _question_form(field: Schema) -> ResponseFormat | None:
    """The form of an answer to a field's question; a value to choose stands alone or in a short sentence."""
    if "enum" in field:
        texts = [form for value in field["enum"] for form in (value, f"A {value}.", f"An {value}.", f"{value}.")]
        return ResponseFormat.choice([text[0].upper() + text[1:] for text in texts if text] + texts)
    if field["type"] == "string":
        return None
    pattern = _NUMBERS.get(field["type"], r"(Yes|No)(, [^.\n]{1,80})?")
    return ResponseFormat.regex(rf"{pattern}\.?")


def _answer(name: str, field: Schema, text: str) -> Any:
    """The value in the answer to a field's question. Raises `AnswerError`."""
    said = text.strip().removesuffix(".")
    if "enum" in field:
        bare = _ARTICLE.sub("", said.lower(), count=1) if _ARTICLE.match(said.lower()) else said.lower()
        for value in field["enum"]:
            if value.lower() in (said.lower(), bare):
                return value
    elif field["type"] == "string":
        return said
    elif field["type"] == "boolean":
        if word := re.match(r"(yes|no)\b", said, re.I):
            return word[0].lower() == "yes"
    elif re.fullmatch(_NUMBERS[field["type"]], said):
        return int(said) if field["type"] == "integer" else float(said)
    expected = f"one of {', '.join(field['enum'])}" if "enum" in field else f"a value of type {field['type']}"
    raise AnswerError(f"answer to the field {name}: expected {expected}, found {text[:40]!r}")
