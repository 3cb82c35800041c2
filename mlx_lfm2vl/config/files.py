"""A model folder's text and JSON files, read as if a stranger had written them.

Only regular files (a fifo would wait for ever, a device never end) of bounded size and in UTF-8; of JSON no key twice,
no number or nesting that Python cannot hold, no half characters, which could not be written again. Links are followed:
the hub's cache is made of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import ConfigError, OutputError
from ..model_folder import holds_adapter_only, incomplete, only_adapter

MAX_BYTES = 16 * 2**20  # of a configuration or template; the largest published one has 0.1 MB
CODE = ("auto_map",)  # the key by which a file names classes in a repository's code
QUANTISATION = ("quantization", "quantization_config", "compression_config")  # keys that record one
# How keys end that say where a file came from, often a path of somebody's disk: _name_or_path, tokenizer_file, ...
PLACES = ("name_or_path", "_file", "_path", "_dir", "_folder", "_checkpoint")
AGAIN = "fetch the file again"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # what stands in place of a large file that was not fetched
FETCH_LFS = "is a Git LFS pointer, not the file itself; fetch the file (git lfs pull)"


def open_regular(path: Path) -> BinaryIO:
    """A file that is open for reading. Raises `OSError`, also for what is no regular file."""
    # without O_NONBLOCK opening a fifo that nobody writes to never returns
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_own(file: Path) -> None:
    """Raises `OutputError` for a link that leads out of its folder (of the hub's cache: out of the repository and of
    the store that repositories share): what is copied is published one day, and a stranger's folder must not choose
    among the user's own files."""
    folder, place = file.parent.resolve(), file.resolve()
    places = (parent.parent for parent in folder.parents if parent.name == "snapshots")
    repository = next((place for place in places if place.name.startswith("models--")), None)
    allowed = {folder} if repository is None else {repository, repository.parent / "blobs"}
    if allowed.isdisjoint(place.parents):
        raise OutputError(f"{file}: is a link that leads out of the folder; put the file itself there, or remove it")


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, made if need be, into which a `with` block writes. Raises `OutputError` where that fails."""
    target = Path(folder).expanduser()
    try:
        if target.is_file():
            raise OutputError(f"{target}: is a file, where a folder is wanted; name another one")
        target.mkdir(parents=True, exist_ok=True)
        yield target
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """A text file in UTF-8. Raises `ConfigError` naming the file, what is wrong with it and the way out."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(size) if size <= limit else None
    except FileNotFoundError:
        if holds_adapter_only(path.parent):
            raise ConfigError(f"{path.parent}: {only_adapter(path.parent)}") from None
        raise ConfigError(f"{path}: no such file; a model folder needs it{incomplete(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    if data is None:
        raise ConfigError(f"{path}: has more than {limit:,} bytes, which no such file of a model needs; {AGAIN}")
    if data.startswith(LFS_POINTER):
        raise ConfigError(f"{path}: {FETCH_LFS}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise ConfigError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); {AGAIN}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `ConfigError` naming the file if it is absent or is none."""
    text = read_text(path)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); {AGAIN}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__} where a JSON object is expected; {AGAIN}")
    return data


def parse_json(text: str) -> Any:
    """A JSON value. Raises `ValueError`, whose message is one line, for what is no JSON or holds a key twice."""
    try:
        data = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, which is no Unicode") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) or "int_max_str_digits" not in str(error):
            raise
        raise ValueError(f"it holds a number of more than {sys.get_int_max_str_digits()} digits") from None
    return data


def no_number(name: str) -> NoReturn:
    """The `parse_constant` of `json` that refuses NaN and Infinity. Raises `ValueError`."""
    raise ValueError(f"{name} is no number of JSON")


def finite_number(text: str) -> float:
    """The `parse_float` of `json` that refuses what is too large, as it would be written as no JSON. Raises
    `ValueError`."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:50]} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} stands twice")
        made[key] = value
    return made


def is_place(key: str, value: Any) -> bool:
    """Whether an entry says where a file came from."""
    return key.endswith(PLACES) and (value is None or isinstance(value, str))


def without(data: Any, keys: tuple[str, ...] = CODE) -> Any:
    """The same without these keys and those of places, in its objects too: without what a published file must not say,
    unless given."""
    if isinstance(data, list):
        return [without(each, keys) for each in data]
    if not isinstance(data, dict):
        return data
    return {key: without(value, keys) for key, value in data.items() if key not in keys and not is_place(key, value)}


def place_in(data: Any) -> str | None:
    """The first key of an object or of what it holds that says where the file came from."""
    if isinstance(data, dict):
        found = [key if value and is_place(key, value) else place_in(value) for key, value in data.items()]
    else:
        found = [place_in(each) for each in (data if isinstance(data, list) else ())]
    return next((key for key in found if key is not None), None)


def shown(value: object, length: int = 80) -> str:
    """A value of a file for a message: one line, not longer than `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keeps a folder to this process while a `with` block works in it; one that is left empty goes. Raises
    `OutputError` where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(f"{folder}: another run writes it; wait for its end, or give another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # of what is in it
            folder.rmdir()


def lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; False on a file system that knows no locks. Raises
    `BlockingIOError` if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
