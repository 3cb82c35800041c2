"""A memory of image tokens, view by view.

A view is known by its pixels (after resizing and normalising, so that all settings of the processor are in them) and
its grid; two grids of the same pixels are two views.
"""

from __future__ import annotations

import hashlib
import os

import mlx.core as mx
import numpy as np

from . import vision_store
from .bound_cache import BoundCache
from .vision_store import VisionStore

DEFAULT_BYTES = 256 * 2**20


class VisionCache(BoundCache[bytes, mx.array, VisionStore]):
    """Image tokens of views seen lately, for one model; the oldest go first. Safe to use from any thread.

    Args:
        limit: bytes of memory at most.
        folder: where they are kept for the next process, too, for the same files of a model; None keeps nothing.
        folder_limit: bytes of files at most.

    Raises:
        OptionError
    """

    NAME = "vision_cache"

    def __init__(
        self,
        limit: int = DEFAULT_BYTES,
        *,
        folder: str | os.PathLike[str] | None = None,
        folder_limit: int = vision_store.DEFAULT_BYTES,
    ):
        super().__init__(limit, folder, folder_limit, VisionStore)

    def __contains__(self, key: bytes) -> bool:
        """Whether a view is in memory, or in the folder."""
        with self.lock:
            return key in self._entries or (self._store is not None and key in self._store)

    def get(self, key: bytes, count: int) -> mx.array | None:
        """The tokens (count, hidden) of a view, or None."""
        with self.lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            elif self._store is not None and (kept := self._store.read(key, count)) is not None:
                self._keep(key, kept)
                return kept
            return self._entries.get(key)

    def put(self, key: bytes, tokens: mx.array) -> None:
        """Keeps the tokens of a view if they fit at all."""
        with self.lock:
            if key in self._entries:
                return
            mx.eval(tokens)
            if self._store is not None:
                self._store.write(key, tokens)
            self._keep(key, tokens)


def view_key(pixels: np.ndarray, grid: tuple[int, int]) -> bytes:
    """Identity of a view: of its true patches (patches, channels*patch*patch) and its grid (h, w)."""
    digest = hashlib.blake2b(repr((grid, pixels.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels[: grid[0] * grid[1]]).data)
    return digest.digest()
