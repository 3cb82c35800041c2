"""The conversation at a terminal, driven through a pseudo-terminal as a person would, and through a pipe."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import GOLDEN
from test_cli import MODEL, MODULE, ROOT

from mlx_lfm2vl import Chat, GenerationOptions, SourcePolicy, load
from mlx_lfm2vl.cli.chat import COMMANDS, Conversation, Terminal, completions
from mlx_lfm2vl.cli.inputs import dropped

PICTURE = GOLDEN / "pictures" / "small.png"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROMPT = "\n> "


def at_a_terminal() -> None:
    """In the child: Ctrl-C is a signal, also where the tests themselves were started with it ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Typist:
    """The program on a terminal of its own; types lines and reads the screen."""

    def __init__(self, home: Path, *words: object, **environment: str):
        self.screen, slave = pty.openpty()
        self.child = subprocess.Popen(
            [*MODULE, "chat", *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home / "state"), "TERM": "xterm"}
            | environment,
            start_new_session=True,
            preexec_fn=at_a_terminal,
        )
        os.close(slave)
        self.raw = b""

    def read(self, until: str, seconds: float = 60) -> str:
        """What appears up to and with `until`, without escape sequences."""
        end, text = time.monotonic() + seconds, ""
        while until not in text:
            assert time.monotonic() < end, f"{until!r} did not appear in {text!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.raw += os.read(self.screen, 4096)
                except OSError:  # the program has ended
                    assert until in self._plain(), f"ended without {until!r}: {self._plain()!r}"
            text = self._plain()
        cut = text.index(until) + len(until)
        self.raw = text[cut:].encode()
        return text[:cut]

    def _plain(self) -> str:
        return ESCAPES.sub("", self.raw.decode("utf-8", "replace")).replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def say(self, line: str) -> str:
        """What is answered to a line, up to the next prompt."""
        self.type(line + "\n")
        self.read(line + "\n")  # the terminal's echo
        return self.read(PROMPT).removesuffix("> ")

    def end(self) -> int:
        code = self.child.wait(timeout=30)
        os.close(self.screen)
        return code


@pytest.fixture
def chat(tmp_path):
    started: list[Typist] = []

    def start(*words: object, **environment: str) -> Typist:
        typist = Typist(tmp_path, "--model", MODEL, "--max-tokens", 5, *words, **environment)
        started.append(typist)
        typist.read(PROMPT)
        return typist

    yield start
    for typist in started:
        if typist.child.poll() is None:
            typist.child.kill()
            typist.child.wait()


