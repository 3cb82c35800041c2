"""Conversations at a terminal: dropped pictures, settings, the clipboard, and answers that go on."""

import base64
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import GOLDEN
from test_cli import ROOT
from test_cli_chat import chat_program, demo, noted, shown, twin  # noqa: F401  # a fixture

from mlx_lfm2vl import Chat, GenerationOptions, ResponseFormat
from mlx_lfm2vl.cli.chat_pictures import Found, find_pictures
from mlx_lfm2vl.cli.chat_settings import changed
from mlx_lfm2vl.cli.chat_settings import shown as options_shown
from mlx_lfm2vl.errors import ImageError, Lfm2VlError, OptionError

SCENE = ROOT / "examples" / "scene.png"
SHAPES = ROOT / "examples" / "shapes.png"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Pictures with names that a shell would take apart, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "my (best) one's.JPG", "Screenshot 9.41\u202fAM.png", "sub/b.png", "notes.txt", "scan"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(GOLDEN / "pictures" / "small.png", tmp_path / name)
    (tmp_path / "README").write_text("no picture")
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
        (
            "What is in sub or notes.txt or .png and/or ~nobody/x?",
            [],
            "What is in sub or notes.txt or .png and/or ~nobody/x?",
        ),
        ("{0}/scan", ["{0}/scan"], ""),
        ("scan", ["scan"], ""),
        ("Is {0}/scan like scan?", ["{0}/scan"], "Is scan like scan?"),
        ("https://a.org/b?c=d", ["https://a.org/b?c=d"], ""),
        ("What is in https://a.org/b.JPG?w=9 ?", ["https://a.org/b.JPG?w=9"], "What is in b.JPG?w=9 ?"),
        ("Look:\n {0}/a.png\n\nWhat is b.png?\n'sub/b.png' ", ["{0}/a.png", "sub/b.png"], "Look:\n\nWhat is b.png?"),
        ("a.png\n{0}/my\\ \\(best\\)\\ one\\'s.JPG", ["a.png", "{0}/my (best) one's.JPG"], ""),
        ("don't \\", [], "don't \\"),
        ("", [], ""),
    ],
)
def test_paths_of_pictures_are_found_as_they_are_written(typed, names, rest, files):
    found = find_pictures(typed.format(files))
    assert found == Found([name.format(files) for name in names], rest.format(files), [])


@pytest.mark.parametrize(
    ("typed", "names", "unseen"),
    [
        ("What is  in {0}/gone.png?", [], ["{0}/gone.png: no such picture"]),
        ("Compare a.png 'no such.JPG'.", ["a.png"], ["no such.JPG: no such picture"]),
        ("What is in ./sub/?", [], ["./sub/: a folder, not a picture; name a file in it"]),
        ("Read {0}/README and", [], ["{0}/README: not a picture"]),
        (
            "See https://a.org/b now",
            [],
            ["https://a.org/b: not opened, as it does not end like a picture's address"],
        ),
        ("What is this?\n{0}/no pe.png\na.png", ["a.png"], ["{0}/no pe.png: no such picture"]),
    ],
)
def test_names_that_cannot_be_read_are_told(typed, names, unseen, files):
    found = find_pictures(typed.format(files))
    assert (found.names, found.unseen) == (names, [line.format(files) for line in unseen])


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("nope.png", "nope.png: no such picture"),
        ("{0}/nope.png", "{0}/nope.png: no such picture"),
        ("~/no pe.png", "~/no pe.png: no such picture"),
        ("'{0}/no pe.png'", "{0}/no pe.png: no such picture"),
        ("nope.pdf[2-3]", "nope.pdf[2-3]: no such picture"),
        ("a.png nope.png", "nope.png: no such picture"),
        ("a.png\n\nnope.png", "nope.png: no such picture"),
        ("{0}/sub", "{0}/sub: a folder, not a picture; name a file in it"),
        ("{0}/README", "{0}/README: not a picture"),
    ],
)
def test_a_message_of_names_alone_is_refused_if_one_is_none(typed, told, files):
    with pytest.raises(ImageError) as refused:
        find_pictures(typed.format(files))
    assert str(refused.value) == f"{told.format(files)}; a space before the message makes it text"


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


