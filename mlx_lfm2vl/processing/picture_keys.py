"""Keys of messages and rows that name pictures, misspelt ones too, so that none is passed over in silence."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import PromptError
from .arrays import is_array
from .formats import suffixes
from .not_pictures import VIDEO_SUFFIXES, names_video_file
from .open_file import REMOTE, is_base64_picture, scheme

_STEMS = ("image", "img", "picture", "photo", "screenshot", "attachment", "pixel", "video")
_WORDS = ("image", "images", "picture", "pictures", "photo", "photos", "pic", "pics")
_ABOUT = re.compile(  # what tells of a picture and holds none
    r"(ids?|width|height|sizes?|tokens?|count|number|index|hash|md5|sha\d*|format|types?|mode|captions?|description|text"
    r"|labels?|alt|title|date|time|licen[cs]e|credits?|quality|details?|processor|splitting|source|author|tags?)$"
)
_FILES = ("file", "media", "document", "path", "url", "uri", "src", "source", "upload", "asset", "page", "scan")
_DATA = {".bufr", ".grib", ".h5", ".hdf"}  # which a row may tell of
_ENDS = (*(suffix for suffix in suffixes() if suffix not in _DATA), ".svg", *VIDEO_SUFFIXES)
_ADDRESSES = ("url", "uri", "src")  # how keys of addresses end
_ASKED = ("question", "instruction", "query", "text", "input", "request", "userprompt", "ask")  # for a prompt
_PATHLIKE = {f"image{of}{more}" for of in ("", "url", "path", "file") for more in ("", "s")}


def _plain(key: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower()) if isinstance(key, str) else ""


def reads(key: Any) -> bool:
    """Whether a row's key is one whose pictures are read: "image", "images", "image_url", "image_path" and the like."""
    return _plain(key) in _PATHLIKE


def unread(data: Mapping[str, Any], known: tuple[str, ...] = ()) -> str | None:
    """The first key, beside those known, that names a picture, as far as its value may be one."""
    for key, value in data.items():
        empty = value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)
        if key not in known and not empty and not isinstance(value, (bool, int, float)) and _names_picture(_plain(key)):
            return key
    return None


def another(data: Mapping[str, Any], known: tuple[str, ...], pictures: Sequence[str] = ()) -> str | None:
    """The first key, beside those known, that names a picture beside those which are read. Their own names, and what
    they are called in "file_name" and the like, are none."""
    names = {os.path.basename(picture) for picture in pictures}
    for key, value in data.items():
        plain = _plain(key)
        if key in known or plain.endswith(("name", "names", "id")):
            continue
        if isinstance(value, str) and value and plain[-1:].isdigit() and reads(plain.rstrip("0123456789")):
            return key  # image2
        same = isinstance(value, str) and os.path.basename(value) in names
        if not same and _is_picture(value, _names_picture(plain) or any(stem in plain for stem in _FILES)):
            return key
    return None


def prompt_key(data: Mapping[str, Any], known: tuple[str, ...] = ()) -> str | None:
    """The first key, beside those known, that people call a prompt by, whose value is text."""
    asked = (key for key, value in data.items() if isinstance(value, str) and value.strip() and key not in known)
    return next((key for key in asked if _plain(key).removesuffix("s") in _ASKED), None)


