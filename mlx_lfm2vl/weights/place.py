"""Folders that appear whole or not at all, and that replace only what they may replace."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Lfm2VlError, OutputError


def check_target(target: Path, source: Path | None, overwrite: bool) -> None:
    """Whether a model folder may be written to `target`. Raises `OutputError`.

    With `overwrite` an old model folder (a folder of files with a config.json) or an empty one is replaced, nothing
    else; never the source, a folder that holds it or one inside it.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{target}: exists already; choose another place or overwrite it (--overwrite)")
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
    model = inside is not None and not any(entry.is_dir() for entry in inside)
    if not model or (inside and not (target / "config.json").is_file()):
        raise OutputError(f"{target}: is no model folder, so it is not overwritten; remove it or choose another place")


@contextmanager
def finished(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its name, and an old one's place, when the block ends well; when it does
    not, it is removed. Raises `OutputError` for what the disk refuses."""
    part = _beside(target)
    try:
        yield part
        _put(part, target)
    except Lfm2VlError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A new folder next to the target, hidden, on the same file system."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None


def _put(part: Path, target: Path) -> None:
    """Renames `part` to `target`; an old target is moved aside first, and removed once the new one stands."""
    part.chmod(0o755)
    if not target.exists():
        part.rename(target)
        return
    aside = _beside(target)
    target.rename(aside / "old")
    try:
        part.rename(target)
    except OSError:
        (aside / "old").rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
