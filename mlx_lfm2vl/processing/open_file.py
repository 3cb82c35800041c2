"""Files of pictures, opened by whatever names or holds them: paths, addresses, base64, open files, bytes.

Only regular files are opened, and only what a `SourcePolicy` allows. Pages in brackets at the end of a name
(`a.pdf[2-5]`) are no part of the file's own, unless a file is called so.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import inspect
import io
import os
import re
import stat
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..errors import ImageError, short
from . import pdf
from .fetch import DEFAULT_POLICY, SourcePolicy, fetch

Kind = Literal["picture", "video"]  # of what is opened, for errors
REMOTE = ("http:", "https:")
_URL_SAFE = str.maketrans("-_", "+/")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_SELECTION = re.compile(r"(.+)\[([^\[\]]*)\]", re.S)  # pages of a PDF document
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{60,}={0,2}\s*")  # shorter ones are names, or no picture
_MAGIC = re.compile(  # how picture files begin
    rb"%PDF-|\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0{4}|....ftyp|\0\0\0\x0cjP|\xff\x0a|....JXL ",
    re.S,
)


def scheme(text: str) -> str:
    """An address's scheme with its colon, in small letters; "" for what is none. Blanks around an address count not."""
    found = _SCHEME.match(text.strip())
    return found.group().lower() if found else ""


def is_base64_picture(text: str) -> bool:
    """Whether a text is a picture file in base64 without an address around it."""
    if not _BASE64.fullmatch(text):
        return False
    digits = "".join(text[:200].split())[:40].translate(_URL_SAFE)
    return _MAGIC.match(base64.b64decode(digits)) is not None


def split_selection(name: str) -> tuple[str, str | None]:
    """A name without the pages in brackets at its end, and these: ("a.pdf", "2-5") for "a.pdf[2-5]"."""
    found = _SELECTION.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def has_suffix(name: str) -> bool:
    """Whether a name, without pages in brackets, is that of a PDF document."""
    return name.lower().endswith(pdf.SUFFIX)


def is_remote(picture: Any) -> bool:
    """Whether a picture is an http(s) address, which may be slow to answer."""
    if isinstance(picture, LabelledAddress):
        return True
    return isinstance(picture, str) and scheme(picture) in REMOTE


@dataclass(frozen=True, eq=False)
class LabelledBytes:
    """The bytes of a picture file or PDF document, and what errors call them: an address, a place in a request. `size`:
    (width, height) of the picture that `load_image` makes of them, where that is known."""

    label: str
    data: bytes = field(repr=False)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LabelledAddress:
    """The http(s) address of a picture file or PDF document, and its place in a request, with which errors begin."""

    label: str
    url: str


@dataclass(frozen=True)
class OpenedFile:
    """An open file of a picture or PDF, at its start; what it is called, without the pages that are chosen of it."""

    file: BinaryIO
    label: str
    selection: str | None = None

    def is_pdf(self) -> bool:
        """Whether it is a PDF document; in one that is called so, something may stand before its header, as mail
        programs leave it. Raises `ImageError` where pages are chosen of another file."""
        start = self.file.read(1024)
        self.file.seek(0)
        if start.lstrip().startswith(b"%PDF-") or (b"%PDF-" in start and has_suffix(self.label)):
            return True
        if self.selection is not None:
            raise ImageError(f"{self.label}: is no PDF document, so it has no pages [{self.selection}]; name it alone")
        return False

    def pages(self, policy: SourcePolicy) -> list[pdf.PdfPage]:
        """The pages that are chosen, of a PDF document. Raises `ImageError`."""
        data = self.file.read(int(policy.max_bytes) + 1)
        if len(data) > policy.max_bytes:
            raise ImageError(f"{self.label}: more than {policy.max_bytes} bytes; make it smaller")
        return pdf.pages(data, self.label, self.selection, policy)


