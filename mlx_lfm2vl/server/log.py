"""The server's log on stderr: a line for each request, without prompts, pictures or answers."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import one_line
from ..generation.response import Statistics

Write = Callable[[str], None]
MOST = 10_000  # lines that wait for stderr


class StderrLog:
    """Writes lines to stderr in a thread of its own: that nobody reads there holds no answer up. Lines beyond `MOST`
    that wait are left out."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._run, name="mlx-lfm2vl log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {one_line(line)}")

    def close(self) -> None:
        """Writes what waits, for at most a second."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # a full disk, a stream that was closed
                print(line, file=sys.stderr, flush=True)


def of_bug(error: BaseException) -> str:
    """Where an error came from, without its message, which may hold a part of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"bug: {type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


@dataclass
class RequestRecord:
    """Facts about a request, for its line and for the metrics."""

    method: str
    path: str
    id: str
    started: float = field(default_factory=time.perf_counter)
    came: float = 0.0  # time.monotonic() when all of its body was here
    status: int = 0  # 499 where the client went away
    cut: int = 0  # the status of the error that ended a stream which had begun
    route: str = "other"  # the path, if it is one that is offered
    model: str = ""
    first: float | None = None  # seconds from `came` to the first piece of an answer
    complete: bool = False  # whether all of the response has been sent
    answers: list[Statistics] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def hear(self) -> None:
        """Takes note of a piece of an answer."""
        if self.first is None:
            self.first = time.monotonic() - self.came

    def line(self) -> str:
        parts = [self.method, self.path[:200], str(self.status), f"{self.seconds:.3f}s", self.id]
        if self.cut:
            parts.append(f"cut={self.cut}")
        if self.model:
            parts.append(f"model={self.model[:200]}")
        if self.answers:
            first = self.answers[0]
            parts.append(f"prompt={first.prompt_tokens} cached={first.cached_tokens} images={first.image_tokens}")
            parts.append(f"answer={sum(each.generated_tokens for each in self.answers)}")
        if self.first is not None:
            parts.append(f"first={self.first:.3f}s")
        return " ".join(parts)
