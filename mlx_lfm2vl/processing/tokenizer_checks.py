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
_REPEATS = re.compile(r"[*+]|\{(\d*)(,?)(\d*)\}")
_ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[|.", re.DOTALL)


def check_normalizer(step: Mapping[str, Any] | None) -> None:
    """Only Unicode normal forms."""
    for one in _steps(step, "normalizers"):
        if one.get("type") not in NORMALIZERS:
            raise ValueError(f"normalizer {shown(one.get('type'))} is none of a byte-level tokenizer")


def check_patterns(step: Mapping[str, Any] | None) -> None:
    """Patterns of pre-tokenizers that take polynomial time."""
    for one in _steps(step, "pretokenizers"):
        pattern = one.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str) and takes_long(pattern["Regex"]):
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
    if step is None:
        return
    if step.get("type") == "Sequence":
        for one in step.get(inner) or ():
            yield from _steps(one, inner)
    else:
        yield step


def takes_long(pattern: str) -> bool:
    """Whether a group that is repeated holds a repetition, an option or a choice, as `(a+)+` and `(a|aa)*` do: such a
    pattern can need exponential time. Exact counts, `(\\d{3})*`, are no repetition."""
    loose = [False]  # of the whole pattern and each open group: whether its parts can match in several ways
    at = 0
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        assert atom is not None
        at, closed = atom.end(), False
        match atom[0]:
            case "[":
                at = _class_end(pattern, at)
            case "(":
                loose.append(False)
                if pattern.startswith("?", at):
                    at += 1
                continue
            case ")" if len(loose) > 1:
                closed = loose.pop()
                loose[-1] |= closed
            case "|" | "?":
                loose[-1] = True
                continue
        if repeat := _REPEATS.match(pattern, at):
            at = repeat.end()
            exact = repeat[1] is not None and not repeat[2]
            if closed and repeat[0] not in ("{1}", "{0,1}"):
                return True
            loose[-1] |= not exact
    return False


def _class_end(pattern: str, at: int) -> int:
    """The place behind a character class whose `[` stands before `at`."""
    at += pattern.startswith("^", at)
    at += pattern.startswith("]", at)
    depth = 1
    while at < len(pattern) and depth:
        depth += {"[": 1, "]": -1}.get(pattern[at], 0)
        at += 2 if pattern[at] == "\\" else 1
    return at