def seen(text: str) -> str:
    """An answer as a terminal shows it: control characters as numbers."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def test_a_conversation_with_all_its_commands(chat, tmp_path):
    shutil.copyfile(PICTURE, tmp_path / "my picture.png")
    model, processor = load(MODEL)
    twin = Chat(model, processor, options=GenerationOptions(max_tokens=5))
    person = chat()

    assert "/retry" in person.say("/help")
    assert "my picture.png: " in person.say("/image my\\ picture.png")
    first = twin.ask("What is this?", PICTURE)
    assert person.say("What is this?") == seen(first) + "\n"
    assert person.say("/retry") == seen(first) + "\n"
    second = twin.ask("Why?")
    assert person.say("Why?") == seen(second) + "\n"
    assert person.say("/undo") == "taken back; 1 turn left\n"
    assert person.say("Why?") == seen(second) + "\n"
    assert person.say("/save talk one.json") == "talk one.json: 2 turns\n"
    assert person.say("/reset") == "a new conversation\n"
    alone = Chat(model, processor, options=GenerationOptions(max_tokens=5))
    assert person.say("Why?") == seen(alone.ask("Why?")) + "\n"
    assert person.say("/load 'talk one.json'") == "talk one.json: 2 turns\n"
    third = twin.ask("/usr is what?")
    assert person.say(" /usr is what?") == seen(third) + "\n"
    person.type("/exit\n")
    assert person.end() == 0
    saved = json.loads((tmp_path / "talk one.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2


def test_retry_with_a_seed_takes_the_next_seed(chat):
    model, processor = load(MODEL)
    options = GenerationOptions(max_tokens=5, temperature=1.5, seed=7)
    twin = Chat(model, processor, options=options)
    person = chat("--temp", 1.5, "--seed", 7)
    assert person.say("Why?") == seen(twin.ask("Why?")) + "\n"
    for seed in (8, 9):
        again = "".join(piece.text for piece in twin.retry(options=replace(options, seed=seed)))
        assert person.say("/retry") == seen(again) + "\n"
    assert person.say("So?") == seen(twin.ask("So?")) + "\n"
    again = "".join(piece.text for piece in twin.retry(options=replace(options, seed=8)))
    assert person.say("/retry") == seen(again) + "\n"


def test_what_is_wrong_is_one_line_and_the_conversation_goes_on(chat):
    person = chat()
    for line, says in (
        ("/image nowhere.png", "nowhere.png: no such picture"),
        ("/image", "no picture is named"),
        ("/undo", "there is no turn to take back"),
        ("/retry", "there is no answer to try again"),
        ("/save", "/save needs the name of a file"),
        ("/save no/folder/x.json", "no/folder/x.json: cannot be written"),
        ("/save .", ".: is a folder"),
        ("/save /dev/full", "/dev/full: is a device or pipe"),
        ("/load /dev/zero", "/dev/zero: cannot be read"),
        ("/load absent.json", "absent.json: cannot be read"),
        ("/dance", "/dance is no command"),
    ):
        answer = person.say(line)
        assert answer.startswith("mlx-lfm2vl: error: ") and says in answer and len(answer.splitlines()) == 1
    assert person.say("What is <image>?").strip()  # what is typed is text
    person.type("\x04")
    assert person.end() == 0


def test_ctrl_c_stops_the_answer_and_at_the_prompt_drops_the_line(chat, endless):
    person = chat("--model", endless, "--max-tokens", 30000, "--temp", 3)
    person.type("Tell me.\n")
    person.read("Tell me.\n")
    person.read("e")  # the answer streams
    begun = time.monotonic()
    person.type("\x03")
    assert "(stopped)" in person.read(PROMPT) and time.monotonic() - begun < 10
    person.type("half a li")
    person.read("half a li")
    time.sleep(0.2)  # readline misses a signal that comes while it writes
    person.type("\x03")
    person.read(PROMPT)
    assert person.say("/undo") == "taken back; 0 turns left\n"
    person.type("\x04")
    assert person.end() == 0


def test_earlier_lines_come_back_with_the_arrow(chat, tmp_path):
    person = chat()
    person.say("/reset")
    person.type("/exit\n")
    assert person.end() == 0
    file = tmp_path / "state" / "mlx-lfm2vl" / "history"
    assert "/reset" in file.read_text() and file.stat().st_mode & 0o077 == 0
    again = chat()
    again.type("\x1b[A\x1b[A\n")  # over /exit
    assert "a new conversation" in again.read(PROMPT)
    again.type("\x04")
    assert again.end() == 0


def test_tab_completes_the_name_of_a_picture(chat, tmp_path):
    shutil.copyfile(PICTURE, tmp_path / "my holiday picture.png")
    person = chat()
    person.type("/im\t my\t\n")
    assert "my holiday picture.png: " in person.read("with your next message")


@pytest.mark.parametrize(
    "typed",
    [
        "a-p",
        "su",
        "sub/on",
        "./sub/o",
        "{}/a-",
        "{}/su",
        "'my ho",
        "my\\ ho",
        "my holiday p",
        "two w",
        "two words/on",
        "'two words/on",
        "two\\ words/on",
        "a-pic.png sub/on",
        "~/a-",
    ],
)
def test_tab_completes_names_however_they_are_typed(typed, tmp_path, monkeypatch):
    """As readline asks: what is offered stands in the place of the last word, and is taken for the file it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a-pic.png", "sub/one.png", "my holiday picture.png", "two words/one.png", "only.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    line = "/image " + typed.format(tmp_path)
    while not line.rstrip("'").endswith(".png") or line.endswith("/"):
        begin = line.rfind(" ") + 1
        (offered,) = completions(line, begin)
        assert len(offered) > len(line) - begin
        line = line[:begin] + offered
    names = dropped(line.removeprefix("/image ") + ("'" if "'" in line else ""))
    assert names and all(os.path.isfile(name) for name in names)


