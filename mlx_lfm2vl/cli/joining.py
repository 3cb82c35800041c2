"""A command joins the ranks of `mlx.launch`: a person who waits for one that does not come learns it, and can end that.

MLX waits with the interpreter's lock held, so that neither threads nor handlers of Python run. So a shell writes the
line, and Ctrl-C ends the process itself.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import OptionError, one_line
from .stderr import PROGRAM

PATIENCE = 10  # seconds before the line
# Its stdin ends with the block, or with this process. Only the words of the line share stderr, as a sleep may outlast.
_SHELL = '{ sleep "$1" >/dev/null 2>&1 && printf "%s\\n" "$0" >&2; } & read -r _; kill $! 2>/dev/null'


def joined_group() -> Any:
    """MLX's group of this process, None where it is alone. Raises `DistributedError`."""
    from ..distributed.group import launch, launched_group

    launched = launch()
    if launched is None:
        return None
    with said_late(launched.waits_for), ended_by_sigint():
        return launched_group()


def refuse_stdin(*names: str | None) -> None:
    """Raises `OptionError` where one of these inputs of a rank is stdin."""
    if "-" in names:
        raise OptionError("-: mlx.launch does not end what it gives to ranks on stdin; name a file")


@contextmanager
def said_late(line: str, seconds: float = PATIENCE) -> Iterator[None]:
    """Writes a line to stderr if the block takes longer than so many seconds."""
    words = [f"{PROGRAM}: {one_line(line)}", str(seconds)]
    with ExitStack() as stack:
        shell = stack.enter_context(
            subprocess.Popen(["/bin/sh", "-c", _SHELL, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
        assert shell.stdin is not None
        stack.callback(shell.stdin.close)
        yield


@contextmanager
def ended_by_sigint() -> Iterator[None]:
    """While the block runs, Ctrl-C ends the process as it ends programs of C, unless it is ignored or is dealt with
    outside of Python."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
