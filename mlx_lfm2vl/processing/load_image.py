"""Any picture to RGB: PIL images, NumPy arrays, paths, http(s) URLs, `data:` URIs and bytes of a picture file.

The result is what a person sees (formats.py and pixels.py say how), or one line of `ImageError` that names the picture
and the way out. `SourcePolicy` says what a caller may reach and how large pictures may be. An app that passes on
strangers' messages forbids URLs and paths. Only regular files are opened.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import ImageProcessorConfig
from ..errors import ImageError
from .fetch import DEFAULT_POLICY, SourcePolicy, fetch, short
from .formats import check_size, decode, open_picture
from .pixels import from_array, height_width

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


DEFAULT_CONFIG = ImageProcessorConfig()
Picture = Image.Image  # as `load_image` returns it: of mode RGB


def load_image(
    picture: Any, policy: SourcePolicy = DEFAULT_POLICY, config: ImageProcessorConfig = DEFAULT_CONFIG
) -> Image.Image:
    """The picture as a PIL image of mode RGB.

    Args:
        picture: a PIL image, an array, a path, an http(s) URL, a `data:` URI, or the bytes of a picture file. An array
            is (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, of uint8
            or of floats in 0..1. Where both readings fit, the last axis is the channels. A PIL image is read at the
            frame where it stands, a file at its first frame, with an `ImageWarning` if there are more.
        policy: what may be reached, and how large it may be.
        config: its `color_management` and `exif` hold; nothing is resized.

    Raises:
        ImageError: it cannot be read, or may not.
    """
    if isinstance(picture, Image.Image):
        name = f"PIL image {short(str(getattr(picture, 'filename', '') or picture.mode))}"
        return decode(picture, name, policy, config)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, policy)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(picture), "picture bytes", policy, config)
    if isinstance(picture, str):
        scheme = _SCHEME.match(picture)
        kind = scheme.group().lower() if scheme else ""
        if is_remote(picture):
            return _from_bytes(fetch(picture, policy), short(picture), policy, config)
        if kind == "data:":
            return _from_bytes(_data_uri(picture, policy), short(picture), policy, config)
        if kind and picture[len(kind) :].startswith("//"):
            raise ImageError(f"{short(picture)}: only http, https and data addresses and paths can be read")
        return _from_path(picture, policy, config)
    if isinstance(picture, os.PathLike):
        return _from_path(os.fspath(picture), policy, config)
    raise ImageError(
        f"a picture of type {type(picture).__name__} cannot be read; give a PIL image, a NumPy array, a path, a URL, "
        "a data: URI or the bytes of a picture file"
    )


def is_remote(picture: Any) -> bool:
    """Whether a picture is an http(s) address, which may be slow to answer."""
    scheme = _SCHEME.match(picture) if isinstance(picture, str) else None
    return scheme is not None and scheme.group().lower() in ("http:", "https:")


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def load_array(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> np.ndarray:
    """The picture as `load_image` reads it, as an array (height, width, 3) uint8. Raises `ImageError`."""
    return np.array(load_image(picture, policy))


def decode_base64(text: str, policy: SourcePolicy = DEFAULT_POLICY, label: str = "") -> bytes:
    """The bytes behind bare base64 text, as chat messages carry pictures. Raises `ImageError`, which calls the text by
    `label` or by its beginning."""
    label = label or short(text)
    if len(text) > policy.max_bytes * 4 // 3 + 4:
        raise ImageError(f"{label}: more than {policy.max_bytes} bytes; make it smaller")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{label}: is not base64; encode the bytes of a picture file") from None


def _from_path(name: str | bytes, policy: SourcePolicy, config: ImageProcessorConfig) -> Image.Image:
    name = os.fsdecode(name)
    label = short(name)
    if not policy.allow_paths:
        raise ImageError(f"{label}: local paths are not allowed here; give the picture itself")
    if not name:
        raise ImageError("the picture's path is empty; name a file")
    try:
        with open(Path(name).expanduser(), "rb", opener=_opener) as file:
            _check_file(os.fstat(file.fileno()), label)
            return open_picture(file, label, policy, config)
    except FileNotFoundError:
        if os.path.islink(Path(name).expanduser()):
            raise ImageError(f"{label}: is a link to a file that is not there; name the file") from None
        raise ImageError(f"{label}: no such picture") from None
    except IsADirectoryError:
        raise ImageError(f"{label}: is a directory, not a picture; name a file in it") from None
    except PermissionError:
        raise ImageError(f"{label}: permission denied; make it readable for you") from None
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links, no home
        if isinstance(error, ImageError):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ImageError(f"{label}: too long for a path; base64 text goes into a data: URI") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{label}: cannot be opened ({short(reason)})") from None


def _opener(name: str, flags: int) -> int:
    """Opens a regular file and nothing else: to open a pipe would wait for its writer, to open some devices acts."""
    _check_file(os.stat(name), short(name))
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # should it become a pipe in this very moment


def _check_file(status: os.stat_result, label: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{label}: is a directory, not a picture; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{label}: is not a regular file but a device or pipe; give a file, or the picture's bytes")
    if not status.st_size:
        raise ImageError(f"{label}: the file is empty; save or download it again")


def _from_bytes(data: bytes, label: str, policy: SourcePolicy, config: ImageProcessorConfig) -> Image.Image:
    if not data:
        raise ImageError(f"{label}: there are no bytes in it; give those of a picture file")
    return open_picture(io.BytesIO(data), label, policy, config)


def _from_array(array: np.ndarray, policy: SourcePolicy) -> Image.Image:
    label = f"array {array.shape} {array.dtype}"
    height, width = height_width(array.shape, label)
    check_size(width, height, label, policy)
    return from_array(array, label)


def _data_uri(uri: str, policy: SourcePolicy) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{short(uri)}: a data: URI needs a comma before its data")
    if head.lower().endswith(";base64"):
        return decode_base64(urllib.parse.unquote(body) if "%" in body else body, policy, short(uri))
    data = urllib.parse.unquote_to_bytes(body)
    if len(data) > policy.max_bytes:
        raise ImageError(f"{short(uri)}: more than {policy.max_bytes} bytes; make it smaller")
    return data
