"""huggingface_hub's cache on this disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def cache_folder() -> Path:
    """Where huggingface_hub keeps all repositories, unless it is told otherwise."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def free_bytes(place: Path) -> int:
    """The free space of the disk that holds a folder, or will."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
