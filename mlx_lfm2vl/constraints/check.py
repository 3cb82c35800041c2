"""Limits of a form: its keywords, sizes and depth. Bounded work for any input, and no MLX and no llguidance.

The keywords are those of JSON Schema 2020-12 that llguidance holds exactly. Others that restrict are refused by name
and place; annotations, and words that JSON Schema does not know, restrict nothing and are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import comb
from typing import Any, NoReturn
from urllib.parse import quote, unquote

from ..config.files import finite_number, no_number
from ..errors import ConstraintError
from .pattern_size import MAX_REPEATED, pattern_size

MAX_SCHEMA, MAX_GRAMMAR, MAX_PATTERN = 2**18, 2**18, 2**14  # characters
MAX_DEPTH, MAX_NODES = 64, 20_000  # of a schema
MAX_PROPERTIES = 1000  # of one object
MAX_ONE_OF = 100  # schemas of a oneOf, which must exclude each other
MAX_PATTERNS = 100  # of one object; in the whole schema, as many pairs of them
MAX_MULTIPLES = 50  # different ones in a schema
MAX_CHOICES = 4096
MAX_COUNT = 2**16  # items, characters or properties that a bound may name
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_BOUNDS = ("maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties")
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_UNHELD = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "additionalItems"),
        *("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "x-guidance"),
    )
)
Pointer = tuple[str, ...]


def check_form(kind: str, value: Any, separators: Any) -> None:
    """Raises `ConstraintError` for fields of a `ResponseFormat` that make no sense."""
    if kind in ("json_schema", "json_object"):
        _check_separators(separators)
        _check_text("the JSON schema", value, MAX_SCHEMA)
    elif kind == "regex":
        _check_text("regex", value, MAX_PATTERN)
    elif kind == "grammar":
        _check_text("grammar", value, MAX_GRAMMAR)
    elif kind == "choice":
        _check_choice(value)
    else:
        raise ConstraintError(f"kind is {kind!r}, expected json_schema, json_object, regex, choice or grammar")


def _check_text(name: str, text: object, limit: int) -> None:
    """Raises `ConstraintError` unless it is a text of at most `limit` characters that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ConstraintError(f"{name} is {type(text).__name__}, expected text")
    if len(text) > limit:
        raise ConstraintError(f"{name} has {len(text):,} characters, at most {limit:,} are held")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConstraintError(f"{name} has half of a surrogate pair, which is no character")
    if "\0" in text:
        raise ConstraintError(f"{name} has a NUL character")


def _check_separators(separators: object) -> None:
    """Raises `ConstraintError` unless they are a tuple of a comma and a colon, with spaces or line breaks around."""
    good = isinstance(separators, tuple) and len(separators) == 2
    if not good or any(
        not isinstance(text, str) or text.strip(" \t\r\n") != mark or len(text) > 64
        for text, mark in zip(separators, ",:", strict=True)  # type: ignore[call-overload]
    ):
        raise ConstraintError(f"separators are {separators!r}, expected a tuple of a comma and a colon, with blanks")


def _check_choice(texts: Any) -> None:
    if not isinstance(texts, tuple) or not texts:
        raise ConstraintError("choice has no texts, expected at least one")
    if len(texts) > MAX_CHOICES:
        raise ConstraintError(f"there are {len(texts):,} choices, at most {MAX_CHOICES:,} are held; write a grammar")
    for text in texts:
        _check_text("a choice", text, MAX_PATTERN)
        if not text:
            raise ConstraintError("a choice is empty; leave it out")
    if sum(map(len, texts)) > MAX_GRAMMAR:
        raise ConstraintError(f"the choices have more than {MAX_GRAMMAR:,} characters together")


def checked_schema(text: str) -> dict[Pointer, Any]:
    """Every schema in the schema of a JSON text by its place, that of the whole first; `uniqueItems: false`, which
    says nothing, is left out. Raises `ConstraintError` naming the keyword and its place."""
    try:
        schema = json.loads(text, parse_constant=no_number, parse_float=finite_number, object_pairs_hook=_object)
    except RecursionError:
        raise ConstraintError(f"the JSON schema has more than {MAX_DEPTH} levels") from None
    except ValueError as error:
        if isinstance(error, ConstraintError):
            raise
        raise ConstraintError(f"the JSON schema is no JSON: {error}") from None
    _check_size(schema)
    _check_text("the JSON schema", json.dumps(schema, ensure_ascii=False), MAX_GRAMMAR * 2)  # escapes are characters
    schema = {} if schema is True else schema
    nodes: dict[Pointer, Any] = {}
    waiting: list[tuple[Pointer, Any]] = [((), schema)]
    pairs = 0
    while waiting:
        pointer, node = waiting.pop()
        if pointer in nodes:
            continue
        if not isinstance(node, (dict, bool)):
            refuse(pointer, f"is {_kind(node)}, expected a schema (an object, true or false)")
        nodes[pointer] = node
        _check_node(pointer, node)
        if isinstance(node, dict) and isinstance(node.get("patternProperties"), dict):
            pairs += comb(len(node["patternProperties"]), 2)
            if pairs > comb(MAX_PATTERNS, 2):
                refuse(
                    (*pointer, "patternProperties"),
                    f"each pattern is compared with each other one, so at most {MAX_PATTERNS} are held, or as many "
                    "pairs in all objects",
                )
        waiting.extend(reversed(list(children(pointer, node))))
        if isinstance(node, dict) and "$ref" in node:
            waiting.append(target(schema, pointer, node["$ref"]))  # it may be where no schema would be looked for
    return nodes