def test_tab_offers_commands_and_what_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", ".hidden"):
        (tmp_path / name).touch()
    assert list(completions("/", 0)) == list(COMMANDS)
    assert list(completions("/re", 0)) == ["/retry", "/reset"]
    assert list(completions("/image", 0)) == ["/image"]
    assert list(completions("/image ", 7)) == ["a.png", "b.png"]
    assert list(completions("/image .h", 7)) == [".hidden"]
    for line in ("What is a", "/undo a", "a", "/image missing/a", "/image c"):
        assert list(completions(line, line.rfind(" ") + 1)) == []


def test_a_closed_pipe_is_no_traceback(endless):
    words = [*MODULE, "chat", "--model", endless, "--max-tokens", "30000", "--temp", "3"]
    pipe = subprocess.PIPE
    child = subprocess.Popen([*map(str, words)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdin.write(b"Tell me.\nTell me more.\n")
    child.stdin.flush()
    assert child.stdout.read(3)
    child.stdout.close()
    err = child.stderr.read()
    child.stdin.close()
    child.stderr.close()
    assert (child.wait(timeout=60), err) == (141, b"")


def test_colours_are_for_terminals_that_want_them(chat):
    assert b"\x1b[1;36m" in coloured(chat())
    assert b"\x1b[1;36m" not in coloured(chat(NO_COLOR="1"))


def coloured(person: Typist) -> bytes:
    person.type("/help\n")
    end = time.monotonic() + 30
    while b"Ctrl-C stops" not in person.raw or not person.raw.rstrip(b" \x1b[0m\x01\x02").endswith(b">"):
        assert time.monotonic() < end, person.raw
        if select.select([person.screen], [], [], 0.1)[0]:
            person.raw += os.read(person.screen, 4096)
    return person.raw


def test_lines_through_a_pipe_are_turns_without_prompts():
    words = [*MODULE, "chat", "--model", MODEL, "--max-tokens", "5", "--image", PICTURE]
    done = subprocess.run(
        [*map(str, words)],
        input="What is this?\n\n/nonsense\n/image -\nWhy?\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    twin = Chat(*load(MODEL), options=GenerationOptions(max_tokens=5))
    answers = [twin.ask("What is this?", PICTURE), twin.ask("Why?")]
    assert (done.returncode, done.stdout) == (2, "".join(answer + "\n" for answer in answers))
    assert done.stderr.splitlines() == [
        "mlx-lfm2vl: error: /nonsense is no command; /help lists them, and a space before it makes it a message",
        "mlx-lfm2vl: error: -: stdin is the conversation; name a file",
    ]


@pytest.mark.parametrize("words", [["--image", "nowhere.png"], ["--image", "-"], ["--temp", "-1"]])
def test_bad_arguments_end_it_before_it_begins(words):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lfm2vl", "chat", "--model", str(MODEL), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_pictures_of_a_message_that_was_stopped_before_its_first_word_wait_for_the_next(capsys):
    class Impatient(Terminal):
        patience = 0

        def show(self, answer):
            asked = iter(range(self.patience))
            list(answer(stop=lambda: next(asked, None) is None))

    terminal = Impatient(False, SourcePolicy())
    chat = Chat(*load(MODEL), options=GenerationOptions(max_tokens=3))
    conversation = Conversation(chat, terminal, terminal.pictures([str(PICTURE)]))
    conversation.take("What is this?")
    assert chat.messages == [] and len(conversation.waiting) == 1
    terminal.patience = 1000
    conversation.take("What is this?")
    assert conversation.waiting == [] and chat.messages[0]["content"][0]["type"] == "image"


def test_a_home_is_meant_by_its_sign_also_before_a_name_with_spaces(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    conversation = Conversation(Chat(*load(MODEL)), Terminal(False, SourcePolicy()), [])
    conversation.take("/save ~/my talk.json")
    assert [path.name for path in tmp_path.iterdir()] == ["my talk.json"]
