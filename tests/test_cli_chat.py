"""The conversation at a terminal, driven through a pseudo-terminal as a person would, and through a pipe."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from conftest import GOLDEN, Loaded, cache_by_backend
from test_cli import MODEL, MODULE, ROOT
from typist import COLUMNS, Typist

from mlx_lfm2vl import Chat, GenerationOptions, SourcePolicy, load
from mlx_lfm2vl.cli.chat_commands import Conversation
from mlx_lfm2vl.cli.chat_help import COMMANDS, HELP, completions
from mlx_lfm2vl.cli.inputs import dropped
from mlx_lfm2vl.cli.terminal import Terminal

PICTURE = GOLDEN / "pictures" / "small.png"
SCENE = ROOT / "examples" / "scene.png"


@cache_by_backend
def demo() -> Loaded:
    return load("demo")


def twin(**options: object) -> Chat:
    """A conversation as the program's, in Python."""
    return Chat(*demo(), options=GenerationOptions(max_tokens=40, **options))  # type: ignore[arg-type]


CUT = "(cut off; /continue goes on)"


def shown(text: str) -> list[str]:
    """An answer as rows of the screen."""
    return [
        line[begin : begin + COLUMNS].rstrip()
        for line in text.split("\n")
        for begin in range(0, len(line) or 1, COLUMNS)
    ]


def noted(text: str) -> list[str]:
    """A line of the program itself as rows of the screen."""
    return textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


@pytest.fixture(name="chat")
def chat_program(tmp_path):
    started: list[Typist] = []

    def start(*words: object, **environment: str) -> Typist:
        typist = Typist(tmp_path, "chat", "--model", "demo", "--max-tokens", 40, *words, **environment)
        started.append(typist)
        typist.wait(typist.waits)
        return typist

    yield start
    for typist in started:
        typist.stop()


