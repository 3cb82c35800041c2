"""Names to folders: local ones, and hub repositories through the real client over HTTP against tests/hub_server.py."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, Repository

from mlx_lfm2vl import HubError, demo
from mlx_lfm2vl.hub import download, resolve
from mlx_lfm2vl.hub.download_check import NOTE

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {
    "config.json": b'{"model_type": "lfm2_vl"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ bos_token }}",
    "README.md": b"# a model",
    "LICENSE": b"a licence",
    "model.safetensors": WEIGHTS,
    "modeling_evil.py": b"raise SystemExit('executed')",
    "pytorch_model.bin": b"a pickle",
    "training_args.bin": b"a pickle",
    "optimizer.pt": b"a pickle",
    "model.pkl": b"a pickle",
    "model.onnx": b"another program's weights",
}
DATA = {"config.json", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE", "model.safetensors"}
NAME = "maker/tiny-vl"

SCRIPT = """
import json, sys
from mlx_lfm2vl import hub, errors
name, options = json.loads(sys.argv[1])
try:
    print(json.dumps({"folder": str(hub.resolve(name, **options))}))
except errors.HubError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub():
    with HubServer({NAME: Repository(dict(FILES))}) as server:
        yield server


def surroundings(hub: HubServer, folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return clean | own | {"PYTHONPATH": str(Path(__file__).parent.parent)}


@pytest.fixture
def fetch(tmp_path, hub, monkeypatch):
    """Runs `resolve`, with `environment` in a process of its own. The hub is the server, the cache empty at first."""
    hub.be_the_hub(monkeypatch, tmp_path / "home" / "hub")
    monkeypatch.setattr(download, "WAITS", (0.01, 0.02, 0.04))

    def run(name: str = NAME, environment: dict[str, str] | None = None, **options: Any) -> dict[str, str]:
        if environment is None:
            try:
                return {"folder": str(resolve(name, **options))}
            except HubError as error:
                return {"error": str(error)}
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps([name, options])],
            env=surroundings(hub, tmp_path) | environment,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run


def message(answer: dict[str, str]) -> str:
    """The error of an answer: one line."""
    assert set(answer) == {"error"}, answer
    assert "\n" not in answer["error"]
    return answer["error"]


def test_a_repository_is_fetched_whole_and_nothing_executable_with_it(fetch, hub):
    folder = Path(fetch()["folder"])
    assert {path.name for path in folder.iterdir()} == DATA
    for name in DATA:
        assert (folder / name).read_bytes() == FILES[name]
    assert set(hub.fetched()) == DATA


def test_a_second_run_fetches_nothing_and_works_with_the_hub_gone(fetch, hub):
    first = fetch()
    hub.requests.clear()
    assert fetch() == first
    assert hub.fetched() == []
    hub.requests.clear()
    assert fetch(environment={"HF_HUB_OFFLINE": "1"}) == first
    assert fetch(local_files_only=True) == first
    assert hub.requests == []
    assert fetch(environment={"HF_ENDPOINT": "http://127.0.0.1:9"}) == first


