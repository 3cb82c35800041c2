"""Inputs that users name on the command line: pictures and videos by path, pattern, URL, data URI or stdin, and prompts
from files."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import re
import shlex
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, ImageWarning, OptionError, OutputError, PromptError, counted
from .stderr import note

if TYPE_CHECKING:
    from .. import SourcePolicy, Video
    from ..processing.load_image import Picture
    from ..processing.open_file import LabelledBytes
    from ..processing.pdf import PdfPage

STDIN = "-"
FROM_STDIN = ("image", "video", "prompt", "prompt_file", "input")  # options whose value - is stdin
DEFAULT_PROMPT = "What is in this image?"
DEFAULT_VIDEO_PROMPT = "What happens in this video?"
MAX_PROMPT_BYTES = 16 * 2**20  # a prompt that no model can take; devices such as /dev/zero have no end
ADDRESS = re.compile(r"(data:|[A-Za-z][A-Za-z0-9+.-]*://)", re.I)


def reads_stdin(args: argparse.Namespace) -> bool:
    """Whether an option of a command takes what is on stdin."""
    given = [getattr(args, name, None) for name in FROM_STDIN]
    return any(each == STDIN or (isinstance(each, list) and STDIN in each) for each in given)


def read_prompt(args: argparse.Namespace, pictures: Sequence[str] = (), of: str = "--image") -> str | None:
    """The text of --prompt or --prompt-file, None if neither was used. Raises `PromptError`."""
    if args.prompt is not None and args.prompt != STDIN:
        return args.prompt
    option, name = ("--prompt-file", args.prompt_file) if args.prompt is None else ("--prompt", STDIN)
    if name is None:
        return None
    if name == STDIN and STDIN in pictures:
        raise PromptError(f"{option} - and {of} - cannot both be read from stdin")
    try:
        if name == STDIN:
            data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        else:
            with open(os.path.expanduser(name), "rb") as file:
                data = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise PromptError(f"{option} {name}: cannot be read ({error.strerror or error})") from None
    text = _text(data, f"{option} {name}")
    if not text:
        raise PromptError(f"{option} {name}: is empty")
    return text


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise PromptError(f"{where}: is larger than {MAX_PROMPT_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"{where}: is not UTF-8 (byte {error.start})") from None


def piped_prompt() -> str | None:
    """The prompt on a stdin that is a pipe or a file, with a note; None where it is neither, or has no text."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # of a stdin that a caller put in place
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return None
    text = _text(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin")
    if text:
        note("the prompt is what stdin holds; --prompt gives another")
    return text or None


def expand(pictures: Sequence[str]) -> list[str]:
    """The names with patterns replaced by the files that match, in the order of their names; others stay as they are.

    A name that exists is never a pattern, and pages in brackets behind that of a PDF are no part of one. Raises
    `ImageError` for a pattern that nothing matches, and for a second `-`.
    """
    from ..processing.open_file import has_suffix, split_selection

    if list(pictures).count(STDIN) > 1:
        raise ImageError("-: stdin holds one file, so - can be given once")
    names: list[str] = []
    for name in pictures:
        if name == STDIN or ADDRESS.match(name) or not glob.has_magic(name) or os.path.lexists(name):
            names.append(name)
            continue
        base, pages = split_selection(name)
        if pages is None or not has_suffix(base):
            found = _matching(name)
            if not found and pages is not None and os.path.lexists(os.path.expanduser(base)):
                found = [name]
        elif not glob.has_magic(base) or os.path.lexists(os.path.expanduser(base)):
            found = [name]
        else:
            found = [f"{path}[{pages}]" for path in _matching(base)]
        if not found:
            way = "; a prompt goes behind --prompt" if " " in name else ""
            raise ImageError(f"{name}: no file matches{way}")
        names += found
    return names


def check_output(path: str | os.PathLike[str], pictures: Sequence[str]) -> None:
    """Raises `OutputError` where a file that is to be written is one of the pictures."""
    from ..processing.open_file import split_selection

    file = os.path.expanduser(path)
    for picture in expand(pictures):
        given = os.path.expanduser(split_selection(picture)[0])
        if os.path.exists(file) and os.path.exists(given) and os.path.samefile(file, given):
            raise OutputError(f"{path}: is one of the pictures; choose another file")


def _matching(name: str) -> list[str]:
    """The files that match a pattern, in the order of their names."""
    return sorted(path for path in glob.glob(_pattern(name), recursive=True) if os.path.isfile(path))


def _pattern(name: str) -> str:
    """A pattern in which the folders that exist under their very names are no patterns, and ~ is the home."""
    there, rest = "", os.path.expanduser(name)
    while rest:
        part, slash, behind = rest.partition(os.sep)
        if not os.path.isdir(there + part + slash):
            break
        there, rest = there + part + slash, behind
    return glob.escape(there) + rest


def shortened(name: str) -> str:
    """The name of a picture or video as output has it: of a long one, such as a data URI, the beginning."""
    return name if len(name) <= 200 else f"{name[:200]}..."


def source(name: str, of: str = "picture") -> str | LabelledBytes:
    """The source that `load_image` or `load_video` reads for a name: the name, or for `-` the bytes on stdin."""
    if name != STDIN:
        return name
    if sys.stdin.isatty():
        raise ImageError(f"-: stdin is the keyboard; pipe a {of} into it, or name a file")
    from ..processing.fetch import DEFAULT_POLICY
    from ..processing.open_file import LabelledBytes

    most = int(DEFAULT_POLICY.max_bytes)
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        raise ImageError(f"-: more than {most} bytes on stdin; make the {of} smaller")
    return LabelledBytes("- (stdin)", data)


def load_pictures(
    names: Sequence[str], policy: SourcePolicy, color_management: bool | None = None
) -> list[tuple[str, Picture | PdfPage]]:
    """The pictures of these names and patterns with what each is called; of a PDF its pages, which are drawn when a
    model's views are known. What is said of them becomes notes; what libtiff writes to stderr by itself about a damaged
    TIFF is left out, as the error says it. Raises `ImageError`."""
    from ..config import ImageProcessorConfig
    from ..processing.load_image import expand_pages, load_image
    from ..processing.open_file import split_selection
    from ..processing.pdf import PdfPage

    config = ImageProcessorConfig(color_management=color_management is not False)
    loaded: list[tuple[str, Picture | PdfPage]] = []
    for name in expand(names):
        given = source(name)
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always", ImageWarning)
            with _without_stderr():
                for picture in expand_pages(given, policy):
                    if isinstance(picture, PdfPage):
                        loaded.append((f"{split_selection(name)[0]}[{picture.number}]", picture))
                    else:
                        loaded.append((name, load_image(picture, policy, config)))
        for remark in remarks:
            note(str(remark.message))
    return loaded


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def dropped(text: str, of: str = "picture") -> list[str]:
    """Names as a person types them or a terminal writes them when files are dropped on it: with spaces, in quotes, with
    backslashes before spaces, or as file: addresses; several in a row. Raises `ImageError` if there is none."""
    text = text.strip()
    if not text:
        raise ImageError(f"no {of} is named")
    if os.path.lexists(whole := _local(text)):
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed is part of the name
        return [text]
    names = [_local(word) for word in words]
    known = [ADDRESS.match(name) or glob.has_magic(name) or os.path.lexists(name) for name in names]
    return names if all(known) or len(names) == 1 else [text]


def _local(name: str) -> str:
    if name.lower().startswith("file://"):
        import urllib.parse

        return urllib.parse.unquote(urllib.parse.urlsplit(name).path)
    return os.path.expanduser(name)


def pictures_in(names: Sequence[str], recursive: bool = False, videos: bool = False) -> list[str]:
    """All pictures (and with `videos`, videos) of folders (by suffix, of their subfolders with `recursive`, with notes
    on what is left out), patterns and names; of a PDF file each page. A file that is not there stands among them, if
    others are. Raises `OptionError`."""
    from ..processing.formats import suffixes
    from ..processing.not_pictures import VIDEO_SUFFIXES
    from ..processing.open_file import file_and_pages

    ends = (*suffixes(), *(VIDEO_SUFFIXES if videos else ()))
    found: list[str] = []
    missing: list[str] = []
    for given in names:
        name = os.path.expanduser(given)
        if os.path.isdir(name):
            found += [page for entry in _inside(name, recursive, ends) for page in _pages(os.path.join(name, entry))]
            continue
        matching = expand([name])
        if matching == [name] and not ADDRESS.match(name) and not os.path.exists(file_and_pages(name)[0]):
            missing.append(name)
            if len(missing) == len(names) or not name.lower().endswith(ends):
                raise OptionError(f"{name}: no such folder or picture")
        found += [page for match in matching for page in _pages(match)]
    return found


def _pages(name: str) -> list[str]:
    """A picture's name, or those of the pages of a PDF file."""
    from ..processing.load_image import page_names
    from ..processing.open_file import has_suffix, split_selection

    return page_names(name) if has_suffix(split_selection(name)[0]) and not ADDRESS.match(name) else [name]


def _inside(folder: str, recursive: bool, ends: tuple[str, ...]) -> list[str]:
    """The names within a folder that end so, in their order. Raises `OptionError`."""
    pictures: list[str] = []
    others: list[str] = []
    hidden: list[str] = []
    for name in _entries(folder, recursive):
        picture = name.lower().endswith(ends)
        if os.path.basename(name.rstrip("/")).startswith("."):
            hidden += [name] * (picture or (recursive and name.endswith("/")))
        else:
            (pictures if picture else others).append(name)
    for names, why in ((others, "as no pictures by their names"), (hidden, "as hidden")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            note(f"{folder}: left out, {why}: {', '.join(names[:3])}{more}")
    if not pictures:
        raise OptionError(f"{folder}: there is no picture in this folder (png, jpg, heic, whatever Pillow reads)")
    return pictures


def _entries(folder: str, recursive: bool) -> list[str]:
    """The names of a folder, and with `recursive` of its subfolders, in their order. A folder that is not entered has a
    slash: a hidden one, a link to one, and without `recursive` any. Raises `OptionError`."""

    def fail(error: OSError) -> None:
        raise OptionError(f"{folder}: cannot be listed ({error.strerror or error})") from None

    found = []
    for path, folders, files in os.walk(folder, onerror=fail):
        inside = os.path.relpath(path, folder) + "/"
        closed = [n for n in folders if not recursive or n[0] == "." or os.path.islink(os.path.join(path, n))]
        folders[:] = [name for name in folders if name not in closed]
        found += [(inside + name).removeprefix("./") for name in (*files, *(f"{name}/" for name in closed))]
    return sorted(found)


def load_videos(names: Sequence[str], fps: float | None, policy: SourcePolicy) -> list[tuple[str, Video]]:
    """The videos of these names and patterns with what each is called. Raises `ImageError`."""
    from .. import load_video

    return [(name, load_video(source(name, "video"), fps=fps, policy=policy)) for name in expand(names)]


def is_video(name: str) -> bool:
    """Whether a file or address is a video by its name's end."""
    from ..processing.not_pictures import VIDEO_SUFFIXES

    return name.partition("?")[0].lower().endswith(VIDEO_SUFFIXES)


def default_prompt(videos: Any, images: Any) -> str:
    """The prompt of a question without one."""
    return DEFAULT_VIDEO_PROMPT if videos and not images else DEFAULT_PROMPT


def size(picture: Any) -> str:
    """The size of a picture, or the length of a video, as a person reads it."""
    from .. import Video

    if not isinstance(picture, Video):
        return f"{picture.width:.0f}x{picture.height:.0f}"
    last = picture.times([picture.count - 1])[0] + 1 / picture.frame_rate
    return f"{counted(picture.count, 'frame')}, {last:.1f} s"
