"""The steps that a tokenizer file may have: those that byte-level BPE tokenizers have, and that end.

tokenizer.json is a small program: normalizers that replace can double a text at each step, templates may name tokens
that are not there, patterns may try for ever. The Rust library runs or panics on whatever the file says, so it is asked
before it is used. Arguments are the JSON of the steps; all functions raise `ValueError` whose message says what is
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..config import shown

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "ByteLevel")  # none of them makes a text longer without bound
MAX_PIECES = 32  # of a template around a text
MAX_PATTERN = 10_000  # characters of all patterns; the longest published ones have some hundred
_ESCAPE = re.compile(r"\\[pP]\{[^}]*\}|\\[^cgCM]", re.S)
_CLASS = re.compile(r"\[\^?\]?[^\[\]]*\]")
_GROUP = re.compile(r"\(\??([^()]*)\)([*+]|\{\d*,?\d*\})?")
_LOOSE = re.compile(r"[*+?|]|\{\d*,")
_HIDDEN = re.compile(r"\(\?(?:#|[\w-]*x)")  # comments, and blanks that count for nothing
_TWICE = re.compile(r"[*+?}]\{[\d,]|\{\d*,\d*\}\??[*+]")  # one part that repeats its repetition
_LAST = re.compile(r"\}\+(?=\||$)")  # as GPT-4's `{1,3}+`, behind which nothing can fail


def check_normalizer(step: Mapping[str, Any] | None) -> None:
    """Only Unicode normal forms."""
    for one in _steps(step, "normalizers"):
        if one.get("type") not in NORMALIZERS:
            raise ValueError(f"normalizer {shown(one.get('type'))} is none of a byte-level tokenizer")


def check_patterns(step: Mapping[str, Any] | None) -> None:
    """Patterns of pre-tokenizers that take polynomial time."""
    given = [pattern for one in _steps(step, "pretokenizers") if isinstance(pattern := one.get("pattern"), Mapping)]
    patterns = [str(pattern.get("Regex", "")) for pattern in given]
    if (characters := sum(map(len, patterns))) > MAX_PATTERN:
        raise ValueError(f"its patterns have {characters:,} characters")
    if any(map(takes_long, patterns)):
        raise ValueError("a pattern repeats a group that repeats or chooses itself, which may take for ever")


def check_post_processor(step: Mapping[str, Any] | None, knows: Callable[[str], bool]) -> None:
    """Templates that name tokens which are there (`knows`), one of them at the most."""
    templates = [one for one in _steps(step, "processors") if one.get("type") == "TemplateProcessing"]
    if len(templates) > 1:
        raise ValueError("several templates are put around a text")
    for template in templates:
        special = template.get("special_tokens") or {}
        for pieces in (template.get("single") or (), template.get("pair") or ()):
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"a template of {len(pieces)} pieces is put around a text")
            for piece in pieces:
                token = piece.get("SpecialToken", {}).get("id")
                if token is not None and not (token in special and all(map(knows, special[token]["tokens"]))):
                    raise ValueError(f"its template names the token {shown(token)}, which it does not have")


def _steps(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """A step, or those of a sequence."""
    if step is not None and step.get("type") == "Sequence":
        for one in step.get(inner) or ():
            yield from _steps(one, inner)
    elif step is not None:
        yield step


def takes_long(pattern: str) -> bool:
    """Whether a group that is repeated holds a repetition, an option or a choice, as `(a+)+` and `(a|aa)*` do, or may,
    unseen: such a pattern can need exponential time. Exact counts, `(\\d{3})*`, are no repetition."""
    bare = _ESCAPE.sub("x", pattern)
    if "\\" in bare:  # a call of a group, or a control character, whose letter may be a bracket
        return True
    while (outer := _CLASS.sub("x", bare)) != bare:
        bare = outer
    if _HIDDEN.search(bare):
        return True
    while group := _GROUP.search(bare):  # from within outwards
        inner, repeat = group[1], group[2] or ""
        loose = _LOOSE.search(inner) is not None  # its parts can match in several ways
        if _TWICE.search(inner) or (loose and repeat not in ("", "{1}", "{0,1}")):
            return True
        loose |= repeat in ("*", "+") or "," in repeat
        bare = f"{bare[: group.start()]}{'x*' if loose else 'x'}{bare[group.end() :]}"
    return _TWICE.search(_LAST.sub("}", bare)) is not None