def test_only_the_asked_patterns_are_fetched(fetch, hub):
    folder = Path(fetch(patterns=["*.json"])["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"}
    assert set(hub.fetched()) == {"config.json", "tokenizer.json"}


def test_what_is_missing_in_the_cache_is_fetched_later(fetch, hub):
    fetch(patterns=["*.json"])
    hub.requests.clear()
    folder = Path(fetch()["folder"])
    assert {path.name for path in folder.iterdir()} == DATA
    assert set(hub.fetched()) == DATA - {"config.json", "tokenizer.json"}


def test_a_connection_that_breaks_mid_file_is_taken_up_where_it_broke(fetch, hub):
    chunk = 10 * 2**20  # what the client writes at a time
    weights = bytes(range(256)) * (chunk * 3 // 256) + b"end"
    hub.repositories[NAME].files["model.safetensors"] = weights
    hub.drops["model.safetensors"] = [chunk + 5000, chunk + 7000]
    folder = Path(fetch()["folder"])
    assert (folder / "model.safetensors").read_bytes() == weights
    ranges = [r.range for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert ranges == [None, f"bytes={chunk}-", f"bytes={2 * chunk}-"]


def test_a_failed_download_is_completed_by_the_next_run(fetch, hub):
    hub.drops["model.safetensors"] = [0] * 30
    said = message(fetch())
    assert NAME in said and "download failed" in said
    hub.drops.clear()
    hub.requests.clear()
    folder = Path(fetch()["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "config.json" not in hub.fetched()


def test_no_such_repository(fetch):
    said = message(fetch("maker/nothing"))
    assert "maker/nothing" in said and "no such repository" in said


def test_progress_is_told_and_no_bar_is_drawn(tmp_path, hub):
    script = f"""
import json, sys
from mlx_lfm2vl import hub
told = []
hub.resolve({NAME!r}, progress=lambda *at: told.append(at))
first = len(told)
hub.resolve({NAME!r}, progress=lambda *at: told.append(at))
print(json.dumps([told[:first], told[first:]]))
"""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    root = str(Path(__file__).parent.parent)
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0 and process.stderr == "", process.stderr
    fetched, known = json.loads(process.stdout)
    files = [at[1:] for at in fetched if at[0] == "files"]
    assert files == [[n, len(DATA)] for n in range(1, len(DATA) + 1)]
    size = sum(len(FILES[name]) for name in DATA)
    written = [at[1:] for at in fetched if at[0] == "download"]
    assert written == sorted(written) and written[-1] == [size, size]
    assert [at for at in known if at[0] == "files"][-1] == ["files", len(DATA), len(DATA)]


def test_a_folder_has_no_revisions(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == tmp_path
    for name in ("demo", tmp_path):
        with pytest.raises(HubError, match="has no revision 'main'; leave the revision out"):
            resolve(name, revision="main")


@pytest.mark.parametrize("name", [None, 3, b"demo", ["demo"]])
def test_a_name_is_text(name):
    with pytest.raises(HubError, match=r"the model is .*; give a folder, a hub repository or 'demo'"):
        resolve(name)


def test_no_such_revision(fetch, hub):
    said = message(fetch(revision="v9"))
    assert NAME in said and "v9" in said
    hub.repositories[NAME].revisions = ("main", "v9")
    assert Path(fetch(revision="v9")["folder"]).name == hub.repositories[NAME].commit


def test_a_gated_repository_says_how_to_get_in(fetch, hub):
    hub.repositories[NAME].gated = True
    said = message(fetch())
    assert NAME in said and "terms" in said and "hf auth login" in said
    assert "folder" in fetch(token="hf_right")


def test_a_private_repository_needs_its_token(fetch, hub):
    hub.repositories[NAME].private = True
    said = message(fetch())
    assert NAME in said and "log in" in said
    assert "log in" in message(fetch(token="hf_wrong"))
    hub.requests.clear()
    assert "folder" in fetch(environment={"HF_TOKEN": "hf_right"})
    assert all((r.token is None) == r.path.startswith("/storage/") for r in hub.requests if NAME in r.path)


def test_a_hub_that_cannot_be_reached(fetch):
    said = message(fetch(environment={"HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert NAME in said and "cannot be reached" in said


@pytest.mark.parametrize("status", [403, 418, 500])
def test_a_hub_that_answers_with_an_error(fetch, hub, status):
    hub.status = status
    assert NAME in message(fetch())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("status", "says"),
    [
        (429, "come back later (too many requests)"),
        (502, "the download failed"),
        (503, "the download failed"),
        (401, "log in"),
    ],
)
def test_a_hub_that_keeps_refusing_is_quoted_with_the_way_out(fetch, hub, status, says):
    hub.status = status
    said = message(fetch())
    assert said.startswith(f"{NAME}: ") and says in said


def test_a_hub_that_is_busy_for_a_while_is_waited_for(fetch, hub):
    hub.busy = [(429, {"Retry-After": "1"}), (503, {}), (500, {})]
    folder = Path(fetch()["folder"])
    assert {path.name for path in folder.iterdir()} == DATA
    assert hub.busy == []


def test_a_silent_connection_is_given_up_and_taken_up_again(fetch, hub):
    weights = bytes(range(256)) * (12 * 2**20 // 256)
    hub.repositories[NAME].files["model.safetensors"] = weights
    hub.stalls["model.safetensors"] = [11 * 2**20]
    folder = Path(fetch(environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})["folder"])
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (WEIGHTS[:-1] + b"!", "model.safetensors arrived damaged (wrong checksum) and was removed; run it again"),
        (WEIGHTS[: 2**19], "run it again to resume"),
        (WEIGHTS + b"more", "run it again to resume"),
    ],
    ids=["other bytes", "too few", "too many"],
)
def test_what_arrives_must_be_what_was_announced(fetch, hub, sent, says):
    hub.lies["model.safetensors"] = sent
    said = message(fetch())
    assert NAME in said and says in said
    hub.lies.clear()
    folder = Path(fetch()["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_wrong_bytes_of_a_killed_download_are_found_by_the_next(fetch, hub, tmp_path):
    hub.lies["model.safetensors"] = WEIGHTS[:-1] + b"!"
    hub.stalls["README.md"] = [0] * 50
    words = [sys.executable, "-c", SCRIPT, json.dumps([NAME, {}])]
    with subprocess.Popen(words, env=surroundings(hub, tmp_path), cwd=tmp_path) as child:
        end = time.monotonic() + 60
        snapshots = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots"
        while not any(snapshots.glob("*/model.safetensors")):  # "**" would enter folders that the client takes away
            assert time.monotonic() < end and child.poll() is None
            time.sleep(0.05)
        child.kill()
    hub.lies.clear(), hub.stalls.clear()
    time.sleep(2.5)  # more than clocks may differ by
    assert "local cache" in message(fetch(local_files_only=True))
    assert "arrived damaged (wrong checksum) and was removed" in message(fetch())
    folder = Path(fetch()["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not any(tmp_path.glob("**/.mlx-lfm2vl-*")), "nothing of ours is left in the cache"


def test_wrong_bytes_of_another_revision_are_found_too(fetch, hub, tmp_path):
    """What a killed download left is looked at once, whichever revision is asked for next."""
    good = Path(fetch()["folder"])
    repository = good.parents[1]
    blob = (good / "model.safetensors").resolve()
    other = repository / "snapshots" / ("0" * 40)
    other.mkdir()
    (other / "other.safetensors").symlink_to(blob)
    (other / "gone.safetensors").symlink_to(repository / "blobs" / ("1" * 64))
    (repository / f"{NOTE}99999999-gone").touch()
    blob.chmod(0o644)
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    assert "arrived damaged" in message(fetch())
    assert (Path(fetch()["folder"]) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_repository_that_is_not_there_leaves_nothing_in_the_cache(fetch, tmp_path):
    assert "no such repository" in message(fetch("maker/absent"))
    assert not any(tmp_path.glob("**/models--maker--absent*"))


def test_offline_without_a_cached_copy(fetch, hub):
    said = message(fetch(local_files_only=True))
    assert NAME in said and "not in the local cache" in said
    assert hub.requests == []


def test_an_incomplete_cached_copy_is_not_taken_for_whole(fetch, hub):
    fetch(patterns=["*.json"])
    said = message(fetch(local_files_only=True))
    assert NAME in said and "local cache" in said


def test_a_repository_without_config_is_no_model(fetch, hub):
    del hub.repositories[NAME].files["config.json"]
    assert "has no config.json" in message(fetch())


PRECISIONS = {f"{width}/{name}": data for width in ("4bit", "8bit") for name, data in FILES.items()}


def test_of_a_repository_of_precisions_only_the_chosen_one_is_fetched(fetch, hub, tmp_path):
    hub.repositories[NAME].files = {"README.md": b"# models", **PRECISIONS, "8bit/more/model.safetensors": WEIGHTS}
    said = message(fetch())
    assert said == f"{NAME}: holds several models; choose one of {NAME}/4bit, {NAME}/8bit"
    assert not any("safetensors" in path for path in hub.fetched())
    folder = Path(fetch(f"{NAME}/8bit")["folder"])
    assert folder.name == "8bit" and {path.name for path in folder.iterdir()} == DATA
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not any("4bit" in path and "safetensors" in path for path in hub.fetched())
    offline = fetch(f"{NAME}/8bit", local_files_only=True)
    assert Path(offline["folder"]) == folder
    assert message(fetch(f"{NAME}/16bit")) == f"{NAME}/16bit: the repository has no folder '16bit' with a config.json"


def test_a_file_of_a_folder_that_arrives_damaged_is_removed(fetch, hub):
    hub.repositories[NAME].files = dict(PRECISIONS)
    hub.lies["8bit/model.safetensors"] = WEIGHTS[:-1] + b"!"
    assert "model.safetensors arrived damaged (wrong checksum) and was removed" in message(fetch(f"{NAME}/8bit"))
    hub.lies.clear()
    folder = Path(fetch(f"{NAME}/8bit")["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_repository_with_one_model_below_it_is_that_model(fetch, hub):
    hub.repositories[NAME].files = {f"8bit/{name}": data for name, data in FILES.items()}
    folder = Path(fetch()["folder"])
    assert folder.name == "8bit" and {path.name for path in folder.iterdir()} == DATA


def test_folders_beside_a_model_are_not_fetched(fetch, hub):
    hub.repositories[NAME].files = {**FILES, "onnx/config.json": b"{}", "onnx/model.safetensors": WEIGHTS}
    folder = Path(fetch()["folder"])
    assert {path.name for path in folder.iterdir()} == DATA


def test_an_empty_repository_is_no_model(fetch, hub):
    hub.repositories[NAME].files.clear()
    assert message(fetch()).startswith(f"{NAME}: the repository is empty")
    hub.repositories[NAME].files["model.onnx"] = b"another program's weights"
    assert "holds nothing that a model is made of" in message(fetch())


@pytest.mark.parametrize("name", ["maker/a--b", "maker/a..b", "maker/" + "x" * 100, "maker/x.git"])
def test_names_that_the_hub_does_not_allow(fetch, hub, name):
    said = message(fetch(name))
    assert name in said
    assert hub.requests == []


# --- folders on this disk: no hub is asked --------------------------------------------------------------------------


def test_demo_is_the_bundled_model():
    assert resolve("demo") == demo.path()
    assert demo.path().is_dir()


def test_a_folder_is_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve("~/model") == tmp_path / "model"


def test_a_folder_with_one_model_below_it_is_that_model(tmp_path):
    (tmp_path / "8bit").mkdir()
    (tmp_path / "8bit" / "config.json").write_text("{}")
    assert resolve(tmp_path) == tmp_path / "8bit"


def test_a_folder_of_precisions_asks_which(tmp_path):
    for name in ("4bit", "8bit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(HubError) as caught:
        resolve(tmp_path)
    assert str(tmp_path / "4bit") in str(caught.value) and str(tmp_path / "8bit") in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "  ", "no-such-folder", "a/b/c/d", "a/b/", "a/b/..", "../x/y", "/no/such/folder", "maker/", "ma ker/x"]
)
def test_what_is_neither_folder_nor_repository_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=re.escape(name.strip()) or "empty"):
        resolve(name)


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HubError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")


def test_an_empty_folder_is_not_a_model(tmp_path):
    with pytest.raises(HubError, match=r"has no config\.json"):
        resolve(tmp_path)


def test_generate_runs_a_model_of_the_hub_and_again_without_it(hub, tmp_path):
    golden = Path(__file__).parent / "golden"
    hub.repositories[NAME].files = {path.name: path.read_bytes() for path in (golden / "gen25").iterdir()}
    words = ["generate", "--model", NAME, "--image", str(golden / "pictures" / "small.png"), "--max-tokens", "4"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}

    def run(endpoint: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlx_lfm2vl", *words],
            env=clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    first = run(hub.url)
    assert first.returncode == 0 and first.stdout.strip(), first.stderr
    again = run("http://127.0.0.1:9")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    shutil.rmtree(tmp_path / "home")
    gone = run("http://127.0.0.1:9")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert (
        gone.stderr.strip().splitlines()[-1].startswith(f"mlx-lfm2vl: error: {NAME}: no such folder, not in the local")
    )
    assert "Traceback" not in gone.stderr


@pytest.mark.skipif(os.name != "posix", reason="the program is started by a POSIX shell")
def test_a_download_works_in_a_process_without_stdout_and_stderr(hub, tmp_path):
    """As windowed apps are on some systems: Python's streams are None then."""
    code = f"""
import pathlib, sys
from mlx_lfm2vl import hub
assert sys.stdout is None and sys.stderr is None
pathlib.Path(sys.argv[1]).write_text(str(hub.resolve({NAME!r})))
"""
    environment = surroundings(hub, tmp_path)
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", code, str(tmp_path / "said")]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
    assert (Path((tmp_path / "said").read_text()) / "config.json").is_file()
