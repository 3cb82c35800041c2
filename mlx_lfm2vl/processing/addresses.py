"""The kind of a text that names or holds a picture: an address, a path, base64. Plain text; nothing is opened."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import urllib.parse
from pathlib import Path

from ..errors import ImageError, short
from .fetch import DEFAULT_POLICY, SourcePolicy
from .pdf import split_selection

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{60,}={0,2}\s*")  # shorter ones are names, or no picture
_MAGIC = re.compile(  # how picture files begin
    rb"%PDF-|\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0{4}|....ftyp|\0\0\0\x0cjP|\xff\x0a|....JXL ",
    re.S,
)


def scheme(text: str) -> str:
    """An address's scheme with its colon, in small letters; "" for what is none. Blanks around an address count not."""
    found = _SCHEME.match(text.strip())
    return found.group().lower() if found else ""


def split_pages(url: str) -> tuple[str, str | None]:
    """A URL without the pages of a PDF in brackets at its end, and these. In a query brackets are the server's."""
    return (url, None) if "?" in url else split_selection(url)


def file_path(uri: str) -> str:
    """The path of a file: address of this machine. Raises `ImageError`."""
    try:
        parts = urllib.parse.urlsplit(uri.strip())
    except ValueError:
        raise ImageError(f"{short(uri)}: is no address; name the file by its path") from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise ImageError(f"{short(uri)}: is a file of another machine; name a file of this one")
    return urllib.parse.unquote(parts.path)


def data_bytes(uri: str, policy: SourcePolicy) -> bytes:
    """The bytes in a data: URI. Raises `ImageError`."""
    head, comma, body = uri.strip().partition(",")
    if not comma:
        raise ImageError(f"{short(uri)}: a data: URI needs a comma before its data")
    if head.lower().replace(" ", "").endswith(";base64"):
        return decode_base64(urllib.parse.unquote(body) if "%" in body else body, policy, short(uri))
    data = urllib.parse.unquote_to_bytes(body)
    if len(data) > policy.max_bytes:
        raise ImageError(f"{short(uri)}: more than {policy.max_bytes} bytes; make it smaller")
    return data


def is_base64_picture(text: str) -> bool:
    """Whether a text is a picture file in base64 without an address around it."""
    if not _BASE64.fullmatch(text):
        return False
    digits = "".join(text[:200].split())[:40].translate(_URL_SAFE)
    return _MAGIC.match(base64.b64decode(digits)) is not None


def decode_base64(text: str, policy: SourcePolicy = DEFAULT_POLICY, label: str = "") -> bytes:
    """The bytes behind bare base64 text, of either alphabet, padded or not. Raises `ImageError`, which calls the text
    by `label` or by its beginning."""
    label = label or short(text)
    if len(text) > policy.max_bytes * 4 // 3 + 4:
        raise ImageError(f"{label}: more than {policy.max_bytes} bytes; make it smaller")
    with contextlib.suppress(ValueError):  # of blanks, the other alphabet, or no padding
        return base64.b64decode(text, validate=True)
    digits = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{label}: is not base64; encode the bytes of a picture file") from None


def beside(image: str, folder: Path) -> str:
    """A picture as a file in `folder` names it: its path from there, or the address or base64 text that it is."""
    if scheme(image) in ("data:", "file:") or "://" in image or is_base64_picture(image):
        return image
    return str(folder / os.path.expanduser(image))
