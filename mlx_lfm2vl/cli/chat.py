"""`mlx-lfm2vl chat`: a conversation at the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Lfm2VlError, OptionError, one_line
from .inputs import dropped, expand, load_pictures
from .options import (
    add_control_tokens,
    add_model,
    add_pictures,
    add_sampling,
    load_model,
    print_error,
    print_stderr,
    sampling_options,
    source_policy,
)

if TYPE_CHECKING:
    from .. import Chat, GenerationResponse, SourcePolicy

SUMMARY = "talk about pictures at the terminal"
DESCRIPTION = """\
A conversation at the terminal. Lines go to the model; /help lists what else there is. Ctrl-C stops an answer, Ctrl-D
ends the program.

  mlx-lfm2vl chat --model LiquidAI/LFM2.5-VL-1.6B --image photo.jpg
"""
HELP = """\
/image PICTURE  add a picture to the next message: a path (drop the file here), pattern or URL; several at once too
/retry          answer the last message anew
/undo           take the last message and its answer back
/reset          begin anew
/save FILE      write the conversation, pictures included
/load FILE      go on with a saved conversation
/help           this list
/exit           end (as does Ctrl-D)
Ctrl-C stops an answer and keeps what was said. A line that begins with a space is never a command."""
HISTORY_LINES = 1000
COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))
FILE_COMMANDS = ("/image", "/save", "/load")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="PICTURE", help="pictures of the first message"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt (default: none)")
    parser.add_argument("--verbose", action="store_true", help="print counts, speeds and memory after each answer")
    add_control_tokens(parser)
    add_sampling(parser)
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for what is wrong before the conversation begins; what is wrong in it, where nobody sees and
    mends it at once, ends in exit code 2."""
    from .. import Chat, GenerationOptions

    options = GenerationOptions(**sampling_options(args))
    terminal = Terminal(args.verbose, source_policy(args), args.color_management)
    waiting = terminal.pictures(args.image)
    model, processor = load_model(args)
    if args.verbose:
        from .generate import report_loading

        report_loading(model)
    chat = Chat(model, processor, system=args.system, options=options, control_tokens=args.control_tokens)
    conversation = Conversation(chat, terminal, waiting)
    terminal.hint("/help lists the commands")
    failed = False
    with history() if terminal.interactive else contextlib.nullcontext():
        while (line := terminal.read()) is not None:
            try:
                if not conversation.take(line):
                    break
            except Lfm2VlError as error:
                print_error(str(error))
                failed = not terminal.interactive
            except KeyboardInterrupt:  # not between the tokens of an answer, where it is expected
                if not terminal.interactive:
                    raise
                terminal.hint("(stopped)")
    return 2 if failed else 0


class Terminal:
    """Reads lines and shows answers. Prompts, hints and colours appear only where a person sees them."""

    def __init__(self, verbose: bool, policy: SourcePolicy, color_management: bool | None = None):
        self.verbose, self.policy, self.color_management = verbose, policy, color_management
        self.interactive = sys.stdin.isatty()
        colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._colour, self._dim = sys.stdout.isatty() and colours, sys.stderr.isatty() and colours

    def read(self) -> str | None:
        """The next line, None at the end of input. Ctrl-C at the prompt drops the line that was begun."""
        prompt = ""
        if self.interactive and sys.stdout.isatty():
            # readline must be told which characters take no room
            prompt = "\001\033[1;36m\002> \001\033[0m\002" if self._colour else "> "
        while True:
            try:
                return input(prompt)
            except EOFError:
                if prompt:
                    print()
                return None
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print()

    def hint(self, text: str) -> None:
        if self.interactive:
            print_stderr(f"\033[2m{text}\033[0m" if self._dim else text)

    def show(self, answer: Callable[..., Iterator[GenerationResponse]]) -> None:
        """Prints `answer(stop=...)` as it comes. Ctrl-C stops it; where nobody types, the program too."""
        from .generate import for_stdout, report
        from .interrupt import Interrupt

        begun, last = False, None
        with Interrupt() as interrupt:
            try:
                for last in answer(stop=interrupt):
                    begun = True
                    print(for_stdout(last.text + last.tool_text), end="", flush=True)
            finally:
                if begun:
                    print(flush=True)
        if interrupt.happened:
            if not self.interactive:
                raise KeyboardInterrupt
            self.hint("(stopped)")
        if self.verbose and last is not None and last.statistics is not None:
            report(last.statistics)

    def pictures(self, names: list[str]) -> list[Any]:
        """The pictures of these names and patterns, each told of. Raises `ImageError`."""
        from .. import ImageError

        if "-" in names:
            raise ImageError("-: stdin is the conversation; name a file")
        names = expand(names)
        loaded = load_pictures(names, self.policy, self.color_management)
        for name, picture in zip(names, loaded, strict=True):
            self.hint(
                f"{one_line(os.path.basename(name) or name)}: {picture.width}x{picture.height}, with your next message"
            )
        return loaded


