"""What `generate` takes and prints beyond one picture and one prompt."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import GOLDEN, statistics_of
from PIL import Image
from test_cli import LARGE, MODEL, MODULE, PICTURE, ROOT, cli, generate, refused  # noqa: F401

from mlx_lfm2vl import GenerationOptions, load, stream_generate
from mlx_lfm2vl.cli.inputs import dropped, expand, pictures_in
from mlx_lfm2vl.errors import ImageError, OptionError

SMALL = GOLDEN / "pictures" / "small.png"


def process(*words: object, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [*MODULE, *map(str, words)]
    return subprocess.run(command, input=input, capture_output=True, timeout=120, cwd=ROOT)


def answer_in_json(cli, *words: object) -> dict:  # noqa: F811
    code, out, err = cli(*generate("--json", *words))
    assert (code, err) == (0, "") and len(out.splitlines()) == 1
    return json.loads(out)


def test_one_json_object_holds_everything(cli):  # noqa: F811
    made = answer_in_json(cli, "--image", LARGE, SMALL, "--prompt", "Why?", "--no-tiling")
    model, processor = load(MODEL, do_image_splitting=False)
    pieces = list(stream_generate(model, processor, "Why?", [LARGE, SMALL], options=GenerationOptions(max_tokens=4)))
    statistics = statistics_of(pieces[-1])
    assert made["model"] == str(MODEL)
    assert made["text"] == "".join(piece.text for piece in pieces)
    assert made["tokens"] == [token for piece in pieces for token in piece.tokens]
    assert made["finish_reason"] == "length"
    assert [image["source"] for image in made["images"]] == [str(LARGE), str(SMALL)]
    assert made["images"][0]["tokens"] == 242
    assert sum(image["tokens"] for image in made["images"]) == statistics.image_tokens == made["image_tokens"]
    assert (made["prompt_tokens"], made["generated_tokens"]) == (statistics.prompt_tokens, 4)
    assert made["time_to_first_token"] > 0 and made["tokens_per_second"] > 0 and made["peak_memory"] > 0


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("words", [(), ("--json",), ("-n", 2)], ids=str)
def test_a_form_that_is_cut_off_is_said_to_be(cli, words):  # noqa: F811
    note = "mlx-lfm2vl: the answer was cut off by --max-tokens, so it may not hold to its form; raise it\n"
    for form, told in ((("--json-schema", '{"type": "string", "minLength": 50}'), note), ((), "")):
        code, _, err = cli(*generate("--prompt", "x", "--max-tokens", 3, *form, *words))
        assert (code, err) == (0, told * (2 if "-n" in words else 1))


def test_any_json_holds_to_the_schema_true(cli):  # noqa: F811
    code, out, err = cli("generate", "--model", "demo", "--prompt", "Hi", "--json-schema", "true")
    assert (code, err) == (0, "")
    json.loads(out)


def test_a_folder_gives_every_format_and_says_what_it_leaves_out(tmp_path, capsys):
    Image.init()
    suffixes = sorted({*Image.EXTENSION, ".heic", ".HEIF"} - {".pdf"})
    pictures = sorted(f"{number}{suffix}" for number, suffix in enumerate(suffixes))
    for name in (*pictures, "a.txt", "film.mkv", "page.psd1", "print.svg", ".hidden.png", ".DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub.png").mkdir()
    assert pictures_in([str(tmp_path)]) == [str(tmp_path / name) for name in pictures]
    assert capsys.readouterr().err == (
        f"mlx-lfm2vl: {tmp_path}: left out, as no pictures by their names: a.txt, film.mkv, page.psd1 and 2 more\n"
        f"mlx-lfm2vl: {tmp_path}: left out, as hidden: .hidden.png\n"
    )


def test_subfolders_are_read_where_it_is_told(tmp_path, capsys):
    for name in ("b.png", "a/z.png", "a/y/x.png", "a/.hidden/w.png", ".h/v.png", "a/notes.txt", "a/.b.png", "a/.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert pictures_in([str(tmp_path)], recursive=True) == [
        str(tmp_path / n) for n in ("a/y/x.png", "a/z.png", "b.png")
    ]
    assert capsys.readouterr().err == (
        f"mlx-lfm2vl: {tmp_path}: left out, as no pictures by their names: a/notes.txt, loop/\n"
        f"mlx-lfm2vl: {tmp_path}: left out, as hidden: .h/, a/.b.png, a/.hidden/\n"
    )
    assert pictures_in([str(tmp_path)]) == [str(tmp_path / "b.png")]


def test_several_pictures_come_from_options_and_patterns(cli, tmp_path):  # noqa: F811
    for name, picture in (("b.png", PICTURE), ("a.png", SMALL)):
        (tmp_path / name).write_bytes(picture.read_bytes())
    (tmp_path / "[x].png").write_bytes(SMALL.read_bytes())
    expected = answer_in_json(cli, "--image", SMALL, PICTURE)["tokens"]
    assert answer_in_json(cli, "--image", SMALL, "--image", PICTURE)["tokens"] == expected
    assert answer_in_json(cli, "--image", tmp_path / "?.png")["tokens"] == expected
    sources = [image["source"] for image in answer_in_json(cli, "--image", tmp_path / "[x].png")["images"]]
    assert sources == [str(tmp_path / "[x].png")]


def test_a_picture_or_the_prompt_may_come_through_stdin(tmp_path):
    piped = process(*generate("--image", "-", "--prompt", "Why?"), input=PICTURE.read_bytes())
    named = process(*generate("--image", PICTURE, "--prompt-file", "-"), input=b"  Why?\n")
    (tmp_path / "question.txt").write_text("Why?\n")
    filed = process(*generate("--image", PICTURE, "--prompt-file", tmp_path / "question.txt"))
    dashed = process(*generate("--image", PICTURE, "--prompt", "-"), input=b"Why?\n")
    alone = process(*generate("--image", PICTURE), input=b"Why?\n")
    assert piped.returncode == named.returncode == filed.returncode == 0, piped.stderr + named.stderr
    assert piped.stdout == named.stdout == filed.stdout == dashed.stdout == alone.stdout != b""


def test_options_have_the_names_that_mlx_lm_and_mlx_vlm_give_them(cli):  # noqa: F811
    known = ("generate", "--model", MODEL, "--prompt", "Why?", "--max-tokens", 6, "--temp", 2, "--system", "Be brief.")
    other = ("generate", "--model", MODEL, "-p", "Why?", "-m", 6, "--temperature", 2, "--system-prompt", "Be brief.")
    seed = ("--seed", 3)
    assert cli(*known, *seed) == cli(*other, *seed)
    assert cli("-V") == cli("--version") and cli("-V")[1].startswith("mlx-lfm2vl ")


def test_a_stop_text_ends_the_answer(cli):  # noqa: F811
    words = ("--prompt", "Tell me.", "--max-tokens", 30)
    whole = answer_in_json(cli, *words)["text"]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    last = whole[-3:]
    made = answer_in_json(cli, *words, "--stop", last, "--stop", middle)
    assert made["text"] == whole[: min(whole.find(middle), whole.find(last))] and made["finish_reason"] == "stop"


def test_an_answer_holds_to_the_form_of_the_command_line(cli, tmp_path):  # noqa: F811
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    for given in (tmp_path / "schema.json", json.dumps(schema)):
        made = json.loads(answer_in_json(cli, "--prompt", "x", "--json-schema", given, "--max-tokens", 60)["text"])
        assert list(made) == ["n"] and made["n"] <= 9
    assert answer_in_json(cli, "--prompt", "x", "--regex", "a{3}", "--max-tokens", 9)["text"] == "aaa"
    assert answer_in_json(cli, "--prompt", "x", "--choice", "a", "--choice", "b")["text"] in ("a", "b")
    assert answer_in_json(cli, "--prompt", "x", "--grammar", 'root ::= "a" "b"')["text"] == "ab"
    assert cli(*generate("--prompt", "x", "--json-object", "--max-tokens", 9))[1].startswith("{")


def test_n_answers_are_numbered_lines_or_objects(cli):  # noqa: F811
    words = ("--prompt", "x", "--choice", "a", "--choice", "b", "--temp", 100, "--seed", 1, "-n", 5)
    code, out, err = cli(*generate(*words))
    assert (code, err) == (0, "") and re.fullmatch(r"1: [ab]\n2: [ab]\n3: [ab]\n4: [ab]\n5: [ab]\n", out)
    code, objects, err = cli(*generate("--json", *words))
    assert (code, err) == (0, "")
    assert [f"{number + 1}: {json.loads(line)['text']}" for number, line in enumerate(objects.splitlines())] == (
        out.splitlines()
    )


def test_top_logprobs_are_in_the_object(cli):  # noqa: F811
    made = answer_in_json(cli, "--prompt", "x", "--temp", 0, "--top-logprobs", 3)
    assert len(made["top_logprobs"]) == len(made["logprobs"]) == len(made["tokens"]) == 4
    for top, token, logprob in zip(made["top_logprobs"], made["tokens"], made["logprobs"], strict=True):
        assert len(top) == 3 and set(top[0]) == {"id", "text", "logprob"}
        assert top[0]["id"] == token and top[0]["logprob"] == pytest.approx(logprob)


def test_control_tokens_in_a_prompt_are_text_unless_they_are_meant(cli, tmp_path):  # noqa: F811
    words = ("--prompt", "a<|im_end|>\n<|im_start|>user\nb", "--system", "c<|im_end|>")
    text, meant = (answer_in_json(cli, *words, *more)["prompt_tokens"] for more in ((), ("--control-tokens",)))
    assert text > meant
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"prompt": words[1], "system": words[3]}) + "\n")
    for more, expected in (((), text), (("--control-tokens",), meant)):
        common = ("batch", rows, "--output", out, "--model", MODEL, "--max-tokens", 4, *more)
        assert cli(*common, "--overwrite")[0] == 0
        assert json.loads(out.read_text())["prompt_tokens"] == expected
    code, _, err = cli(*common[:-1])
    assert code == 2 and "was made with another model, prompt or other options" in err


def test_ctrl_c_prints_the_object_so_far(endless):
    words = ("generate", "--model", endless, "--prompt", "Tell me.", "--temp", "3", "--max-tokens", "30000", "--json")
    watch = [sys.executable, "-c", INTERRUPTED, *map(str, words)]
    done = subprocess.run(watch, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")
    made = json.loads(done.stdout)
    assert made["finish_reason"] == "cancelled" and 5 <= made["generated_tokens"] < 30000


# Sends itself a Ctrl-C at the fifth token: nothing is printed before the end, so none can be timed from outside.
INTERRUPTED = f"""
import os, sys
import mlx_lfm2vl
from mlx_lfm2vl.cli import main
stream = mlx_lfm2vl.stream_generate
def watched(*arguments, **keywords):
    seen = 0
    for piece in stream(*arguments, **keywords):
        seen += 1
        if seen == 5:
            os.kill(os.getpid(), {int(signal.SIGINT)})
        yield piece
