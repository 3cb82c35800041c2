"""Any picture to RGB: PIL images, NumPy arrays, paths, http(s) URLs, `data:` URIs and bytes of a picture file.

Contract: the result is what a person sees. EXIF orientation is applied, transparency lies on white, of an animation or
a multi-page file the first frame is taken, more than 8 bits a channel are scaled to 8. Whatever cannot be read raises
`ImageError` with one line. The number of pixels is checked before anything is decoded. `SourcePolicy` says what a
caller may reach: an app that passes on strangers' messages forbids URLs and paths.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import io
import os
import re
import stat
import threading
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..errors import ImageError
from .fetch import DEFAULT_POLICY, SourcePolicy, fetch, short

_WARNINGS = threading.Lock()
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


Picture = Image.Image  # as `load_image` returns it: of mode RGB


def load_image(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> Image.Image:
    """The picture as a PIL image of mode RGB.

    `picture` is a PIL image, an array (height, width), (height, width, channels) or (channels, height, width) with 1, 3
    or 4 channels, of uint8 or of floats in 0..1, a path, an http(s) URL, a `data:` URI, or the bytes of a picture file.
    Of an array that could be either, the last axis is the channels. Raises `ImageError`.
    """
    if isinstance(picture, Image.Image):
        name = f"PIL image {getattr(picture, 'filename', '') or picture.mode}"
        return _decode(picture, name, policy)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, policy)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(picture), "picture bytes", policy)
    if isinstance(picture, str):
        scheme = _SCHEME.match(picture)
        kind = scheme.group().lower() if scheme else ""
        if kind in ("http:", "https:"):
            return _from_bytes(fetch(picture, policy), short(picture), policy)
        if kind == "data:":
            return _from_bytes(_data_uri(picture, policy), short(picture), policy)
        if kind and picture[len(kind) :].startswith("//"):
            raise ImageError(f"{short(picture)}: only http, https and data addresses and paths can be read")
        return _from_path(picture, policy)
    if isinstance(picture, os.PathLike):
        return _from_path(os.fspath(picture), policy)
    raise ImageError(
        f"a picture of type {type(picture).__name__} cannot be read; give a PIL image, a NumPy array, a path, a URL, "
        "a data: URI or the bytes of a picture file"
    )


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def load_array(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> np.ndarray:
    """The picture as `load_image` reads it, as an array (height, width, 3) uint8. Raises `ImageError`."""
    return np.array(load_image(picture, policy))


def decode_base64(text: str, policy: SourcePolicy = DEFAULT_POLICY) -> bytes:
    """The bytes behind bare base64 text, as chat messages carry pictures. Raises `ImageError`."""
    if len(text) > policy.max_bytes * 4 // 3 + 4:
        raise ImageError(f"{short(text)}: more than {policy.max_bytes} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{short(text)}: is not base64") from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings (size, damaged metadata): what matters of them is checked here. The filters are the
    whole process's, hence the lock."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _from_path(name: str, policy: SourcePolicy) -> Image.Image:
    if not policy.allow_paths:
        raise ImageError(f"{short(name)}: local paths are not allowed here; give the picture itself")
    if not name:
        raise ImageError("the picture's path is empty")
    label = short(name)
    try:
        path = Path(name).expanduser()
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{label}: is a directory, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{label}: is not a regular file")
        if not status.st_size:
            raise ImageError(f"{label}: the file is empty")
        with path.open("rb") as file:
            return _open(file, label, policy)
    except FileNotFoundError:
        raise ImageError(f"{label}: no such picture") from None
    except PermissionError:
        raise ImageError(f"{label}: permission denied") from None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a name that no file can have, a loop of links, no home folder
        if isinstance(error, ImageError):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ImageError(f"{label}: too long for a path; base64 text goes into a data: URI") from None
        raise ImageError(f"{label}: cannot be opened ({short(str(error))})") from None


def _from_bytes(data: bytes, label: str, policy: SourcePolicy) -> Image.Image:
    if not data:
        raise ImageError(f"{label}: there are no bytes in it")
    return _open(io.BytesIO(data), label, policy)


def _open(file: Any, label: str, policy: SourcePolicy) -> Image.Image:
    try:
        with _quietly():
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise ImageError(f"{label}: has more pixels than Pillow decodes; make it smaller") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        known = "not a picture in a format that Pillow reads" if isinstance(error, OSError) else f"damaged ({error})"
        raise ImageError(f"{label}: {known}") from None
    if image.format == "EPS":
        raise ImageError(f"{label}: EPS is a program, which is not run here; convert it to PNG")
    return _decode(image, label, policy)


def _decode(image: Image.Image, label: str, policy: SourcePolicy) -> Image.Image:
    """Decodes the pixels, turns them upright and makes them RGB."""
    _check_size(image.width, image.height, label, policy)
    try:
        image.load()
        with _quietly():
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image, label)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{label}: there is not enough memory for {image.width}x{image.height} pixels") from None
    except Exception as error:  # as above: the file is damaged beyond its header
        raise ImageError(f"{label}: damaged or truncated ({short(str(error)) or type(error).__name__})") from None


def _check_size(width: int, height: int, label: str, policy: SourcePolicy) -> None:
    if not width or not height:
        raise ImageError(f"{label}: is {width}x{height} pixels, so there is nothing to see")
    if width * height > policy.max_pixels:
        raise ImageError(
            f"{label}: {width}x{height} is more than {policy.max_pixels / 1e6:g} million pixels; make it smaller"
        )


def _rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # 65535 is white: 257 steps of 16 bits are one of 8
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scaled(np.asarray(image), image.mode, label))
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _converted(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    elif image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _converted(image: Image.Image | None) -> Image.Image:
    assert image is not None  # only an in-place transform returns None
    return image


def _scaled(values: np.ndarray, mode: str, label: str) -> np.ndarray:
    """Values of the wide modes I and F to uint8, by the narrowest usual range that holds them all: 0..1 (F only),
    0..255, 0..65535."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ImageError(
            f"{label}: values from {low:g} to {high:g} in mode {mode} have no known scale; convert to 8 bits"
        )
    scale = 255.0 if mode == "F" and high <= 1 else 1.0 if high <= 255 else 1 / 257
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _from_array(array: np.ndarray, policy: SourcePolicy) -> Image.Image:
    label = f"array {array.shape} {array.dtype}"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(
            f"{label}: expected (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 "
            "channels"
        )
    _check_size(array.shape[1], array.shape[0], label, policy)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ImageError(f"{label}: expected uint8 in 0..255 or floats in 0..1")
        levels = np.rint(array.astype(np.float64) * 255)
        if not (levels.min() >= 0 and levels.max() <= 255):
            raise ImageError(
                f"{label}: floats must lie in 0..1, these run from {array.min():g} to {array.max():g}; give uint8 for "
                "0..255"
            )
        array = levels.astype(np.uint8)
    return _rgb(Image.fromarray(np.ascontiguousarray(array)), label)


def _data_uri(uri: str, policy: SourcePolicy) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{short(uri)}: a data: URI needs a comma before its data")
    if head.lower().endswith(";base64"):
        return decode_base64(urllib.parse.unquote(body) if "%" in body else body, policy)
    data = urllib.parse.unquote_to_bytes(body)
    if len(data) > policy.max_bytes:
        raise ImageError(f"{short(uri)}: more than {policy.max_bytes} bytes")
    return data
