"""What a person sees before the first word: a spinner and the bars of a download, at a terminal only."""

import os
import subprocess
import sys
import time

import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from matrix.web import Server, response
from PIL import Image
from test_cli import ROOT
from typist import COLUMNS, Typist

from mlx_lfm2vl import demo, generate, load
from mlx_lfm2vl.cli import stderr

SCENE = ROOT / "examples" / "scene.png"
NAME = "owner/demo"
QUESTION = "What is in this image?"
LARGE = ["large.png"] * 3  # together they take a while to resize, on a fast machine too


def seen(person: Typist, words: str) -> None:
    """Waits until the program has drawn these words, which it may have taken away since."""
    person.wait(lambda: words.encode() in person.raw)


@pytest.fixture
def slow_picture():
    """The address of the scene on a server that thinks for a second."""

    def answer(connection):
        time.sleep(1)
        connection.sendall(response("200 OK", SCENE.read_bytes(), Content_Type="image/png"))

    server = Server({"/scene.png": answer})
    yield f"{server.url}/scene.png"
    server.close()


@pytest.fixture
def slow_hub():
    """A hub with the demo model, which is busy at first, and sends slowly."""
    files = {file.name: file.read_bytes() for file in demo.path().iterdir() if file.suffix in (".json", ".safetensors")}
    files["chat_template.jinja"] = (demo.path() / "chat_template.jinja").read_bytes()
    with HubServer({NAME: Repository(files)}, busy=[(503, {"Retry-After": "2"})], pace=6_000_000) as hub:
        yield hub


def test_a_spinner_says_what_is_done_before_the_first_word(tmp_path, slow_picture, slow_hub):
    person = Typist(
        tmp_path,
        *("generate", "--model", NAME, "--prompt", QUESTION, "--image", slow_picture, "--allow-private-urls"),
        HF_ENDPOINT=slow_hub.url,
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_HUB_DISABLE_XET="1",
    )
    seen(person, "reading pictures")
    seen(person, "loading the model")
    seen(person, "download: ")
    person.watch()
    bar, *answer = person.lines()
    assert bar.startswith("download: 100%|") and bar.endswith("B/s]") and len(bar) <= COLUMNS
    text = "".join(answer)
    assert text == generate(*load("demo"), QUESTION, [str(SCENE)]).replace("\n", "")


def test_no_spinner_is_left_behind_the_answer_or_an_error(tmp_path, slow_picture):
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "large.png")
    words = ["generate", "--model", "demo", "--prompt", QUESTION, "--max-tokens", 3, "--no-tiling"]
    person = Typist(tmp_path, *words, "--image", *LARGE, "--json")
    seen(person, "reading the prompt")
    person.watch()
    assert person.lines()[0].startswith('{"model": ') and "reading" not in "".join(person.lines())
    person = Typist(tmp_path, *words, "--image", f"{slow_picture}.gone", slow_picture, "--allow-private-urls")
    person.watch()
    assert person.lines()[0].startswith("mlx-lfm2vl: error: http://127.0.0.1")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "words",
    [
        ("detect", "red squares"),
        ("extract", "--schema", '{"type": "object", "properties": {"colour": {"type": "string"}}}'),
        ("describe",),
        ("explain",),
        ("generate", "-n", 2),
    ],
    ids=lambda words: words[0],
)
def test_every_question_about_pictures_has_a_spinner(tmp_path, slow_picture, words):
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "large.png")
    command, *rest = words
    images = [word for name in (slow_picture, *LARGE) for word in ("--image", name)]
    given = [*images, "--allow-private-urls", "--no-tiling", "--max-tokens", 40]
    person = Typist(tmp_path, command, *rest, "--model", "demo", *given)
    seen(person, "reading pictures")
    seen(person, "reading the prompt")
    person.watch()
    assert not any(word in "\n".join(person.lines()) for word in ("reading", "answering"))


