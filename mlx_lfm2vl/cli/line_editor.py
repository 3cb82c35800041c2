"""Messages that a person types: editing, a history, Tab, pasted text as one message. The one user of prompt_toolkit."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

HISTORY_ENTRIES = 1000


class LineEditor:
    """Reads one message after another from the terminal. Within its `with` block the terminal shows no keys but those
    of a prompt: what is typed or pasted during an answer waits for the next prompt, a paste as one text.

    Args:
        completions: what may stand in the place of `line[begin:]`, for a line and `begin`.
        unfinished: whether Enter begins a new line in this text instead of sending it.
        colour: whether the prompt is coloured.
    """

    def __init__(
        self,
        completions: Callable[[str, int], Iterator[str]],
        unfinished: Callable[[str], bool],
        colour: bool,
    ):
        self._output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
        self._output.enable_cpr = False  # a position that the terminal reports late would be read as keys
        self._message = FormattedText([("bold ansicyan" if colour else "", "> ")])
        keys = KeyBindings()
        session: PromptSession[str] = PromptSession(
            history=_History(),
            completer=_Completer(completions),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            key_bindings=keys,
            output=self._output,
        )
        self._session = session

        @keys.add("escape", "enter")
        @keys.add("enter", filter=Condition(lambda: unfinished(session.default_buffer.text)))
        def begin_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

    def __enter__(self) -> LineEditor:
        self._before = termios.tcgetattr(sys.stdin)
        quiet = termios.tcgetattr(sys.stdin)
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
        return self

    def __exit__(self, *error: object) -> None:
        self._output.disable_bracketed_paste()
        self._output.flush()
        termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)

    def read(self) -> str:
        """The next message, lines separated by newlines. Raises `EOFError` at Ctrl-D and `KeyboardInterrupt`."""
        try:
            return self._session.prompt(self._message)
        finally:
            self._output.enable_bracketed_paste()
            self._output.flush()


class _Completer(Completer):
    def __init__(self, completions: Callable[[str, int], Iterator[str]]):
        self._completions = completions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        begin = line.rfind(" ") + 1
        for offered in self._completions(line, begin):
            yield Completion(offered, start_position=begin - len(line))


class _History(FileHistory):
    """Earlier messages, in $XDG_STATE_HOME (~/.local/state), for their owner only. A home that cannot be read or
    written costs the history, nothing else."""

    def __init__(self) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        file = state / "mlx-lfm2vl" / "history"
        super().__init__(file)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            file.chmod(0o600)
            kept = list(self.load_history_strings())
            if len(kept) > HISTORY_ENTRIES:
                os.truncate(file, 0)
                for entry in reversed(kept[:HISTORY_ENTRIES]):
                    self.store_string(entry)

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)
