"""Folders that appear whole or not at all, and that replace only what they may replace.

The work happens in a hidden folder beside the target, `.NAME.xxxxxxxx.part`, that its process keeps locked. Whatever
ends the process ends the lock: the next one that writes to the same target removes what was left behind, and puts an
old target back that had been moved aside for a new one that never came. A folder that is locked is being written.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..config.files import lock
from ..errors import Lfm2VlError, OutputError
from ..hub import free_bytes

_PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
_OLD = "old"  # in a hidden folder: the target that is being replaced


def check_target(target: Path, source: Path | None, overwrite: bool) -> None:
    """Whether a model folder may be written to `target`. Raises `OutputError`.

    With `overwrite` an old model folder (a folder of files with a config.json) or an empty one is replaced, nothing
    else; never the source, a folder that holds it or one inside it.
    """
    with _alone(target.parent):
        for left in _parts(target):
            try:
                with suppress(FileNotFoundError), _locked(left):  # its process has just ended and removed it
                    pass
            except BlockingIOError:
                raise _being_written(target) from None
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise _exists(target)
    if source is not None:
        place, origin = target.resolve(), source.resolve()
        if place == origin:
            raise OutputError(f"{target}: is the source itself; choose another place")
        if place in origin.parents or origin in place.parents:
            raise OutputError(f"{target}: holds the source or lies in it; choose another place")
    try:
        inside = list(target.iterdir()) if target.is_dir() and not target.is_symlink() else None
    except OSError as error:
        raise OutputError(f"{target}: cannot be read ({error.strerror or error})") from None
    model = inside is not None and not any(entry.is_dir() and not _PART.fullmatch(entry.name) for entry in inside)
    if not model or (inside and not (target / "config.json").is_file()):
        raise OutputError(f"{target}: is no model folder, so it is not overwritten; remove it or choose another place")


@contextmanager
def finished(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that takes its name when the block ends well, on disk to its last byte, and with
    `overwrite` an old one's place; when the block does not end well, it is removed. Raises `OutputError` for what the
    disk refuses, and if another process is writing to the target or has just done so."""
    with beside(target) as part:
        yield part
        _to_disk(part)
        _put(part, target, overwrite)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new hidden folder next to `target`, on the same file system, that is removed at the end. Raises `OutputError`
    as `finished` does, errors of the block included."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with _alone(target.parent):
                _clear(target)
                part = held.enter_context(_hidden(target))
            held.callback(shutil.rmtree, part, ignore_errors=True)
            yield part
    except Lfm2VlError:
        raise
    except BlockingIOError:
        raise _being_written(target) from None
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def check_space(target: Path, needed: int) -> None:
    """Raises `OutputError` unless the disk of a folder that is or will be there has `needed` bytes left."""
    free = free_bytes(target)
    if needed > free:
        raise OutputError(
            f"{target}: {needed / 1e9:.3g} GB are to be written, and {free / 1e9:.3g} GB are free on its disk; make "
            "room there or choose another place"
        )


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for temporary files that is removed at the end. Raises `OutputError` for what its disk refuses, errors
    of the block included."""
    try:
        with tempfile.TemporaryDirectory(prefix="mlx-lfm2vl-") as folder:
            yield Path(folder)
    except Lfm2VlError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"temporary files cannot be written ({reason}); set TMPDIR to a folder with room") from None


def _parts(target: Path) -> list[Path]:
    """The hidden folders for a target that are there."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.part")
    try:
        return [entry for entry in target.parent.iterdir() if name.fullmatch(entry.name) and entry.is_dir()]
    except OSError:  # no such folder, or one that may not be listed: then none of ours is in it
        return []


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock while a block runs; gives False on a file system that knows no locks. Raises
    `BlockingIOError` if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _hidden(target: Path) -> Iterator[Path]:
    """A new hidden folder beside a target, locked while a block runs. One that cannot be locked is removed at once."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    with ExitStack() as held:
        try:
            held.enter_context(_locked(folder))
        except BaseException:
            folder.rmdir()
            raise
        yield folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps the others of this program out of a folder while hidden folders are made, looked at or removed there: one
    that is made and not yet locked would be taken for a dead process's. Waits for its turn."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not there, or not to be read: no hidden folder is seen either
        yield
        return
    try:
        with suppress(OSError):  # a file system that knows no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(target: Path) -> None:
    """Removes what dead processes left of their work on a target, once an old target is back in its place. Where there
    are no locks nobody knows whether they are dead, and their folders stay. Raises `BlockingIOError`."""
    for left in _parts(target):
        with suppress(FileNotFoundError), _locked(left) as held:  # its process has just ended and removed it
            if held and (left / _OLD).exists() and not target.exists():
                (left / _OLD).rename(target)
            if held:
                shutil.rmtree(left, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Waits until the files have reached the disk, so that a name never stands for less than it says."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(part: Path, target: Path, overwrite: bool) -> None:
    """Renames `part` to `target`; an old target is moved aside first, and removed once the new one stands."""
    part.chmod(0o755)
    if not target.exists():
        part.rename(target)
        return
    if not overwrite:
        raise _exists(target)
    with ExitStack() as held:
        with _alone(target.parent):
            aside = held.enter_context(_hidden(target))
        try:
            target.rename(aside / _OLD)
            part.rename(target)
        except BaseException:
            if (aside / _OLD).exists():
                (aside / _OLD).rename(target)
            aside.rmdir()
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _exists(target: Path) -> OutputError:
    return OutputError(f"{target}: exists already; choose another place or overwrite it (--overwrite)")


def _being_written(target: Path) -> OutputError:
    return OutputError(f"{target}: another process is writing it; wait for that or choose another place")
