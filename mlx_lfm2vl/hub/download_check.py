"""Whether large files that came from the hub are what it announced, also where a download was interrupted.

The hub's client compares sizes only, or what Xet calls a hash. While a download runs, a file in the cache's folder of
the repository says when it began; it is removed once all that came has been compared with its SHA-256. One that is left
there, by a process that was killed, makes the next look, online or offline, compare what has come since.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import HubError
from ..threads import check_cancelled

NOTE = ".mlx-lfm2vl-unchecked-"
CLOCK_SLACK = 2.0  # seconds that a file system's clock may be behind
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPEN: set[str] = set()  # notes of this process whose downloads go on


@contextlib.contextmanager
def checked_download(repo: str, repository: Path, downloading: bool) -> Iterator[None]:
    """Notes, while a block runs, that a download into a repository's folder of the cache goes on, and compares what has
    come at its end. Raises `HubError` once a file that differs is removed, so that the next run fetches it anew."""
    notes = [note for note in repository.glob(f"{NOTE}*") if _is_left(note)]
    began = [note.stat().st_mtime for note in notes]
    own = repository / f"{NOTE}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    if downloading:
        began.append(time.time())
        notes.append(own)
        _OPEN.add(own.name)
        with contextlib.suppress(OSError):  # a cache that cannot be written: nothing comes there either
            repository.mkdir(parents=True, exist_ok=True)
            own.touch()
    try:
        yield
        if began:
            _check(repo, repository, min(began))
        for note in notes:
            note.unlink(missing_ok=True)
    finally:
        if downloading:
            _OPEN.discard(own.name)
        if downloading and not (repository / "blobs").is_dir():  # nothing has come
            own.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                repository.rmdir()


def _check(repo: str, repository: Path, began: float) -> None:
    """Compares the files of all revisions that have come since with their SHA-256."""
    for file in (repository / "snapshots").glob("**/*"):
        # The first link's name is the SHA-256; it may lead on to a store that repositories share, with other names.
        link, blob = Path(os.readlink(file)) if file.is_symlink() else file, file.resolve()
        if not _SHA256.fullmatch(link.name) or not blob.is_file():
            continue
        if blob.stat().st_mtime < began - CLOCK_SLACK:
            continue
        if _digest(blob) != link.name:
            for damaged in {file, file.parent / link, blob}:
                damaged.unlink(missing_ok=True)
            raise HubError(f"{repo}: {file.name} arrived damaged (wrong checksum) and was removed; run it again")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            check_cancelled()
            digest.update(piece)
    return digest.hexdigest()


def _is_left(note: Path) -> bool:
    """Whether the download that wrote a note has ended without a check; one that goes on checks for itself."""
    process = note.name.removeprefix(NOTE).split("-")[0]
    if process == str(os.getpid()):
        return note.name not in _OPEN
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return True
    except OSError:  # another user's
        return False
    return False
