"""What a form may be: taken in every shape, refused by keyword and place, and never for long."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from schemas import KINDS

import mlx_lfm2vl
from mlx_lfm2vl import ConstraintError, GenerationOptions, OptionError, ResponseFormat
from mlx_lfm2vl.constraints.compile import Grammar, compile_grammar
from mlx_lfm2vl.constraints.pattern_size import pattern_size
from mlx_lfm2vl.constraints.response_format import embedded_schema
from mlx_lfm2vl.processing.tokenizer import Tokenizer

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOKENIZER = Tokenizer.from_folder(GOLDEN / "gen25")
VOCABULARY = TOKENIZER.backend.get_vocab_size()
END = TOKENIZER.eos_token_id


def grammar_of(form: ResponseFormat) -> Grammar:
    return compile_grammar(TOKENIZER, form, VOCABULARY, [END])


def holds(form: Any, text: str) -> bool:
    """Whether a form lets a text be the whole answer."""
    made = ResponseFormat.of(form)
    assert made is not None
    matcher = grammar_of(made).matcher()
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if matcher.forced and matcher.forced[0] != token:
            return False
        if not bits(matcher.mask())[token]:
            return False
        matcher.consume(token)
    return bool(bits(matcher.mask())[END])


def bits(mask: np.ndarray) -> np.ndarray:
    return np.unpackbits(mask.view(np.uint8), bitorder="little")


class Part(BaseModel):
    n: int


def test_a_schema_comes_in_every_shape(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(NUMBER), encoding="utf-8")
    openai = {"type": "json_schema", "json_schema": {"name": "number", "strict": True, "schema": NUMBER}}
    forms = [NUMBER, json.dumps(NUMBER), file, str(file), openai, ResponseFormat.json_schema(NUMBER)]
    assert {GenerationOptions(response_format=each).response_format for each in forms} == {
        ResponseFormat.json_schema(NUMBER)
    }


def test_a_pydantic_model_is_a_schema():
    assert ResponseFormat.of(Part) == ResponseFormat.json_schema(Part.model_json_schema())
    assert holds(Part, '{"n": 3}') and not holds(Part, '{"n": "3"}')


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"type": "text"}, None),
        (None, None),
        ({"type": "json_object"}, ResponseFormat.json_object()),
        ({"type": "regex", "regex": "a+"}, ResponseFormat.regex("a+")),
        ({"type": "choice", "choice": ["a", "b", "a"]}, ResponseFormat.choice(["a", "b"])),
        ({"type": "grammar", "grammar": 'start: "a"'}, ResponseFormat.grammar('start: "a"')),
    ],
)
def test_forms_are_named_as_in_requests_to_servers(given, form):
    assert ResponseFormat.of(given) == form


def test_gbnf_and_lark_say_the_same():
    for text in ('root ::= "a" | "b" root', 'start: "a" | "b" start'):
        form = ResponseFormat.grammar(text)
        assert holds(form, "bba") and not holds(form, "ab") and not holds(form, "b")


def test_an_object_that_names_its_properties_has_no_others():
    own = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert holds(own, '{"a": null}') and holds(own, "{}") and not holds(own, '{"b": 1}')
    assert holds(own | {"additionalProperties": True}, '{"b": 1}')
    both = {"allOf": [own, {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]}
    assert holds(both, '{"a": null, "b": null}')


@pytest.mark.parametrize(
    ("schema", "held", "refused"),
    [
        ({"properties": {"a": {"enum": [1]}}}, ['{"a": 1}', "{}"], ["1", '"a"', "[]", "null"]),
        ({"properties": {"a": True}, "additionalProperties": {"type": "null"}}, ['{"b": null}'], ["1"]),
        ({"items": {"enum": [1]}}, ["[1, 1]", "[]"], ["1", "{}"]),
        ({"prefixItems": [{"enum": [1]}], "items": False}, ["[1]"], ["1", "{}"]),
        ({"properties": {}, "items": {"enum": [1]}}, ["{}", "[1]"], ["1", "null"]),
        ({"type": "array", "items": {"properties": {"a": {"enum": [1]}}}}, ['[{"a": 1}]'], ["[1]"]),
        ({"properties": {"a": {"enum": [1]}}, "type": ["object", "null"]}, ["null", "{}"], ["1"]),
        ({"anyOf": [{"properties": {"a": {"enum": [1]}}}, {"type": "null"}]}, ["null", "{}"], ["3"]),
        ({"allOf": [{"properties": {"a": {"enum": [1]}}}, {"type": ["null", "object"]}]}, ["null", "{}"], ["3"]),
        ({"minimum": 3}, ["3", '"a"', "{}"], ["2"]),
    ],
)
def test_words_of_objects_and_lists_are_held_without_a_type(schema, held, refused):
    assert [text for text in (*held, *refused) if holds(schema, text)] == held


def test_names_of_a_schema_change_nothing_in_it():
    """They would be looked up as addresses."""
    schema = {"$defs": {"low": {"type": "integer", "minimum": 3}}, "type": "integer", "maximum": 5}
    for name, value in (
        ("$id", "#/$defs/low"),
        ("$schema", "http://json-schema.org/draft-04/schema#"),
        ("$anchor", "low"),
    ):
        form = schema | {name: value}
        assert holds(form, "1") and holds(form, "5") and not holds(form, "293")


@pytest.mark.parametrize("wrong", [3, None, 2.5, [1]])
def test_a_schema_of_another_type_is_named_as_such(wrong):
    with pytest.raises(
        ConstraintError, match=f"^schema is {type(wrong).__name__}, expected a JSON schema as a mapping"
    ):
        ResponseFormat.json_schema(wrong)


@pytest.mark.parametrize("schema", [{"format": "time"}, {"type": "string", "format": "time", "pattern": "Z$"}])
def test_a_time_has_no_leap_second(schema):
    """RFC 3339 has one at 23:59:60 UTC only."""
    assert holds(schema, '"23:59:59Z"') and not holds(schema, '"23:59:60Z"') and not holds(schema, '"12:30:60Z"')


def test_a_date_and_time_has_no_leap_second():
    form = {"type": "string", "format": "date-time"}
    assert holds(form, '"1998-12-31T23:59:59.5Z"') and not holds(form, '"1998-12-31T23:58:60Z"')


NAME_OF_END = TOKENIZER.convert_ids_to_tokens([END])[0]


@pytest.mark.parametrize("token", [NAME_OF_END, f"<[{END}]>", f"<[0,{END - 1}-{END + 1}]>", "<[*]>", f"<[^{END + 1}]>"])
def test_a_grammar_with_an_end_token_is_refused(token):
    form = ResponseFormat.grammar(f'start: "a" {token} "b"')
    with pytest.raises(ConstraintError, match="which ends the answer; leave it out"):
        grammar_of(form)


def test_a_grammar_with_another_special_token_is_held():
    matcher = grammar_of(ResponseFormat.grammar(f'start: "a" <[^{END}]> "b"')).matcher()
    assert matcher.error is None and not bits(matcher.mask())[END]


def test_an_object_of_a_thousand_optional_properties_is_held():
    form = {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(1000)}}
    assert holds(form, '{"p0": null, "p999": null}') and holds(form, "{}") and not holds(form, '{"p1000": null}')


@pytest.mark.parametrize(
    ("pattern", "held", "refused"),
    [(r"\d", "3", "٣"), (r"\D", "٣", "3"), (r"[\dx]", "x", "٣"), (r"[^\d]", "٣", "3"), (r"\\d", r"\d", "3")],
)
def test_digits_are_those_of_ascii(pattern, held, refused):
    form = ResponseFormat.regex(pattern)
    assert holds(form, held) and not holds(form, refused)


def test_separators_are_those_that_were_asked_for():
    for separators in ((", ", ": "), (",", ":")):
        form = ResponseFormat.json_schema({"type": "array", "items": NUMBER}, separators=separators)
        assert holds(form, json.dumps([{"n": 1}, {"n": 2}], separators=separators))
        assert not holds(form, "[ ]")


@pytest.mark.parametrize("separators", [[",", ":"], (",", ":", ""), (",", 3), ("a", ":"), 3])
def test_other_separators_are_refused(separators):
    with pytest.raises(ConstraintError, match="expected a tuple of a comma and a colon"):
        ResponseFormat.json_object(separators=separators)


def test_a_schema_within_a_grammar_holds_what_it_holds_alone():
    own = {"type": "object", "properties": {"a": {"oneOf": [{"type": "null"}, {"type": "string"}]}}, "$id": "#/x"}
    form = ResponseFormat.grammar(f'start: "<" schema ">"\nschema: %json {embedded_schema(own)}\n')
    assert holds(form, '<{"a": null}>') and holds(form, "<{}>")
    assert not holds(form, '<{"b": 1}>') and not holds(form, '<{"a":null}>') and not holds(form, "<{ }>")
    with pytest.raises(ConstraintError, match="#/not"):
        embedded_schema({"not": {}})


def test_special_tokens_are_never_text():
    schema = {"type": "string"}
    matcher = grammar_of(ResponseFormat.json_schema(schema)).matcher(TOKENIZER.encode('"a', add_special_tokens=False))
    special = list(TOKENIZER.backend.get_added_tokens_decoder())
    assert len(special) > 5 and not bits(matcher.mask())[special].any()


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, '#/not: the keyword "not"'),
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "#/properties/a/items/uniqueItems: the keyword"),
        ({"$defs": {"x/y": {"if": {}}}}, '#/$defs/x~1y/if: the keyword "if"'),
        ({"anyOf": [{}, {"type": "text"}]}, '#/anyOf/1/type: is "text", expected one or several of'),
        (
            {"properties": {"ä b": {"pattern": "b(?=a)"}}},
            "#/properties/ä b/pattern: the regex /b(?=a)/, column 2: look",
        ),
        ({"patternProperties": {"a(": {}}}, "#/patternProperties/a(: the regex /a(/, column 2: unclosed group"),
        (
            {"type": "string", "minLength": 3, "maxLength": 2},
            "#/minLength: no JSON is valid under it: minLength (3) is",
        ),
        ({"type": "string", "format": "date", "maxLength": 3}, "#/format: no text is valid under it"),
        ({"anyOf": [{"type": "null"}, {"pattern": r"a\b"}]}, r"#/anyOf/1/pattern: the regex /a\b/: word boundaries"),
        ({"properties": {"a": {"oneOf": [{}, {"type": "null"}]}}}, "#/properties/a: oneOf can be held only where"),
        ({"oneOf": [{"maximum": 3}, {"minimum": 5}]}, "#: oneOf can be held only where"),
        (
            {"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "integer", "minimum": 2, "maximum": 1}}},
            "#/$defs/x/minimum: no JSON is valid under it",
        ),
        ({"$ref": "https://example.org/schema"}, "#/$ref: is 'https://example.org/schema'; only places in the same"),
        ({"items": {"$ref": "#/$defs/x"}}, "#/items/$ref: names '#/$defs/x', which is not there"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#: leads back to itself"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "#: no finite JSON is valid under it"),
        ({"type": "string", "format": "credit-card"}, "#/format: the format 'credit-card' cannot be held"),
        ({"type": "object", "minProperties": 1}, "#/minProperties: cannot be held beyond"),
        ({"type": "string", "maxLength": 10**9}, "#/maxLength: is 1000000000, expected a whole number from 0"),
        ({"items": [{}]}, "#/items: is a list, which 2020-12 calls prefixItems"),
        ({"enum": [1, 2**60]}, "#/enum: has a number beyond 2^53"),
        (
            {"items": {"allOf": [{"pattern": f"a{n}.*b"} for n in range(17)]}},
            "#/items: combines 17 patterns, at most 16",
        ),
        (
            {"pattern": "a", "allOf": [{"$ref": "#/$defs/x"}] * 2, "$defs": {"x": {"allOf": [{"pattern": "b"}] * 8}}},
            "#: combines 17",
        ),
        ({"allOf": [{"pattern": f"a{n}.*b{n}"} for n in range(8)]}, "#: its patterns together are too complex"),
        ({"properties": ["a"]}, "#/properties: is a list, expected an object of schemas"),
        ({"required": ["a", "a"]}, "#/required: is a list, expected a list of different names"),
        ({"x-guidance": {"lenient": True}}, '#/x-guidance: the keyword "x-guidance"'),
        (False, "#: no finite JSON is valid under it"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"const": "\\ud800"}', "half of a surrogate pair"),
        ('{"maximum": NaN}', "NaN is no number of JSON"),
        *((f'{{"{keyword}": 1e999}}', "1e999") for keyword in ("maximum", "const", "default", "unknown")),
        ("{", "the JSON schema is no JSON"),
        ("no/such.json", "no/such.json: cannot be read as a schema or grammar"),
        (3, "response_format is int, expected"),
        ({"type": "json_schema"}, 'needs the field "json_schema"'),
        ({"type": "json_schema", "json_schema": {"schema": "/etc/passwd"}}, '"schema" is no object'),
        ({"type": "grammar", "grammar": "/etc/passwd"}, "the grammar cannot be held"),
        ({"type": "regex", "regex": "é("}, "the regex cannot be held: /é(/, column 2: unclosed group; its syntax is"),
        ({"type": "regex", "regex": "[" * 300}, "the regex cannot be held: /[[["),
        ({"type": "regex", "regex": r"\ba"}, r"the regex cannot be held: /\ba/: word boundaries"),
        ({"type": "regex", "regex": r"a[^\s\S]"}, "the regex cannot be held: it matches no text"),
        (
            {"type": "grammar", "grammar": "start: nix"},
            'the grammar cannot be held: line 1, column 8: unknown name: "nix"; its syntax is',
        ),
        (
            {"type": "grammar", "grammar": 'start: A\nA: "a" /(/'},
            "the grammar cannot be held: line 2, column 4: the regex /(/, column 1: unclosed group",
        ),
        ({"type": "grammar", "grammar": 'start: "a" start'}, "the rule start derives no finite text; give it an"),
        ({"type": "grammar", "grammar": 'root ::= "a" root'}, "the rule root derives no finite text; give it an"),
        ({"type": "grammar", "grammar": 'start: "a" | b\nb: "b" b'}, "the rule b derives no finite text"),
        ({"type": "grammar", "grammar": r'start: "a" | "b" /[^\s\S]/'}, r"the regex /[^\s\S]/ matches no text"),
        ({"type": "grammar", "grammar": "start: A*\nA: /a/ & /b/"}, "the terminal A matches no text"),
        (
            {"type": "grammar", "grammar": 'start: %json {"type": "array", "minItems": 1, "items": {"$ref": "#"}}'},
            "JSON schema, #: no finite JSON is valid under it",
        ),
        ({"type": "grammar", "grammar": 'x ::= "a"'}, "the grammar cannot be held: No 'root' rule found"),
        ({"type": "grammar", "grammar": "root ::= " + "(" * 3000}, "the grammar cannot be held"),
        (
            {"type": "grammar", "grammar": 'start: "" | b\nb: ""'},
            "the grammar cannot be held: it matches the empty text",
        ),
        *(
            ({"type": "regex", "regex": empty}, "the regex cannot be held: it matches the empty text only")
            for empty in ("", "()", "a{0}")
        ),
        (
            {"oneOf": [{"type": "object", "properties": {"t": {"const": n}}, "required": ["t"]} for n in range(101)]},
            "JSON schema, #/oneOf: has 101 schemas, at most 100 are held; use anyOf",
        ),
        ("", "schema is empty"),
        (
            {"items": {"patternProperties": {f"^k{n}[a-z]+$": {} for n in range(101)}}},
            "JSON schema, #/items/patternProperties: each pattern is compared with each other one, so at most 100",
        ),
        (
            {"prefixItems": [{"patternProperties": {f"^k{n}[a-z]+$": {} for n in range(60)}}] * 3},
            "#/prefixItems/2/patternProperties: each pattern is compared",
        ),
        ({"items": {"pattern": "(a{1000}){1000}"}}, "#/items/pattern: repeats parts more than 65,536 times in all"),
        ({"patternProperties": {"(a{300}){300}": {}}}, "#/patternProperties/(a{300}){300}: repeats parts"),
        ({"type": "regex", "regex": "((a|[b-d]){300}x){300}"}, "{300}/ cannot be held: it repeats parts more than"),
        ({"type": "grammar", "grammar": "start: A\nA: /(a{1000}){1000}/"}, "{1000}/ cannot be held: it repeats parts"),
        (
            {"type": "integer", "multipleOf": 9973, "minimum": 1, "maximum": 1000000},
            "JSON schema, #/multipleOf: it takes too much work to follow (lexer error: too many expressions",
        ),
        (
            {"properties": {"a": {"type": "number", "multipleOf": 0.01, "minimum": 0.005, "maximum": 0.015}}},
            "JSON schema, #/properties/a/multipleOf: it matches no text",
        ),
        ({"items": {"anyOf": [{"multipleOf": n} for n in range(1, 53)]}}, "/multipleOf: is one more than the 50"),
        ({"type": "choice", "choice": []}, "choice has no texts"),
        ({"type": "choice", "choice": "ab"}, "choice is str"),
    ],
)
def test_what_cannot_be_held_is_refused_by_keyword_and_place(schema, place):
    with pytest.raises(ConstraintError) as error:
        GenerationOptions(response_format=schema)
    assert place in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def chain(length: int, step: Any) -> dict[str, Any]:
    defs = {f"d{n}": step({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length)}
    return {"$defs": defs | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        made = {"type": "object", "properties": {"a": made}, "required": ["a"]}
    return made


HOSTILE: dict[str, Any] = {
    "allOf that doubles": chain(30, lambda next_: {"allOf": [next_, next_]}),
    "anyOf that doubles": chain(30, lambda next_: {"anyOf": [next_, next_]}),
    "items that double": chain(40, lambda next_: {"type": "array", "prefixItems": [next_, next_], "minItems": 2}),
    "chain of references": chain(5000, lambda next_: next_),
    "deep": nested(31),
    "too deep": nested(100),
    "wide": {"type": "object", "properties": {f"k{n}": {"type": "integer"} for n in range(6000)}},
    "a large enum": {"enum": ["x" * (n % 50) + str(n) for n in range(4000)]},
    "alternatives that multiply": {"allOf": [{"anyOf": [{"minimum": n}, {"type": "string"}]} for n in range(30)]},
    "oneOf of many": {"oneOf": [{"type": "object", "properties": {"k": {"const": n}}} for n in range(2000)]},
    "references past a oneOf": {
        "oneOf": [
            *({"type": "object", "required": ["k"], "properties": {"k": {"const": n}}} for n in range(99)),
            {"type": "array", "prefixItems": [{"$ref": "#/oneOf/0/properties/k"}] * 600},
        ]
    },
    "one of many that is wrong": {"prefixItems": [{"type": "integer"}] * 4000 + [{"pattern": "(?=a)"}]},
    "repetitions of repetitions": {"type": "string", "pattern": "^((((a{1,99}){1,99}){1,99}){1,99}){1,99}$"},
    "a regex of many states": {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
    "a large step": {"type": "integer", "multipleOf": 999_999_937},
    "a small step": {"type": "number", "multipleOf": 1e-14, "minimum": 0, "maximum": 1},
    "many counts": {"type": "array", "maxItems": 65536, "items": {"type": "array", "minItems": 65536}},
    "patterns": {"patternProperties": {f"a{n}.*b": {"type": "integer"} for n in range(100)}},
    "patterns of one text": {"allOf": [{"pattern": f"^[a-z]*{letter}[a-z]*$"} for letter in "abcdefghijklmnop"]},
    "a long text": {"type": "string", "minLength": 65536},
    **{
        f"a terminal that takes all: {text}": {"type": "grammar", "grammar": text}
        for text in (
            'start: /a+/ "a"',
            'start: ("b" | "c") / +/ " x"',
            'start: "x" /(ab)*/ "abc"',
            r'start: /\n{2,}/ "\n"',
            'start: A "a"\nA: "a"+',
            'start: A "a"\nA: "a" ~ 1..99999999',
            'root ::= as "a"\nas ::= "a"+',
            'start: /[a-a]+/ "a"',
            'start: /[aa]*/ "a"',
            r'start: /[\x61]+/ "a"',
            r'start: /\x61+/ "a"',
            r'start: /[^\x00-`b-\x{10FFFF}]+/ "a"',
            'start: /(?x) [a ] +/ "a"',
            'start: /[a-z&&[a]]+/ "a"',
            r'start: /\p{Zl}+/ "\u2028"',
            'start: A "a"\nA: /[ab]+/ & /[ac]+/',
            'start: " x"\n%ignore / +/',
            'start: " x"\n%ignore " "+',
        )
    },
    "many rules": {
        "type": "grammar",
        "grammar": "\n".join(
            ["start: r0", *(f"r{n}: r{n + 1} r{n + 1} /[a-z]{{{n}}}/" for n in range(2000)), "r2000: r0"]
        ),
    },
    "many regexes": {
        "type": "grammar",
        "grammar": "\n".join(["start: " + " | ".join(f"/[a-z]{{{n}}}x*/" for n in range(2000))]),
    },
    "all of many": {"allOf": [{"type": "string", "pattern": f"[{chr(97 + n % 26)}]{{{n}}}"} for n in range(40)]},
}
PROGRAM = """
import json, sys, time
from peak import peak_memory
from mlx_lfm2vl import ConstraintError, ResponseFormat
from mlx_lfm2vl.constraints.compile import compile_grammar
from mlx_lfm2vl.processing.tokenizer import Tokenizer
tokenizer = Tokenizer.from_folder(sys.argv[1])
vocabulary = tokenizer.backend.get_vocab_size()
compile_grammar(tokenizer, ResponseFormat.regex("a"), vocabulary, [7])
for name, schema in json.load(sys.stdin).items():
    before = time.process_time()
    try:
        matcher = compile_grammar(tokenizer, ResponseFormat.of(schema), vocabulary, [7]).matcher()
        for _ in range(20):
            words = matcher.mask()
            token = next(n for n in range(vocabulary) if words[n // 32] >> (n % 32) & 1)
            matcher.consume(token)
            if matcher.stopped or matcher.error:
                break
    except ConstraintError as error:
        assert str(error)
    used = time.process_time() - before
    assert used < 5, (name, used)
    assert peak_memory() < 400 * 2**20, (name, peak_memory())
"""


def test_hostile_forms_end_in_bounded_time_and_memory():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(GOLDEN / "gen25")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        (r"a\.[x{9}]", 3),
        ("a{3}b{2,}c{1,4}d{0}", 10),
        (r"(ab){3}|(?:\p{L}{2}){5,7}", 20),
        ("(a(b{2}){3}){4}", 28),
    ],
)
def test_a_pattern_has_the_size_that_its_counts_say(pattern, size):
    assert pattern_size(pattern) == size


NAMES = ["start", "b", "c"]
SYMBOLS = st.sampled_from([*NAMES, '"x"', "/[yz]+/", "b?", "c*", "start+", '("w" | c)'])
RULES = st.fixed_dictionaries({name: st.lists(st.lists(SYMBOLS, max_size=3), min_size=1, max_size=3) for name in NAMES})


@settings(deadline=None, max_examples=300)
@given(RULES)
def test_a_grammar_is_refused_just_where_it_has_no_end(rules):
    """Against the definition: a rule ends if one of its alternatives has only rules that end; the start says a text."""

    def ends(symbol: str) -> bool:
        return symbol not in (*NAMES, "start+") or symbol.rstrip("+") in ending

    ending: set[str] = set()
    for _ in NAMES:
        ending |= {name for name in NAMES if any(all(map(ends, each)) for each in rules[name])}
    reached, waiting = set(), ["start"]
    while waiting:
        reached.add(name := waiting.pop())
        used = {each for names in rules[name] for symbol in names for each in NAMES if each in symbol.split("(")[0]}
        used |= {"c"} if any('("w" | c)' in names for names in rules[name]) else set()
        waiting += used - reached
    text = "\n".join(f"{name}: " + "\n  | ".join(map(" ".join, rules[name])) for name in NAMES)

    def says(symbol: str) -> bool:
        return symbol.strip("?*+") in saying or symbol[0] in '"/('

    saying: set[str] = set()
    for _ in NAMES:
        saying |= {name for name in NAMES if any(any(map(says, each)) for each in rules[name])}
    if reached <= ending and "start" in saying:
        ResponseFormat.grammar(text)
    elif reached <= ending:
        with pytest.raises(ConstraintError, match="it matches the empty text only"):
            ResponseFormat.grammar(text)
    else:
        with pytest.raises(ConstraintError, match=f"the rule ({'|'.join(reached - ending)}) derives no finite text"):
            ResponseFormat.grammar(text)


@pytest.mark.parametrize(
    "text",
    [
        'start: a::0x0\na::_: "x" %if is_ones([0:1])\n  | "y" a::set_bit(0) %if bit_clear(0)\n  | "z" a::set_bit(1)',
        'start: "a".."c" b{2,3} // start: start\n%ignore / +/\n?b[capture="b:"]: /\\// | <|im_end|> // c\n\n  | "\\"|"',
        '%llguidance {"no_forcing": false}\nstart: x\n# x: x\nx[lazy]: /.*;/\n',
        '%import common.INT\nstart: INT _b\n_b: %regex {"substring_words": "a b"} | %json\n {"type": "null"}',
    ],
)
def test_what_lark_offers_is_taken(text):
    assert ResponseFormat.grammar(text).grammar_text.endswith(text)


@pytest.mark.parametrize(
    "pattern",
    [".*", r"[^<\n]+", r'[^"\\\x00-\x1F\x7F]*', "[a-z_]+", r"\d*", r"[ \t\n]+", "(a|b){2,9}", "[0-9]{3,}", r"[\]a1]*"],
)
def test_a_pattern_of_many_texts_leaves_forced_tokens(pattern):
    assert ResponseFormat.grammar(f'start: "first" /{pattern}/ ";" b\nb: "b"').grammar_text.startswith("start")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_schema_is_held(kind):
    for schema in KINDS[kind]:
        grammar_of(ResponseFormat.json_schema(schema))


def texts_of(grammar: Grammar, tokenizer: Tokenizer) -> Iterator[str]:
    """A few texts that hold to a form, by tokens at random."""
    for seed in range(3):
        rng, matcher = random.Random(seed), grammar.matcher()
        tokens: list[int] = []
        while not matcher.stopped and len(tokens) < 120:
            allowed = np.flatnonzero(bits(matcher.mask()))
            end = tokenizer.eos_token_id in allowed and rng.random() < 0.4
            tokens.append(tokenizer.eos_token_id if end else int(rng.choice(allowed)))
            matcher.consume(tokens[-1])
        if matcher.stopped:
            yield tokenizer.decode([token for token in tokens if token != tokenizer.eos_token_id])


@pytest.mark.parametrize("folder", [GOLDEN / "gen25", Path(mlx_lfm2vl.__file__).parent / "demo"], ids=["gen25", "demo"])
def test_forced_tokens_are_those_of_the_tokenizer(folder):
    """Of the demo's, some stand before a space that its tokenizer takes into the token before; the text is the same."""
    tokenizer = Tokenizer.from_folder(folder)
    vocabulary = tokenizer.backend.get_vocab_size()
    forced = others = 0
    for schema in [schema for schemas in KINDS.values() for schema in schemas]:
        grammar = compile_grammar(tokenizer, ResponseFormat.json_schema(schema), vocabulary, [tokenizer.eos_token_id])
        for text in texts_of(grammar, tokenizer):
            matcher = grammar.matcher()
            tokens = tokenizer.encode(text, add_special_tokens=False)
            for at, token in enumerate(tokens):
                forced += bool(matcher.forced)
                if matcher.forced and matcher.forced[0] != token:
                    others += 1
                    rest = tokenizer.decode(tokens[at:])
                    assert rest.startswith(tokenizer.decode(list(matcher.forced)).rstrip())
                    break
                matcher.consume(token)
                assert matcher.error is None, text
    assert forced > 500 and (others == 0 if folder == GOLDEN / "gen25" else others < forced / 40)


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False), st.sampled_from([schema for each in KINDS.values() for schema in each]))
def test_a_matcher_behind_tokens_is_that_which_consumed_them(rng: random.Random, schema):
    grammar = grammar_of(ResponseFormat.json_schema(schema))
    matcher, tokens = grammar.matcher(), []
    for _ in range(30):
        allowed = np.flatnonzero(bits(matcher.mask()))
        tokens.append(int(rng.choice(allowed)))
        matcher.consume(tokens[-1])
        again = grammar.matcher(tokens)
        np.testing.assert_array_equal(again.mask(), matcher.mask())
        assert (again.forced, again.stopped, again.error) == (matcher.forced, matcher.stopped, None)
        if matcher.stopped:
            break


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logit_bias": {"a": 1}}, "logit_bias is"),
        ({"logit_bias": {3: 101}}, "logit_bias of token 3 is 101, expected from -100 to 100"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias of token -1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of token 1 is nan"),
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5, expected a number from -2 to 2"),
        ({"presence_penalty": "a"}, "presence_penalty is 'a'"),
        ({"top_logprobs": 101}, "top_logprobs is 101, expected an integer from 0 to 100"),
        ({"logits_processors": [3]}, "logits_processors is [3], expected functions"),
    ],
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(OptionError) as error:
        GenerationOptions(**options)
    assert says in str(error.value)
