"""Texts that hold a file or name one on this machine: data: URIs and base64 to bytes, file: addresses to paths."""

from __future__ import annotations

import base64
import binascii
import contextlib
import urllib.parse

from ..errors import ImageError, short
from .fetch import DEFAULT_POLICY, SourcePolicy

URL_SAFE = str.maketrans("-_", "+/")


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


def decode_base64(text: str, policy: SourcePolicy = DEFAULT_POLICY, label: str = "") -> bytes:
    """The bytes behind bare base64 text, of either alphabet, padded or not. Raises `ImageError`, which calls the text
    by `label` or by its beginning."""
    label = label or short(text)
    if len(text) > policy.max_bytes * 4 // 3 + 4:
        raise ImageError(f"{label}: more than {policy.max_bytes} bytes; make it smaller")
    with contextlib.suppress(ValueError):  # of blanks, the other alphabet, or no padding
        return base64.b64decode(text, validate=True)
    digits = "".join(text.split()).rstrip("=").translate(URL_SAFE)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{label}: is not base64; encode the bytes of a picture file") from None
