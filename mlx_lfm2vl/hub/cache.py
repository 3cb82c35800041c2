"""huggingface_hub's cache on this disk: where it is, which models it holds, and their removal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import HubError, first_line

_NOTHING = re.compile("Snapshots dir doesn't exist")  # of a repository of which nothing has been fetched


@dataclass(frozen=True)
class CachedModel:
    """A repository of the cache: `owner/name`, its bytes on disk, its newest revision's folder (None without one), when
    a file of it was last read, in seconds of the clock, and whether a download of it broke off."""

    name: str
    bytes: int
    folder: Path | None
    last_used: float
    is_partial: bool


def cache_folder() -> Path:
    """The folder where huggingface_hub keeps all repositories, unless it is told otherwise."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def free_bytes(place: Path) -> int:
    """The free space of the disk that holds a folder, or will."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cached_models() -> tuple[list[CachedModel], list[str]]:
    """The models of the cache by name, and what of it cannot be read, a sentence each."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(cache_folder())
    except CacheNotFound:
        return [], []
    except (OSError, ValueError) as error:
        raise HubError(f"{cache_folder()}: cannot be read ({first_line(error)})") from None
    models = []
    for repo in found.repos:
        if repo.repo_type == "model":
            newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
            partial = any((repo.repo_path / "blobs").glob("*.incomplete"))
            folder = None if newest is None else newest.snapshot_path
            models.append(CachedModel(repo.repo_id, repo.size_on_disk, folder, repo.last_accessed, partial))
    remarks = [first_line(each) for each in found.warnings]
    return sorted(models, key=lambda model: model.name.lower()), [each for each in remarks if not _NOTHING.match(each)]


def remove_models(names: Collection[str]) -> int:
    """Removes all revisions of models from the cache and returns the bytes that this frees. Raises `HubError` for a
    name that is not there, before anything is removed."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(cache_folder())
    except CacheNotFound:
        raise HubError(f"{next(iter(names))}: is not in the cache {cache_folder()}") from None
    repos = {repo.repo_id: repo for repo in found.repos if repo.repo_type == "model"}
    for name in names:
        if name not in repos:
            raise HubError(f"{name}: is not in the cache {cache_folder()}; `mlx-lfm2vl models` lists what is")
    before = sum(repos[name].size_on_disk for name in names)
    found.delete_revisions(*(each.commit_hash for name in names for each in repos[name].revisions)).execute()
    for name in names:  # a download that broke off before a revision was whole
        if repos[name].repo_path.exists():
            shutil.rmtree(repos[name].repo_path)
    return before
