"""The base of caches that hold states of one model, in memory and, where they have a folder, for the next process."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import mlx.core as mx

from ..backends.memory import check_bytes
from ..errors import OptionError, OutputError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .prompt_entry import Entry

Key = TypeVar("Key")
State = TypeVar("State", bound="mx.array | Entry")
Store = TypeVar("Store")


class BoundCache(Generic[Key, State, Store]):
    """States by their keys, the one not used for longest first, and the store of the folder once a model is bound.

    Attributes:
        lock: held by whoever needs the cache to stay as it is.
        clears: how often it was cleared.
    """

    NAME: ClassVar[str]  # of the argument that takes such a cache, for errors

    def __init__(
        self,
        limit: int,
        folder: str | os.PathLike[str] | None,
        folder_limit: int,
        open_store: Callable[[str | os.PathLike[str], int, Lfm2VlForConditionalGeneration], Store],
    ):
        self.limit = check_bytes("limit", limit)
        self._folder, self._folder_limit = folder, check_bytes("folder_limit", folder_limit)
        if folder is not None and Path(folder).is_file():
            raise OutputError(f"{folder}: is a file, where a folder is wanted; name another one")
        self._open_store = open_store
        self._store: Store | None = None
        self.nbytes = 0
        self._entries: OrderedDict[Key, State] = OrderedDict()
        self.lock, self.clears = threading.RLock(), 0
        self._model: weakref.ref[object] | None = None

    @classmethod
    def check(cls, cache: object) -> Self:
        """The cache, where it is one of this kind. Raises `OptionError`."""
        if not isinstance(cache, cls):
            raise OptionError(f"{cls.NAME} is {type(cache).__name__}, expected a {cls.__name__}")
        return cache

    def bind(self, model: Lfm2VlForConditionalGeneration) -> None:
        """Takes note of the model whose states it holds, until it is cleared. Raises `OptionError` for another, and
        `OutputError` where the folder cannot be used."""
        with self.lock:
            bound = None if self._model is None else self._model()
            if bound is model:
                return
            if bound is not None:
                raise OptionError(f"{self.NAME} holds what another model made; use one for each model, or clear it")
            if self._folder is not None and model.group is not None:
                raise OptionError(f"{self.NAME} has a folder, which ranks that share a model do not keep; leave it out")
            self._store = None if self._folder is None else self._open_store(self._folder, self._folder_limit, model)
            self._model = weakref.ref(model)

    def _keep(self, key: Key, state: State) -> None:
        """Keeps a state if it fits at all, in place of those not used for longest."""
        if state.nbytes > self.limit:
            return
        self._entries[key] = state
        self.nbytes += state.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets what is in memory. Files in the folder stay."""
        with self.lock:
            self._entries.clear()
            self.clears += 1
            self.nbytes, self._model, self._store = 0, None, None
