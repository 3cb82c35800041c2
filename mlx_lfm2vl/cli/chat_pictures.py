"""Paths of pictures in what a person types or drops on the terminal."""

from __future__ import annotations

import os
import re

from .inputs import dropped

_WORD = re.compile(r"""'[^']+'|"[^"]+"|(?:\\.|[^ \t\\])+""")  # names of screenshots hold other blanks
_BEFORE, _BEHIND = "([", "?!.,;:)"  # punctuation of a sentence around a path; a ] may end the pages of a PDF


def find_pictures(text: str) -> tuple[list[str], str]:
    """The files of pictures that a line names, and the rest of it. Paths are written as a shell or a terminal writes
    them. One before or behind the words is no part of the rest; within them the name of the file stays."""
    if (whole := _picture(text)) is not None:
        return [whole], ""
    found: list[tuple[int, int, str]] = []  # where a path begins and ends, and its file
    for word in _WORD.finditer(text):
        bare = word[0].lstrip(_BEFORE)
        for path in (word[0], bare.rstrip(_BEHIND), bare.rstrip(f"{_BEHIND}]")):
            if (name := _picture(path)) is not None:
                begin = word.start() + word[0].index(path)
                found.append((begin, begin + len(path), name))
                break
    words = text
    for begin, end, _ in found:
        words = words[:begin] + " " * (end - begin) + words[end:]
    rest = text
    for begin, end, name in reversed(found):
        outside = not words[:begin].strip() or not words[end:].strip()
        rest = rest[:begin] + ("" if outside else os.path.basename(name)) + rest[end:]
    return [name for _, _, name in found], rest.strip()


def _picture(word: str) -> str | None:
    """The name of the picture file that a word is, or of pages of a PDF; None if it is none. Its suffix decides."""
    from ..processing.formats import suffixes
    from ..processing.open_file import file_and_pages
    from ..processing.pdf import split_selection

    if not split_selection(word.rstrip("'\" "))[0].lower().endswith(suffixes()):
        return None
    names = dropped(word)
    return names[0] if len(names) == 1 and os.path.isfile(file_and_pages(names[0])[0]) else None
