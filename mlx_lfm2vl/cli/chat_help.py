"""The commands of `chat`: their list for `/help`, and what Tab offers in a line that is being typed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

HELP = """\
A picture or video file that is dropped here comes with the next message; a path
or URL of one within a message, or alone on one of its lines, comes with that
message.

/image PICTURE  add a picture to the next message: a path (drop the file
                here), pattern or URL; several at once too
/video VIDEO    add a video, or all frames of an animation (GIF, WebP)
/images         list the conversation's pictures and those of the next message;
                /images drop N drops one of these
/retry          answer the last message anew
/continue       go on with an answer that was cut off or stopped
/undo           take the last message and its answer back; its pictures wait
/reset          begin anew
/save FILE      write the conversation, pictures included
/load FILE      go on with a saved conversation
/system TEXT    begin anew with this system prompt; without a text, show it
/set NAME VALUE an option of the answers, such as temperature 0.5; without a
                name, show all
/copy           the last answer to the clipboard
/help           this list
/exit           end (as does Ctrl-D)
Ctrl-C stops an answer and keeps what was said. A message that begins with a
space is only text."""
COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))
_LAST_WORD = re.compile(r"""(?<![^ ])['"][^'"]*$|(?:\\.|[^ \\])+$""")  # a quote that is open, or up to a blank
FILE_COMMANDS = ("/image", "/video", "/save", "/load")


def completions(line: str, begin: int) -> Iterator[str]:
    """Words for the place of `line[begin:]`, its last word: commands, and behind one that takes a file, names,
    with their folders, as they were begun (with spaces, in quotes, with backslashes before spaces). In a message,
    folders, pictures and videos."""
    command, space, argument = line.partition(" ")
    word = line[begin:]
    known = [each for each in COMMANDS if each.startswith(command)] if not space and line.startswith("/") else []
    yield from known
    if known:
        return
    if command in FILE_COMMANDS:
        for typed in dict.fromkeys((argument.lstrip(), word)):  # a name with spaces, or one of several
            if found := _names(typed):
                yield from (name[len(typed) - len(word) :] for name in found)
                return
    elif command not in COMMANDS and line[:1] != " " and "\n" not in line:  # other messages are only text
        from ..processing.formats import suffixes
        from ..processing.not_pictures import VIDEO_SUFFIXES

        last = _LAST_WORD.search(line)
        typed = last[0] if last else ""
        for name in _names(typed) if typed else ():
            if name.endswith("/") or name.lower().endswith((*suffixes(), *VIDEO_SUFFIXES)):
                yield name[len(typed) - len(word) :]


def _names(typed: str) -> list[str]:
    """The files and folders whose names begin so, spelt as it was begun."""
    quote = typed[:1] if typed[:1] in ("'", '"') else ""
    escaped = not quote and "\\ " in typed
    name = typed[len(quote) :].replace("\\ ", " ") if escaped else typed[len(quote) :]
    folder, start = name[: name.rfind("/") + 1], name[name.rfind("/") + 1 :]
    found = []
    with contextlib.suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:
        found = sorted(entry.name + "/" * entry.is_dir() for entry in entries if entry.name.startswith(start))
    shown = [folder + entry for entry in found if start or not entry.startswith(".")]
    return [quote + (each.replace(" ", "\\ ") if escaped else each) for each in shown]
