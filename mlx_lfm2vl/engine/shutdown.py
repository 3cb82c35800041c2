"""Engines that are there still when the process exits are closed, before the interpreter goes."""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref
from typing import Protocol

from ..backends.thread_state import exit_end
from .sinks import SinkThreads


class Closing(Protocol):
    """An owner of a thread that computes, and of others that call sinks."""

    sinks: SinkThreads

    def begin_close(self) -> None: ...

    def close(self, timeout: float) -> None: ...


_owners: weakref.WeakKeyDictionary[Closing, int] = weakref.WeakKeyDictionary()


def close_at_exit(owner: Closing) -> None:
    """Closes an owner when the process exits, if it is there still; not in processes forked from this one."""
    _owners[owner] = os.getpid()


@atexit.register
def _close_all() -> None:
    owners = [owner for owner, process in list(_owners.items()) if process == os.getpid()]
    for owner in owners:
        owner.begin_close()
    for owner in owners:
        owner.close(max(0.0, exit_end() - time.monotonic()))
    if behind := sum(owner.sinks.behind for owner in owners):
        warnings.warn(
            f"the process ends before {behind} sink{'s' * (behind > 1)} of an engine took all responses",
            RuntimeWarning,
            stacklevel=1,
        )
