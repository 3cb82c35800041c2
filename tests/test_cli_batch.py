"""`batch`: rows in, rows out, in order, whatever happens in between."""

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, statistics_of
from PIL import Image
from test_cli import MODEL, MODULE, ROOT, cli, refused  # noqa: F401

from mlx_lfm2vl import GenerationOptions, load, stream_generate
from mlx_lfm2vl.cli.output import Output

PICTURES = GOLDEN / "pictures"
FAST = ("--model", MODEL, "--max-tokens", 4)


def draw(folder: Path, count: int) -> list[str]:
    """Pictures of mixed shapes and formats, one of thirty large enough to be cut into tiles."""
    rng = np.random.default_rng(5)
    names = []
    for index in range(count):
        height, width = rng.integers(20, 200, 2) if index % 30 != 29 else (500, 900)
        name = f"{index:03}.{('png', 'jpg', 'webp')[index % 3]}"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        names.append(name)
    return names


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@cache_by_backend
def loaded(**overrides: object) -> Loaded:
    return load(MODEL, **overrides)  # type: ignore[arg-type]


def alone(
    prompt: str, images: list | None, system: str | None = None, **overrides: object
) -> tuple[str, str | None, int]:
    """Text, end and length of a single run."""
    options = GenerationOptions(max_tokens=4)
    pieces = list(stream_generate(*loaded(**overrides), prompt, images, system=system, options=options))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason, statistics_of(pieces[-1]).prompt_tokens


def result(row: dict) -> tuple[str, str, int]:
    return row["text"], row["finish_reason"], row["prompt_tokens"]


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.soak)])
def test_mixed_pictures_are_each_as_alone_and_in_order(cli, tmp_path, count):  # noqa: F811
    names = draw(tmp_path, count)
    code, out, err = cli("batch", tmp_path, "--output", tmp_path / "a.jsonl", "--prompt", "What?", *FAST)
    assert (code, out) == (0, "") and err == f"mlx-lfm2vl: {tmp_path / 'a.jsonl'}: {count} rows\n"
    rows = read(tmp_path / "a.jsonl")
    assert [row["image"] for row in rows] == [str(tmp_path / name) for name in names]
    assert all(row["prompt"] == "What?" and row["generated_tokens"] == 4 for row in rows)
    for row in rows:
        assert result(row) == alone("What?", [row["image"]])


def test_rows_of_a_file_bring_their_own(cli, tmp_path):  # noqa: F811
    for name in ("small", "portrait"):
        shutil.copyfile(PICTURES / f"{name}.png", tmp_path / f"{name}.png")
    small, portrait = (str(tmp_path / f"{name}.png") for name in ("small", "portrait"))
    file = write(
        tmp_path / "rows.jsonl",
        {"id": "x", "image": "small.png", "prompt": "Why?", "label": [1, "ü"]},
        "",
        {"images": ["small.png", portrait], "system": "Be brief."},
        {"prompt": "Hello."},
        {"prompt": "Half a character: \ud83d"},
    )
    assert cli("batch", file, "--output", tmp_path / "out.jsonl", "--no-tiling", *FAST)[0] == 1
    one, two, three, four = read(tmp_path / "out.jsonl")
    assert one["label"] == [1, "ü"] and one["image"] == "small.png"
    assert [row["id"] for row in (one, two, three)] == ["x", 3, 4]
    assert result(one) == alone("Why?", [small])
    assert result(two) == alone("What is in this image?", [small, portrait], "Be brief.", do_image_splitting=False)
    assert result(three) == alone("Hello.", None)
    assert "half a character" in four["error"] and "text" not in four
    assert cli("batch", file, "--output", tmp_path / "out.jsonl", "--no-tiling", *FAST)[0] == 1  # and it is known again