class Conversation:
    """What lines do to a chat."""

    def __init__(self, chat: Chat, terminal: Terminal, pictures: list[Any]):
        self.chat, self.terminal = chat, terminal
        self.waiting = pictures  # those of the next message
        self._retries = 0  # of the last turn

    def take(self, line: str) -> bool:
        """Does what a line says; False ends the program. Raises `Lfm2VlError`, and then nothing has changed."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            before = len(self.chat.messages)
            self.terminal.show(lambda **more: self.chat.stream(line.strip(), self.waiting or None, **more))
            if len(self.chat.messages) > before:  # a turn that was stopped before its first word is none
                self.waiting, self._retries = [], 0
            return True
        command, _, argument = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return False
        action = {
            "/image": self.image,
            "/retry": self.retry,
            "/undo": self.undo,
            "/reset": self.reset,
            "/save": self.save,
            "/load": self.load,
            "/help": self.help,
        }.get(command)
        if action is None:
            raise OptionError(f"{command} is no command; /help lists them, and a space before it makes it a message")
        action(argument.strip())
        return True

    def image(self, argument: str) -> None:
        self.waiting += self.terminal.pictures(dropped(argument))

    def retry(self, argument: str) -> None:
        seed = self.chat.options.seed
        self._retries += 1  # the same seed would give the same answer
        options = self.chat.options if seed is None else replace(self.chat.options, seed=(seed + self._retries) % 2**63)
        self.terminal.show(lambda **more: self.chat.retry(options=options, **more))

    def undo(self, argument: str) -> None:
        self.chat.undo()
        self.terminal.hint(f"taken back; {self._length()} left")

    def reset(self, argument: str) -> None:
        self.chat.reset()
        self.waiting = []
        self.terminal.hint("a new conversation")

    def save(self, argument: str) -> None:
        path = self._file(argument, "/save")
        self.chat.save(path)
        self.terminal.hint(f"{one_line(path)}: {self._length()}")

    def load(self, argument: str) -> None:
        path = self._file(argument, "/load")
        self.chat.load(path)
        self.waiting = []
        self.terminal.hint(f"{one_line(path)}: {self._length()}")

    def help(self, argument: str) -> None:
        print(HELP, flush=True)

    def _length(self) -> str:
        turns = sum(message["role"] == "assistant" for message in self.chat.messages)
        return f"{turns} turn{'' if turns == 1 else 's'}"

    @staticmethod
    def _file(argument: str, command: str) -> str:
        if not argument:
            raise OptionError(f"{command} needs the name of a file")
        names = dropped(argument)
        return os.path.expanduser(names[0] if len(names) == 1 else argument)


def completions(line: str, begin: int) -> Iterator[str]:
    """What may stand in the place of `line[begin:]`, its last word: commands, and behind one that takes a file, names,
    with their folders, as they were begun (with spaces, in quotes, with backslashes before spaces)."""
    command, space, argument = line.partition(" ")
    if not space:
        yield from (known for known in COMMANDS if known.startswith(command) and line.startswith("/"))
        return
    if command not in FILE_COMMANDS:
        return
    word = line[begin:]
    for typed in dict.fromkeys((argument.lstrip(), word)):  # a name with spaces, or one of several
        quote = typed[:1] if typed[:1] in ("'", '"') else ""
        escaped = not quote and "\\ " in typed
        name = typed[len(quote) :].replace("\\ ", " ") if escaped else typed[len(quote) :]
        folder, start = name[: name.rfind("/") + 1], name[name.rfind("/") + 1 :]
        found = []
        with contextlib.suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:
            found = sorted(entry.name + "/" * entry.is_dir() for entry in entries if entry.name.startswith(start))
        for entry in found:
            if entry.startswith(".") and not start:
                continue
            whole = folder + entry
            whole = quote + (whole.replace(" ", "\\ ") if escaped else whole)
            yield whole[len(typed) - len(word) :]
        if found:
            return


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Line editing, commands and names of files by Tab, and earlier lines, kept in $XDG_STATE_HOME (~/.local/state)."""
    try:
        import readline
    except ImportError:  # a Python without it: lines are read as the terminal gives them
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "mlx-lfm2vl" / "history"
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" \t\n")

    def offered(_: str, number: int) -> str | None:
        line = readline.get_line_buffer()[: readline.get_endidx()]
        return next(islice(completions(line, readline.get_begidx()), number, None), None)

    readline.set_completer(offered)
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a home that cannot be written costs the history, nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
