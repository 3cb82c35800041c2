"""Grammars in llguidance's dialect of Lark, which llguidance has found right: whether they have an end, and whether
it may look for tokens that they force. Bounded work for any grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import ConstraintError
from .check import checked_schema
from .compiler_message import compiler_message, quoted
from .limits import limits
from .pattern_size import check_pattern
from .references import check_references

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|(?:\#|//)[^\n]*)
    |(?P<line>[\r\n][\r\n\ \t]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?(?:[ \t]*\.\.[ \t]*"(?:\\.|[^"\\\n])*")?)
    |(?P<regex>/(?:\\.|[^/\\])+/[imslux]*)
    |(?P<json>%(?:json|regex|llguidance)\b)
    |(?P<special><[^<>\s]+>|@[A-Za-z0-9_-]+)
    |(?P<terminal>_?[A-Z][A-Z0-9_-]*)
    |(?P<rule>[!?_]*[a-z][a-z0-9_-]*)
    |(?P<other>::|%?\w+|.)""",
    re.X | re.S,
)
_ELEMENT = re.compile(r"(\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|.)([*+]|\{\d*,\})?", re.S)  # of a pattern, and its repetition
_PART = re.compile(r"\\x[0-7][0-9A-Fa-f]|\\.|.", re.S)  # of a class
_FEW = re.compile(r"\\(?:x[0-7].|[nrtwsd]|[!-/:-@\[-`{-~])|[\0-\x7f]")  # parts of a class that leave others out
Item = TypeVar("Item")
_TRIED = 8  # steps of an answer
_NO_FORCING = '%llguidance {"no_forcing": true}\n'


class _Token(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True)
class _Definition:
    """A rule or a terminal, or a statement, whose name is empty."""

    name: str
    head: str
    body: tuple[_Token, ...]

    @property
    def source(self) -> str:
        return self.head + "".join(token.text for token in self.body)


def followable(text: str) -> str:
    """The grammar, without forced tokens where llguidance would look for them without an end.

    A terminal takes all that it can. So `start: / +/ " x"` forces spaces for good, and llguidance follows them all
    at once. That takes a terminal that repeats one text; a grammar with one is followed token by token.
    """
    for each in _definitions(text):
        operators = ("*", "+", "~", "{", "&") if _is_terminal(each) or each.head == "%ignore" else ()
        for token in each.body:
            pattern = token.text[1 : token.text.rindex("/")] if token.kind == "regex" else ""
            if token.text in operators or any(more and not _is_many(one) for one, more in _ELEMENT.findall(pattern)):
                return _NO_FORCING + text
    return text


def _is_many(element: str) -> bool:
    """Whether an element of a pattern surely stands for several characters; others may stand for just one text."""
    if not element.startswith("["):
        return element in (".", r"\w", r"\W", r"\s", r"\S", r"\d", r"\D")
    inner = element[1:-1]
    if any(operator in inner for operator in ("[", "&&", "--", "~~")):
        return False
    if inner.startswith("^"):
        return all(_FEW.fullmatch(part) for part in _PART.findall(inner[1:]))
    parts = set(_PART.findall(inner))
    plain = {part for part in parts if part in (r"\n", r"\r", r"\t") or (part.isascii() and part.isalnum())}
    return len(plain) > 1 or not parts.isdisjoint((r"\w", r"\s", r"\d"))


