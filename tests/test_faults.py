"""Processes that are killed, disks that are full, two at one place: nothing half-finished is ever taken for whole, and
nothing finished is lost."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from test_cli import MODULE, ROOT
from test_convert import large_folder

from mlx_lfm2vl.errors import OutputError
from mlx_lfm2vl.weights.atomic_folder import check_target, finished
from mlx_lfm2vl.weights.load import load_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"}
IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


def heeding_signals() -> None:
    """In the child: signals mean what they mean, also where the tests themselves were started with them ignored. It is
    nicer than the tests, which are to meet its moments."""
    os.nice(10)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*MODULE, *map(str, words)],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_signals,
    )


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    child = start(*words, **environment)
    out, err = child.communicate(timeout=240)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def when(condition: Callable[[], bool], child: subprocess.Popen[str]) -> bool:
    """Waits for a moment in the life of a process; False if it ended before."""
    while child.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


def inside(folder: Path, name: str, size: int = 0) -> Callable[[], bool]:
    """Whether the hidden folder of a conversion holds a file of that name and size."""

    def condition() -> bool:
        try:
            return any((part / name).stat().st_size >= size for part in parts(folder))
        except OSError:
            return False

    return condition


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 100 MB, whose conversion takes long enough to be hit."""
    folder = tmp_path_factory.mktemp("large") / "source"
    large_folder(folder)
    return folder


