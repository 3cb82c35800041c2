"""`mlx-lfm2vl models` over a cache that the real client has filled; addresses of pages as names of models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository

from mlx_lfm2vl.cli.models import WIDTH, table
from mlx_lfm2vl.errors import HubError
from mlx_lfm2vl.hub import of_page

NAME = "maker/tiny-vl"
FOREIGN = {"config.json": b'{"model_type": "qwen2_vl"}', "model.safetensors": b"x" * 3_000_000}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub():
    quantised = files(GOLDEN / "gen2")
    config = json.loads(quantised["config.json"])
    quantised["config.json"] = json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}).encode()
    repositories = {NAME: files(GOLDEN / "gen25"), "maker/q4": quantised, "other/qwen": FOREIGN}
    with HubServer({name: Repository(dict(each)) for name, each in repositories.items()}) as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    def start(*words: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return subprocess.run(
            [sys.executable, *words],
            env=clean | own | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


def fetch(run, *names: str) -> None:
    done = run("-c", "import sys; from mlx_lfm2vl.hub import resolve; [resolve(n) for n in sys.argv[1:]]", *names)
    assert done.returncode == 0, done.stderr


def test_models_are_listed_located_and_removed(run, hub, tmp_path):
    models = ("-m", "mlx_lfm2vl", "models")
    empty = run(*models)
    assert (empty.returncode, empty.stdout) == (0, "") and "0 models, 0.0 MB, in " in empty.stderr
    fetch(run, NAME, "maker/q4", "other/qwen")
    (tmp_path / "home" / "hub" / "datasets--maker--tiny-vl" / "snapshots").mkdir(parents=True)
    listed = run(*models)
    head, *rows = listed.stdout.splitlines()
    assert head.split() == ["model", "size", "last", "used", "what", "it", "is"]
    assert [row.split("  ")[0].strip() for row in rows] == ["maker/q4", NAME, "other/qwen"]
    assert "LFM2-VL, 4 bits" in rows[0] and "LFM2.5-VL, dense" in rows[1] and "another model (qwen2_vl)" in rows[2]
    assert " 3.0 MB  now" in rows[2] and all(len(row) <= WIDTH for row in rows)
    assert "3 models, " in listed.stderr and str(tmp_path / "home" / "hub") in listed.stderr

    where = run(*models, f"{hub.url}/{NAME}")
    assert json.loads((Path(where.stdout.strip()) / "config.json").read_text())["model_type"] == "lfm2_vl"

    unknown = run(*models, "--remove", NAME, "maker/nothing")
    assert unknown.returncode == 2 and "maker/nothing: is not in the cache" in unknown.stderr
    assert len(run(*models).stdout.splitlines()) == 4, "nothing was removed"
    removed = run(*models, "--remove", NAME, "other/qwen")
    assert removed.returncode == 0 and removed.stdout.endswith(" MB freed\n")
    assert sorted(path.name for path in (tmp_path / "home" / "hub").glob("*--*")) == [
        "datasets--maker--tiny-vl",
        "models--maker--q4",
    ]


def test_a_download_that_broke_off_is_listed_and_removed(run, hub, tmp_path):
    hub.repositories[NAME].files["model.safetensors"] = bytes(30_000_000)
    hub.drops["model.safetensors"] = [12_000_000] + [0] * 50
    broken = run("-c", "import sys; from mlx_lfm2vl.hub import resolve; resolve(sys.argv[1])", NAME)
    assert broken.returncode == 1
    listed = run("-m", "mlx_lfm2vl", "models")
    (row,) = listed.stdout.splitlines()[1:]
    assert row.startswith(NAME) and row.endswith("LFM2.5-VL, dense, not whole")
    assert run("-m", "mlx_lfm2vl", "models", "--remove", NAME).returncode == 0
    assert list((tmp_path / "home" / "hub").glob("models--*")) == []


def test_long_names_keep_the_table_in_its_width():
    rows = [("model", "size", "last used", "what it is"), ("o/" + "n" * 70, "1.23 GB", "12 minutes ago", "x" * 30)]
    assert all(len(line) <= WIDTH for line in table(rows))


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("https://huggingface.co/LiquidAI/LFM2-VL-450M", ("LiquidAI/LFM2-VL-450M", None)),
        ("https://huggingface.co/LiquidAI/LFM2-VL-450M/", ("LiquidAI/LFM2-VL-450M", None)),
        ("https://hf.co/LiquidAI/LFM2-VL-450M?library=mlx#files", ("LiquidAI/LFM2-VL-450M", None)),
        ("https://huggingface.co/a/b/tree/v1.0", ("a/b", "v1.0")),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F3", ("a/b", "refs/pr/3")),
        ("https://huggingface.co/a/b/tree/main/4bit", ("a/b/4bit", "main")),
        ("a/b", ("a/b", None)),
        ("hf.co/a/b", ("a/b", None)),
        (" HuggingFace.co/a/b/tree/v1 ", ("a/b", "v1")),
    ],
)
def test_a_pages_address_is_a_models_name(address, meant):
    assert of_page(address) == meant


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/LiquidAI",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/a/b/blob/main/config.json",
        "https://huggingface.co/a/b/tree",
        "https://example.com/a/b",
        "https://huggingface.co.example.com/a/b",
        "hf.co/a",
    ],
)
def test_another_address_is_refused(address):
    with pytest.raises(HubError, match=r"is not the address of a model's page; give one like"):
        of_page(address)


def test_two_revisions_are_refused():
    assert of_page("https://huggingface.co/a/b/tree/v1", "v1") == ("a/b", "v1")
    with pytest.raises(HubError, match="names the revision 'v1', and 'v2' is asked for"):
        of_page("https://huggingface.co/a/b/tree/v1", "v2")


def test_a_pages_address_fetches_its_revision(run, hub):
    hub.repositories[NAME].revisions = ("main", "v1.0")
    fetch(run, f"{hub.url}/{NAME}/tree/v1.0")
    assert any(request.path == f"/api/models/{NAME}/revision/v1.0" for request in hub.requests)
