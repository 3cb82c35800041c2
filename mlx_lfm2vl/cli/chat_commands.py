"""What the lines of `chat` do to a conversation: messages and commands."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, one_line
from .chat_help import HELP
from .inputs import dropped
from .terminal import BLOCK, Terminal, unfinished

if TYPE_CHECKING:
    from .. import Chat


class Conversation:
    """What lines do to a chat."""

    def __init__(self, chat: Chat, terminal: Terminal, pictures: list[Any]):
        self.chat, self.terminal = chat, terminal
        self.waiting = pictures  # those of the next message
        self._retries = 0  # of the last turn

    def take(self, text: str) -> bool:
        """Does what a text says; False ends the program. Only a single line that begins with / is a command. Raises
        `Lfm2VlError`, and then the conversation has not changed."""
        line = text.strip()
        if unfinished(line):
            raise OptionError(f"the message has no end; close it with {BLOCK}")
        if line.startswith(BLOCK):
            self.say("".join(line.split(BLOCK, 2)[1:]).strip())
            return True
        if not line.startswith("/") or "\n" in line or text[0] == " ":
            self.say(line)
            return True
        command, _, argument = line.partition(" ")
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

    def say(self, text: str) -> None:
        """Sends a message with the pictures that wait for it; an empty one is none."""
        if not text:
            return
        before = len(self.chat.messages)
        self.terminal.show(lambda **more: self.chat.stream(text, self.waiting or None, **more))
        if len(self.chat.messages) > before:  # a turn that was stopped before its first word is none
            self.waiting, self._retries = [], 0

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