STAGES = {
    "folder": lambda place: lambda: bool(parts(place)),
    "first weights": lambda place: inside(place, "model.safetensors", 1_000_000),
    "half of the weights": lambda place: inside(place, "model.safetensors", 50_000_000),
    "index": lambda place: inside(place, "model.safetensors.index.json"),
    "config": lambda place: inside(place, "config.json"),
    "tokenizer": lambda place: inside(place, "tokenizer.json"),
    "card": lambda place: inside(place, "README.md"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_conversion_leaves_no_model_and_the_next_is_whole(large, tmp_path, stage):
    target = tmp_path / "out"
    words = ("convert", "--hf-path", large, "--mlx-path", target)
    child = start(*words)
    hit = when(STAGES[stage](tmp_path), child)
    child.kill()
    child.communicate()
    if hit:
        assert target.exists() == (not parts(tmp_path))
    again = run(*words, *(["--overwrite"] if target.exists() else []))
    assert again.returncode == 0, again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    np.testing.assert_array_equal(logits(target), logits(large))


@pytest.mark.soak
def test_a_conversion_killed_at_any_moment_leaves_a_whole_model(large, tmp_path):
    """Over an older model, dense and quantised in turn: there is always a whole one, of either kind."""
    target, rng = tmp_path / "out", random.Random(7)
    words = ("convert", "--hf-path", large, "--mlx-path", target, "--overwrite", "--no-verify")
    kinds = {"dense": (), "quantised": ("-q", "--q-bits", "8")}
    expected = {}
    for kind, options in kinds.items():
        begun = time.monotonic()
        assert run(*words, *options).returncode == 0
        expected[kind], lasts = logits(target), time.monotonic() - begun
    killed = 0
    for turn in range(100):
        child = start(*words, *list(kinds.values())[turn % 2])
        time.sleep(rng.uniform(0, 0.9 * lasts))
        child.kill()
        child.communicate()
        killed += child.returncode == -signal.SIGKILL
        if not target.exists():  # between two renames: the old one is in the hidden folder, and the next run finds it
            continue
        now = logits(target)
        assert any(np.array_equal(now, one) for one in expected.values())
    assert killed > 50
    assert run(*words).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    np.testing.assert_array_equal(logits(target), expected["dense"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_polite_end_leaves_nothing_behind(large, tmp_path, number):
    child = start("convert", "--hf-path", large, "--mlx-path", tmp_path / "out")
    assert when(STAGES["first weights"](tmp_path), child)
    child.send_signal(number)
    out, err = child.communicate(timeout=240)
    assert (child.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_of_two_conversions_to_one_place_the_second_is_told(large, tmp_path):
    words = ("convert", "--hf-path", large, "--mlx-path", tmp_path / "out")
    first = start(*words)
    try:
        assert when(STAGES["first weights"](tmp_path), first)
        first.send_signal(signal.SIGSTOP)
        second = run(*words)
        assert second.returncode == 2
        assert f"{tmp_path / 'out'}: another process is writing it; wait for that" in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.communicate(timeout=240)[0].strip() == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appears_at_the_place_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(OutputError, match="out: exists already; choose another place"), finished(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert (tmp_path / "out" / "theirs").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hidden_folder_that_cannot_be_opened_does_not_stay(tmp_path, monkeypatch):
    """As where the process has too many files open."""
    really = os.open

    def refused(path: Any, *more: Any) -> int:
        if str(path).endswith(".part"):
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(OutputError, match=r"cannot be written \(Too many open files"), finished(tmp_path / "out"):
            raise AssertionError("the block runs")
    assert list(tmp_path.iterdir()) == []


def test_a_model_moved_aside_by_a_killed_process_comes_back(tmp_path):
    left = tmp_path / ".out.abcdefgh.part"
    shutil.copytree(GOLDEN / "gen25", left / "old")
    other = tmp_path / ".out.b.abcdefgh.part"  # of another target
    other.mkdir()
    with pytest.raises(OutputError, match="exists already"), finished(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out"]
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(GOLDEN / "gen25"))
    check_target(tmp_path / "out", None, overwrite=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_left_as_it_was(large, small_disk):
    (small_disk / "precious").write_text("precious")
    ended = run("convert", "--hf-path", large, "--mlx-path", small_disk / "out")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert str(small_disk) in ended.stderr and "are free on its disk; make room there" in ended.stderr
    assert [path.name for path in small_disk.iterdir()] == ["precious"]
    assert run("convert", "--hf-path", GOLDEN / "gen25", "--mlx-path", small_disk / "out").returncode == 0


def test_a_place_that_may_not_be_written_is_said(large, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended = run("convert", "--hf-path", GOLDEN / "gen25", "--mlx-path", small_disk / "new" / "out")
    assert ended.returncode == 2
    assert f"{small_disk / 'new' / 'out'}: cannot be written (Read-only file system)" in ended.stderr


def test_a_source_that_is_cut_while_it_is_converted_is_said(large, tmp_path):
    source = Path(shutil.copytree(large, tmp_path / "source"))
    child = start("convert", "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert when(STAGES["first weights"](tmp_path), child)
    os.truncate(source / "model.safetensors", 60_000_000)
    out, err = child.communicate(timeout=240)
    assert (child.returncode, out) == (2, "")
    assert f"{source}: the weights cannot be read" in err or "while it was read" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub():
    files = {path.name: path.read_bytes() for path in (GOLDEN / "gen25").iterdir()}
    with HubServer({"maker/tiny": Repository(files)}) as server:
        yield server


def fetch_killed(hub: HubServer, home: Path, seconds: float) -> bool:
    """Begins a download and kills it after so long; whether it was still at it."""
    child = start("generate", "--model", "maker/tiny", "--prompt", "Hi", HF_ENDPOINT=hub.url, HF_HOME=str(home))
    time.sleep(seconds)
    child.kill()
    child.communicate()
    return child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moments", [1, pytest.param(40, marks=pytest.mark.soak)])
def test_a_download_that_is_killed_is_never_taken_for_whole(hub, tmp_path, moments):
    """Without the hub an answer is the true one or an error; with it, what is missing is fetched."""
    hub.pace = 400_000  # bytes a second: the weights take a while
    words = ("generate", "--model", "maker/tiny", "--prompt", "Hi", "--max-tokens", "4")
    expected = run("generate", "--model", GOLDEN / "gen25", *words[3:]).stdout
    rng = random.Random(moments)
    killed = 0
    for turn in range(moments):
        home = tmp_path / f"home{turn}"
        killed += fetch_killed(hub, home, rng.uniform(0.5, 3.5))
        offline = run(*words, HF_HOME=str(home), HF_HUB_OFFLINE="1")
        assert (offline.returncode, offline.stdout) in ((0, expected), (2, "")), offline
        assert "Traceback" not in offline.stderr
        if turn % 4 == 0:
            hub.pace = 0
            online = run(*words, HF_ENDPOINT=hub.url, HF_HOME=str(home))
            assert (online.returncode, online.stdout) == (0, expected), online.stderr
            hub.pace = 400_000
    assert killed >= moments // 2


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_batch_killed_at_thirty_moments_ends_whole(tmp_path):
    rows = [{"prompt": f"Say {number}"} for number in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("batch", tmp_path / "rows.jsonl", "--model", GOLDEN / "gen25", "--max-tokens", "20", "--batch-size", "2")
    assert run(*words, "--output", tmp_path / "whole.jsonl").returncode == 0
    out, rng, before, killed = tmp_path / "out.jsonl", random.Random(3), 0, 0

    def done() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    for _ in range(30):
        wanted, late = min(before + rng.randrange(4), 90), rng.uniform(0, 0.2)
        child = start(*words, "--output", out)
        when(lambda wanted=wanted: done() >= wanted, child)  # type: ignore[misc]
        time.sleep(late)
        child.kill()
        child.communicate()
        killed += child.returncode == -signal.SIGKILL
        assert done() >= before
        before = done()
    assert killed > 20
    assert run(*words, "--output", tmp_path / "out.jsonl").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