def test_a_conversation_with_all_its_commands(chat, tmp_path):
    shutil.copyfile(SCENE, tmp_path / "my picture.png")
    same = twin()
    person = chat()

    assert any("/retry" in row for row in person.say("/help"))
    assert person.say("/image my\\ picture.png") == ["my picture.png: 128x128, with your next message"]
    first = same.ask("What is in this image?", SCENE)
    assert person.say("What is in this image?") == shown(first)
    assert person.say("/retry") == shown(first)
    second = same.ask("What colour is it?")
    assert person.say("What colour is it?") == shown(second)
    assert person.say("/undo") == ["taken back; 1 turn left"]
    assert person.say("What colour is it?") == shown(second)
    assert person.say("/save talk one.json") == ["talk one.json: 2 turns"]
    assert person.say("/reset") == ["a new conversation"]
    assert person.say("Why?") == shown(twin().ask("Why?"))
    assert person.say("/load 'talk one.json'") == ["talk one.json: 2 turns"]
    assert person.say(" /usr is what?") == shown(same.ask("/usr is what?"))
    person.type("/exit\r")
    assert person.end() == 0
    saved = json.loads((tmp_path / "talk one.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2


def test_retry_with_a_seed_takes_the_next_seed(chat):
    options = GenerationOptions(max_tokens=40, temperature=1.5, seed=7)
    same = twin(temperature=1.5, seed=7)
    person = chat("--temp", 1.5, "--seed", 7)

    def again(seed: int) -> list[str]:
        return shown("".join(piece.text for piece in same.retry(options=replace(options, seed=seed))))

    assert person.say("Why?") == shown(same.ask("Why?"))
    for seed in (8, 9):
        assert person.say("/retry") == again(seed)
    assert person.say("So?") == shown(same.ask("So?"))
    assert person.say("/retry") == again(8)


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
        ("/imags", "/imags is no command; did you mean /images?"),
    ):
        rows = person.say(line)
        assert rows[0].startswith("mlx-lfm2vl: error: ") and says in " ".join(rows)
        assert sum("error" in row for row in rows) == 1
    assert person.say("What is <image>?")  # what is typed is text
    person.type("\x04")
    assert person.end() == 0


def test_ctrl_c_stops_the_answer_and_at_the_prompt_drops_the_line(chat, endless):
    person = chat("--model", endless, "--max-tokens", 30000, "--temp", 3)
    person.type("Tell me.\r")
    person.wait(lambda: len(person.lines()) > 4)  # the answer streams
    person.type("\x03")
    person.wait(person.waits)
    assert "(stopped)" in person.lines()[-2]
    person.type("half a li")
    person.wait_for("> half a li")
    person.type("\x03")
    person.wait(person.waits)
    assert person.say("/undo") == ["taken back; 0 turns left"]
    person.type("\x04")
    assert person.end() == 0


def test_a_pasted_text_is_one_message(chat):
    person = chat()
    text = "/exit\n\n  echo hello\nWhat is this?\n"
    person.paste(text)
    person.wait_for("What is this?")
    assert person.enter()[-1] == shown(twin().ask(text.strip()))[-1]
    assert person.say("/undo") == ["taken back; 0 turns left"]


def test_a_text_that_is_pasted_during_an_answer_is_one_message(chat, endless):
    person = chat("--model", endless, "--max-tokens", 1500, "--temp", 3, "--seed", 1)
    before = person.prompts()
    person.type("Tell me.\r")
    person.wait(lambda: len(person.lines()) > 3)  # the answer streams
    person.paste("one\n/exit\ntwo")
    person.wait(lambda: person.prompts() > before and person.lines()[-1] == "two")
    assert person.lines()[-3:] == ["> one", "/exit", "two"]
    assert "/exit" not in "".join(person.lines()[:-3])  # keys are not shown within an answer
    person.enter()
    assert person.say("/undo") == ["taken back; 1 turn left"]


def test_three_quotes_hold_a_message_of_several_lines(chat):
    same = twin()
    person = chat()
    person.type('"""/exit\r')
    person.wait_for('"""/exit')
    person.type("What is this?\r")
    person.wait_for("What is this?")
    person.type('"""')
    assert person.enter()[-1] == shown(same.ask("/exit\nWhat is this?"))[-1]
    assert person.say('"""Why?"""') == shown(same.ask("Why?"))
    person.type("one")
    person.type("\x1b\r")  # Alt-Enter
    person.type("two")
    assert person.enter()[-1] == shown(same.ask("one\ntwo"))[-1]


def test_earlier_messages_come_back_with_the_arrow(chat, tmp_path):
    person = chat()
    person.say("/reset")
    person.paste("one\ntwo")
    person.enter()
    person.type("/exit\r")
    assert person.end() == 0
    file = tmp_path / "state" / "mlx-lfm2vl" / "history"
    assert "/reset" in file.read_text() and file.stat().st_mode & 0o077 == 0
    again = chat()
    again.type("\x1b[A\x1b[A")  # over /exit
    again.wait(lambda: again.lines()[-1] == "two" and again.lines()[-2] == "> one")
    again.type("\x1b[A\x1b[A")
    again.wait_for("> /reset")
    assert again.enter() == ["a new conversation"]
    again.type("\x04")
    assert again.end() == 0


def test_a_home_that_cannot_be_written_costs_the_history_only(chat, tmp_path):
    (tmp_path / "file").touch()
    person = chat(XDG_STATE_HOME=str(tmp_path / "file"))
    assert person.say("/reset") == ["a new conversation"]
    person.type("\x04")
    assert person.end() == 0


def test_tab_completes_the_name_of_a_picture(chat, tmp_path):
    shutil.copyfile(PICTURE, tmp_path / "my holiday picture.png")
    person = chat()
    person.type("/image my\t")
    person.wait_for("> /image my holiday picture.png")
    assert person.enter()[0].startswith("my holiday picture.png: ")


def test_undo_keeps_the_pictures_and_images_lists_and_drops_them(chat):
    person = chat("--image", SCENE)
    other = ROOT / "examples" / "shapes.png"
    first = twin().ask("What is in this image?", SCENE)
    assert person.say("What is in this image?") == shown(first)
    assert person.say("/undo") == [
        "taken back; 0 turns left",
        "scene.png: with your next message again; /images lists and drops",
    ]
    assert person.say("What is in this image?") == shown(first)
    person.say("/undo")
    person.say(f"/image {other}")
    rows = person.say("/images")
    assert [row.split("  ")[:2] for row in rows] == [["1", "scene.png"], ["2", "shapes.png"]]
    assert "no such number" in " ".join(person.say("/images drop 3"))
    assert person.say("/images drop 1") == ["scene.png: dropped"]
    assert person.say("What is in this image?") == shown(twin().ask("What is in this image?", other))
    assert person.say("/images") == ["message 1: shapes.png  128x128", "no picture waits for your next message"]
    person.say(f"/image {SCENE}")
    person.say("Why?")
    person.say(f"/image {other}")
    assert person.say("/images") == [
        *("message 1: shapes.png  128x128", "message 2: scene.png  128x128"),
        "1  shapes.png  128x128",
    ]
    person.say("/images drop")
    person.say("/undo")
    assert person.say("/images") == ["message 1: shapes.png  128x128", "1  scene.png  128x128"]
    person.say("/save talk.json")
    person.say("/load talk.json")
    assert person.say("/images")[0] == "message 1: shapes.png  128x128"


def test_an_answer_that_is_cut_off_is_marked(chat):
    person = chat("--max-tokens", 3)
    assert person.say("Why?")[-1] == CUT


def test_help_fits_eighty_columns(chat):
    assert chat().say("/help") == HELP.splitlines()


def test_a_terminal_is_left_as_it_was(tmp_path):
    """After the end, and after a kill, the shell shows what is typed."""
    import termios

    for last in (lambda person: person.type("\x04"), lambda person: person.child.kill(15)):
        person = Typist(tmp_path, "chat", "--model", "demo")
        before = termios.tcgetattr(person.child.child_fd)[3]
        person.wait(person.waits)
        person.say("Why?")
        last(person)
        person.child.expect("\\?2004l")
        person.child.wait()
        assert termios.tcgetattr(person.child.child_fd)[3] == before
        person.child.close()


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
    assert list(completions("/image", 0)) == ["/image", "/images"]
    assert list(completions("/image ", 7)) == ["a.png", "b.png"]
    assert list(completions("/image .h", 7)) == [".hidden"]
    for line in ("What is x", "What is ", "/undo a", " a", "What\nis a", "/image missing/a", "/image c"):
        assert list(completions(line, line.rfind(" ") + 1)) == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("a", ["a.png"]),
        ("What is in sub/", ["sub/b.JPG"]),
        ("Compare a.png su", ["sub/"]),
        ("Compare a.png {0}/s", ["{0}/sub/"]),
        ("{0}/a", ["{0}/a.png"]),
        ("What is 'my pi", ["picture 1.png"]),
        ('What is "sub/b', ['"sub/b.JPG']),
        ("What is my\\ ", ["picture\\ 1.png"]),
        ("What's ~/a", ["~/a.png"]),
        ("Read n", []),
        ("/set a", []),
    ],
)
def test_tab_in_a_message_offers_folders_and_pictures(line, offered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "a.txt", "notes.txt", "my picture 1.png", "sub/b.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    line = line.format(tmp_path)
    begin = line.rfind(" ") + 1
    assert list(completions(line, begin)) == [each.format(tmp_path) for each in offered]


def test_tab_completes_a_picture_within_a_message(chat, tmp_path):
    shutil.copyfile(SCENE, tmp_path / "scene.png")
    person = chat()
    person.type("What is in this image? ./sce\t")
    person.wait(lambda: person.lines()[-1] == "> What is in this image? ./scene.png")
    rows = person.enter()
    assert rows[0] == "scene.png: 128x128, with this message"
    assert rows[1:] == shown(twin().ask("What is in this image?", SCENE))


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
    assert b"36;1m" in chat().raw
    assert b"36" not in chat(NO_COLOR="1").raw


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


def test_pictures_of_a_stopped_message_wait_for_the_next(capsys):
    class Impatient(Terminal):
        patience = 0

        def show(self, answer, drafts=False):
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
