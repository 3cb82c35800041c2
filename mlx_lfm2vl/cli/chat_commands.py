"""The messages and commands of `chat`, carried out on a conversation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, counted, did_you_mean, one_line
from .chat_help import COMMANDS, HELP
from .chat_pictures import find_pictures
from .chat_settings import changed, shown
from .clipboard import copy
from .inputs import dropped, size
from .stderr import note
from .terminal import BLOCK, Terminal, unfinished

if TYPE_CHECKING:
    from .. import Chat, GenerationResponse

KINDS = {"image": "picture", "video": "video"}
ALONE = ("/retry", "/continue", "/undo", "/reset", "/copy", "/help")  # commands that take nothing


class Conversation:
    """A chat, and the lines that are carried out on it."""

    def __init__(self, chat: Chat, terminal: Terminal, pictures: list[tuple[str, Any]]):
        self.chat, self.terminal = chat, terminal
        self.waiting = pictures  # those of the next message, with their names
        self._retries = 0  # of the last turn

    def take(self, text: str) -> bool:
        """Does what a text says; False ends the program. Only a single line that begins with / is a command. Raises
        `Lfm2VlError`, and then the conversation has not changed."""
        line = text.strip()
        if unfinished(line):
            raise OptionError(f"the message has no end; close it with {BLOCK}")
        command, _, argument = line.partition(" ")
        if line.startswith(BLOCK):
            block = "".join(line.split(BLOCK, 2)[1:]).strip()
            self._message(block) if "\n" in block else self.say(block)
        elif text.startswith(" "):
            self.say(line)
        elif "\n" in line:
            self._message(line)
        elif command in ("/exit", "/quit"):
            return False
        elif command in COMMANDS:
            if argument.strip() and command in ALONE:
                raise OptionError(f"{command} stands alone; /help lists the commands and what they take")
            getattr(self, f"do_{command[1:]}")(argument.strip())
        elif line.startswith("/") and "/" not in command[1:] and not os.path.exists(command):
            way = "; /help lists them, and a space before it makes it a message"
            raise OptionError(f"{command} is no command{did_you_mean([command], COMMANDS) or way}")
        else:
            self._message(line)
        return True

    def _message(self, text: str) -> None:
        """Sends a message with the pictures that it names; pictures alone wait for the next one."""
        found = find_pictures(text)
        if not found.rest:
            self.waiting += self.terminal.pictures(found.names)
            return
        pictures = self.terminal.pictures(found.names, "this message")
        for line in found.unseen:
            note(f"{line}; the model reads its name only")
        self.say(found.rest, pictures)

    def say(self, text: str, found: Sequence[tuple[str, Any]] = ()) -> None:
        """Sends a message with the pictures that wait for it and those that it names; an empty one is none."""
        if not text:
            return
        turn = self._turns()
        from .. import Video

        named = [each for _, each in (*self.waiting, *found)]
        videos = [each for each in named if isinstance(each, Video)]
        pictures = [each for each in named if not isinstance(each, Video)]
        self._show(lambda **more: self.chat.stream(text, pictures or None, videos=videos or None, **more))
        if self._turns() > turn:  # a turn that was stopped before its first word is none
            self.waiting, self._retries = [], 0

    def do_image(self, argument: str) -> None:
        self.waiting += self.terminal.pictures(dropped(argument))

    def do_video(self, argument: str) -> None:
        self.waiting += self.terminal.pictures(dropped(argument, "video"), moving=True)

    def do_images(self, argument: str) -> None:
        """Lists the pictures and videos of the conversation and those that wait for the next message; `drop` and a
        number drops one of the latter, `drop` or `drop all` all of them."""
        word, _, number = argument.partition(" ")
        if word == "drop":
            number = "" if number == "all" else number
            if number and not (number.isdecimal() and 1 <= int(number) <= len(self.waiting)):
                raise OptionError(f"/images drop {number}: no such number; /images lists the pictures")
            chosen = slice(int(number) - 1, int(number)) if number else slice(None)
            for name, _ in self.waiting[chosen]:
                self.terminal.hint(f"{name}: dropped")
            del self.waiting[chosen]
        elif argument:
            raise OptionError("/images lists pictures, /images drop N drops one, and /images drop all of them")
        else:
            for turn, name, picture in self._sent():
                print(f"message {turn}: {name}  {size(picture)}", flush=True)
            for place, (name, picture) in enumerate(self.waiting, 1):
                print(f"{place}  {name}  {size(picture)}", flush=True)
            if not self.waiting:
                self.terminal.hint("no picture waits for your next message")

    def do_retry(self, argument: str) -> None:
        seed = self.chat.options.seed
        self._retries += 1  # the same seed would give the same answer
        options = self.chat.options if seed is None else replace(self.chat.options, seed=(seed + self._retries) % 2**63)
        self._show(lambda **more: self.chat.retry(options=options, **more))

    def _show(self, answer: Callable[..., Iterator[GenerationResponse]]) -> GenerationResponse | None:
        return self.terminal.show(answer, drafts=self.chat.options.draft is not None)

    def do_continue(self, argument: str) -> None:
        """Goes on with the last answer."""
        before = self.chat.messages
        last = self._show(self.chat.continue_final_message)
        if last is not None and last.finish_reason == "stop" and self.chat.messages[-1] == before[-1]:
            self.terminal.hint("the model adds nothing to its answer")

    def do_undo(self, argument: str) -> None:
        turns = self._turns()
        back = [(name, picture) for turn, name, picture in self._sent() if turn == turns]
        self.chat.undo()
        self.waiting[:0] = back
        self.terminal.hint(f"taken back; {self._length()} left")
        for name, _ in back:
            self.terminal.hint(f"{name}: with your next message again; /images lists and drops")

    def do_reset(self, argument: str) -> None:
        self.chat.reset()
        self.waiting = []
        self.terminal.hint("a new conversation")

    def do_save(self, argument: str) -> None:
        self._with_file("/save", argument, self.chat.save)

    def do_load(self, argument: str) -> None:
        self._with_file("/load", argument, self.chat.load)
        self.waiting = []

    def do_system(self, argument: str) -> None:
        """Shows the system prompt, or begins anew with another one; `""` is none. Pictures that wait stay."""
        if not argument:
            first = self.chat.messages[:1]
            known = [_text(message) for message in first if message["role"] == "system"]
            if known:
                print(known[0], flush=True)
            else:
                self.terminal.hint("there is no system prompt; /system TEXT sets one, and begins anew")
            return
        text = "" if argument in ('""', "''") else argument
        self.chat.messages = [{"role": "system", "content": text}] if text else []
        self.terminal.hint(f"a new conversation, {'with this' if text else 'without a'} system prompt")

    def do_set(self, argument: str) -> None:
        """Shows the options of the answers, or changes one."""
        if not argument:
            print("\n".join(shown(self.chat.options)), flush=True)
            return
        before = self.chat.options.seed
        self.chat.options, line = changed(self.chat.options, argument)
        if self.chat.options.seed != before:
            self._retries = -1  # /retry takes the new seed itself
        self.terminal.hint(line)

    def do_copy(self, argument: str) -> None:
        """Copies the last answer."""
        last = self.chat.messages[-1:]
        if not last or last[0]["role"] != "assistant":
            raise OptionError("there is no answer to copy")
        text = _text(last[0])
        self.terminal.hint(f"copied {copy(text)}: {counted(len(text), 'character')}")

    def do_help(self, argument: str) -> None:
        print(HELP, flush=True)

    def _sent(self) -> Iterator[tuple[int, str, Any]]:
        """The pictures and videos of the conversation with the numbers of their messages and their names."""
        turn = 0
        for message in self.chat.messages:
            content = message["content"]
            items = [] if isinstance(content, str) else [item for item in content if item["type"] != "text"]
            for number, item in enumerate(items, 1):
                picture = item[item["type"]]
                yield turn + 1, _name(picture) or f"{KINDS[item['type']]} {number}", picture
            turn += message["role"] == "assistant"

    def _turns(self) -> int:
        return sum(message["role"] == "assistant" for message in self.chat.messages)

    def _length(self) -> str:
        return counted(self._turns(), "turn")

    def _with_file(self, command: str, argument: str, work: Callable[[str], object]) -> None:
        """Saves or loads the conversation, and says how long it is."""
        if not argument:
            raise OptionError(f"{command} needs the name of a file")
        names = dropped(argument)
        path = os.path.expanduser(names[0] if len(names) == 1 else argument)
        work(path)
        self.terminal.hint(f"{one_line(path)}: {self._length()}")


def _name(picture: Any) -> str:
    """The name of a picture's or video's file; empty where it is not known."""
    name = str(getattr(picture, "filename", None) or getattr(picture, "label", ""))
    return one_line(os.path.basename(name) or name)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