def test_a_name_that_cannot_be_read_is_said_before_the_answer(chat, tmp_path):
    shutil.copyfile(SCENE, tmp_path / "scene.png")
    person = chat()
    refused = "mlx-lfm2vl: error: nope.png: no such picture; a space before the message makes it text"
    assert person.say("nope.png") == noted(refused)
    assert person.say("/imagee scene.png")[0].startswith("mlx-lfm2vl: error: /imagee is no command")
    question = "What is in nope.png?"
    said = "mlx-lfm2vl: nope.png: no such picture; the model reads its name only"
    assert person.say(question) == [*noted(said), *shown(twin().ask(question))]
    person.say("/reset")
    person.paste(f"What is in this image?\n{tmp_path}/scene.png")
    assert person.enter()[-3:] == [
        "scene.png: 128x128, with this message",
        *shown(twin().ask("What is in this image?", SCENE)),
    ]


def test_commands_take_nothing_that_they_do_not_read(chat):
    person = chat("--image", SCENE, SHAPES)
    for line in ("/undo 2", "/retry now", "/reset all", "/continue on", "/copy 1", "/help undo"):
        command = line.split()[0]
        told = f"mlx-lfm2vl: error: {command} stands alone; /help lists the commands and what they take"
        assert person.say(line) == noted(told)
    assert person.say("/images") == ["1  scene.png  128x128", "2  shapes.png  128x128"]
    assert person.say("/images drop all") == ["scene.png: dropped", "shapes.png: dropped"]


def test_piped_messages_name_pictures_as_typed_ones_do(tmp_path):
    shutil.copyfile(SCENE, tmp_path / "scene.png")
    text = f'{tmp_path}/scene.png\nnope.png\nWhat is in this image?\n/reset\n"""Why?\n{tmp_path}/scene.png\n"""\n'
    words = [sys.executable, "-m", "mlx_lfm2vl", "chat", "--model", "demo", "--max-tokens", "40"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120)
    answers = [twin().ask(question, SCENE) for question in ("What is in this image?", "Why?")]
    assert (done.returncode, done.stdout) == (2, "".join(answer + "\n" for answer in answers))
    assert done.stderr == ("mlx-lfm2vl: error: nope.png: no such picture; a space before the message makes it text\n")


def test_a_damaged_picture_in_a_message_is_one_line(chat, tmp_path):
    (tmp_path / "bad.png").write_bytes(SCENE.read_bytes()[:60])
    person = chat()
    rows = person.say("What is in bad.png ?")
    assert rows[0].startswith("mlx-lfm2vl: error: bad.png: ") and sum("error" in row for row in rows) == 1
    assert "there is no turn" in person.say("/undo")[0]
    assert person.say("/images") == ["no picture waits for your next message"]


def test_system_begins_anew_and_keeps_the_pictures_that_wait(chat):
    person = chat("--image", SCENE)
    assert person.say("/system") == ["there is no system prompt; /system TEXT sets one, and begins anew"]
    assert person.say("/system Be brief.  Be kind.") == ["a new conversation, with this system prompt"]
    assert person.say("/system") == ["Be brief.  Be kind."]
    same = Chat(*demo(), system="Be brief.  Be kind.", options=GenerationOptions(max_tokens=40))
    assert person.say("What is in this image?") == shown(same.ask("What is in this image?", SCENE))
    assert person.say("/reset") == ["a new conversation"]
    assert person.say("Why?") == shown(Chat(*demo(), system=same.messages[0]["content"]).ask("Why?"))
    assert person.say('/system ""') == ["a new conversation, without a system prompt"]
    assert person.say("Why?") == shown(twin().ask("Why?"))