def children(pointer: Pointer, node: Any) -> Iterator[tuple[Pointer, Any]]:
    """The schemas right within one. Raises `ConstraintError` where a keyword does not hold schemas."""
    if isinstance(node, bool):
        return
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        if keyword in node:
            if not isinstance(node[keyword], Mapping):
                refuse((*pointer, keyword), f"is {_kind(node[keyword])}, expected an object of schemas")
            if len(node[keyword]) > MAX_PROPERTIES:
                refuse((*pointer, keyword), f"has {len(node[keyword]):,} schemas, at most {MAX_PROPERTIES:,} are held")
            yield from (((*pointer, keyword, name), each) for name, each in node[keyword].items())
    for keyword in ("prefixItems", "allOf", "anyOf", "oneOf"):
        if keyword in node:
            if not isinstance(node[keyword], list) or not node[keyword]:
                refuse((*pointer, keyword), f"is {_kind(node[keyword])}, expected a list of schemas, not empty")
            if keyword == "oneOf" and len(node[keyword]) > MAX_ONE_OF:
                refuse(
                    (*pointer, keyword), f"has {len(node[keyword]):,} schemas, at most {MAX_ONE_OF} are held; use anyOf"
                )
            yield from (((*pointer, keyword, str(number)), each) for number, each in enumerate(node[keyword]))
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            if keyword == "items" and isinstance(node[keyword], list):
                refuse((*pointer, keyword), "is a list, which 2020-12 calls prefixItems")
            yield (*pointer, keyword), node[keyword]


def target(schema: Any, pointer: Pointer, reference: str) -> tuple[Pointer, Any]:
    """The place and schema that a `$ref` names. Raises `ConstraintError`."""
    if not (reference == "#" or reference.startswith("#/")):
        refuse((*pointer, "$ref"), f"is {reference!r}; only places in the same schema are held, as #/$defs/name")
    parts = tuple(unquote(part).replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/"))
    parts, node = parts if reference != "#" else (), schema
    for part in parts:
        if isinstance(node, list) and part.isascii() and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            refuse((*pointer, "$ref"), f"names {reference!r}, which is not there")
    return parts, node


def refuse(pointer: Pointer, why: str) -> NoReturn:
    """Raises `ConstraintError` for a place in a schema."""
    raise ConstraintError(f"JSON schema, {unquote(pointer_text(pointer))[:500]}: {why}")


def pointer_text(pointer: Pointer) -> str:
    """A place as a `$ref` names it: `#/properties/name`."""
    return "#" + "".join("/" + quote(part.replace("~", "~0").replace("/", "~1"), safe="~$") for part in pointer)


def _check_node(pointer: Pointer, node: Any) -> None:
    if isinstance(node, bool):
        return
    for keyword in node:
        if keyword in _UNHELD:
            refuse((*pointer, keyword), f'the keyword "{keyword}" cannot be held')
        if keyword == "$id" and pointer:
            refuse((*pointer, keyword), 'the keyword "$id" is held at the top only')
    for keyword, (is_right, words) in _VALUES.items():
        if keyword in node and not is_right(node[keyword]):
            refuse((*pointer, keyword), f"is {_kind(node[keyword])}, expected {words}")
    if node.pop("uniqueItems", False):
        refuse((*pointer, "uniqueItems"), 'the keyword "uniqueItems" cannot be held')
    patterns = node.get("patternProperties")
    named = [(("patternProperties", name), name) for name in (patterns if isinstance(patterns, Mapping) else ())]
    for place, pattern in [(("pattern",), node.get("pattern", "")), *named]:
        if pattern_size(pattern) > MAX_REPEATED:
            refuse((*pointer, *place), f"repeats parts more than {MAX_REPEATED:,} times in all; use smaller counts")
    if "format" in node and node["format"] not in FORMATS:
        refuse((*pointer, "format"), f"the format {node['format']!r} cannot be held; those are {', '.join(FORMATS)}")
    if node.get("minProperties", 0) > len(node.get("required", ())):
        refuse((*pointer, "minProperties"), "cannot be held beyond the keys that required names, as a key may repeat")
    for keyword in ("const", "enum"):
        if keyword in node and not _exact(node[keyword]):
            refuse((*pointer, keyword), "has a number beyond 2^53, which JSON does not hold exactly")


def _exact(value: Any) -> bool:
    """Whether every number in a value is one that all readers of JSON agree on."""
    if isinstance(value, (dict, list)):
        return all(map(_exact, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (str, bool)) or value is None or abs(value) <= 2**53


def _are_types(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in TYPES for name in names)


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_bounded(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e15


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


_TEXT = (lambda value: isinstance(value, str), "text")
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {  # what is right, and how it is called
    **dict.fromkeys(_BOUNDS, (_is_count, f"a whole number from 0 to {MAX_COUNT:,}")),
    **dict.fromkeys(NUMBERS, (_is_bounded, "a number, at most 10^15 in size")),
    "multipleOf": (lambda value: _is_bounded(value) and value > 0, "a number above 0"),
    "type": (_are_types, f"one or several of {', '.join(TYPES)}"),
    "required": (_are_names, "a list of different names"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list that is not empty"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(("pattern", "format", "$ref", "$id", "$schema", "$anchor", "$comment"), _TEXT),
}


def _kind(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return ("an object" if isinstance(value, Mapping) else "a list") if value else "empty"
    return json.dumps(value, ensure_ascii=False)[:100]


def _check_size(schema: Any) -> None:
    count, level = 0, [schema]
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_NODES:
            refuse((), f"has more than {MAX_NODES:,} values")
        level = [
            inner
            for each in level
            if isinstance(each, (Mapping, list))
            for inner in (each.values() if isinstance(each, Mapping) else each)
        ]
        if not level:
            return
    refuse((), f"has more than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ConstraintError(f"the JSON schema has the key {twice[:100]!r} twice in one object")
    return made
