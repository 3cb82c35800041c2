"""Messages of llguidance's compiler, which have several lines and Rust's names, on one line in plain words."""

from __future__ import annotations

import re

_LONGEST = 300  # characters of a message
_PATTERN = 60  # characters of a pattern that a message quotes
_PLACE = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
_EXCERPT = re.compile(r"\n +\d+ \| .*", re.S)
_PARSE_ERROR = re.compile(
    r'(?:invalid regex "(?:[^"\\]|\\.)*" \(in regex\): )?regex parse error:\n(.*)\nerror: ([^\n]*)', re.S
)
_CARET = re.compile(r" {4}([^\n]*)\n {4}( *)\^[ ^]*")
_LOOK_AROUND = re.compile(r".*lookarounds not supported yet; \w+ in regex /(.*)/", re.S)
_TOO_COMPLEX = re.compile(r"(?:Unsatisfiable schema: )?Unable to determine if regex is empty: .*", re.S)
_NO_TEXT = re.compile(r"(?:Unsatisfiable schema: )?Regex is empty: .*", re.S)


def compiler_message(raw: str, *, place: bool = True) -> str:
    """A message of llguidance's compiler as one line: where in the text, which regular expression, where in that, why.

    Args:
        raw: the message, with its excerpt of the source.
        place: whether lines and columns are those of a text that the user wrote.
    """
    text = _EXCERPT.sub("", raw.removesuffix("\n<non-verbose/>").partition(" while processing json-schema:")[0])
    found = _PLACE.match(text)
    where = f"line {found[1]}, column {found[2]}: " if found and place else ""
    text = text[found.end() :] if found else text
    return where + " ".join(_plain(text).split())[:_LONGEST]


def quoted(pattern: str) -> str:
    """A pattern between slashes, its end cut off where it is long."""
    return f"/{pattern if len(pattern) <= _PATTERN else pattern[: _PATTERN - 3] + '...'}/"


def _plain(text: str) -> str:
    if (error := _PARSE_ERROR.search(text)) is not None:
        before, why = text[: error.start()], error[2]
        if (caret := _CARET.fullmatch(error[1])) is None:  # of a pattern of several lines
            return f"{before}the regex is wrong: {why}"
        return f"{before}the regex {quoted(caret[1])}, column {len(caret[2]) + 1}: {why}"
    if (error := _LOOK_AROUND.match(text)) is not None:
        return f"the regex {quoted(error[1])}: word boundaries, and ^ or $ within a pattern, are not supported"
    if _TOO_COMPLEX.match(text):
        return "its patterns together are too complex; use fewer, or simpler ones"
    if _NO_TEXT.match(text):
        return "no text is valid under it"
    return text.replace("Unsatisfiable schema: ", "no JSON is valid under it: ", 1)
