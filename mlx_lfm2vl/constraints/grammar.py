"""A form to the text of a grammar, as llguidance reads it, with limits on what it may cost."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import ConstraintError, first_line
from .check import MAX_MULTIPLES, NUMBERS, Pointer, checked_schema, children, refuse
from .compiler_message import compiler_message
from .finish import finished_at_exit
from .lark import check_finite, check_has_text, first_error, followable
from .limits import limits
from .pattern_size import check_pattern
from .references import Nodes, check_references, exclusive_places, place, rewritten

_MOVED = "#/$defs/-"  # where `_innermost` looks at a schema
_LEAST_READ, _MOST_READ = 50_000, 1_500_000  # characters: what a look counts for at least, and all looks together
_SYNTAX = {
    "regex": "its syntax is that of Rust's crate regex, without look-around, back references and word boundaries",
    "grammar": "its syntax is llguidance's Lark, with a rule start, or llama.cpp's GBNF, with a rule root",
}
_BLAMED = (  # keywords that llguidance may find wrong, those first that are most likely meant
    *("pattern", "format", "multipleOf", "minLength", "minItems", "minimum", "exclusiveMinimum"),
    *("maxLength", "maxItems", "maximum", "exclusiveMaximum", "const", "enum"),
)
_EXCLUSIVE = "oneOf can be held only where its schemas exclude each other, by a type or a constant; use anyOf"


@finished_at_exit
@lru_cache(maxsize=64)
def checked_grammar(kind: str, value: str | tuple[str, ...], separators: tuple[str, str]) -> str:
    """The grammar of a form, of the fields of a `ResponseFormat`. Raises `ConstraintError` where llguidance cannot hold
    it."""
    if kind in ("json_schema", "json_object"):
        assert isinstance(value, str)
        return _of_schema(checked_schema(value), separators)
    text = _of_text(kind, value)
    if (why := _wrong(text, place=text == value)) is not None:
        hint = f"; {_SYNTAX[kind]}" if kind in _SYNTAX else ""
        raise ConstraintError(f"the {kind} cannot be held: {why.removeprefix(f'the {kind} ')}{hint}")
    if kind == "grammar":
        check_finite(text, start="start" if text == value else "root")
        text = followable(text)
    check_has_text(kind, text)
    return text


def _of_text(kind: str, value: str | tuple[str, ...]) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if isinstance(value, tuple):
        return LLMatcher.grammar_from_regex("|".join(map(_escaped, value)))
    if kind == "regex":
        check_pattern(value)
        return LLMatcher.grammar_from_regex(_ascii_digits(value))
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(value))
    except Exception as error:  # its parser raises just that
        raise ConstraintError(f"the grammar cannot be held: {first_line(error)}; {_SYNTAX['grammar']}") from None


def _ascii_digits(pattern: str) -> str:
    r"""The regular expression with `\d` as 0 to 9, as in a JSON schema's `pattern` and in JavaScript: not the digits of
    every script, of which each version of Unicode knows others."""
    classes = {r"\d": "[0-9]", r"\D": "[^0-9]"}
    return re.sub(r"\\.", lambda escape: classes.get(escape[0], escape[0]), pattern, flags=re.DOTALL)


def _escaped(text: str) -> str:
    """A regular expression for just this text."""
    return "".join("\\" + each if each in r"\.+*?()|[]{}^$#&-~/" else each for each in text)


def _of_schema(nodes: Nodes, separators: tuple[str, str]) -> str:
    """A JSON schema's grammar. It must hold before objects are closed, too: only then do schemas of a oneOf exclude
    each other."""
    check_references(nodes)
    _check_multiples(nodes)
    if (why := _wrong_json(_json_grammar(rewritten(nodes, close=False), separators))) is not None:
        refuse(*_innermost(nodes, why))
    text = _json_grammar(rewritten(nodes, close=True), separators)
    if (why := _wrong_json(text)) is not None:
        refuse((), why)
    return text


def _check_multiples(nodes: Nodes) -> None:
    """Raises `ConstraintError` for a multipleOf that no number between its bounds is one of, or that costs too much.
    An answer may come to its place late."""
    seen: set[str] = set()
    for pointer, node in nodes.items():
        if isinstance(node, bool) or "multipleOf" not in node:
            continue
        own = {name: node[name] for name in NUMBERS if name in node}
        grammar = _json_grammar({"type": "integer" if node.get("type") == "integer" else "number"} | own, (",", ":"))
        if grammar in seen:
            continue
        seen.add(grammar)
        if len(seen) > MAX_MULTIPLES:
            refuse((*pointer, "multipleOf"), f"is one more than the {MAX_MULTIPLES} different ones that are held")
        if (why := _wrong_json(grammar)) is not None:
            refuse((*pointer, "multipleOf"), why)


def _json_grammar(schema: Any, separators: tuple[str, str]) -> str:
    from llguidance import LLMatcher

    item, key = separators
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    )


def _innermost(nodes: Nodes, why: str) -> tuple[Pointer, str]:
    """The innermost place of a schema that is wrong by itself, and why; a place around it where finding it takes more
    than `_MOST_READ`. The schemas within one are halved until one is left."""
    copy, exclusive = rewritten(nodes, close=False, base=_MOVED), exclusive_places(nodes)
    read = 0

    def wrong(pointers: Sequence[Pointer]) -> str | None:
        nonlocal read
        parts = [{"$ref": _MOVED + place(exclusive, pointer)[1:]} for pointer in pointers]
        schema = parts[0] if len(parts) == 1 else {"type": "array", "prefixItems": parts, "minItems": len(parts)}
        text = _json_grammar({**schema, "$defs": {"-": copy}}, (",", ":"))
        read += max(len(text), _LEAST_READ)
        return _wrong_json(text)

    found: Pointer = ()
    while read < _MOST_READ:
        left, inner = [pointer for pointer, node in children(found, nodes[found]) if node is not False], None
        while len(left) > 1:
            first, second = left[: len(left) // 2], left[len(left) // 2 :]
            inner = wrong(first)
            left = second if inner is None else first
        if left and inner is None:
            inner = wrong(left)
        if inner is None:
            break
        found, why = left[0], inner
    return (*found, *_keyword(nodes[found])), why


def _keyword(node: Any) -> Pointer:
    """The keyword of a schema that is wrong by itself, or with another one beside it; () where it is none."""
    own = {name: value for name, value in node.items() if name in _BLAMED} if isinstance(node, dict) else {}
    own |= {"type": node["type"]} if own and "type" in node else {}

    def wrong(schema: dict[str, Any]) -> bool:
        return _wrong_json(_json_grammar(schema, (",", ":"))) is not None

    if wrong(own):
        rests = {keyword: {name: value for name, value in own.items() if name != keyword} for keyword in own}
        return next(((keyword,) for keyword in _BLAMED if keyword in own and not wrong(rests[keyword])), ())
    names = node.get("patternProperties", {}) if isinstance(node, dict) else {}
    return next((("patternProperties", name) for name in names if wrong({"type": "string", "pattern": name})), ())


def _wrong_json(grammar: str) -> str | None:
    """Why the grammar of a JSON schema cannot be held, also in the first steps of an answer."""
    return _wrong(grammar) or first_error(grammar)


def _wrong(grammar: str, *, place: bool = False) -> str | None:
    """Why llguidance cannot hold a grammar, on one line; None if it can. `place`: whether the user wrote its lines."""
    from llguidance import LLMatcher

    wrong, lines = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    if not wrong:
        return None
    why = compiler_message("\n".join(lines), place=place)
    return _EXCLUSIVE if why.startswith("oneOf constraints") else why
