"""A download that its caller can leave at any time: when it is cancelled, at Ctrl-C, when the process exits.

huggingface_hub's client waits for threads of its own, and these for the network, a minute at worst. So all of it runs
in a thread that nobody waits for. Who leaves a download ends it: its threads stop with the next block that comes.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import thread as pools
from typing import Any, TypeVar

from ..threads import check_cancelled

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # of what, done, in all
POLL_SECONDS = 0.05


class _Download:
    """The state that the thread which waits for a download shares with those that run it."""

    def __init__(self, progress: Progress | None):
        self.progress = progress
        self.lock, self.most = threading.Lock(), [0, 0]
        self.failure: BaseException | None = None  # what `progress` raised
        self.left = False
        self.workers: set[threading.Thread] = set()
        self._for_daemon = threading.current_thread().daemon

    def check(self) -> None:
        """Ends the thread that calls it if the download was left."""
        if self.left or (self._for_daemon and not threading.main_thread().is_alive()):
            raise KeyboardInterrupt("the download was left")

    def report(self, what: str, done: int, total: int) -> None:
        """Tells `progress`, with the lock held."""
        assert self.progress is not None
        if what == "download":  # two bars count bytes, those received and those written
            done, total = self.most = [max(self.most[0], done), max(self.most[1], total, done)]
        try:
            self.progress(what, done, total)
        except BaseException as failure:
            self.failure, self.left = self.failure or failure, True
            raise


def in_thread(fetch: Callable[[type[Any]], T], progress: Progress | None) -> T:
    """Calls `fetch` with a class of progress bars, in a thread of its own, and returns its result.

    `progress` is told of "files" and of bytes ("download"), from several threads, in place of bars that are drawn.
    Raises what `fetch` or `progress` raises; and `KeyboardInterrupt`, or what `check_cancelled` raises, at once.
    """
    download = _Download(progress)
    ended: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put((fetch(_bars(download)), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=work, name="mlx-lfm2vl download", daemon=True).start()
    while True:
        try:
            check_cancelled()
            # The process may exit while the client's threads, daemons as the one that made them, wait for the network.
            for thread in list(download.workers):
                pools._threads_queues.pop(thread, None)  # type: ignore[attr-defined]
            result, error = ended.get(timeout=POLL_SECONDS)
            break
        except queue.Empty:
            continue
        except BaseException:
            download.left = True
            from huggingface_hub.utils._xet import abort_xet_session

            abort_xet_session()  # what the client transfers by Xet in this process, as it does itself at Ctrl-C
            raise
    if error is not None:
        raise download.failure or error
    return result  # type: ignore[return-value]


def _bars(download: _Download) -> type[Any]:
    from huggingface_hub.utils import tqdm as drawn
    from tqdm import tqdm  # type: ignore[import-untyped]

    seen = download.progress is None and sys.stderr is not None  # a windowed app may have no stderr
    base: type[Any] = drawn if seen else tqdm

    class Bars(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any):
            download.check()
            self._what = "download" if keywords.get("unit") == "B" else "files"
            super().__init__(*arguments, **keywords | ({} if seen else {"disable": True}))

        @classmethod
        def set_lock(cls, lock: Any) -> None:  # called first in each of the client's threads
            download.workers.add(threading.current_thread())
            super().set_lock(lock)

        def update(self, n: float | None = 1) -> Any:
            download.check()
            if download.progress is None:
                return super().update(n)
            with download.lock:
                self.n += n or 0  # a bar that is not drawn does not count
                download.report(self._what, int(self.n), int(self.total or 0))

    return Bars
