"""Conversations at a terminal: dropped pictures, settings, the clipboard, and answers that go on."""

import shutil

import pytest
from conftest import GOLDEN
from test_cli import ROOT
from test_cli_chat import chat_program, shown, twin  # noqa: F401  # a fixture

from mlx_lfm2vl.cli.chat_pictures import find_pictures

SCENE = ROOT / "examples" / "scene.png"
SHAPES = ROOT / "examples" / "shapes.png"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Pictures with names that a shell would take apart, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "my (best) one's.JPG", "Screenshot 9.41\u202fAM.png", "sub/b.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(GOLDEN / "pictures" / "small.png", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names", "rest"),
    [
        ("{0}/a.png ", ["{0}/a.png"], ""),
        ("{0}/my\\ \\(best\\)\\ one\\'s.JPG ", ["{0}/my (best) one's.JPG"], ""),
        ("{0}/my (best) one's.JPG", ["{0}/my (best) one's.JPG"], ""),
        ("'{0}/a.png'", ["{0}/a.png"], ""),
        ('"{0}/my (best) one\'s.JPG"', ["{0}/my (best) one's.JPG"], ""),
        ("file://{0}/my%20(best)%20one's.JPG", ["{0}/my (best) one's.JPG"], ""),
        ("Screenshot\\ 9.41\u202fAM.png", ["Screenshot 9.41\u202fAM.png"], ""),
        ("~/a.png sub/b.png", ["{0}/a.png", "sub/b.png"], ""),
        ("{0}/a.png What's this?", ["{0}/a.png"], "What's this?"),
        ("What's this? a.png", ["a.png"], "What's this?"),
        ("Compare {0}/a.png  '{0}/sub/b.png'", ["{0}/a.png", "{0}/sub/b.png"], "Compare"),
        ("Is sub/b.png (not {0}/a.png) red?", ["sub/b.png", "{0}/a.png"], "Is b.png (not a.png) red?"),
        ("What is in ./a.png?", ["./a.png"], "What is in a.png?"),
        ("{0}/notes.txt", [], "{0}/notes.txt"),
        ("What is  in {0}/gone.png or sub or notes.txt?", [], "What is  in {0}/gone.png or sub or notes.txt?"),
        ("don't \\", [], "don't \\"),
        ("", [], ""),
    ],
)
def test_paths_of_pictures_are_found_as_they_are_written(typed, names, rest, files):
    found = find_pictures(typed.format(files))
    assert found == ([name.format(files) for name in names], rest.format(files))


def test_a_dropped_picture_comes_with_the_next_message(chat, tmp_path):
    shutil.copyfile(SCENE, tmp_path / "my picture.png")
    person = chat()
    same = twin()
    dropped = str(tmp_path / "my picture.png").replace(" ", "\\ ") + " "
    person.paste(dropped)
    assert person.enter()[-1] == "my picture.png: 128x128, with your next message"
    assert person.say("What is in this image?") == shown(same.ask("What is in this image?", SCENE))


def test_a_picture_within_a_message_comes_with_it(chat, tmp_path):
    shutil.copyfile(SCENE, tmp_path / "scene.png")
    shutil.copyfile(SHAPES, tmp_path / "shapes.png")
    (tmp_path / "notes.txt").touch()
    person = chat("--image", "scene.png")
    same = twin()
    question = "Which image shows a red triangle?"
    answer = same.ask(question, [SCENE, SHAPES])
    assert person.say(f"{question} ./shapes.png") == ["shapes.png: 128x128, with this message", *shown(answer)]
    assert person.say("/undo")[1:] == [
        "scene.png: with your next message again; /images lists and drops",
        "shapes.png: with your next message again; /images lists and drops",
    ]
    person.say("/reset")
    for line in ("/tmp/notes.txt", " shapes.png", '"""shapes.png"""'):
        assert person.say(line) == shown(twin().ask(line.strip(' "')))
        person.say("/reset")


def test_a_damaged_picture_in_a_message_is_one_line(chat, tmp_path):
    (tmp_path / "bad.png").write_bytes(SCENE.read_bytes()[:60])
    person = chat()
    rows = person.say("What is in bad.png ?")
    assert rows[0].startswith("mlx-lfm2vl: error: bad.png: ") and sum("error" in row for row in rows) == 1
    assert "there is no turn" in person.say("/undo")[0]
    assert person.say("/images") == ["no picture waits for your next message"]
