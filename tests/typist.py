"""A person at a terminal of 80 columns: types keys, and reads the screen as it is drawn."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).parent.parent
COLUMNS = 80
PROMPT = "> "


PROGRAM = (sys.executable, "-m", "mlx_lfm2vl")


class Typist:
    """The program, or another one, on a terminal of its own. `words` are its arguments, `home` its folder and where its
    state goes."""

    def __init__(self, home: Path, *words: object, program: Sequence[str] = PROGRAM, **environment: str):
        self._screen = pyte.Screen(COLUMNS, 400)  # as high as a scroll-back
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.child = pexpect.spawn(
            program[0],
            [*program[1:], *map(str, words)],
            cwd=str(home),
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home / "state"), "TERM": "xterm"}
            | environment,
            dimensions=(24, COLUMNS),
        )

    def lines(self) -> list[str]:
        """The rows of the screen down to the cursor, without spaces at their ends. The second cell of a wide character
        is empty."""
        rows = (self._screen.buffer[number] for number in range(self._screen.cursor.y + 1))
        return ["".join(row[column].data for column in range(COLUMNS)).rstrip() for row in rows]

    def wait(self, until: Callable[[], bool], seconds: float = 180) -> None:
        """Draws what the program writes until a condition holds."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "\n".join(self.lines())
            try:
                data = self.child.read_nonblocking(4096, 0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert until(), "the program has ended:\n" + "\n".join(self.lines())
                return
            self._draw(data)

    def _draw(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)

    def watch(self) -> None:
        """Draws what the program writes until it ends."""
        with contextlib.suppress(pexpect.EOF):
            while True:
                self._draw(self.child.read_nonblocking(4096, 180))

    def wait_for(self, text: str) -> None:
        """Waits until the screen shows a text."""
        self.wait(lambda: text in "\n".join(self.lines()))

    def prompts(self) -> int:
        """How often a prompt has been drawn that waits, or waited, for keys."""
        return sum(line.startswith(">") for line in self.lines())

    def waits(self) -> bool:
        """Whether the program waits at an empty prompt."""
        return self.lines()[-1] == PROMPT.strip() and self._screen.cursor.x == len(PROMPT)

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def paste(self, text: str) -> None:
        """Pastes as terminals do: marked where the program has asked for that, else as if it were typed."""
        bracketed = self.raw.rfind(b"\x1b[?2004h") > self.raw.rfind(b"\x1b[?2004l")
        text = text.replace("\n", "\r")
        self.type(f"\x1b[200~{text}\x1b[201~" if bracketed else text)

    def say(self, line: str) -> list[str]:
        """Types a line and Enter; returns the rows that appear up to the next prompt."""
        self.type(line)
        return self.enter()

    def enter(self) -> list[str]:
        """Presses Enter; returns the rows between the text that was typed and the next prompt."""
        before = self.prompts()
        self.type("\r")
        self.wait(lambda: self.prompts() > before and self.waits())
        rows = self.lines()[:-1]
        last = max(number for number, row in enumerate(rows) if row.startswith(">"))
        return rows[last + 1 :]

    def stop(self) -> None:
        """Ends the program, if it goes on."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.close()

    def end(self) -> int:
        """Waits for the end of the program; its exit code."""
        self.child.expect(pexpect.EOF, timeout=180)
        self.child.close()
        assert self.child.exitstatus is not None, f"killed by signal {self.child.signalstatus}"
        return self.child.exitstatus
