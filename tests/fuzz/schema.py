"""Schemas, regular expressions, choices and grammars: compiled, and followed by a short answer, which must be valid."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from schemas import KINDS

from mlx_lfm2vl.constraints.compile import compile_grammar
from mlx_lfm2vl.constraints.response_format import ResponseFormat
from mlx_lfm2vl.errors import ConstraintError
from mlx_lfm2vl.processing.tokenizer import Tokenizer

from .entrance import Entrance
from .folders import GOLDEN

KEYWORDS = sorted(
    {keyword for schemas in KINDS.values() for schema in schemas for keyword in schema}
    | {"not", "if", "uniqueItems", "$id", "$anchor", "dependentRequired", "contains", "propertyNames", "nullable"}
)
VALUES = (
    *("0", "1", "-1", "2.5", "1e300", "1180591620717411303424", "true", "false", "null"),
    *('""', '"a"', '"#"', '"^(a|b)*$"', '"["', "[]", "[0]", "{}", '{"": {}}', '["a"]'),
)
OTHERS: dict[str, Any] = {
    "regex": {"type": "regex", "regex": r"(a|b)*c{2,5}[^\d]?"},
    "choice": {"type": "choice", "choice": ["yes", "no", "é"]},
    "lark": {"type": "grammar", "grammar": 'start: item ("," item)*\nitem: /[a-z]+/ | "(" start ")"'},
    "terminals": {
        "type": "grammar",
        "grammar": 'start: A (/ +/ b)* // c\nA: "a"+ | /x[^y]/ & ~"xx"\n?b: "b"\n  | "c" b',
    },
    "json in lark": {
        "type": "grammar",
        "grammar": 'start: "<" x ">"\nx: %json {"type": "array", "items": {"$ref": "#"}}',
    },
    "gbnf": {"type": "grammar", "grammar": 'root ::= "a" [0-9]{1,3} | "b" root?'},
    "wrapped": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}},
}
STEPS = 40


class SchemaEntrance(Entrance):
    """Most of its inputs are changed as JSON: values, keywords and parts of other schemas are put in."""

    def input(self, number: int) -> tuple[str, bytes]:
        rng = random.Random(f"structure {number}")
        if rng.random() < 0.2:
            return super().input(number)
        seeds = self.seeds()
        name = rng.choice(sorted(seeds))
        schema = json.loads(seeds[name])
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            places = list(_places(schema))
            if not places:
                break
            parent, key = rng.choice(places)
            kind = rng.randrange(4)
            if kind == 0:
                parent[key] = json.loads(rng.choice(VALUES))
            elif kind == 1 and isinstance(parent, dict):
                parent[rng.choice(KEYWORDS)] = json.loads(rng.choice(VALUES))
            elif kind == 2:
                parent[key] = json.loads(seeds[rng.choice(sorted(seeds))])
            elif isinstance(parent, dict):
                parent[rng.choice(KEYWORDS)] = parent.pop(key)
        return name, json.dumps(schema).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        parent = waiting.pop()
        if isinstance(parent, (dict, list)):
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            yield from ((parent, key) for key in keys)
            waiting += [parent[key] for key in keys]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(GOLDEN / "gen25")


def seeds() -> dict[str, bytes]:
    made = {f"{kind} {n}": schema for kind, schemas in KINDS.items() for n, schema in enumerate(schemas)}
    return {name: json.dumps(each).encode() for name, each in (made | OTHERS).items()}


def run(data: bytes) -> object:
    """Takes what is sent, as a server would, and answers at random."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        given = data.decode("utf-8", "replace").replace("/", "")  # no name of a file
    form = ResponseFormat.of(given)
    if form is None:
        return data
    vocabulary, end = tokenizer().backend.get_vocab_size(), tokenizer().eos_token_id
    matcher = compile_grammar(tokenizer(), form, vocabulary, [end]).matcher()
    rng, tokens = random.Random(len(data)), []
    for _ in range(STEPS):
        mask = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
        if matcher.error is not None:
            raise matcher.error
        token = end if mask[end] and rng.random() < 0.5 else int(rng.choice(np.flatnonzero(mask)))
        matcher.consume(token)
        tokens.append(token)
        if matcher.stopped:
            _check(form, tokenizer().decode([each for each in tokens if each != end]))
            break
    return form


def _check(form: ResponseFormat, text: str) -> None:
    """Raises `AssertionError` for an answer that does not hold to its form."""
    if form.kind == "choice":
        assert text in form.value, text
    elif form.kind == "json_schema":
        assert isinstance(form.value, str)
        schema, answer = json.loads(form.value), json.loads(text)
        try:
            errors = [error.message for error in Draft202012Validator(schema).iter_errors(answer)]
        except (re.error, OverflowError):  # Python has another dialect, and divides other numbers
            return
        assert not errors, (text, errors[0])


ENTRANCE = SchemaEntrance("schema", seeds, run, (ConstraintError,))