def check_has_text(kind: str, grammar: str) -> None:
    """Raises `ConstraintError` for a form, as a grammar of llguidance, that allows no text, or the empty one alone."""
    if (why := first_error(grammar)) is not None:
        raise ConstraintError(f"the {kind} cannot be held: {why}")
    matcher = _matcher(grammar)
    first = matcher.compute_bitmask()
    if matcher.is_accepting() and not any(first[: 256 // 8]):
        raise ConstraintError(f"the {kind} cannot be held: it matches the empty text only")


def first_error(grammar: str) -> str | None:
    """Why the first bytes of an answer cannot follow a grammar; None if they can."""
    matcher = _matcher(grammar)
    if matcher.is_error() and "unknown special token" in matcher.get_error():
        return None  # it is the model's tokenizer that has them
    for _ in range(_TRIED):
        allowed = matcher.compute_bitmask()
        if _is_empty(matcher):
            return "it matches no text"
        forced = matcher.compute_ff_tokens()
        bytes_ = (byte for byte in range(256) if allowed[byte // 8] >> byte % 8 & 1)
        if matcher.is_error() or not matcher.consume_tokens(forced or list(islice(bytes_, 1))):
            return f"it takes too much work to follow ({compiler_message(matcher.get_error(), place=False)})"
        if matcher.is_stopped():
            break
    return None


def check_no_end(grammar: str, ends: Mapping[int, str]) -> None:
    """Raises `ConstraintError` for a grammar that names a token which ends the answer: what is behind it never comes.
    `ends`: the names of these tokens by their ids."""
    for definition in _definitions(grammar):
        for token in definition.body:
            for end, name in ends.items() if token.kind == "special" else ():
                if token.text == name or (token.text[:2] == "<[" and _has_id(token.text[2:-2], end)):
                    raise ConstraintError(
                        f"the grammar cannot be held: {token.text} stands for {name}, which ends the answer; leave it "
                        "out, as the end comes by itself"
                    )


def _has_id(ids: str, token: int) -> bool:
    """Whether a list of ids and ranges, as `1,5-8`, or with ^ all others, has a token."""
    ranges = [part.partition("-") for part in ids.removeprefix("^").split(",")]
    found = ids == "*" or any(int(first) <= token <= int(last or first) for first, _, last in ranges)
    return found != ids.startswith("^")


def check_finite(text: str, start: str) -> None:
    """Raises `ConstraintError` for a grammar with a rule, in reach of its start, that derives no finite text. `start`:
    the user's name of the rule `start`."""
    definitions = list(_definitions(text))
    rules = {each.name: each for each in definitions if each.name and not _is_terminal(each)}
    reached = _in_reach(rules)
    for each in definitions:
        for token in each.body:
            if token.kind == "regex":
                check_pattern(token.text[1 : token.text.rindex("/")])
    used = dict.fromkeys(token for name in reached for token in rules[name].body if token.kind in ("terminal", "regex"))
    rest = "\n".join(each.source for each in definitions if _is_terminal(each) or each.head == "%import")
    empty = _first_wrong(list(used), lambda some: _has_text(_sequence(some, rest)))
    if empty is not None:
        what = f"the regex {quoted(empty.text.strip('/'))}" if empty.kind == "regex" else f"the terminal {empty.text}"
        raise ConstraintError(f"the grammar cannot be held: {what} matches no text")
    for name in reached:
        for at, token in enumerate(rules[name].body):
            if token.text == "%json":
                _check_schema(rules[name].body[at + 1].text)
    named = reached if not any(token.text == "::" for name in reached for token in rules[name].body) else ["start"]
    endless = _first_wrong(named, lambda some: _derives_empty(rules, some))
    if endless is not None:
        rule = start if endless == "start" else endless
        raise ConstraintError(
            f"the grammar cannot be held: the rule {rule} derives no finite text; give it an alternative that does not "
            "lead back to it"
        )


def _definitions(text: str) -> Iterator[_Definition]:
    """The rules, terminals and statements of a grammar."""
    line: list[_Token] = []
    for token in [*_tokens(text), _Token("line", "\n")]:
        if token.kind != "line":
            if line and line[-1].kind == "line" and token.text != "|":
                yield _definition(line)
                line = []
            line.append(token)
        elif line and line[-1].kind != "line":
            line.append(token)
    if line:
        yield _definition(line)


def _definition(line: Sequence[_Token]) -> _Definition:
    colon = next((at for at, token in enumerate(line) if token.text == ":"), None)
    if colon is None or line[0].kind not in ("rule", "terminal"):
        return _Definition("", line[0].text, tuple(line[1:]))
    head = "".join(token.text for token in line[: colon + 1])
    return _Definition(line[0].text.lstrip("!?"), head, tuple(line[colon + 1 :]))


def _tokens(text: str) -> Iterator[_Token]:
    """The tokens of a grammar; spaces and comments are one space. JSON follows its keyword as one of kind "value"."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None and found.lastgroup is not None
        at = found.end()
        yield _Token(found.lastgroup, " " if found.lastgroup == "space" else found[0])
        if found.lastgroup == "json":
            start = at + len(text[at:]) - len(text[at:].lstrip())
            at = json.JSONDecoder().raw_decode(text, start)[1]
            yield _Token("value", text[start:at])


def _is_terminal(each: _Definition) -> bool:
    return each.name.lstrip("_")[:1].isupper()


def _in_reach(rules: dict[str, _Definition]) -> list[str]:
    """The rules that `start` leads to, each behind those that it leads to, as far as they do not lead back."""
    done: dict[str, None] = {}
    begun: set[str] = set()
    waiting = [("start", False)]
    while waiting:
        name, left = waiting.pop()
        if left:
            done[name] = None
        elif name not in begun and name in rules:
            begun.add(name)
            inner = [token.text for token in rules[name].body if token.kind == "rule"]
            waiting += [(name, True), *((each, False) for each in reversed(inner))]
    return list(done)


def _first_wrong(items: Sequence[Item], good: Callable[[Sequence[Item]], bool]) -> Item | None:
    """The first item with which those up to it are not good together; None where all are."""
    if not items or good(items):
        return None
    low, high = 0, len(items)  # the first `low` are good, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(items[:middle]) else (low, middle)
    return items[low]


def _check_schema(text: str) -> None:
    """Raises `ConstraintError` for a JSON schema within a grammar that no finite JSON is valid under."""
    schema = json.loads(text)
    if isinstance(schema, dict):
        schema.pop("x-guidance", None)  # llguidance's own options, as `embedded_schema` gives them
    check_references(checked_schema(json.dumps(schema)))


def _sequence(terminals: Sequence[_Token], definitions: str) -> str:
    """A grammar of one terminal, which is several ones behind each other."""
    name = "ALL_"
    while name in definitions:
        name += "_"
    return f"start: {name}\n{name}: {' '.join(token.text for token in terminals)}\n{definitions}\n"


def _derives_empty(rules: dict[str, _Definition], names: Sequence[str]) -> bool:
    """Whether each of these rules derives a text where every terminal stands for the empty one. So it does just where
    it derives a finite text."""
    lines = [f"start: {' '.join(f'r_{name}' for name in names)}"]
    for name, rule in rules.items():
        body = []
        for token in rule.body:
            if token.kind == "rule" and token.text.lstrip("!?") in rules:
                body.append(f"r_{token.text.lstrip('!?')}")
            elif token.kind in ("text", "regex", "special", "terminal", "json"):
                body.append('""')
            elif token.kind != "value":
                body.append(token.text)
        lines.append(f"r_{name}: {''.join(body)}")
    matcher = _matcher("\n".join(lines))
    return matcher.is_accepting() or matcher.is_error()  # an error is of a limit


def _has_text(grammar: str) -> bool:
    """Whether a first byte may come, or none need to."""
    matcher = _matcher(grammar)
    matcher.compute_bitmask()
    return not _is_empty(matcher)


def _is_empty(matcher: LLMatcher) -> bool:
    return matcher.is_error() and matcher.get_error().startswith("NoExtensionBias")


def _matcher(grammar: str) -> LLMatcher:
    from llguidance import LLMatcher

    return LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=limits())


@lru_cache(maxsize=1)
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
