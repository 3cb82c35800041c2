"""The two ends of a conversation: reads messages from a person or a pipe, shows answers as they come."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, one_line
from .chat_help import completions
from .inputs import expand, is_video, load_pictures, load_videos, size
from .interrupt import answering
from .stderr import Spinner, print_stderr, wrapped

if TYPE_CHECKING:
    from .. import GenerationResponse, SourcePolicy
    from .line_editor import LineEditor

BLOCK = '"""'  # begins and ends a message of several lines


def unfinished(text: str) -> bool:
    """Whether a message of several lines has begun and not ended."""
    return text.startswith(BLOCK) and BLOCK not in text[len(BLOCK) :]


class Terminal(contextlib.ExitStack):
    """Reads messages and shows answers. Prompts, hints and colours appear only where a person sees them; a person's
    keys are read within its `with` block."""

    def __init__(
        self, verbose: bool, policy: SourcePolicy, color_management: bool | None = None, fps: float | None = None
    ):
        super().__init__()
        self.verbose, self.policy, self.color_management, self.fps = verbose, policy, color_management, fps
        self.interactive = sys.stdin.isatty()
        colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._colour, self._dim = sys.stdout.isatty() and colours, sys.stderr.isatty() and colours
        self._editor: LineEditor | None = None

    def __enter__(self) -> Terminal:
        if self.interactive and sys.stdout.isatty():
            from .line_editor import LineEditor

            self._editor = self.enter_context(LineEditor(completions, unfinished, self._colour))
        return self

    def read(self) -> str | None:
        """The next message, None at the end of input. Ctrl-C at the prompt drops the text that was begun."""
        while True:
            try:
                return self._piped() if self._editor is None else self._editor.read()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.interactive:
                    raise

    def _piped(self) -> str:
        text = input()
        while unfinished(text):
            try:
                text += "\n" + input()
            except EOFError:  # the message says so
                break
        return text

    def hint(self, text: str) -> None:
        if self.interactive:
            text = wrapped(text)
            print_stderr(f"\033[2m{text}\033[0m" if self._dim else text)

    def show(
        self, answer: Callable[..., Iterator[GenerationResponse]], drafts: bool = False
    ) -> GenerationResponse | None:
        """Prints `answer(stop=...)` as it comes; returns the last response. Ctrl-C stops it; where nobody types, the
        program too. `drafts`: whether it was to have some."""
        from .generate import for_stdout, report

        begun, last = False, None
        with answering() as (interrupt, spinner):
            try:
                for last in answer(stop=interrupt, progress=spinner.count):
                    spinner.close()
                    begun = True
                    print(for_stdout(last.text + last.tool_text), end="", flush=True)
            finally:
                if begun:
                    print(flush=True)
        if interrupt.happened:
            if not self.interactive:
                raise KeyboardInterrupt
            self.hint("(stopped)")
        elif last is not None and last.finish_reason == "length":
            self.hint("(cut off; /continue goes on)")
        if self.verbose and last is not None and last.statistics is not None:
            report(last.statistics, drafts)
        return last

    def pictures(
        self, names: Sequence[str], message: str = "your next message", moving: bool = False
    ) -> list[tuple[str, Any]]:
        """The pictures and videos of these names and patterns with what they are called; all are videos if `moving`. A
        hint names each, and the message that it comes with. Raises `ImageError`."""
        from ..processing.load_image import Picture

        if "-" in names:
            raise ImageError("-: stdin is the conversation; name a file")
        with Spinner("reading pictures"):
            loaded = [
                each
                for name in expand(names)
                for each in (
                    load_videos([name], self.fps, self.policy)
                    if moving or is_video(name)
                    else load_pictures([name], self.policy, self.color_management)
                )
            ]
        pictures = [(one_line(os.path.basename(name) or name), picture) for name, picture in loaded]
        for name, picture in pictures:
            if isinstance(picture, Picture):
                picture.filename = name  # type: ignore[attr-defined]  # by which a saved conversation knows it
            self.hint(f"{name}: {size(picture)}, with {message}")
        return pictures
