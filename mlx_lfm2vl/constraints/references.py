"""Where the references and combinations of a schema lead: whether they end, how much they expand to, and which
objects have just the properties that they name. Bounded work for any schema that `check` lets pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Any

from .check import MAX_DEPTH, Pointer, children, pointer_text, refuse, target

MAX_EXPANDED, MAX_ALTERNATIVES = 20_000, 1000
MAX_COMBINED_PATTERNS = 16  # of the same text: to find out whether one matches all takes time exponential in them
SCALARS = frozenset(("null", "boolean", "integer", "number", "string"))
_OF_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")
_OPEN = {"additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}
# A schema with these words and without a type is meant for that type, though it lets every other value pass.
_IMPLIED = {"object": ("properties",), "array": ("items", "prefixItems")}
_SAY_WHAT = {"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"}
_NO_LEAP_SECOND = "^[^:]+:[^:]+:[0-5]"  # RFC 3339 has one at 23:59:60 UTC only, of whatever offset
Nodes = Mapping[Pointer, Any]


def check_references(nodes: Nodes) -> None:
    """Raises `ConstraintError` for a schema that leads back to itself without a level of JSON between, combines too
    many alternatives or patterns, or that no finite JSON is valid under. `nodes`: every schema by its place."""
    alternatives: dict[Pointer, int] = {}
    patterns: dict[Pointer, int] = {}
    expanded: dict[Pointer, int] = {}
    for pointer in _in_order(nodes):
        count, size, matching = 1, 1, int(isinstance(nodes[pointer], Mapping) and "pattern" in nodes[pointer])
        for group in _groups(nodes, pointer):
            count *= sum(alternatives[each] for each in group)
            size += sum(expanded[each] for each in group)
            matching += max(patterns[each] for each in group)
        if matching > MAX_COMBINED_PATTERNS:
            refuse(pointer, f"combines {matching} patterns, at most {MAX_COMBINED_PATTERNS} are held")
        if count > MAX_ALTERNATIVES or size > MAX_EXPANDED:
            refuse(pointer, f"combines to more than {MAX_ALTERNATIVES:,} alternatives or {MAX_EXPANDED:,} schemas")
        alternatives[pointer], expanded[pointer], patterns[pointer] = count, size, matching
    _check_finite(nodes)


def rewritten(nodes: Nodes, *, close: bool, base: str = "#") -> Any:
    """A copy of the schema at the top, as llguidance is given it.

    Args:
        nodes: every schema by its place.
        close: whether an object that names its properties has no others, unless `additionalProperties` or
            `patternProperties` says so, or it is combined with other schemas; and whether a schema with `properties`
            (`items`) that names no type, alone too, is one of objects (lists).
        base: where the copy will stand.
    """
    combined, exclusive = _combined(nodes), exclusive_places(nodes)

    def copied(value: Any, at: Pointer) -> Any:
        if isinstance(value, list):
            return [copied(each, (*at, str(number))) for number, each in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        made = {name: copied(each, (*at, name)) for name, each in value.items()}
        if at not in nodes:
            return made
        for name in ("$id", "$schema", "$anchor"):  # llguidance would look for references elsewhere, or read a draft
            made.pop(name, None)
        if "$ref" in made:
            made["$ref"] = base + place(exclusive, target(nodes[()], at, made["$ref"])[0])[1:]
        if at in exclusive:
            made["anyOf"] = made.pop("oneOf")
        if close and at not in combined and not _SAY_WHAT & made.keys():
            kinds = [kind for kind, words in _IMPLIED.items() if any(word in made for word in words)]
            made |= {"type": kinds[0] if len(kinds) == 1 else kinds} if kinds else {}
        plain = at not in combined and "properties" in made and not _OPEN & made.keys()
        if close and plain and made["properties"].keys() >= set(made.get("required", ())):
            made["additionalProperties"] = False
        if made.get("format") in ("time", "date-time"):
            made["allOf"] = [*made.get("allOf", ()), {"pattern": _NO_LEAP_SECOND}]
        return made

    return copied(nodes[()], ())


def place(exclusive: Set[Pointer], pointer: Pointer) -> str:
    """Where a schema stands in a copy that is `rewritten`, as a `$ref`. `exclusive`: as `exclusive_places` has them."""
    return pointer_text(
        tuple(
            "anyOf" if part == "oneOf" and pointer[:number] in exclusive else part
            for number, part in enumerate(pointer)
        )
    )


def exclusive_places(nodes: Nodes) -> frozenset[Pointer]:
    """The places where the schemas of a oneOf exclude each other by their types, or by the constants of a property that
    they require (a discriminator); then anyOf says the same."""
    return frozenset(pointer for pointer in nodes if _is_exclusive(nodes, pointer))


def _is_exclusive(nodes: Nodes, pointer: Pointer) -> bool:
    node = nodes[pointer]
    if not isinstance(node, Mapping) or "oneOf" not in node or "anyOf" in node:
        return False
    seen = [_traits(nodes, (*pointer, "oneOf", str(number))) for number in range(len(node["oneOf"]))]
    return all(_exclude(one, other) for one, other in combinations(seen, 2))


def _traits(nodes: Nodes, pointer: Pointer) -> dict[str | None, set[str]]:
    """Traits of a schema: the types (None), and as JSON the constants of each property that it requires."""
    node = nodes[pointer]
    while isinstance(node, Mapping) and "$ref" in node:
        pointer, node = target(nodes[()], pointer, node["$ref"])
    if not isinstance(node, Mapping):
        return {}
    made: dict[str | None, set[str]] = {}
    if "type" in node:
        kinds = {node["type"]} if isinstance(node["type"], str) else set(node["type"])
        made[None] = {"number" if kind == "integer" else kind for kind in kinds}
    if made.get(None) == {"object"}:
        for name in node.get("required", ()):
            own = node.get("properties", {}).get(name)
            if isinstance(own, Mapping) and ("const" in own or "enum" in own):
                values = [own["const"]] if "const" in own else own["enum"]
                made[name] = {_constant(value) for value in values}
    return made


def _constant(value: Any) -> str:
    """A constant as text: that of equal ones is the same."""
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, sort_keys=True)


def _exclude(one: dict[str | None, set[str]], other: dict[str | None, set[str]]) -> bool:
    return any(one[name].isdisjoint(other[name]) for name in one.keys() & other.keys())


def _combined(nodes: Nodes) -> set[Pointer]:
    """The places whose schemas are for values that others are for, too."""
    found: set[Pointer] = set()
    for pointer in reversed(_in_order(nodes)):
        groups = list(_groups(nodes, pointer))
        if pointer in found or len(groups) > 1 or (groups and any(word in nodes[pointer] for word in _OF_OBJECTS)):
            found.update(each for group in groups for each in group)
    return found


def _groups(nodes: Nodes, pointer: Pointer) -> Iterator[list[Pointer]]:
    """The schemas that the same value must be valid under too: one of each group."""
    node = nodes[pointer]
    if isinstance(node, bool):
        return
    if "$ref" in node:
        yield [target(nodes[()], pointer, node["$ref"])[0]]
    yield from ([(*pointer, "allOf", str(number))] for number in range(len(node.get("allOf", ()))))
    for keyword in ("anyOf", "oneOf"):
        if keyword in node:
            yield [(*pointer, keyword, str(number)) for number in range(len(node[keyword]))]


def _in_order(nodes: Nodes) -> list[Pointer]:
    """Every place, behind those of its groups. Raises `ConstraintError` for one that leads to itself."""
    inner = {pointer: [each for group in _groups(nodes, pointer) for each in group] for pointer in nodes}
    try:
        return list(TopologicalSorter(inner).static_order())
    except CycleError as error:
        cycle = set(error.args[1])
        first = next(pointer for pointer in nodes if pointer in cycle)
        refuse(first, "leads back to itself without a property or an item between")


def _check_finite(nodes: Nodes) -> None:
    finite: set[Pointer] = set()
    for _ in range(MAX_DEPTH):
        more = [each for each in reversed(list(nodes)) if each not in finite and _is_finite(nodes, each, finite)]
        if not more:
            break
        finite.update(more)
    else:
        refuse((), f"has references that lead through more than {MAX_DEPTH} levels")
    for pointer in _reachable(nodes):
        if pointer not in finite and (nodes[pointer] is not False or not pointer):
            refuse(pointer, "no finite JSON is valid under it")


def _is_finite(nodes: Nodes, pointer: Pointer, finite: set[Pointer]) -> bool:
    """Whether a value of finite size may be valid, as far as those `finite` are known to have one."""
    node = nodes[pointer]
    if isinstance(node, bool):
        return node
    if not all(any(each in finite for each in group) for group in _groups(nodes, pointer)):
        return False
    kinds = node.get("type", ["string"])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "enum" in node or "const" in node or kinds & SCALARS:
        return True
    return ("object" in kinds and _has_object(node, pointer, finite)) or (
        "array" in kinds and _has_array(node, pointer, finite)
    )


def _has_object(node: Mapping[str, Any], pointer: Pointer, finite: set[Pointer]) -> bool:
    for name in node.get("required", ()):
        named = name in node.get("properties", ())
        at = (*pointer, "properties", name) if named else (*pointer, "additionalProperties")
        if (named or "additionalProperties" in node) and at not in finite and "patternProperties" not in node:
            return False
    return True


def _has_array(node: Mapping[str, Any], pointer: Pointer, finite: set[Pointer]) -> bool:
    least, first = int(node.get("minItems", 0)), len(node.get("prefixItems", ()))
    needed = [(*pointer, "prefixItems", str(number)) for number in range(min(least, first))]
    needed += [(*pointer, "items")] if least > first and "items" in node else []
    return all(at in finite for at in needed)


def _reachable(nodes: Nodes) -> Iterator[Pointer]:
    """The places that an answer may come to: not those of definitions that nothing refers to."""
    seen: set[Pointer] = set()
    waiting: list[Pointer] = [()]
    while waiting:
        pointer = waiting.pop()
        if pointer in seen:
            continue
        seen.add(pointer)
        yield pointer
        waiting += [each for group in _groups(nodes, pointer) for each in group]
        for at, _ in children(pointer, nodes[pointer]):
            if at[len(pointer)] not in ("$defs", "definitions"):
                waiting.append(at)
