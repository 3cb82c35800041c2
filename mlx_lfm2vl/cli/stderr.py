"""Output on stderr: lines, and on a terminal bars of work that is counted and a spinner before the first word."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

from ..errors import one_line

PROGRAM = "mlx-lfm2vl"
UNITS = {"weights": "B", "download": "B"}  # others count samples
DELAY, PERIOD = 0.3, 0.1  # seconds before a spinner appears, and between its frames
PATIENCE = 5.0  # seconds before a line of progress, where stderr is no terminal, and between two
_CLEAR = b"\r\x1b[K"
_LINE = threading.RLock()  # held by whoever writes to stderr
_drawn: set[int] = set()  # descriptors of terminals whose line is a spinner's


class Bars(contextlib.ExitStack):
    """A bar for each stage that the library reports (`bars(stage, done, total)`), with the time left.

    Where stderr is no terminal, nothing is drawn; with `plain` a line says each tenth of a stage that takes long.
    Closes the bars at the end of its `with` block.
    """

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self._bars: dict[str, Any] = {}
        self._plain = plain and not sys.stderr.isatty()
        self._told, self._said = ("", 0), time.monotonic()  # what the last line was about, and when it was

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        tenth = (stage, 10 * done // max(total, 1))
        if self._plain and tenth != self._told and time.monotonic() - self._said >= PATIENCE:
            note(f"{stage}: {100 * done // max(total, 1)} %")
            self._told, self._said = tenth, time.monotonic()
        if stage not in self._bars:
            unit = UNITS.get(stage, "")
            how = {"unit": unit or "it", "unit_scale": bool(unit), "disable": None, "dynamic_ncols": True}
            self._bars[stage] = self.enter_context(tqdm(total=total, desc=stage, **how))
        bar = self._bars[stage]
        bar.total = total  # that of a download grows as files begin
        bar.update(done - bar.n)
        if done >= total and stage != "download":
            bar.close()


class Spinner(contextlib.ExitStack):
    """A turning line that says what is done while a person waits, and for how many seconds; gone at `close`, or at the
    end of its `with` block. Nothing is drawn where stderr is no terminal, and of what takes less than `DELAY`."""

    def __init__(self, what: str):
        super().__init__()
        self._what, self._ended = what, threading.Event()

    def __enter__(self) -> Spinner:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._terminal = os.dup(sys.stderr.fileno())  # that of stderr may lead elsewhere while a picture is read
            thread = threading.Thread(target=self._turn, name="mlx-lfm2vl spinner", daemon=True)
            thread.start()
            self.callback(os.close, self._terminal)
            self.callback(thread.join)
            self.callback(self._ended.set)  # in the end the last is done first
        return self

    def show(self, what: str) -> None:
        """Says this from here on; an empty text hides the line."""
        self._what = what

    def count(self, done: int, total: int) -> None:
        """Says how many tokens of a prompt are done; the last one's answer comes next."""
        self.show(f"reading the prompt, {done} of {total} tokens" if done < total else "answering")

    def _turn(self) -> None:
        begun, wait = time.monotonic(), DELAY
        with contextlib.suppress(OSError):  # of a terminal that was closed
            for frame in itertools.cycle("|/-\\"):
                if self._ended.wait(wait):
                    break
                wait, seconds = PERIOD, int(time.monotonic() - begun)
                line = f"{frame} {self._what}{f' ({seconds} s)' if seconds else ''}" if self._what else ""
                self._draw(line[: (os.get_terminal_size(self._terminal).columns or 80) - 1])
            self._draw("")

    def _draw(self, line: str) -> None:
        with _LINE:
            if line or self._terminal in _drawn:
                os.write(self._terminal, _CLEAR + line.encode())
            (_drawn.add if line else _drawn.discard)(self._terminal)


@contextlib.contextmanager
def above_progress() -> Iterator[None]:
    """While the block writes lines to stderr, no progress stands where they come."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with _LINE, tqdm.external_write_mode(sys.stderr) if tqdm is not None else contextlib.nullcontext():
        for terminal in _drawn:
            os.write(terminal, _CLEAR)
        _drawn.clear()
        yield


def print_stderr(text: str) -> None:
    """Writes to stderr. That nobody reads there, or a full disk, stops nothing."""
    try:
        with above_progress():
            print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def wrapped(line: str) -> str:
    """A line for stderr: where that is a terminal, in rows that end between words, else as it is."""
    if not sys.stderr.isatty():
        return line
    columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    text, used = "", 0
    for word in line.split(" "):
        width = sum(map(_cells, word))
        if used and used + 1 + width > columns >= 2 + width:  # a longer word is broken wherever it begins
            text, used = f"{text}\n  {word}", 2 + width
        else:
            blank = " " if text else ""
            text, used = text + blank + word, (used + len(blank) + width) % columns
    return text


def _cells(character: str) -> int:
    """The columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def print_error(message: str) -> None:
    """Writes the program's error line to stderr."""
    print_stderr(wrapped(f"{PROGRAM}: error: {one_line(message)}"))


def note(message: str) -> None:
    """Writes a line to stderr that the user should know of but that stops nothing."""
    print_stderr(wrapped(f"{PROGRAM}: {one_line(message)}"))
