"""The server's log on stderr: a line for each request, without prompts, pictures or answers."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import one_line
from ..generation.response import Statistics

Write = Callable[[str], None]


def to_stderr(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {one_line(line)}", file=sys.stderr, flush=True)


def of_bug(error: BaseException) -> str:
    """Where an error came from, without its message, which may hold a part of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"bug: {type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


@dataclass
class RequestRecord:
    """What is known of a request when it has ended, for its line and for the metrics."""

    method: str
    path: str
    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0  # 499 where the client went away
    route: str = "other"  # the path, if it is one that is offered
    model: str = ""
    stream: bool = False
    complete: bool = False  # whether all of the response has been sent
    answers: list[Statistics] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def line(self) -> str:
        parts = [self.method, self.path[:200], str(self.status), f"{self.seconds:.3f}s", self.id]
        if self.model:
            parts.append(f"model={self.model[:200]}")
        if self.answers:
            first = self.answers[0]
            parts.append(f"prompt={first.prompt_tokens} cached={first.cached_tokens} images={first.image_tokens}")
            parts.append(f"answer={sum(each.generated_tokens for each in self.answers)}")
            parts.append(f"first={first.time_to_first_token:.3f}s")
        return " ".join(parts)