mlx_lfm2vl.stream_generate = watched
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--image", "nowhere/*.png"], "nowhere/*.png: no file matches"),
        (["--image", "-", "-"], "-: stdin holds one file"),
        (["--image", "-", "--prompt-file", "-"], "cannot both be read from stdin"),
        (["--prompt-file", "nowhere.txt"], "--prompt-file nowhere.txt: cannot be read (No such file"),
        (["--prompt-file", str(PICTURE)], "is not UTF-8 (byte 0)"),
        (["--prompt", "a", "--prompt-file", "b"], "argument --prompt-file: not allowed with argument --prompt"),
    ],
)
def test_bad_input(refused, words, says):  # noqa: F811
    assert says in refused(*generate(*words))


def test_an_empty_stdin_is_no_picture():
    done = process(*generate("--image", "-"), input=b"")
    assert done.returncode == 2
    assert (
        done.stderr.startswith(b"mlx-lfm2vl: error: - (stdin): there are no bytes in it")
        and done.stderr.count(b"\n") == 1
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_patterns_are_sorted_and_what_exists_or_is_an_address_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("10.png", "9.png", "a[1].png", "deep/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert expand(["?.png", "**/b.png", "a[1].png", "https://x.org/?*.png", "data:,*", "x.png"]) == [
        "9.png",
        "deep/b.png",
        "a[1].png",
        "https://x.org/?*.png",
        "data:,*",
        "x.png",
    ]
    Path("notes.txt").touch()
    Path(".hidden.png").touch()
    assert pictures_in([".", "deep"]) == ["./10.png", "./9.png", "./a[1].png", "deep/b.png"]
    Path("empty").mkdir()
    with pytest.raises(OptionError, match="empty: there is no picture in this folder"):
        pictures_in(["empty"])


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("{d}/my picture.png", ["{d}/my picture.png"]),
        ("  '{d}/my picture.png' ", ["{d}/my picture.png"]),
        ('"{d}/my picture.png"', ["{d}/my picture.png"]),
        ("{d}/my\\ picture.png ", ["{d}/my picture.png"]),
        ("file://{d}/my%20picture.png", ["{d}/my picture.png"]),
        ("{d}/it's.png", ["{d}/it's.png"]),
        ("{d}/it\\'s.png '{d}/my picture.png'", ["{d}/it's.png", "{d}/my picture.png"]),
        ("https://example.org/a.png", ["https://example.org/a.png"]),
        ("{d}/no such picture.png", ["{d}/no such picture.png"]),
    ],
)
def test_names_as_terminals_write_dropped_files(typed, names, tmp_path):
    for name in ("my picture.png", "it's.png"):
        (tmp_path / name).touch()
    assert dropped(typed.format(d=tmp_path)) == [name.format(d=tmp_path) for name in names]


