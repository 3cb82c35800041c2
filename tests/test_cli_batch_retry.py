"""`batch --retry-failed`: rows that failed are done again in their places, and none is lost."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_cli import MODULE, ROOT, cli, refused  # noqa: F401
from test_cli_batch import FAST, PICTURES, alone, read, result, write

from mlx_lfm2vl.cli.rows import Rows


def test_failed_rows_are_replaced_wherever_they_stand(cli, tmp_path):  # noqa: F811
    rows, output, names = failing(tmp_path, 8)
    lines = rows.read_text().splitlines()
    numbered = [{"id": f"r{n}", **json.loads(line)} for n, line in enumerate(lines)]
    words = ("batch", rows, "--output", output, *FAST)
    write(rows, *numbered[4:])
    assert cli(*words)[0] == 1
    write(rows, *numbered)
    assert cli(*words)[0] == 1
    assert [row["id"] for row in read(output)] == ["r4", "r5", "r6", "r7", "r0", "r1", "r2", "r3"]
    for name in names:
        (tmp_path / name).write_bytes((PICTURES / "small.png").read_bytes())
    assert cli(*words, "--retry-failed")[0] == 0
    assert [row["id"] for row in read(output)] == ["r4", "r5", "r6", "r7", "r0", "r1", "r2", "r3"]
    for row in read(output):
        images = [PICTURES / "small.png"] if "image" in row else None
        assert result(row) == alone(row["prompt"], images), row


def test_a_second_run_tells_of_rows_that_failed(cli, tmp_path):  # noqa: F811
    rows = write(tmp_path / "rows.jsonl", {"prompt": "Hi"}, '{"prompt": "Hi", "n": 1e400}', {"image": "absent.png"})
    output = tmp_path / "out.jsonl"
    words = ("batch", rows, "--output", output, *FAST)
    first = "the first is line 2: is not JSON (1e400 is too large a number)"
    assert cli(*words) == (1, "", f"mlx-lfm2vl: {output}: 3 rows, 2 with an error; {first}\n")
    assert "1e400 is too large a number" in read(output)[1]["error"] and "Infinity" not in output.read_text()
    told = f"{output}: 2 of these rows have an error, the first in line 2; --retry-failed does them again"
    code, _, err = cli(*words)
    assert code == 1 and told in err and "all 3 rows are there already" in err
    output.write_text(output.read_text().splitlines(keepends=True)[0])
    assert cli(*words)[2].splitlines()[-1] == f"mlx-lfm2vl: {output}: 3 rows, 2 with an error; {first}"


def failing(folder: Path, count: int) -> tuple[Path, Path, list[str]]:
    """Rows of which every third has a picture that is not there yet; also the names of these."""
    names = [f"{number}.png" if number % 3 == 1 else None for number in range(count)]
    rows = [{"prompt": f"Why {n}?", **({"image": name} if name else {})} for n, name in enumerate(names)]
    return write(folder / "rows.jsonl", *rows), folder / "out.jsonl", [name for name in names if name]


def test_failed_rows_are_done_again_in_their_places(cli, refused, tmp_path):  # noqa: F811
    rows, output, names = failing(tmp_path, 8)
    words = ("batch", rows, "--output", output, *FAST)
    assert "8 rows, 3 with an error" in cli(*words)[2]
    before = read(output)
    (tmp_path / names[0]).write_bytes((PICTURES / "small.png").read_bytes())
    output.chmod(0o640)
    for name in ("out.jsonl.new", "out.jsonl.retry.new"):
        (tmp_path / name).write_text("the user's own")
    code, _, err = cli(*words, "--retry-failed")
    assert code == 1 and "8 rows, 2 with an error; the first is row 5" in err and "--retry-failed" not in err
    after = read(output)
    assert [row for row in after if row["id"] != 2] == [row for row in before if row["id"] != 2]
    assert after[1]["text"] == alone("Why 1?", [PICTURES / "small.png"])[0] and "error" in before[1]
    for name in names:
        (tmp_path / name).write_bytes((PICTURES / "small.png").read_bytes())
    # together with rows that are missing
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:6]))
    code, _, err = cli(*words, "--retry-failed")
    assert code == 0 and "8 rows\n" in err
    assert cli("batch", rows, "--output", tmp_path / "fresh.jsonl", *FAST)[0] == 0
    assert output.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()
    assert output.stat().st_mode & 0o777 == 0o640
    assert "all 8 rows are there already" in cli(*words, "--retry-failed")[2]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.new", "out.jsonl.retry.new"]
    assert all((tmp_path / f"out.jsonl{end}").read_text() == "the user's own" for end in (".new", ".retry.new"))
    assert "give one of them" in refused(*words, "--retry-failed", "--overwrite")


@pytest.mark.parametrize("wrong", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_an_error_where_failed_rows_are_replaced_loses_none(cli, tmp_path, monkeypatch, wrong):  # noqa: F811
    rows, output, names = failing(tmp_path, 4)
    words = ("batch", rows, "--output", output, *FAST)
    assert "4 rows, 1 with an error" in cli(*words)[2]
    before = output.read_bytes()
    (tmp_path / names[0]).write_bytes((PICTURES / "small.png").read_bytes())

    def fail(path: object, *more: object) -> None:
        raise wrong

    with monkeypatch.context() as patch:
        patch.setattr("mlx_lfm2vl.cli.output.os.replace", fail)
        if isinstance(wrong, OSError):
            code, _, err = cli(*words, "--retry-failed")
            assert code == 2 and f"{output}: cannot be written (Permission denied)" in err
        else:
            with pytest.raises(KeyboardInterrupt):
                cli(*words, "--retry-failed")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.retry"]
    if isinstance(wrong, OSError):
        with monkeypatch.context() as patch:
            patch.setattr("mlx_lfm2vl.cli.output.os.unlink", fail)
            code, _, err = cli(*words, "--retry-failed")
            assert code == 2 and err.splitlines()[-1].endswith("out.jsonl.retry: cannot be removed (Permission denied)")
    cli(*words, "--retry-failed")
    assert all("text" in row for row in read(output))


def test_an_input_that_becomes_shorter_is_an_error(refused, tmp_path, monkeypatch):  # noqa: F811
    rows, output = write(tmp_path / "rows.jsonl", {"prompt": "Hi"}, {"prompt": "Ho"}), tmp_path / "out.jsonl"
    only = Rows.only

    def shorter(self, numbers):
        rows.write_text('{"prompt": "Hi"}\n')
        return only(self, numbers)

    monkeypatch.setattr(Rows, "only", shorter)
    said = refused("batch", rows, "--output", output, *FAST)
    assert said.endswith("1 row is missing, the first is 2, as the input has become shorter meanwhile")
    assert len(read(output)) == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_doing_failed_rows_again_may_be_stopped(tmp_path, end, held_picture):
    """It waits for the fourth picture when it is stopped."""
    rows, output, names = failing(tmp_path, 16)
    rows.write_text(rows.read_text().replace(names.pop(3), held_picture.url))
    words = [*map(str, [*MODULE, "batch", rows, "--output", output, "--batch-size", 1, *FAST, "--max-tokens", 60])]
    words += ["--allow-private-urls"]
    run = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    assert "16 rows, 5 with an error" in subprocess.run(words, timeout=120, **run).stderr  # type: ignore[call-overload]
    before = output.read_bytes()
    for name in names:
        (tmp_path / name).write_bytes((PICTURES / "small.png").read_bytes())
    held_picture.reply = ""
    child = subprocess.Popen([*words, "--retry-failed"], **run)  # type: ignore[call-overload]
    limit = time.monotonic() + 60
    made = tmp_path / "out.jsonl.retry"
    while not (made.exists() and len(made.read_bytes().splitlines()) >= 2):
        assert time.monotonic() < limit and child.poll() is None, child.communicate()
        time.sleep(0.01)
    os.kill(child.pid, end)
    _, err = child.communicate(timeout=60)
    done = len(made.read_bytes().splitlines())
    assert 2 <= done < 5 and output.read_bytes() == before
    if end == signal.SIGINT:
        assert child.returncode == 130
        assert f"stopped after {done} of 5 failed rows; the same command goes on from there" in err
    held_picture.reply = "200 OK"
    again = subprocess.run([*words, "--retry-failed"], timeout=120, **run)  # type: ignore[call-overload]
    assert re.search(r"out\.jsonl\.retry: \d+ rows are there already", again.stderr), again.stderr
    assert again.returncode == 0 and not made.exists() and not any("error" in row for row in read(output))
    kept = [line for line in before.splitlines() if b'"error"' not in line]
    assert [line for line in output.read_bytes().splitlines() if b'"image": ' not in line] == kept


def test_what_a_killed_run_left_of_other_failed_rows_is_not_taken(cli, refused, tmp_path):  # noqa: F811
    rows, output, names = failing(tmp_path, 8)
    words = ("batch", rows, "--output", output, *FAST)
    assert cli(*words)[0] == 1
    (tmp_path / names[0]).write_bytes((PICTURES / "small.png").read_bytes())
    beside = tmp_path / "out.jsonl.retry"
    beside.write_bytes(output.read_bytes().splitlines(keepends=True)[4])
    assert "8 rows, 2 with an error" in cli(*words, "--retry-failed")[2] and not beside.exists()
    beside.write_text("my notes\n")
    assert "out.jsonl.retry: line 1 is no answer of this program" in refused(*words, "--retry-failed")
    assert beside.read_text() == "my notes\n"