def test_set_changes_the_answers_that_follow(chat):
    person = chat("--seed", 3)
    assert person.say("/set") == [
        "max_tokens          40",
        "temperature         the model's own",
        "top_p               the model's own",
        "min_p               the model's own",
        "top_k               the model's own",
        "repetition_penalty  the model's own",
        "seed                3",
        "stop                none",
        "json_schema         none",
        "json_object         none",
        "regex               none",
        "choice              none",
        "grammar             none",
        "frequency_penalty   0",
        "presence_penalty    0",
        "draft               none",
    ]
    same = twin()
    assert person.say("Why?") == shown(same.ask("Why?"))
    assert person.say("/set temp 1.5") == ["temperature: 1.5"]
    assert person.say("/set seed 9") == ["seed: 9"]
    assert person.say("/set max-tokens 12") == ["max_tokens: 12"]
    options = GenerationOptions(max_tokens=12, temperature=1.5, seed=9)
    answer = "".join(piece.text for piece in same.retry(options=options))
    assert person.say("/retry")[: len(shown(answer))] == shown(answer)
    rows = " ".join(person.say("/set temp hot"))
    assert "temperature is 'hot', expected a number from 0 to 100" in rows
    assert person.say("/set")[1] == "temperature         1.5"


def test_set_takes_every_option_that_answers_show():
    options = GenerationOptions()
    for name, text, value in (
        ("max_tokens", "7", 7),
        ("max_tokens", "none", None),
        ("temperature", "0", 0.0),
        ("top-p", "0.5", 0.5),
        ("min_p", "0.25", 0.25),
        ("top_k", "20", 20),
        ("repetition_penalty", "1.1", 1.1),
        ("seed", "5", 5),
        ("seed", "None", None),
        ("stop", "The end.", ("The end.",)),
        ("stop", "none", ()),
        ("frequency_penalty", "0.5", 0.5),
        ("presence-penalty", "none", 0.0),
        ("draft", "ngram", "ngram"),
        ("draft", "none", None),
    ):
        options, line = changed(options, f"{name} {text}")
        assert getattr(options, name.replace("-", "_")) == value
        assert line in [": ".join(row.split(maxsplit=1)) for row in options_shown(options)]
    # log-probabilities, biases and functions are not shown; the form is by its five kinds
    assert len(options_shown(options)) == len(fields(options)) - 5 + 5
    for wrong, words in (
        ("colour 3", "no such option; there are max_tokens, temperature"),
        ("logprobs true", "no such option"),
        ("seed", "needs a value"),
        ("top_k 1.5", "top_k is 1.5, expected an integer"),
        ("max_tokens 0", "max_tokens is 0"),
        ("temperature nan", "temperature is nan"),
    ):
        with pytest.raises(OptionError, match=words):
            changed(options, wrong)


@pytest.mark.parametrize(
    ("given", "form", "line"),
    [
        ('json-schema {"type": "null"}', ResponseFormat.json_schema({"type": "null"}), 'json_schema: {"type": "null"}'),
        ("json_schema true", ResponseFormat.json_schema(True), "json_schema: true"),
        ("json-schema null.json", ResponseFormat.json_schema({"type": "null"}), 'json_schema: {"type": "null"}'),
        ("json-object true", ResponseFormat.json_object(), "json_object: true"),
        ("regex [0-9]+ cats", ResponseFormat.regex("[0-9]+ cats"), "regex: [0-9]+ cats"),
        ("choice red 'dark green'", ResponseFormat.choice(["red", "dark green"]), "choice: red 'dark green'"),
        ('grammar start: "a" | "b"', ResponseFormat.grammar('start: "a" | "b"'), 'grammar: start: "a" | "b"'),
        ("regex none", None, "regex: none"),
    ],
)
def test_set_takes_forms_as_the_command_line_does(given, form, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "null.json").write_text('{"type": "null"}')
    before = GenerationOptions(response_format=ResponseFormat.choice(["a"]))
    options, told = changed(before, given)
    assert (options.response_format, told) == (form, line)
    assert line in [": ".join(row.split(maxsplit=1)) for row in options_shown(options)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("json-schema [1]", "is a list, expected a schema"),
        ("json-object yes", '"json_object" is true or left out'),
        ("regex (", "regex"),
        ("choice 'red", "a quote is not closed"),
        ("grammar nowhere", "nowhere: cannot be read"),
        ("response_format {}", "no such option; there are .*, json_schema, json_object, regex, choice, grammar"),
    ],
)
def test_set_refuses_what_is_no_form(given, words):
    with pytest.raises(Lfm2VlError, match=words):
        changed(GenerationOptions(), given)