def holding(data: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    """The first key, beside those known and "id", whose value is a picture, or a file's name with a picture's suffix,
    whatever the key is called; of one that is called an address, any of http(s)."""
    for key, value in data.items():
        plain = _plain(key)
        if key in known or plain == "id":
            continue
        address = plain.endswith(_ADDRESSES) and isinstance(value, str) and scheme(value) in REMOTE
        if address or _is_picture(value, any(stem in plain for stem in _FILES)):
            return key
    return None


def misspelt(data: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, str] | None:
    """The first key that is none of these names and nearly one that is missing, and that name."""
    missing = [name for name in names if name not in data]
    for key in data:
        plain = _plain(key)
        close = [name for name in missing if plain in (name, f"{name}prompt")]
        close += difflib.get_close_matches(plain, missing, 1, 0.8)
        if close and key not in names and not _ABOUT.search(plain):
            return key, close[0]
    return None


def pictures_key(data: Mapping[str, Any], known: tuple[str, ...], videos: bool = False) -> str | None:
    """The key of a row whose pictures are read, beside those known; `videos` says whether its videos are, too. Raises
    `PromptError` for two of them, for another one that names a picture or video, and for a misspelt one."""
    given = [key for key in data if reads(key)]
    if len(given) > 1:
        raise PromptError(f'has both "{given[0]}" and "{given[1]}"; give one of them')
    if given:
        pictures = data[given[0]] if isinstance(data[given[0]], list) else [data[given[0]]]
        key = another(data, (*known, *given), [each for each in pictures if isinstance(each, str)])
    else:
        key = unread(data, known) or holding(data, known)
    if key is not None:
        if names_video(key, data[key]):
            way = 'call it "video", with all videos in one list' if videos else "rows have pictures only; leave it out"
            raise PromptError(f'"{key}" names a video and is not read; {way}')
        way = "put all pictures into one list" if given else 'call it "image"'
        raise PromptError(f'"{key}" names a picture and is not read; {way}')
    return given[0] if given else None


def row_pictures(data: Mapping[str, Any], known: tuple[str, ...], others: tuple[str, ...] = ()) -> list[str]:
    """The names of a row's pictures: paths, addresses or data URIs.

    Args:
        data: the row's JSON.
        known: the keys that are read beside them.
        others: keys that may stand there too, and are not taken for misspelt ones.

    Raises:
        PromptError: as `pictures_key`, and for any other key that is misspelt, or what names no picture.
    """
    if not isinstance(data, Mapping):
        raise PromptError("is not an object")
    given = pictures_key(data, (*known, *others))
    if near := misspelt(data, known):
        raise PromptError(f'"{near[0]}" is not read; call it "{near[1]}"')
    asked = any(key in data for key in ("prompt", "messages") if key in known)
    if not asked and (key := prompt_key(data, others)):
        raise PromptError(f'"{key}" is not read; call it "prompt"')
    value = None if given is None else data[given]
    images = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(image, str) and image for image in images):
        raise PromptError('"image" must be a path, a URL, a data URI or a list of them')
    return images


def videos_key(data: Mapping[str, Any]) -> str | None:
    """The key of a row whose videos are read: "video", "videos", "video_url", "video_path" and the like. Raises
    `PromptError` for two of them."""
    given = [key for key in data if _plain(key).startswith("video") and reads("image" + _plain(key)[len("video") :])]
    if len(given) > 1:
        raise PromptError(f'has both "{given[0]}" and "{given[1]}"; give one of them')
    return given[0] if given else None


def names_video(key: str, value: Any) -> bool:
    """Whether a row's field names a video, by its key, misspelt or not, or by its value."""
    plain = _plain(key)
    if _ABOUT.search(plain):
        return False
    of_names = any(map(names_video_file, value if isinstance(value, list) else [value]))
    return of_names or "video" in plain or bool(difflib.get_close_matches(plain, ("video", "videos"), 1, 0.79))


def _names_picture(plain: str) -> bool:
    if not plain or _ABOUT.search(plain):
        return False
    return any(stem in plain for stem in _STEMS) or bool(difflib.get_close_matches(plain, _WORDS, 1, 0.79))


def _is_picture(value: Any, named: bool, depth: int = 3) -> bool:
    """Whether a value is or holds a picture or the name of one. `named` says that it is called a file: then a text with
    blanks is a name, too, and else a sentence."""
    if isinstance(value, str):
        name = value.strip().lower()
        name = name.partition("?")[0] if "://" in name else name
        plain = len(name) < 4096 and (named or "/" in name or len(name.split()) == 1)
        return name.startswith("data:image/") or (plain and name.endswith(_ENDS)) or is_base64_picture(value)
    if isinstance(value, (bytes, bytearray, os.PathLike, Image.Image)) or (is_array(value) and value.ndim > 1):
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return depth > 0 and any(_is_picture(item, named, depth - 1) for item in items)
