"""How a process ends that has used MLX in a thread.

When such a thread ends MLX lets go of what it has compiled there, which needs a living interpreter: without one the
process aborts. So the thread has to be gone before the interpreter is.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

EXIT_SECONDS = 30.0  # that the process waits at its end for what is running
LAST_SECONDS = 5.0  # that a thread may take after its last line of Python
BLIND_SECONDS = 0.3  # waited instead where nothing tells whether a thread is there


class Closing(Protocol):
    """What owns such a thread."""

    def begin_close(self) -> None: ...

    def close(self, timeout: float) -> None: ...


_owners: weakref.WeakKeyDictionary[Closing, int] = weakref.WeakKeyDictionary()


def close_at_exit(owner: Closing) -> None:
    """Closes an owner when the process exits, if it is there still; not in processes forked from this one."""
    _owners[owner] = os.getpid()


@atexit.register
def _close_all() -> None:
    end = time.monotonic() + EXIT_SECONDS
    owners = [owner for owner, process in list(_owners.items()) if process == os.getpid()]
    for owner in owners:
        owner.begin_close()
    for owner in owners:
        owner.close(max(0.0, end - time.monotonic()))


def wait_until_gone(thread: threading.Thread, seconds: float) -> None:
    """Waits, for at most `seconds`, for the system to end a thread that Python calls ended already."""
    tasks, end = Path("/proc/self/task"), time.monotonic() + min(seconds, LAST_SECONDS)
    if not tasks.is_dir():
        time.sleep(max(0.0, min(seconds, BLIND_SECONDS)))
        return
    while (tasks / str(thread.native_id)).exists() and time.monotonic() < end:
        time.sleep(0.001)
