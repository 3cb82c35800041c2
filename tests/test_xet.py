"""Uploads and downloads through Xet, the way that huggingface_hub's client takes where hf_xet is installed, with the
real hf_xet over HTTP against tests/xet_server.py; and against a hub that has no such storage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from hub_server import HubServer
from xet_server import XetFile, XetHubServer

from mlx_lfm2vl.conversion.convert import convert

pytest.importorskip("hf_xet", reason="hf_xet is not installed")
NAME = "maker/tiny-8bit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("upload") / "tiny-8bit"
    return convert(GOLDEN / "gen25", target, q_bits=8, q_group_size=32, verify=False)


@pytest.fixture
def hub():
    with XetHubServer({}, large=(".safetensors", "tokenizer.json")) as server:
        yield server


def run(hub: HubServer, home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, whose hub is the server."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "hf_right"}
    return subprocess.run(
        [sys.executable, "-m", "mlx_lfm2vl", *words],
        env=clean | own | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def publish(hub: HubServer, home: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "upload", str(folder), NAME, **environment)


def uploaded(folder: Path) -> dict[str, bytes]:
    """The files of a folder as they are uploaded: its card names the repository."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "README.md": files["README.md"].replace(folder.name.encode(), NAME.encode())}


def asked(hub: HubServer, method: str, start: str) -> int:
    """How many requests of a method there were below a path."""
    return sum(request.method == method and request.path.startswith(start) for request in hub.requests)


def error(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command says: one line."""
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_folder_goes_up_and_down_through_xet_and_is_converted(hub, folder, tmp_path):
    done = publish(hub, tmp_path / "home", folder)
    assert done.returncode == 0, done.stderr
    assert hub.xorbs and asked(hub, "PUT", "/lfs") == 0
    assert {name for name, data in hub.repositories[NAME].files.items() if isinstance(data, XetFile)} == {
        "model.safetensors",
        "tokenizer.json",
    }
    here, there = tmp_path / "mlx", tmp_path / "other-home"
    done = run(hub, there, "convert", "--hf-path", NAME, "--mlx-path", str(here))
    assert done.returncode == 0, done.stderr
    assert asked(hub, "GET", "/cas/xorbs/") >= 2
    for file in (path for path in folder.iterdir() if path.name != "README.md"):  # it names its folder
        assert (here / file.name).read_bytes() == file.read_bytes(), file.name
    offline = run(hub, there, "generate", "--model", NAME, "--prompt", "Hi", "--max-tokens", "2", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_what_the_storage_has_is_not_sent_again(hub, folder, tmp_path):
    publish(hub, tmp_path / "home", folder)
    sent = asked(hub, "POST", "/cas/v1/xorbs/")
    hub.repositories[NAME].files["README.md"] = b"changed by hand"
    assert publish(hub, tmp_path / "home", folder).returncode == 0
    assert sent > 0 and asked(hub, "POST", "/cas/v1/xorbs/") == sent
    assert hub.repositories[NAME].files["README.md"] == uploaded(folder)["README.md"]


def test_what_arrives_must_be_what_was_announced(hub, folder, tmp_path):
    publish(hub, tmp_path / "home", folder)
    files = hub.repositories[NAME].files
    true = files["model.safetensors"]
    files["model.safetensors"] = XetFile(b"\x01" * 32)
    files["model.safetensors"].name, files["model.safetensors"].terms = true.name, true.terms
    words = ("generate", "--model", NAME, "--prompt", "Hi", "--max-tokens", "2")
    said = error(run(hub, tmp_path / "other-home", *words))
    assert "model.safetensors arrived damaged (wrong checksum) and was removed; run it again" in said
    files["model.safetensors"] = true
    done = run(hub, tmp_path / "other-home", *words)
    assert done.returncode == 0, done.stderr


def test_a_storage_that_refuses_is_one_line_and_can_be_run_again(hub, folder, tmp_path):
    publish(hub, tmp_path / "home", folder)
    hub.reading_status = 403
    words = ("generate", "--model", NAME, "--prompt", "Hi", "--max-tokens", "2")
    said = error(run(hub, tmp_path / "other-home", *words))
    assert said.startswith(f"mlx-lfm2vl: error: {NAME}: the download failed (") and "run it again to resume" in said
    assert "403 Forbidden" in said
    hub.reading_status = None
    done = run(hub, tmp_path / "other-home", *words)
    assert done.returncode == 0, done.stderr


def test_a_hub_without_xet_gets_large_files_the_older_way(folder, tmp_path):
    with HubServer({}) as hub:
        done = publish(hub, tmp_path / "home", folder)
        assert done.returncode == 0, done.stderr
        assert asked(hub, "GET", f"/api/models/{NAME}/xet-write-token/") == 1 and asked(hub, "PUT", "/lfs/") == 1
        assert hub.repositories[NAME].files == uploaded(folder)
        again = publish(hub, tmp_path / "home", folder)
        assert again.returncode == 0 and asked(hub, "PUT", "/lfs/") == 1, again.stderr


def test_xet_can_be_switched_off(hub, folder, tmp_path):
    done = publish(hub, tmp_path / "home", folder, HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    assert hub.xorbs == {} and asked(hub, "PUT", "/lfs/") == 2
    assert hub.repositories[NAME].files == uploaded(folder)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "the hub does not know you"), (403, "you may not write there"), (413, "the hub refuses files of this size")],
)
def test_a_refused_upload_leaves_no_commit_and_says_why(hub, folder, tmp_path, status, says):
    hub.storage_status = status
    said = error(publish(hub, tmp_path / "home", folder))
    assert said.startswith(f"mlx-lfm2vl: error: {NAME}: {says}") and f"(HTTP {status})" in said
    assert hub.commits == [] and hub.repositories[NAME].files == {}
    hub.storage_status = None
    done = publish(hub, tmp_path / "home", folder)
    assert done.returncode == 0 and len(hub.commits) == 1, done.stderr


def test_who_may_not_write_is_told_so(hub, folder, tmp_path):
    assert "the hub does not know you" in error(publish(hub, tmp_path / "home", folder, HF_TOKEN="hf_wrong"))
    assert hub.repositories == {} and json.dumps(hub.commits) == "[]"
