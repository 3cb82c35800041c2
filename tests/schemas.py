"""JSON schemas of the kinds that JSON Schema's public test suite has, written for these tests, and random ones of them.

Every one can be held. Texts and lists are bounded, as random weights hardly ever end one.
"""

import random
from typing import Any

Schema = dict[str, Any]
SHORT = {"type": "string", "maxLength": 3}
KINDS: dict[str, list[Schema]] = {
    "type": [*({"type": kind} for kind in ("null", "boolean", "integer", "number")), {"type": ["integer", "null"]}],
    "enum": [
        {"enum": [1, "a", None, {"x": [1, 2.5]}, 'é\n"\\', "\u2028"]},
        {"enum": ["a", "bb", "ccc"], "minLength": 2},
    ],
    "const": [{"const": {"a": [1, True], "": None}}, {"const": 0.25}, {"const": "𝄞 </script>"}, {"const": -0.5}],
    "length": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "maxLength": 0}, SHORT],
    "pattern": [
        {"type": "string", "pattern": "^[a-c]{1,4}$"},
        {"type": "string", "pattern": "ab", "maxLength": 6},
        {"type": "string", "pattern": r"^\d{3}-\w$"},
        {"type": "string", "pattern": r'^["\\/]\n$'},
        {"type": "string", "pattern": "^(?:x|yz)+?$", "maxLength": 5},
        {"type": "string", "pattern": "^[\U0001f600-\U0001f64f]{1,2}$"},
    ],
    "format": [
        {"type": "string", "format": name} for name in ("date-time", "time", "date", "duration", "ipv4", "ipv6", "uuid")
    ],
    "bounds": [
        {"type": "integer", "minimum": -5, "maximum": 17},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        {"type": "number", "minimum": 0.5, "maximum": 1.25},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer", "minimum": 1.5, "maximum": 99},
    ],
    "multipleOf": [
        {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 100},
        {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
        {"type": "integer", "multipleOf": 2.5, "maximum": 99, "minimum": 0},
    ],
    "items": [
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
        {"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "null"}, "minItems": 2, "maxItems": 4},
        {"type": "array", "maxItems": 0},
        {"type": "array", "items": False},
    ],
    "properties": [
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": SHORT}, "required": ["a"]},
        {"type": "object", "properties": {'é "k"': {"type": "null"}, "a/b~c": {"type": "boolean"}, "": {}}},
        {"type": "object", "additionalProperties": False},
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
        {"type": "object", "patternProperties": {"^x.?$": {"type": "integer"}}, "additionalProperties": False},
        {"type": "object", "required": ["z"], "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
        {"type": "object", "required": ["a", "b"], "minProperties": 2, "properties": {"b": {"const": 1}, "a": {}}},
        {"type": ["object", "array"], "properties": {"a": {"const": 1}}, "required": ["a"], "items": {"const": 2}},
    ],
    "allOf": [
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "null"}}, "required": ["b"], "additionalProperties": {"maximum": 9}},
            ]
        },
    ],
    "anyOf": [
        {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 2}]},
        {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": -5}]},
        {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ],
    "oneOf": [
        {"oneOf": [{"type": "integer"}, SHORT, {"type": "null"}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": kind}, kind: own}, "required": ["kind", kind]}
                for kind, own in (("dot", {"type": "integer"}), ("line", {"type": "boolean"}))
            ]
        },
    ],
    "$ref": [
        {"$defs": {"low": {"type": "integer", "minimum": 3}}, "$ref": "#/$defs/low", "maximum": 5},
        {"$defs": {"a/b": {"type": "integer"}, "c%d": {"type": "null"}}, "anyOf": [{"$ref": "#/$defs/a~1b"}]},
        {"properties": {"a": {"type": "boolean"}, "b": {"$ref": "#/properties/a"}}, "type": "object"},
        {
            "definitions": {"x": {"enum": ["x", "y"]}},
            "type": "array",
            "items": {"$ref": "#/definitions/x"},
            "maxItems": 2,
        },
    ],
    "recursive": [
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "v": {"type": "boolean"},
                        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    },
                    "required": ["v", "next"],
                }
            },
            "$ref": "#/$defs/node",
        },
        {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}}},
    ],
    "annotations": [
        {"title": "t", "description": "d", "default": 3, "examples": [1], "type": "boolean", "uniqueItems": False}
    ],
}
PLAIN = [schema for kind, schemas in KINDS.items() if kind not in ("$ref", "recursive") for schema in schemas]


def random_schema(rng: random.Random, depth: int = 2) -> Schema:
    """One of `PLAIN`, or an object, a list or an alternative of several, at most `depth` levels of these."""
    shape = rng.choice(["object", "array", "anyOf", "plain"] if depth else ["plain"])
    if shape == "object":
        names = rng.sample(["name", "age", "größe", 'a "b"', "x/y", "tags", "id"], rng.randint(1, 4))
        made: Schema = {"type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names}}
        made["required"] = rng.sample(names, rng.randint(0, len(names)))
        return made | ({"additionalProperties": False} if rng.random() < 0.5 else {})
    if shape == "array":
        least = rng.randint(0, 2)
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": least, "maxItems": least + 1}
    if shape == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    return rng.choice(PLAIN)


def five_hundred() -> list[Schema]:
    """All of `KINDS`, and random ones, the same each time."""
    rng = random.Random(7)
    known = [schema for schemas in KINDS.values() for schema in schemas]
    return known + [random_schema(rng) for _ in range(500 - len(known))]