def test_notes_are_broken_between_words(tmp_path):
    name = "a folder whose name is long enough to be broken " + "三角形" * 5
    (tmp_path / name).mkdir()
    for picture in ("a.png", "first notes.txt", "second notes.txt", "third notes.txt"):
        (tmp_path / name / picture).write_bytes(SCENE.read_bytes())
    person = Typist(tmp_path, "batch", name, "--model", GOLDEN / "gen25", "--output", "out.jsonl", "--max-tokens", 2)
    person.watch()
    note = f"mlx-lfm2vl: {name}: left out, as no pictures by their names: first notes.txt, second notes.txt,"
    assert " ".join(row.strip() for row in person.lines()).startswith(note)
    long = "x" * 100 + ".png"
    error = Typist(tmp_path, "generate", "--model", "demo", "--image", long)
    error.watch()
    assert error.lines()[:2] == [f"mlx-lfm2vl: error: {long[:61]}", f"{long[61:]}: no such picture"]


def test_the_first_answer_of_a_chat_has_a_spinner(tmp_path, slow_picture):
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "large.png")
    person = Typist(tmp_path, "chat", "--model", "demo", "--allow-private-urls", "--max-tokens", 3, "--no-tiling")
    person.wait(person.waits)
    person.type(f"/image {slow_picture} {' '.join(LARGE)}\r")
    seen(person, "reading pictures")
    person.wait(lambda: person.prompts() == 2 and person.waits())
    assert person.lines()[-5:-1] == [
        "scene.png: 128x128, with your next message",
        *["large.png: 6000x6000, with your next message"] * 3,
    ]
    person.type(f"{QUESTION}\r")
    seen(person, "reading the prompt")
    person.wait(lambda: person.prompts() == 3 and person.waits())
    assert "reading the prompt" not in "\n".join(person.lines())


@pytest.mark.parametrize("where", ["a pipe", "a dumb terminal"])
def test_nothing_turns_where_nobody_watches(tmp_path, slow_picture, where):
    words = ["generate", "--model", "demo", "--prompt", QUESTION, "--image", slow_picture, "--allow-private-urls"]
    if where == "a pipe":
        command = [sys.executable, "-m", "mlx_lfm2vl", *words]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, env=dict(os.environ), timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        person = Typist(tmp_path, *words, TERM="dumb")
        person.watch()
        assert b"reading" not in person.raw and b"\x1b" not in person.raw


def test_a_note_is_a_line_of_its_own_beside_progress(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for number in range(3):
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:])
    words = ["batch", ".", "--model", GOLDEN / "gen25", "--output", "out.jsonl", "--max-tokens", 2]
    person = Typist(tmp_path, *words, "--batch-size", 1)
    person.watch()
    notes = [line for line in person.lines() if "mlx-lfm2vl: " in line]
    assert len(notes) == 4 and all(line.startswith("mlx-lfm2vl: ") for line in notes)


def test_without_a_terminal_only_our_own_lines_are_written(tmp_path, slow_hub):
    slow_hub.pace = 0
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": slow_hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "mlx_lfm2vl", *words]
        return subprocess.run(program, env=clean | own, capture_output=True, text=True, cwd=ROOT, timeout=120)

    done = run("convert", "--hf-path", NAME, "--mlx-path", str(tmp_path / "out"), "--no-verify")
    assert done.returncode == 0 and all(row.startswith("mlx-lfm2vl: ") for row in done.stderr.splitlines()), done.stderr
    gone = run("convert", "--hf-path", "maker/gone", "--mlx-path", str(tmp_path / "other"))
    assert gone.returncode == 2 and len(gone.stderr.splitlines()) == 1, gone.stderr
    (tmp_path / "home" / "hub" / "models--maker--gone").mkdir(exist_ok=True)
    listed = run("models")
    assert listed.returncode == 0 and len(listed.stderr.splitlines()) == 1, listed.stderr


def test_a_long_stage_says_its_tenths_where_nobody_watches(monkeypatch, capsys):
    with stderr.Bars(plain=True) as bars:
        bars("weights", 50, 100)  # at once
        monkeypatch.setattr(stderr, "PATIENCE", 0)
        for done in (51, 55, 60):
            bars("weights", done, 100)
    assert capsys.readouterr().err == "mlx-lfm2vl: weights: 51 %\nmlx-lfm2vl: weights: 60 %\n"