def test_each_row_holds_to_a_form_of_its_own(cli, tmp_path):  # noqa: F811
    (tmp_path / "bool.json").write_text('{"type": "boolean"}')
    rows = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "json_schema": {"enum": ["x", "y"]}},
        {"prompt": "b", "json_schema": "bool.json"},
        {"prompt": "c", "regex": "[0-9]"},
        {"prompt": "d", "response_format": {"type": "choice", "choice": ["yes"]}},
        {"prompt": "e"},
        {"prompt": "f", "regex": "a", "choice": ["b"]},
        {"prompt": "g", "json_schema": {"not": {}}},
        {"prompt": "h", "regx": "a"},
        {"prompt": "i", "json_object": "yes"},
        {"prompt": "j", "json_object": True},
    )
    code, _, _ = cli("batch", rows, "--output", tmp_path / "out.jsonl", "--choice", "z", *FAST)
    made = read(tmp_path / "out.jsonl")
    assert code == 1 and json.loads(made[0]["text"]) in ("x", "y") and made[1]["text"] in ("true", "false")
    assert re.fullmatch("[0-9]", made[2]["text"]) and [made[3]["text"], made[4]["text"]] == ["yes", "z"]
    assert made[5]["error"] == 'line 6: has both "regex" and "choice"; give one of them'
    assert made[6]["error"] == 'line 7: JSON schema, #/not: the keyword "not" cannot be held'
    assert made[7]["error"] == 'line 8: "regx" is not read; call it "regex"'
    assert made[8]["error"] == 'line 9: "json_object" is true or left out'
    assert made[9]["text"].startswith("{")


def test_each_row_has_options_of_its_own(cli, tmp_path):  # noqa: F811
    rows = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "max_tokens": 2},
        {"prompt": "a"},
        {"prompt": "a", "max_tokens": None, "seed": 7, "temperature": 2.0, "stop": ["zzz"]},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "max_new_tokens": 2},
        {"prompt": "a", "temprature": 1},
        {"prompt": "a", "temp": 1},
    )
    code, _, _ = cli("batch", rows, "--output", tmp_path / "out.jsonl", *FAST)
    made = read(tmp_path / "out.jsonl")
    assert code == 1 and [each.get("generated_tokens") for each in made[:3]] == [2, 4, 4]
    assert made[2]["text"] != made[1]["text"]
    assert [each["error"] for each in made[3:]] == [
        "line 4: max_tokens is 0, expected an integer from 1 to 2147483648",
        'line 5: "max_new_tokens" is not read; call it "max_tokens"',
        'line 6: "temprature" is not read; call it "temperature"',
        'line 7: "temp" is not read; call it "temperature"',
    ]


def test_forms_that_are_cut_off_are_counted(cli, tmp_path):  # noqa: F811
    rows = write(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b", "regex": "[a-z]{50}"}, {"prompt": "c"})
    code, _, notes = cli("batch", rows, "--output", tmp_path / "out.jsonl", *FAST)
    wanted = "1 answer is cut off by the longest answer, so may not hold to a form (row 2 first); raise --max-tokens"
    assert code == 0 and wanted in notes


def test_rows_come_through_stdin_and_go_on(tmp_path):
    shutil.copyfile(PICTURES / "small.png", tmp_path / "small.png")
    rows = write(tmp_path / "rows.jsonl", {"prompt": "Hello."}, "", {"id": "x", "image": "small.png"})
    words = [*MODULE, "batch", "-", "--output", "out.jsonl", *FAST]
    for says in ("out.jsonl: 2 rows", "all 2 rows are there already"):
        with rows.open("rb") as lines:
            done = subprocess.run(
                [*map(str, words)],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=lines,
                capture_output=True,
                text=True,
            )
        assert done.returncode == 0 and says in done.stderr, done.stderr
    assert [result(row) for row in read(tmp_path / "out.jsonl")] == [
        alone("Hello.", None),
        alone("What is in this image?", [PICTURES / "small.png"]),
    ]


def test_a_table_has_every_field_and_goes_on(cli, tmp_path):  # noqa: F811
    given: list[dict] = [
        {"id": "x", "prompt": 'Say "a, b"\nnow', "mine": [1, "ü"]},
        {"image": "no.png"},
        {"prompt": "Hi", "n": 0.5},
    ]
    rows, table = write(tmp_path / "rows.jsonl", *given[:2]), tmp_path / "out.csv"
    words = ("batch", rows, "--output", table, *FAST)
    assert cli(*words)[0] == 1
    write(rows, *given)
    for _ in range(2):
        assert cli(*words)[0] == 1
        lines = read(tmp_path / "out.csv.jsonl")
        with table.open(encoding="utf-8", newline="") as file:
            made = list(csv.DictReader(file))
        assert list(made[0])[:5] == ["id", "prompt", "mine", "image", "n"] and len(made) == 3
        assert (made[0]["prompt"], json.loads(made[0]["mine"]), made[2]["n"]) == (given[0]["prompt"], [1, "ü"], "0.5")
        assert [row["text"] for row in made] == [line.get("text", "") for line in lines]
        assert made[1]["error"] == lines[1]["error"] and made[1]["generated_tokens"] == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.jsonl", "rows.jsonl"]


def test_an_error_stays_in_its_row(cli, tmp_path):  # noqa: F811
    (tmp_path / "bad.png").write_bytes(b"no picture")
    good = {"image": str(PICTURES / "small.png"), "prompt": "Why?"}
    file = write(
        tmp_path / "rows.jsonl",
        "{",
        good,
        {"image": "absent.png"},
        {"image": "bad.png"},
        {"prompt": ["What?"]},
        {"id": 9},
        "[1]",
        {"prompt": 3},
        {"image": [3]},
        {"image": "a", "images": "b"},
        {"text": "mine", "prompt": "Hi"},
        good,
        b"\xff\n".decode("latin-1").strip(),
    )
    code, _, err = cli("batch", file, "--output", tmp_path / "out.jsonl", "--batch-size", 3, *FAST)
    first = "line 1: is not JSON (Expecting property name enclosed in double quotes, column 2)"
    last = f"13 rows, 11 with an error; the first is {first}"
    assert code == 1 and err == f"mlx-lfm2vl: {tmp_path / 'out.jsonl'}: {last}\n"
    rows = read(tmp_path / "out.jsonl")
    expected = alone("Why?", [good["image"]])
    assert result(rows[1]) == result(rows[11]) == expected
    says = {
        0: "line 1: is not JSON",
        2: "absent.png: no such picture",
        3: "bad.png: not a picture",
        4: 'line 5: "prompt" and "system" must be strings',
        5: "prompt is empty",
        6: "line 7: is not an object",
        7: 'line 8: "prompt" and "system" must be strings',
        8: 'line 9: "image" must be a path',
        9: 'line 10: has both "image" and "images"',
        10: "line 11: the field 'text' is the answer's",
        12: "line 13: is not JSON",
    }
    for index, words in says.items():
        assert words in rows[index]["error"]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 9, 7, 8, 9, 10, 11, 12, 13]


