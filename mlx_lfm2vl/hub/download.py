"""From a model's name to a folder on this disk.

A name is `demo` (the bundled model), a folder, a hub repository such as `LiquidAI/LFM2-VL-450M`, or the address of its
page. Downloads go through huggingface_hub's cache (resumed, shared with other programs, offline once complete). Only
data files are fetched: no Python, no pickle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import demo
from ..errors import HubError, first_line, short
from ..model_folder import CONFIG, only_child, with_config
from .cache import cache_folder, free_bytes
from .download_check import checked_download
from .download_thread import Progress, in_thread
from .names import of_page, split

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
DATA_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.md", *LICENCES)
PASSING = (408, 429, 500, 502, 503, 504)  # what a hub answers that may be well again in a moment
WAITS = (0.5, 1.0, 2.0)  # seconds before a question is put again
LONGEST_WAIT = 60.0  # seconds, if the hub asks for more
SPARE = 2**26  # bytes of a disk that are left free


def resolve(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    patterns: tuple[str, ...] = DATA_PATTERNS,
    enough: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Path:
    """The folder that holds the model; fetches what `patterns` match if the name is a hub repository, `owner/name`, a
    folder of one, `owner/name/folder`, or the address of its page. A place that has no config.json but one of the files
    `enough` is taken as it is.

    `progress` is told of "files" and of bytes ("download", whose total grows as files begin), from several threads, in
    place of the bars that huggingface_hub draws.

    A folder or repository that has no config.json but children that do (one precision each) is refused with the
    children's names unless there is only one, before any weights are fetched; so is a `revision` of a folder. Raises
    `HubError` if nothing of that name can be had.
    """
    name = os.fspath(path_or_repo) if isinstance(path_or_repo, (str, os.PathLike)) else None
    if not isinstance(name, str):
        raise HubError(f"the model is {path_or_repo!r}; give a folder, a hub repository or 'demo'")
    if not name.strip():
        raise HubError("the model's name is empty; give a folder, a hub repository or 'demo'")
    name, revision = of_page(name, revision)
    folder = Path(os.path.expanduser(name))  # unlike Path's own, it and os.path raise for no name
    if revision is not None and is_local(name):
        raise HubError(f"{name}: is a folder on this disk, which has no revision {revision!r}; leave the revision out")
    if name == "demo":
        return demo.path()
    if os.path.isdir(folder):
        return folder if _has(folder, enough) else with_config(folder)
    if os.path.exists(folder):
        raise HubError(f"{name}: is a file; give the folder that holds config.json")
    parts = split(name)
    if parts is None:
        raise HubError(f"{short(name)}: no such folder, and not a hub repository name like 'LiquidAI/LFM2-VL-450M'")
    repo, child = parts
    snapshot = _Snapshot(name, repo, revision, token, cache_dir, local_files_only)
    fetch = partial(snapshot.fetch, progress=progress)
    if not child:
        root = fetch("", patterns)
        if _has(root, enough):
            return root
        root = fetch("*/", (CONFIG,))
        if not root.is_dir():
            raise HubError(f"{repo}: the repository is empty, or holds nothing that a model is made of")
        child = only_child(root, name)
    folder = fetch(f"{child}/", patterns) / child
    if not _has(folder, enough):
        raise HubError(f"{name}: the repository has no folder {child!r} with a config.json")
    return folder


def resolve_checked(
    path_or_repo: str | os.PathLike[str],
    check: Callable[[Path], object],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """As `resolve`, but what cannot be used is refused before gigabytes are fetched: by `check`, called with the folder
    when its config.json is there, and maybe nothing else; and by a `HubError` if the files that are not here yet would
    not fit on the disk."""
    options: dict[str, Any] = {"token": token, "local_files_only": local_files_only}
    folder = resolve(path_or_repo, revision=revision, patterns=(CONFIG,), **options)
    check(folder)
    name, revision = of_page(os.fspath(path_or_repo), revision)
    parts = split(name)
    if not is_local(name) and parts is not None:
        inside = "" if folder.parent.name == "snapshots" else f"{folder.name}/"
        _Snapshot(name, parts[0], revision, token, None, local_files_only).check_space(inside)
    return resolve(path_or_repo, revision=revision, **options)


def is_local(name: str | os.PathLike[str]) -> bool:
    """Whether a name is `demo` or a folder on this disk, so that nothing is asked of the hub."""
    return name == "demo" or os.path.isdir(os.path.expanduser(name))


def _has(folder: Path, enough: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in ("config.json", *enough))


@dataclass(frozen=True)
class _Snapshot:
    """A revision of a repository, `name` as the user calls it."""

    name: str
    repo: str
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool

    def fetch(self, folder: str, wanted: tuple[str, ...], progress: Progress | None = None) -> Path:
        """Downloads what is wanted of one folder of the repository, and returns the root. Raises `HubError`."""
        with checked_download(self.repo, self._cached(), downloading=not self.local_files_only):
            return in_thread(lambda bars: Path(self._ask(folder, wanted, tqdm_class=bars)), progress)

    def check_space(self, folder: str) -> None:
        """Raises `HubError` if what is not in the cache yet of one folder of the repository would not fit there."""
        from huggingface_hub.errors import DryRunError

        try:
            files = in_thread(
                lambda bars: self._ask(folder, DATA_PATTERNS, dry_run=True, tqdm_class=bars), lambda *_: None
            )
        except HubError as error:
            if isinstance(error.__cause__, DryRunError):  # the hub cannot be reached: nothing will come either
                return
            raise
        missing = sum(file.file_size or 0 for file in files if file.will_download)
        free = free_bytes(self._cached())
        if missing + SPARE > free:
            raise HubError(
                f"{self.name}: {missing / 1e9:.3g} GB are to be downloaded, and {free / 1e9:.3g} GB are free in "
                f"{self._cached().parent}; make room there, or choose another folder (HF_HUB_CACHE)"
            )

    def _cached(self) -> Path:
        """The folder where huggingface_hub keeps the repository."""
        cache = cache_folder() if self.cache_dir is None else self.cache_dir
        return Path(cache) / f"models--{self.repo.replace('/', '--')}"

    def _ask(self, folder: str, wanted: tuple[str, ...], **options: Any) -> Any:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils import httpx  # the client that it uses itself

        def ask() -> Any:
            return snapshot_download(
                self.repo,
                revision=self.revision,
                token=self.token,
                cache_dir=None if self.cache_dir is None else os.fspath(self.cache_dir),
                local_files_only=self.local_files_only,
                allow_patterns=[f"{folder}{pattern}" for pattern in wanted],
                ignore_patterns=[f"{folder}*/*"],
                **options,
            )

        def answer(error: BaseException) -> Any:
            """The hub's answer behind an error, None if there was none."""
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
            return cause.response if isinstance(cause, HfHubHTTPError) else None

        try:
            for wait in WAITS:  # the client itself repeats what it fetches, but not its first question
                try:
                    return ask()
                except (HfHubHTTPError, LocalEntryNotFoundError) as error:
                    said = answer(error)
                    if said is None or said.status_code not in PASSING:
                        raise
                    asked = said.headers.get("Retry-After", "")
                    time.sleep(min(max(wait, float(asked) if asked.isdigit() else 0), LONGEST_WAIT))
            return ask()
        except HFValidationError as error:
            reason = f"no such folder, and not a name that the hub allows ({first_line(error)})"
            raise HubError(f"{self.name}: {reason}") from None
        except RevisionNotFoundError:
            raise HubError(f"{self.name}: the repository has no revision {self.revision!r}") from None
        except GatedRepoError:
            raise HubError(
                f"{self.name}: access is restricted; accept its terms on the hub and log in with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{self.name}: no such folder here and no such repository on the hub (or it is private: log in)"
            ) from None
        except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError) as error:
            said = answer(error)
            if said is None and isinstance(error, LocalEntryNotFoundError):
                reason = f"no such folder, not in the local cache, and the hub cannot be reached ({first_line(error)})"
            elif said is not None and said.status_code == 401:
                reason = "the hub does not know your token; log in again with `hf auth login`"
            elif said is not None and said.status_code == 429:
                reason = "the hub asks to come back later (too many requests); then run it again"
            else:
                # a RuntimeError is of Xet's client, which has tried what may pass for minutes by itself
                cause = error.__cause__ if said is not None and error.__cause__ is not None else error
                reason = f"the download failed ({first_line(cause)}); run it again to resume"
            raise HubError(f"{self.name}: {reason}") from error