@pytest.fixture
def programs(tmp_path):
    """A folder to be the whole PATH, with programs that keep what they read and their arguments, or fail."""
    (tmp_path / "bin").mkdir()

    def install(name: str, exit_code: int = 0) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\n/bin/cat > "{tmp_path}/{name}.copied"\necho "$@" >> "{tmp_path}/{name}.copied"\n')
        with file.open("a") as more:
            more.write(f"exit {exit_code}\n")
        file.chmod(0o755)

    return install


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "environment", "arguments"),
    [
        ("pbcopy", {}, ""),
        ("wl-copy", {"WAYLAND_DISPLAY": "wayland-0"}, ""),
        ("xclip", {"DISPLAY": ":9"}, "-selection clipboard"),
        ("xsel", {"DISPLAY": ":9"}, "--clipboard --input"),
    ],
)
def test_copy_gives_the_last_answer_to_the_clipboards_program(name, environment, arguments, chat, tmp_path, programs):
    programs(name)
    person = chat(PATH=str(tmp_path / "bin"), **{"WAYLAND_DISPLAY": "", "DISPLAY": "", **environment})
    assert "there is no answer to copy" in person.say("/copy")[0]
    answer = twin().ask("Why?")
    person.say("Why?")
    assert person.say("/copy") == [f"copied by {name}: {len(answer)} characters"]
    assert (tmp_path / f"{name}.copied").read_text() == f"{answer}{arguments}\n"


def test_copy_goes_to_the_terminal_where_no_program_can(chat, tmp_path, programs):
    programs("pbcopy", exit_code=1)
    programs("xclip")  # without a display
    person = chat(PATH=str(tmp_path / "bin"), WAYLAND_DISPLAY="", DISPLAY="")
    person.say("Why?")
    answer = twin().ask("Why?")
    assert person.say("/copy") == [f"copied by the terminal (OSC 52), if it allows that: {len(answer)} characters"]
    assert b"\x1b]52;c;" + base64.b64encode(answer.encode()) + b"\x07" in person.raw


def test_copy_through_pipes_without_a_program_is_an_error(tmp_path):
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lfm2vl", "chat", "--model", "demo", "--max-tokens", "5"],
        input="Why?\n/copy\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path / "bin")},
        timeout=60,
    )
    assert done.returncode == 2 and "nothing can be copied: there is no pbcopy" in done.stderr
    assert "\x1b" not in done.stdout


def test_continue_goes_on_with_an_answer_that_was_cut_off(chat):
    person = chat("--image", SCENE)
    assert "there is no answer to continue" in person.say("/continue")[0]
    person.say("/set max_tokens 4")
    whole = twin().ask("What is in this image?", SCENE)
    first, hint = person.say("What is in this image?")
    assert hint == "(cut off; /continue goes on)"
    person.say("/set max_tokens 40")
    (rest,) = person.say("/continue")
    assert first + rest in (whole, whole.replace(f"{first} ", first, 1))  # rows have no space at their ends
    assert person.say("/continue")[-1] == "the model adds nothing to its answer"
    assert person.say("/undo")[0] == "taken back; 0 turns left"
