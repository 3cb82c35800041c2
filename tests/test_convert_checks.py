"""What convert refuses before the work, and what an interruption of it keeps."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from typist import Typist

from mlx_lfm2vl.conversion.check import check_folder
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.conversion.report import FILE
from mlx_lfm2vl.errors import OutputError

NAME = "maker/tiny-vl"
QUANTISED = ["-q", "--q-bits", "8", "--q-group-size", "32"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub():
    with HubServer({NAME: Repository(files(GOLDEN / "gen25"))}) as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Runs the program in a process of its own whose hub is the server; `before` is Python that runs first."""

    def start(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        code = f"import sys\n{before}\nfrom mlx_lfm2vl.cli import main\nsys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=clean | own | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
            timeout=180,
        )

    return start


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a command that was refused."""
    assert (done.returncode, done.stdout) == (2, ""), done
    (said,) = done.stderr.splitlines()
    return said.removeprefix("mlx-lfm2vl: error: ")


@pytest.mark.parametrize("command", [["convert"], ["convert", "--repair"]], ids=" ".join)
def test_another_architecture_is_refused_before_weights_are_fetched(command, hub, run, tmp_path):
    hub.repositories[NAME].files["config.json"] = json.dumps({"model_type": "qwen2_vl"}).encode()
    said = line(run(*command, "--hf-path", NAME, "--mlx-path", str(tmp_path / "out")))
    assert "config.json: model_type is 'qwen2_vl'; this package runs 'lfm2_vl'" in said
    assert hub.fetched() == ["config.json"] and not (tmp_path / "out").exists()


def test_a_download_that_will_not_fit_is_refused_before_it_begins(hub, run, tmp_path):
    hub.sizes["model.safetensors"] = 10**18
    said = line(run("convert", "--hf-path", NAME, "--mlx-path", str(tmp_path / "out")))
    assert (
        said.startswith(f"{NAME}: 1e+09 GB are to be downloaded, and ")
        and "choose another folder (HF_HUB_CACHE)" in said
    )
    assert hub.fetched() == ["config.json"]


def test_what_is_in_the_cache_needs_no_room_and_no_hub(hub, run, tmp_path):
    assert run("convert", "--hf-path", NAME, "--mlx-path", str(tmp_path / "a"), "--no-verify").returncode == 0
    hub.sizes["model.safetensors"] = 10**18
    assert run("convert", "--hf-path", NAME, "--mlx-path", str(tmp_path / "b"), "--no-verify").returncode == 0
    hub.status = 503
    assert run("convert", "--hf-path", NAME, "--mlx-path", str(tmp_path / "c"), "--no-verify").returncode == 0
    assert files(tmp_path / "c").keys() == files(tmp_path / "a").keys()


def test_the_address_of_a_page_is_converted_and_named_in_the_card(hub, run, tmp_path):
    done = run("convert", "--hf-path", f"{hub.url}/{NAME}/tree/main", "--mlx-path", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"base_model: {NAME}\n" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("options", [{}, {"q_bits": 4, "q_group_size": 32, "verify": False}, {"target_size": 1e-4}])
def test_a_disk_without_room_is_told_before_the_first_byte(options, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(
        OutputError, match=r"out.*: .* GB are to be written, and 5e-05 GB are free on its disk; make room"
    ):
        convert(GOLDEN / "gen2", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_no_place_for_temporary_files_is_one_line_before_the_work(run, tmp_path):
    """A limit on the size of files stands for folders that take none."""
    words = ("--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out"), *QUANTISED)
    said = line(run("convert", *words, before=LIMIT.format(0)))
    assert said.startswith("temporary files cannot be written (No usable temporary directory") and "set TMPDIR" in said
    assert not (tmp_path / "out").exists()


def test_a_full_place_for_temporary_files_is_one_line(run):
    said = line(run("verify", str(GOLDEN / "gen25"), str(GOLDEN / "gen25"), before=LIMIT.format(1000)))
    assert said.startswith("temporary files cannot be written (") and said.endswith("set TMPDIR to a folder with room")


def test_ctrl_c_while_measuring_keeps_the_finished_model(tmp_path):
    told: list[str] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "measuring" and done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            *(GOLDEN / "gen25", tmp_path / "out"),
            q_bits=8,
            q_group_size=32,
            progress=interrupt,
            on_note=told.append,
        )
    assert any("interrupted while measuring; " in note and f"{tmp_path / 'out'} is whole" in note for note in told)
    assert check_folder(tmp_path / "out") == []
    assert not (tmp_path / "out" / FILE).exists() and "cost" not in (tmp_path / "out" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_in_a_terminal_keeps_the_model_and_uploads_nothing(tmp_path):
    """The signal comes once the weights are written."""
    words = ["convert", "--hf-path", "demo", "--mlx-path", str(tmp_path / "out"), *QUANTISED]
    person = Typist(tmp_path, *words)
    person.wait(lambda: b"measuring: " in person.raw)
    person.type("\x03")
    person.watch()
    assert "interrupted while measuring; " in " ".join(person.lines())
    assert person.end() == 130
    assert check_folder(tmp_path / "out") == [] and not (tmp_path / "out" / FILE).exists()
