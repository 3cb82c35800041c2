"""Text to the clipboard, by the program that the system has for it, or by the terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

from ..errors import OptionError

SECONDS = 10
_PROGRAMS = (  # with the variable without which they have no display to go to
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)


def copy(text: str) -> str:
    """Copies a text; returns what did it. Without a program that can, a terminal on stdout is told to (OSC 52). Raises
    `OptionError` where there is neither."""
    data = text.encode("utf-8", "replace")
    for display, command in _PROGRAMS:
        if (display is None or os.environ.get(display)) and shutil.which(command[0]) and _by(command, data):
            return f"by {command[0]}"
    if not sys.stdout.isatty():
        raise OptionError("nothing can be copied: there is no pbcopy, wl-copy, xclip or xsel that works")
    sys.stdout.write(f"\033]52;c;{base64.b64encode(data).decode()}\a")
    sys.stdout.flush()
    return "by the terminal (OSC 52), if it allows that"


def _by(command: tuple[str, ...], data: bytes) -> bool:
    """Whether a program took the data. It may stay behind to hand them out, so nothing waits for its pipes to close."""
    try:
        done = subprocess.run(
            command, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
