"""Any picture to RGB: PIL images, arrays, paths, addresses, base64, open files and bytes of a picture file.

The result is what a person sees (formats.py and pixels.py say how), or one line of `ImageError` that names the picture
and the way out. `SourcePolicy` says what a caller may reach and how large pictures may be. An app that passes on
strangers' messages forbids URLs and paths. Only regular files are opened.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import ImageProcessorConfig
from ..errors import ImageError
from . import addresses
from .arrays import is_array, to_numpy
from .fetch import DEFAULT_POLICY, SourcePolicy, fetch, short
from .formats import check_size, decode, open_picture
from .jpeg import with_end
from .pixels import from_array, height_width

DEFAULT_CONFIG = ImageProcessorConfig()
Picture = Image.Image  # as `load_image` returns it: of mode RGB


def load_image(
    picture: Any, policy: SourcePolicy = DEFAULT_POLICY, config: ImageProcessorConfig = DEFAULT_CONFIG
) -> Image.Image:
    """The picture as a PIL image of mode RGB.

    Args:
        picture: a PIL image, an array of NumPy, MLX or torch, a path, a URL (http, https, file), a `data:` URI, base64
            text, an open file, which is read from its start, or the bytes of a picture file. An array is (height,
            width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, of uint8 or of
            floats in 0..1. Where both readings fit, the last axis is the channels. A PIL image is read at the frame
            where it stands, a file at its first frame, with an `ImageWarning` if there are more.
        policy: what may be reached, and how large it may be.
        config: its `color_management` and `exif` hold; nothing is resized.

    Raises:
        ImageError: it cannot be read, or may not.
    """
    if isinstance(picture, Image.Image):
        name = f"PIL image {short(str(getattr(picture, 'filename', '') or picture.mode))}"
        return decode(with_end(picture), name, policy, config)
    if is_array(picture):
        return _from_array(picture, policy)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(picture), "picture bytes", policy, config)
    if isinstance(picture, str):
        return _from_text(picture, policy, config)
    if isinstance(picture, os.PathLike):
        return _from_path(os.fspath(picture), policy, config)
    if callable(getattr(picture, "read", None)):
        label = f"file {short(str(getattr(picture, 'name', type(picture).__name__)))}"
        return _from_bytes(_content(picture, label, policy), label, policy, config)
    raise ImageError(
        f"a picture of type {type(picture).__name__} cannot be read; give a PIL image, a NumPy array, a path, a URL, "
        "a data: URI, an open file or the bytes of a picture file"
    )


def _from_text(text: str, policy: SourcePolicy, config: ImageProcessorConfig) -> Image.Image:
    kind = addresses.scheme(text)
    rest = text.strip()[len(kind) :]
    if is_remote(text):
        return _from_bytes(fetch(text.strip(), policy), short(text), policy, config)
    if kind == "data:":
        return _from_bytes(addresses.data_bytes(text, policy), short(text), policy, config)
    if kind == "file:" and rest.startswith("/"):
        return _from_path(addresses.file_path(text), policy, config)
    if kind and rest.startswith("//"):
        raise ImageError(f"{short(text)}: only http, https, file and data addresses and paths can be read")
    if addresses.is_base64_picture(text):
        return _from_bytes(addresses.decode_base64(text, policy), "base64 text", policy, config)
    return _from_path(text, policy, config)


def is_remote(picture: Any) -> bool:
    """Whether a picture is an http(s) address, which may be slow to answer."""
    return isinstance(picture, str) and addresses.scheme(picture) in ("http:", "https:")


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def load_array(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> np.ndarray:
    """The picture as `load_image` reads it, as an array (height, width, 3) uint8. Raises `ImageError`."""
    return np.array(load_image(picture, policy))


def _from_path(name: str | bytes, policy: SourcePolicy, config: ImageProcessorConfig) -> Image.Image:
    name = os.fsdecode(name)
    label = short(name)
    if not policy.allow_paths:
        raise ImageError(f"{label}: local paths are not allowed here; give the picture itself")
    if not name:
        raise ImageError("the picture's path is empty; name a file")
    try:
        with open(as_spelt(Path(name).expanduser()), "rb", opener=_opener) as file:
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


def as_spelt(name: str | Path) -> Path:
    """The path, or where no such file is the one beside it whose name looks the same: names of macOS have blanks that
    no key types (U+202F in those of screenshots), and letters in parts."""
    path = Path(name)
    if os.path.lexists(path):
        return path
    looks = unicodedata.normalize("NFKC", path.name)
    with contextlib.suppress(OSError):
        same = [name for name in os.listdir(path.parent) if unicodedata.normalize("NFKC", name) == looks]
        if len(same) == 1:
            return path.with_name(same[0])
    return path


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


def _content(file: Any, label: str, policy: SourcePolicy) -> bytes:
    """All bytes of an open file, which is left where it stood, so that it may be read again."""
    if inspect.iscoroutinefunction(file.read):
        raise ImageError(f"{label}: its read() must be awaited; give the bytes that it reads")
    if isinstance(file, io.TextIOBase):
        raise ImageError(f"{label}: is opened as text; open it in the mode 'rb'")
    try:
        at = file.tell()
        file.seek(0)
        data = file.read(int(policy.max_bytes) + 1)
        file.seek(at)
    except (OSError, ValueError, AttributeError) as error:  # closed, a pipe
        raise ImageError(f"{label}: cannot be read from its start ({short(str(error))}); give its bytes") from None
    if not isinstance(data, bytes):
        raise ImageError(f"{label}: reads {type(data).__name__}, not bytes; give its bytes")
    if len(data) > policy.max_bytes:
        raise ImageError(f"{label}: more than {policy.max_bytes} bytes; make it smaller")
    return data


def _from_array(picture: Any, policy: SourcePolicy) -> Image.Image:
    try:
        array = to_numpy(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # a sparse tensor, one without memory
        raise ImageError(
            f"a picture of type {type(picture).__name__} is no array in memory ({short(str(error))})"
        ) from None
    label = f"array {array.shape} {array.dtype}"
    height, width = height_width(array.shape, label)
    check_size(width, height, label, policy)
    return from_array(array, label)
