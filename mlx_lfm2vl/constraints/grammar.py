"""A form to the text of a grammar, as llguidance reads it, with limits on what it may cost."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from ..errors import ConstraintError, first_line

if TYPE_CHECKING:
    from llguidance import LLParserLimits


def limits() -> LLParserLimits:
    """What compiling a grammar and following it may cost. With llguidance's own limits a hostile grammar may take
    seconds and gigabytes."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=100_000,
        max_lexer_states=50_000,
        verbose_errors=False,  # the parser's state in an error's text is for llguidance's developers
    )


class Form(Protocol):
    """A `ResponseFormat`."""

    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> str | tuple[str, ...]: ...
    @property
    def separators(self) -> tuple[str, str]: ...


def checked_grammar(form: Form) -> str:
    """The grammar of a form. Raises `ConstraintError` where llguidance cannot hold it."""
    return _checked(form.kind, form.value, form.separators)


@lru_cache(maxsize=64)
def _checked(kind: str, value: str | tuple[str, ...], separators: tuple[str, str]) -> str:
    from llguidance import LLMatcher

    try:
        text = _grammar(kind, value, separators)
        wrong, lines = LLMatcher.validate_grammar_with_warnings(text, limits=limits())
    except (ValueError, RecursionError) as error:
        wrong, lines = True, [str(error)]
    if wrong:
        raise ConstraintError(f"the {_NAMES[kind]} cannot be held: {first_line(ValueError(' '.join(lines)))}")
    return text


_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "grammar": "grammar",
}


def _grammar(kind: str, value: str | tuple[str, ...], separators: tuple[str, str]) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if isinstance(value, tuple):
        return LLMatcher.grammar_from_regex("|".join(map(_escaped, value)))
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(any_to_lark(value))
    item, key = separators
    return LLMatcher.grammar_from_json_schema(
        value, overrides={"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    )


def _escaped(text: str) -> str:
    """A regular expression for just this text."""
    return "".join("\\" + each if each in r"\.+*?()|[]{}^$#&-~/" else each for each in text)