@contextlib.contextmanager
def opened(picture: Any, policy: SourcePolicy, of: Kind = "picture") -> Iterator[OpenedFile]:
    """A file of whatever `load_image` or `load_video` reads that is no image yet; errors call it a picture or a video.
    Raises `ImageError`, also for what reading raises."""
    if isinstance(picture, LabelledAddress):
        try:
            with opened(picture.url, policy, of) as file:
                yield replace(file, label=f"{picture.label}: {file.label}")
        except ImageError as error:
            begun = str(error).startswith(f"{picture.label}: ")
            raise error if begun else ImageError(f"{picture.label}: {error}") from None
        return
    found = _named(picture, policy, of) if isinstance(picture, str) else picture
    if isinstance(found, OpenedFile):
        yield found
    elif isinstance(found, (str, os.PathLike)):
        with _opened_path(os.fspath(found), policy, of) as file:
            yield file
    elif isinstance(found, LabelledBytes):
        yield _held(found.data, found.label, of)
    elif isinstance(found, (bytes, bytearray, memoryview)):
        yield _held(bytes(found), f"{of} bytes", of)
    elif callable(getattr(found, "read", None)) and not hasattr(found, "frame_rate"):  # which a `Video` has
        label = f"file {short(str(getattr(found, 'name', type(found).__name__)))}"
        yield _held(_content(found, label, policy), label, of)
    else:
        more = {"picture": "a PIL image, a NumPy array,", "video": "a list of pictures, an array of frames,"}[of]
        raise ImageError(
            f"a {of} of type {type(found).__name__} cannot be read; give {more} a path, a URL, a data: URI, an open "
            f"file or the bytes of a {of} file"
        )


def _named(text: str, policy: SourcePolicy, of: Kind) -> OpenedFile | str:
    """What a text holds or is the address of; else the path that it is."""
    kind = scheme(text)
    rest = text.strip()[len(kind) :]
    if kind in REMOTE:
        address, selection = text.strip(), None
        if "?" not in address:  # in a query brackets are the server's
            address, selection = split_selection(address)
        return _held(fetch(address, policy), short(address), of, selection)
    if kind == "data:":
        return _held(data_bytes(text, policy), short(text), of)
    if kind == "file:" and rest.startswith("/"):
        return file_path(text)
    if kind and rest.startswith("//"):
        raise ImageError(f"{short(text)}: only http, https, file and data addresses and paths can be read")
    if is_base64_picture(text):
        return _held(decode_base64(text, policy), "base64 text", of)
    return text


@contextlib.contextmanager
def _opened_path(name: str | bytes, policy: SourcePolicy, of: Kind) -> Iterator[OpenedFile]:
    name = os.fsdecode(name)
    label = name if len(name) < 100 and name.isprintable() else short(name)
    if not policy.allow_paths:
        raise ImageError(f"{label}: local paths are not allowed here; give the {of} itself")
    if not name:
        raise ImageError(f"the {of}'s path is empty; name a file")
    try:
        path, selection = file_and_pages(name)
        label = label if selection is None else short(split_selection(name)[0])
        _check_file(os.stat(path), label, of)  # to open a pipe would wait for its writer, to open some devices acts
        at_once = getattr(os, "O_NONBLOCK", 0)  # should it become a pipe in this very moment
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once)) as file:
            _check_file(os.fstat(file.fileno()), label, of)
            yield OpenedFile(file, label, selection)
    except FileNotFoundError:
        if os.path.islink(Path(name).expanduser()):
            raise ImageError(f"{label}: is a link to a file that is not there; name the file") from None
        raise ImageError(f"{label}: no such {of}") from None
    except PermissionError:
        raise ImageError(f"{label}: permission denied; make it readable for you") from None
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links, no home
        if isinstance(error, ImageError):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ImageError(f"{label}: too long for a path; base64 text goes into a data: URI") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{label}: cannot be opened ({short(reason)})") from None


def file_and_pages(name: str) -> tuple[Path, str | None]:
    """The file of a path, and the pages that brackets at its end choose. A file that is called so itself comes
    first."""
    path = Path(name).expanduser()
    if os.path.lexists(path):
        return path, None
    path, (base, selection) = as_spelt(path), split_selection(name)
    if selection is None or os.path.lexists(path):
        return path, None
    whole = as_spelt(Path(base).expanduser())
    return (whole, selection) if os.path.lexists(whole) or has_suffix(base) else (path, None)


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


def _check_file(status: os.stat_result, label: str, of: Kind) -> None:
    """Raises `ImageError` for all but a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{label}: is a directory, not a {of}; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{label}: is not a regular file but a device or pipe; give a file, or the {of}'s bytes")
    if not status.st_size:
        raise ImageError(f"{label}: the file is empty; save or download it again")


def _held(data: bytes, label: str, of: Kind, selection: str | None = None) -> OpenedFile:
    if not data:
        raise ImageError(f"{label}: there are no bytes in it; give those of a {of} file")
    return OpenedFile(io.BytesIO(data), label, selection)


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


def beside(image: str, folder: Path) -> str:
    """A picture as a file in `folder` names it: its path from there, or the address or base64 text that it is."""
    if scheme(image) in ("data:", "file:") or "://" in image or is_base64_picture(image):
        return image
    return str(folder / os.path.expanduser(image))


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
    digits = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise ImageError(f"{label}: is not base64; encode the bytes of a picture file") from None
