"""Folders, patterns and names to the pictures and videos of `batch`: one name each, or a page of a PDF document."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import OptionError
from .inputs import ADDRESS, expand
from .stderr import note


def pictures_in(names: Sequence[str], recursive: bool = False, videos: bool = False) -> list[str]:
    """All pictures (and with `videos`, videos) of folders (by suffix, of their subfolders with `recursive`, with notes
    on what is left out), patterns and names; of a PDF file each page. A file that is not there stands among them, if
    others are. Raises `OptionError`."""
    from ..processing.formats import suffixes
    from ..processing.not_pictures import VIDEO_SUFFIXES
    from ..processing.open_file import file_and_pages

    ends = (*suffixes(), *(VIDEO_SUFFIXES if videos else ()))
    found: list[str] = []
    missing: list[str] = []
    for given in names:
        name = os.path.expanduser(given)
        if os.path.isdir(name):
            found += [page for entry in _inside(name, recursive, ends) for page in _pages(os.path.join(name, entry))]
            continue
        matching = expand([name])
        if matching == [name] and not ADDRESS.match(name) and not os.path.exists(file_and_pages(name)[0]):
            missing.append(name)
            if len(missing) == len(names) or not name.lower().endswith(ends):
                raise OptionError(f"{name}: no such folder or picture")
        found += [page for match in matching for page in _pages(match)]
    return found


def _pages(name: str) -> list[str]:
    """A picture's name, or those of the pages of a PDF file."""
    from ..processing.load_image import page_names
    from ..processing.open_file import has_suffix, split_selection

    return page_names(name) if has_suffix(split_selection(name)[0]) and not ADDRESS.match(name) else [name]


def _inside(folder: str, recursive: bool, ends: tuple[str, ...]) -> list[str]:
    """The names within a folder that end so, in their order. Raises `OptionError`."""
    pictures: list[str] = []
    others: list[str] = []
    hidden: list[str] = []
    for name in _entries(folder, recursive):
        picture = name.lower().endswith(ends)
        if os.path.basename(name.rstrip("/")).startswith("."):
            hidden += [name] * (picture or (recursive and name.endswith("/")))
        else:
            (pictures if picture else others).append(name)
    for names, why in ((others, "as no pictures by their names"), (hidden, "as hidden")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            note(f"{folder}: left out, {why}: {', '.join(names[:3])}{more}")
    if not pictures:
        raise OptionError(f"{folder}: there is no picture in this folder (png, jpg, heic, whatever Pillow reads)")
    return pictures


def _entries(folder: str, recursive: bool) -> list[str]:
    """The names of a folder, and with `recursive` of its subfolders, in their order. A folder that is not entered has a
    slash: a hidden one, a link to one, and without `recursive` any. Raises `OptionError`."""

    def fail(error: OSError) -> None:
        raise OptionError(f"{folder}: cannot be listed ({error.strerror or error})") from None

    found = []
    for path, folders, files in os.walk(folder, onerror=fail):
        inside = os.path.relpath(path, folder) + "/"
        closed = [n for n in folders if not recursive or n[0] == "." or os.path.islink(os.path.join(path, n))]
        folders[:] = [name for name in folders if name not in closed]
        found += [(inside + name).removeprefix("./") for name in (*files, *(f"{name}/" for name in closed))]
    return sorted(found)
