"""Pictures and videos that a person's message names: files, typed or dropped on the terminal, and http(s) addresses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..errors import ImageError, short
from .inputs import dropped

_WORD = re.compile(r"""'[^']+'|"[^"]+"|(?:\\.|[^ \t\\])+""")  # names of screenshots hold other blanks
_BEFORE, _BEHIND = "([", "?!.,;:)"  # punctuation of a sentence around a path; a ] may end the pages of a PDF
_PATH = re.compile(r"""['"]?(~|\.{1,2})?/""")  # how a path with blanks begins that is a message's line


@dataclass
class Found:
    """The names of the pictures that a message names, the rest of its text, and a line for each name that cannot be
    read. Names before or behind the words are no part of the rest; within them that of the file stays."""

    names: list[str]
    rest: str
    unseen: list[str]


def find_pictures(text: str) -> Found:
    """The pictures that a message names, written as a shell or a terminal writes them. Of several lines only one that
    is a name as a whole is looked at. Raises `ImageError` for a message of names one of which cannot be read."""
    lines = text.split("\n")
    if len(lines) == 1:
        found, words = _of_line(text)
    else:
        found, kept, words = Found([], "", []), [], ""
        for line in lines:
            name, unseen = _named(line.strip(), alone=True)
            found.names += [name] if name is not None else []
            found.unseen += [unseen] if unseen is not None else []
            words += "" if unseen else line if name is None else ""
            kept += [line] if name is None else []
        found.rest = "\n".join(kept).strip()
    if found.unseen and not words.strip():
        raise ImageError(f"{found.unseen[0]}; a space before the message makes it text")
    return found


def _of_line(text: str) -> tuple[Found, str]:
    """The pictures named in a line, and its words without all names."""
    name, unseen = _named(text, alone=True)
    if name is not None:
        return Found([name], "", []), ""
    if unseen is not None:
        return Found([], text, [unseen]), ""
    names: list[tuple[int, int, str]] = []  # where a name begins and ends, and its picture
    missing: list[tuple[int, int, str]] = []
    for word in _WORD.finditer(text):
        bare = word[0].lstrip(_BEFORE)
        for path in dict.fromkeys((word[0], bare.rstrip(_BEHIND), bare.rstrip(f"{_BEHIND}]"))):
            name, unseen = _named(path)
            begin = word.start() + word[0].index(path)
            if name is not None:
                names.append((begin, begin + len(path), name))
                break
            if unseen is not None and path == bare.rstrip(_BEHIND):
                missing.append((begin, begin + len(path), unseen))
    words = _blanked(text, names)
    rest = text
    for begin, end, name in reversed(names):
        outside = not words[:begin].strip() or not words[end:].strip()
        rest = rest[:begin] + ("" if outside else os.path.basename(name)) + rest[end:]
    found = Found([name for _, _, name in names], rest.strip(), [unseen for _, _, unseen in missing])
    return found, _blanked(words, missing)


def _blanked(text: str, places: list[tuple[int, int, str]]) -> str:
    for begin, end, _ in places:
        text = text[:begin] + " " * (end - begin) + text[end:]
    return text


def _named(word: str, alone: bool = False) -> tuple[str | None, str | None]:
    """The name of the picture that a word is, or else why it is none that can be read; neither for other words.
    `alone` says that the word is a whole line, which may be a path with blanks or an address of any kind."""
    from ..processing.formats import begins_as_picture, suffixes
    from ..processing.not_pictures import VIDEO_SUFFIXES
    from ..processing.open_file import file_and_pages, is_remote, split_selection

    bare, ends = word.strip("'\" "), (*suffixes(), *VIDEO_SUFFIXES)
    base = split_selection(bare)[0]
    if is_remote(bare) and len(bare.split()) == 1:
        if alone or base.partition("?")[0].lower().endswith(ends):
            return bare, None
        return None, f"{short(bare)}: not opened, as it does not end like a picture's address"
    pictured, suffix = base.lower().endswith(ends), os.path.splitext(base)[1]
    if not bare or "\0" in bare or not (alone or pictured or "/" in bare):
        return None, None
    names = dropped(word)
    if len(names) != 1 or os.path.expanduser(names[0]).startswith("~"):  # the home of nobody
        return None, None
    path, pathlike = file_and_pages(names[0])[0], "/" in bare and re.search(r"\w", bare) is not None
    if os.path.isdir(path):
        return None, f"{short(bare)}: a folder, not a picture; name a file in it" if pathlike else None
    if os.path.isfile(path):
        if pictured or (not suffix and begins_as_picture(path)):
            return names[0], None
        return None, f"{short(bare)}: not a picture" if pathlike and not suffix else None
    whole = word[:1] in ("'", '"') or len(bare.replace("\\ ", "").split()) == 1 or (alone and _PATH.match(word))
    return None, f"{short(bare)}: no such picture" if pictured and suffix and whole else None