def test_a_second_run_goes_on_where_the_first_was_torn(cli, tmp_path):  # noqa: F811
    draw(tmp_path, 9)
    words = ("batch", tmp_path, "--output", tmp_path / "a.jsonl", "--batch-size", 2, *FAST)
    assert cli(*words)[0] == 0
    whole = (tmp_path / "a.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-1])  # valid JSON, but was it all?
    code, _, err = cli(*words)
    assert code == 0 and "4 rows are there already" in err and "the last line is not complete" in err
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    before = (tmp_path / "a.jsonl").stat().st_mtime_ns
    code, _, err = cli(*words)
    assert code == 0 and "all 9 rows are there already" in err
    assert (tmp_path / "a.jsonl").stat().st_mtime_ns == before
    assert cli(*words, "--overwrite")[0] == 0
    assert (tmp_path / "a.jsonl").read_bytes() == whole


def test_an_output_has_one_run_at_a_time(cli, tmp_path):  # noqa: F811
    """What the other run has written stays as it is."""
    output = tmp_path / "out.jsonl"
    words = ("batch", PICTURES / "small.png", "--prompt", "Hi", "--output", output, *FAST)
    with Output(str(output), False, "other"):
        code, _, err = cli(*words)
        assert (code, output.read_bytes()) == (2, b"")
        assert f"{output}: another run writes it; wait for its end, or choose another --output" in err
    assert cli(*words)[0] == 0 and len(output.read_text().splitlines()) == 1


def test_a_folder_that_grows_and_shrinks_goes_on(cli, tmp_path):  # noqa: F811
    names, output = draw(tmp_path, 5), tmp_path / "a.jsonl"
    first, last = (tmp_path / names[0]).read_bytes(), (tmp_path / names[4]).read_bytes()
    (tmp_path / names[0]).unlink()
    words = ("batch", tmp_path, "--output", output, *FAST)
    assert cli(*words)[0] == 0
    before = output.read_bytes()
    (tmp_path / names[4]).unlink()
    code, _, err = cli(*words)
    assert code == 0 and "1 row is kept that the input does not have" in err
    assert err.count("there already") == 1 and "all 3 rows are there already" in err
    assert output.read_bytes() == before
    (tmp_path / names[0]).write_bytes(first)
    assert cli(*words)[0] == 0
    assert output.read_bytes().startswith(before)
    assert [Path(row["id"]).name for row in read(output)] == [*names[1:], names[0]]
    assert result(read(output)[-1]) == alone("What is in this image?", [tmp_path / names[0]])
    (tmp_path / names[4]).write_bytes(last)
    assert "all 5 rows are there already" in cli(*words)[2]


def test_rows_of_one_id_are_matched_in_their_order(cli, refused, tmp_path):  # noqa: F811
    same = [{"id": "x", "prompt": "Why?"}, {"id": "x", "prompt": "How?"}, {"id": 1, "prompt": "Who?"}]
    rows, output = write(tmp_path / "rows.jsonl", *same), tmp_path / "out.jsonl"
    words = ("batch", rows, "--output", output, *FAST)
    assert cli(*words)[0] == 0
    whole = output.read_bytes()
    output.write_bytes(whole.splitlines(keepends=True)[0])
    assert cli(*words)[0] == 0 and output.read_bytes() == whole
    write(rows, same[2], same[0], same[1], {"id": "1", "prompt": "Other."})
    assert "3 rows are there already" in cli(*words)[2]
    assert [row["prompt"] for row in read(output)] == ["Why?", "How?", "Who?", "Other."]
    write(rows, same[1], same[0])
    assert "line 1 is of another row than the input's (prompt)" in refused(*words)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_was_killed_ends_whole_when_started_again(tmp_path, end, held_picture):
    """It waits for the sixth picture when it is killed."""
    names = draw(tmp_path, 8)
    names[5], held_picture.reply = held_picture.url, ""
    rows = write(tmp_path / "rows.jsonl", *({"prompt": "Why?", "image": name} for name in names))
    words = [*MODULE, "batch", rows, "--batch-size", 1, *FAST, "--max-tokens", 60, "--allow-private-urls", "--output"]
    run = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([*map(str, words), str(tmp_path / "a.jsonl")], **run)  # type: ignore[call-overload]
    limit = time.monotonic() + 60
    while not ((tmp_path / "a.jsonl").exists() and len((tmp_path / "a.jsonl").read_bytes().splitlines()) >= 2):
        assert time.monotonic() < limit and child.poll() is None, child.communicate()
        time.sleep(0.01)
    os.kill(child.pid, end)
    _, err = child.communicate(timeout=60)
    done = len((tmp_path / "a.jsonl").read_bytes().splitlines())
    assert 2 <= done < 8
    if end == signal.SIGINT:
        assert child.returncode == 130
        assert re.search(r"stopped after \d+ of 8 rows; the same command goes on from there", err)
        assert "Traceback" not in err
    held_picture.reply = "200 OK"
    for name in ("a", "b"):
        again = subprocess.run([*map(str, words), str(tmp_path / f"{name}.jsonl")], timeout=120, **run)  # type: ignore[call-overload]
        assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_rows_of_other_runs_are_not_mixed(cli, refused, tmp_path):  # noqa: F811
    draw(tmp_path, 3)
    output = tmp_path / "a.jsonl"
    words = ("batch", tmp_path / "*.png", "--output", output, *FAST)
    assert cli(*words)[0] == 0
    before = output.read_bytes()
    assert "line 1 was made with another model, prompt or other options" in refused(*words, "--temp", 0.5)
    assert "line 1 is of another row than the input's (prompt)" in refused(*words, "--prompt", "Else?")
    assert "is of another row" in refused("batch", tmp_path / "*.jpg", "--output", output, *FAST)
    assert output.read_bytes() == before
    assert "no such folder" in refused(
        "batch", tmp_path / "*.png", "--output", output, "--model", "./no", "--overwrite"
    )
    assert output.read_bytes() == before
    rows = write(tmp_path / "rows.jsonl", {"prompt": "Hi"})
    assert "is no answer of this program" in refused("batch", rows, "--output", rows, *FAST)
    assert "is the input itself" in refused("batch", rows, "--output", rows, "--overwrite", *FAST)
    assert read(rows) == [{"prompt": "Hi"}]


def test_rows_of_another_prompt_or_a_changed_model_are_not_mixed(cli, refused, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "gen2", folder)
    picture = str(PICTURES / "small.png")
    rows = write(tmp_path / "rows.jsonl", {"image": picture, "prompt": "Why?"}, {"image": picture})
    output = tmp_path / "out.jsonl"
    words = ("batch", rows, "--output", output, "--model", folder, "--max-tokens", 3)
    assert cli(*words, "--prompt", "What?")[0] == 0
    assert cli(*words, "--prompt", "What?")[0] == 0
    assert "line 2 was made with another model, prompt" in refused(*words, "--prompt", "Else?")
    assert "line 2 was made with another model, prompt" in refused(*words)
    config = folder / "generation_config.json"
    made = config.read_text()
    config.write_text(made.replace("{", '{"min_p": 0.5, ', 1))
    assert "line 1 was made with another model" in refused(*words, "--prompt", "What?")
    config.write_text(made)
    assert cli(*words, "--prompt", "What?")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere/*.png"], "no file matches"),
        ([str(PICTURES / "small.png"), "nowhere"], "nowhere: no such folder or picture"),
        (["nowhere.png", "no.pdf"], "no.pdf: no such folder or picture"),
        (["nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["a.jsonl", "b.png"], "a .jsonl file or - is the whole input"),
        (["."], "there is no picture in this folder"),
        ([str(PICTURES), "--batch-size", "0"], "--batch-size: '0' is not a whole number"),
        ([str(PICTURES), "--prompt", " "], "--prompt is empty"),
        ([str(PICTURES), "--output", "no/folder/x.jsonl"], "no/folder/x.jsonl: cannot be written"),
        ([str(PICTURES), "--model", "./no"], "no such folder"),
    ],
)
def test_bad_input_leaves_nothing_behind(refused, tmp_path, monkeypatch, words, says):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert says in refused("batch", "--output", "out.jsonl", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_called_in_its_error_as_on_the_command_line(cli, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    names = draw(tmp_path, 1)
    assert cli("batch", *names, "./gone.png", "--output", "out.jsonl", *FAST)[0] == 1
    assert read(tmp_path / "out.jsonl")[1]["error"] == "./gone.png: no such picture"


def test_a_file_that_is_not_there_is_a_row_with_an_error(cli, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    names = draw(tmp_path, 2)
    words = ("batch", names[0], "gone.png", names[1], "--output", "out.jsonl", *FAST)
    code, _, err = cli(*words)
    assert code == 1
    assert err.endswith("out.jsonl: 3 rows, 1 with an error; the first is row 2: gone.png: no such picture\n")
    made = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in made] == [names[0], "gone.png", names[1]] and "text" in made[0] and "text" in made[2]
    assert made[1]["error"] == "gone.png: no such picture"
    shutil.copy(names[0], "gone.png")
    assert cli(*words, "--retry-failed")[0] == 0
    assert all("text" in row for row in read(tmp_path / "out.jsonl"))


def test_progress_is_drawn_on_a_terminal_only(tmp_path):
    draw(tmp_path, 3)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    words = [*MODULE, "batch", tmp_path, "--output", tmp_path / "a.jsonl", *FAST]
    child = subprocess.Popen([*map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    drawn = b""
    while True:
        try:
            drawn += os.read(screen, 4096)
        except OSError:
            break
    os.close(screen)
    assert child.stdout is not None
    assert child.wait(timeout=60) == 0 and child.stdout.read() == b""
    assert b"rows: 100%" in drawn and b"3/3" in drawn


@pytest.mark.parametrize("limit", [0, 1])
def test_an_output_that_can_grow_no_further_is_named(tmp_path, limit):
    """Of 0 and 1 blocks of 1,024 bytes: nothing is left of none, and all whole lines of the other are kept. A first run
    without a limit compiles MLX's kernels, and Python writes none of its own files."""
    out = tmp_path / "answers.jsonl"
    program = f"{sys.executable} -Bm mlx_lfm2vl batch examples examples --model demo --output"
    line = f"{program} {tmp_path / 'first'} 2> /dev/null && ulimit -f {limit} && exec {program} {out}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"mlx-lfm2vl: error: {out}: cannot be written (File too large)"
    if limit:
        *rows, torn = out.read_bytes().split(b"\n")
        assert len(rows) > 1 and all("text" in json.loads(row) for row in rows) and torn
    else:
        assert not out.exists()