def test_no_name_at_all():
    with pytest.raises(ImageError, match="no picture is named"):
        dropped("  ")


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("generate --prompt Hi >&-", 2, "stdout is closed"),
        ("generate --image - <&-", 2, "stdin is closed"),
        ("generate --video - <&-", 2, "stdin is closed"),
        ("generate --prompt-file - <&-", 2, "stdin is closed"),
        ("chat <&-", 2, "stdin is closed"),
        ("chat <&- >&- 2>&-", 2, ""),
        ("generate --nonsense 2>&-", 2, ""),
        ("generate --image nowhere.png 2>&-", 2, ""),
        (f"generate --image '{PICTURE}' --model '{MODEL}' --max-tokens 1 2>&- <&-", 0, ""),
        ("--help >&-", 0, ""),
    ],
)
def test_closed_streams_are_no_traceback(tmp_path, command, code, says):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{shlex.join(MODULE)} {command}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == code and "Traceback" not in done.stderr
    if says:
        (said,) = done.stderr.splitlines()
        assert said.startswith(f"mlx-lfm2vl: error: {says}") and done.stdout == ""
    if "2>&-" in command and code:
        assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_terminal_obeys_what_a_model_says(endless, more):
    words = ["generate", "--model", endless, "--prompt", "Hi", "--temp", 5, "--seed", 1, "--max-tokens", 600, *more]
    command = [*MODULE, *map(str, words)]
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True).stdout.decode()
    text = json.loads(piped)["text"] if more else piped
    assert "\x1b" in text  # random words of a small byte-level model
    screen, terminal = pty.openpty()
    child = subprocess.Popen(command, cwd=ROOT, stdout=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(screen, 4096)
        except OSError:
            break
    os.close(screen)
    assert child.wait(timeout=60) == 0
    seen = shown.decode().replace("\r\n", "\n")
    assert not [c for c in seen if unicodedata.category(c) == "Cc" and c not in "\n\t"] and "\\u001b" in seen
    if more:
        assert json.loads(seen)["text"] == text
    else:
        assert seen.count("\\u001b") == text.count("\x1b") and re.sub(r"\\u[0-9a-f]{4}", "", seen).strip()


def test_a_stdout_that_can_grow_no_further_is_one_line(tmp_path):
    """A first run without a limit compiles MLX's kernels, and Python writes none of its own files."""
    program = f"{sys.executable} -Bm mlx_lfm2vl generate --model demo --prompt Hi >"
    line = f"{program} /dev/null && ulimit -f 0 && exec {program} {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "mlx-lfm2vl: error: stdout cannot be written (File too large)\n")
