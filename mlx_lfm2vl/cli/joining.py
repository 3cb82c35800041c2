"""A command joins the ranks of `mlx.launch`: a person who waits for one that does not come learns it, and can end that.

MLX waits with the interpreter's lock held, so that neither threads nor handlers of Python run. So a shell writes the
line, and Ctrl-C ends the process itself.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import OptionError, one_line
from .inputs import reads_stdin
from .interrupt import handled
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
    # Ctrl-C ends the process as it ends programs of C, unless it is ignored or is dealt with outside of Python.
    with said_late(launched.waits_for), handled(signal.SIG_DFL, "SIGINT", unless=(signal.SIG_IGN, None)):
        return launched_group()


def refuse_stdin(args: argparse.Namespace) -> None:
    """Raises `OptionError` where an input of a rank is stdin."""
    if reads_stdin(args):
        raise OptionError("-: mlx.launch does not end what it gives to ranks on stdin; name a file")


@contextmanager
def said_late(line: str, seconds: float = PATIENCE) -> Iterator[None]:
    """Writes a line to stderr if the block takes longer than so many seconds."""
    command = ["/bin/sh", "-c", _SHELL, f"{PROGRAM}: {one_line(line)}", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
        yield
