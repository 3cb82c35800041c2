"""Beginnings of prompts whose states are known: a system prompt, a picture, a conversation with its last answer.

In go the states of rows that were prefilled or have finished; out comes the longest beginning of a new prompt. What is
in it changes no answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..models.cache import Drafter
from . import prompt_store
from .bound_cache import BoundCache
from .prompt_entry import Entry, PictureSpan, Source, StoredEntry, continues, longest, shared_length
from .prompt_store import PromptStore

DEFAULT_BYTES = 2**30


class PromptCache(BoundCache[int, Entry, PromptStore]):
    """States of prompts and answers, for one model; those not used for longest go first. Safe to use from any thread.

    Args:
        limit: bytes of memory at most.
        folder: where finished prompts and their answers are kept for the next process, for the same files of a model;
            None keeps nothing. The files hold the prompts: keep the folder private.
        folder_limit: bytes of files at most.

    Raises:
        OptionError
    """

    NAME = "prompt_cache"

    def __init__(
        self,
        limit: int = DEFAULT_BYTES,
        *,
        folder: str | os.PathLike[str] | None = None,
        folder_limit: int = prompt_store.DEFAULT_BYTES,
    ):
        super().__init__(limit, folder, folder_limit, PromptStore)

    def find(self, ids: np.ndarray, pictures: Sequence[PictureSpan], drafter: Drafter | None = None) -> Source | None:
        """The entry and checkpoint with the longest beginning of a prompt (n,), or None. `drafter`: has read along."""
        with self.lock:
            while True:
                best: Entry | StoredEntry | None = None
                number, offset = 0, 0
                stored = self._store.entries if self._store is not None and drafter is None else ()
                for entry in (*self._entries.values(), *stored):
                    if drafter is not None and isinstance(entry, Entry) and entry.cache.drafter is not drafter:
                        continue
                    limit = shared_length(entry.ids, entry.pictures, ids, pictures)
                    found = longest(entry.ends, limit, len(ids))
                    if found is not None and entry.ends[found][0] > offset:
                        best, number, offset = entry, found, entry.ends[found][0]
                if isinstance(best, StoredEntry):
                    assert self._store is not None
                    whole = self._store.read(best)
                    if whole is None:
                        continue  # it is left out now
                    self._keep_instead(whole)
                    return whole, whole.checkpoints[number]
                if best is None:
                    return None
                if id(best) in self._entries:
                    self._entries.move_to_end(id(best))
                return best, best.checkpoints[number]

    def put(self, entry: Entry | None, *, lasting: bool = False) -> None:
        """Keeps an entry (its arrays evaluated) if it fits at all, in place of those that it continues. `lasting`: in
        the folder, too."""
        if entry is None or not entry.checkpoints:
            return
        with self.lock:
            if lasting and self._store is not None:
                self._store.write(entry)
            self._keep_instead(entry)

    def _keep_instead(self, entry: Entry) -> None:
        """Keeps an entry, if it fits at all, in place of those that it continues."""
        continued = [key for key, held in self._entries.items() if continues(entry, held)]
        if entry.nbytes <= self.limit:
            self.nbytes -= sum(self._entries.pop(key).nbytes for key in continued)
        self._keep(id(entry), entry)
