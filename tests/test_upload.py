"""Folders to the hub through the real client over HTTP against tests/hub_server.py, with what goes wrong on the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, read_tensors
from hub_server import HubServer, Repository
from huggingface_hub import constants

from mlx_lfm2vl.cli import main
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.conversion.upload import check_publishable, upload
from mlx_lfm2vl.errors import HubError, Lfm2VlError, OutputError
from mlx_lfm2vl.hub import publish as publish_files

NAME = "maker/tiny-8bit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("upload") / "tiny-8bit"
    return convert(GOLDEN / "gen25", target, q_bits=8, q_group_size=32, verify=False)


@pytest.fixture
def hub():
    with HubServer({}) as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Runs the program in a process of its own whose hub is the server."""

    def start(*words: str, token: str | None = "hf_right") -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = {
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            **{"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
            **({"HF_TOKEN": token} if token else {}),
        }
        command = [sys.executable, "-m", "mlx_lfm2vl", *words]
        return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=180)

    return start


@pytest.fixture
def publish(hub, folder, monkeypatch, tmp_path):
    """`hub.publish` of the folder, whose hub is the server."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def start(repo: str = NAME, token: str | None = "hf_right", **options: Any) -> dict[str, str]:
        hub.be_the_hub(monkeypatch, tmp_path / "home" / "hub")
        files = {path.name: path for path in folder.iterdir()}
        options = {"message": "Add the model", "wait": 0.01, **options}
        try:
            return {"url": publish_files(files, repo, token=token, **options)}
        except HubError as error:
            return {"error": str(error)}

    return start


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(hub: HubServer) -> int:
    """How many large files were sent."""
    return sum(request.method == "PUT" for request in hub.requests)


def test_a_folder_arrives_whole_in_one_commit(hub, publish, folder):
    answer = publish()
    assert hub.repositories[NAME].files == contents(folder)
    assert answer == {"url": f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].commit}"}
    assert hub.commits == ["Add the model"]
    assert not hub.repositories[NAME].private


def test_private_is_private(hub, publish):
    publish(private=True)
    assert hub.repositories[NAME].private


def test_what_the_hub_has_is_not_sent_again(hub, publish, folder):
    publish()
    assert sent(hub) == 1
    hub.repositories[NAME].files["README.md"] = b"changed by hand"
    publish(message="Again")
    assert sent(hub) == 1
    assert hub.repositories[NAME].files == contents(folder) and hub.commits == ["Add the model", "Again"]


def test_an_upload_that_breaks_off_goes_on(hub, publish, folder):
    hub.cut_uploads = 2
    assert "url" in publish()
    assert hub.repositories[NAME].files == contents(folder)


def test_a_failed_commit_is_retried_without_the_weights(hub, publish, folder):
    hub.refusals = [
        (f"/api/models/{NAME}/commit", 503),
        ("/api/repos/create", 429),
        (f"/api/models/{NAME}/commit", 500),
    ]
    assert "url" in publish()
    assert sent(hub) == 1 and hub.repositories[NAME].files == contents(folder)


def test_a_later_call_goes_on_where_the_first_gave_up(hub, publish, folder):
    hub.refusals = [(f"/api/models/{NAME}/commit", 503)] * 2
    error = publish(attempts=2)["error"]
    assert error.startswith(f"{NAME}: the upload failed") and "run it again" in error
    assert hub.repositories[NAME].files == {}
    assert "url" in publish()
    assert sent(hub) == 1 and hub.repositories[NAME].files == contents(folder)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (404, "no such owner"),
        (413, "refuses files of this size"),
        (429, "asks to come back later"),
        (507, "has no room left"),
    ],
)
def test_refusals_are_said_in_words(hub, publish, status, says):
    hub.refusals = [("/api/repos/create", status)] * 5
    error = publish(attempts=2)["error"]
    assert says in error and f"HTTP {status}" in error and "\n" not in error


def test_a_full_hub_ends_the_upload_and_leaves_no_commit(hub, publish):
    hub.refusals = [("/lfs/", 507)]
    assert "has no room left for you (HTTP 507)" in publish()["error"]
    assert hub.commits == [] and hub.repositories[NAME].files == {}


def test_who_may_not_write(hub, publish):
    assert "log in with `hf auth login`" in publish(token=None)["error"]
    assert "HTTP 401" in publish(token="hf_wrong")["error"]
    assert "you may not write there" in publish(repo="somebody/tiny")["error"]
    assert "is not a hub repository name" in publish(repo="tiny")["error"]
    assert hub.repositories == {}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, NAME, "the hub does not know you; log in with `hf auth login`"),
        ("hf_wrong", NAME, "the hub does not know you; log in with `hf auth login`"),
        ("hf_reader", NAME, "your token may only read"),
        ("hf_right", "somebody/tiny", "you may not make a repository there; your token is of maker"),
        ("hf_right", "somebody/there", "you may not write there"),
    ],
)
@pytest.mark.parametrize("command", ["upload", "convert"])
def test_the_right_to_write_is_checked_before_the_work(command, token, repo, says, hub, run, folder, tmp_path):
    hub.writers["hf_reader"], hub.roles["hf_reader"] = "maker", "read"
    hub.repositories["somebody/there"] = Repository({})
    words = {
        "upload": ["upload", str(folder), repo],
        "convert": [
            *("convert", "--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out")),
            *("--upload-repo", repo),
        ],
    }
    done = run(*words[command], token=token)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and line.startswith(f"mlx-lfm2vl: error: {repo}: {says}")
    assert not (tmp_path / "out").exists()
    assert {request.method for request in hub.requests} <= {"GET"}


def test_a_mirror_that_knows_no_rights_gets_the_files(hub, run, folder):
    hub.busy = [(404, {})]
    done = run("upload", str(folder), NAME)
    assert done.returncode == 0, done.stderr
    assert hub.repositories[NAME].files.keys() == contents(folder).keys()


def test_a_hub_that_cannot_be_reached(hub, run, folder, publish):
    hub.url = "http://127.0.0.1:9"
    assert "the upload failed" in publish(attempts=2)["error"]


# --- only what is whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "chat_template.jinja").unlink(), "no question can be asked"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('no!') }}"), "can be asked .*no!"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ bos_token }}"), "writes 0 image tokens for one picture"),
        (lambda f: (f / "chat_template.jinja").write_text("{% for m"), "chat_template.jinja: line 1: unexpected end"),
        (lambda f: (f / "README.md").unlink(), "no README.md"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "safetensors"),
    ],
)
def test_a_broken_folder_is_not_published(folder, tmp_path, damage, says):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    damage(broken)
    with pytest.raises(Lfm2VlError, match=says):
        upload(broken, NAME, dry_run=True)


def test_numbers_that_are_not_finite_are_not_published(tmp_path):
    import mlx.core as mx

    out = convert(GOLDEN / "gen25", tmp_path / "out")
    tensors = read_tensors(out / "model.safetensors")
    tensors["language_model.model.embedding_norm.weight"] *= float("nan")
    mx.save_safetensors(str(out / "model.safetensors"), tensors, metadata={"format": "mlx"})
    with pytest.raises(OutputError, match="not finite"):
        check_publishable(out)


def test_links_to_files_of_the_users_own_are_not_published(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (tmp_path / "secret").write_text("precious")
    (copy / "NOTICE").symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError, match="NOTICE: is a link that leads out of the folder; put the file itself there"):
        upload(copy, NAME, dry_run=True)


def test_a_dry_run_says_what_would_go_and_sends_nothing(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "modeling.py").write_text("x")
    (copy / ".cache").mkdir()
    (copy / ".hidden").write_text("x")
    planned = upload(copy, NAME, dry_run=True)
    assert planned.url is None and planned.left == (".cache/", ".hidden", "modeling.py")
    assert dict(planned.files) == {path.name: path.stat().st_size for path in folder.iterdir()}


def test_weights_are_sent_whatever_their_name(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").rename(copy / "model[1].safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.safetensors", "model[1].safetensors"))
    planned = upload(copy, NAME, dry_run=True)
    assert "model[1].safetensors" in dict(planned.files) and planned.left == ()


def test_only_what_belongs_to_a_model_is_sent_and_the_rest_is_listed(hub, run, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("notes.txt", "photo.jpg", "train.log", "modeling.py"):
        (copy / name).write_text("mine")
    shutil.copy(GOLDEN / "gen2" / "model.safetensors", copy / "adapters.safetensors")
    (copy / "LICENSES").mkdir()
    (copy / "LICENSE").write_text("the licence")
    done = run("upload", str(copy), NAME)
    assert done.returncode == 0, done.stderr
    there = hub.repositories[NAME].files
    assert there.keys() == contents(folder).keys() | {"LICENSE"}
    card = there["README.md"].decode()
    assert card.startswith("---\n") and f"\n# {NAME}\n" in card and f'load("{NAME}")' in card
    assert card.replace(NAME, folder.name) == (copy / "README.md").read_text()
    left = "LICENSES/, adapters.safetensors, modeling.py, notes.txt, photo.jpg, train.log"
    assert done.stderr == f"mlx-lfm2vl: no part of the model, so not uploaded: {left}\n"


@pytest.mark.parametrize("name", ["tiny", "maker/ti ny", "maker/a--b", "maker/x.git", "a/b/c", ""])
def test_a_name_that_the_hub_forbids_is_refused_before_the_work(folder, name, tmp_path, capsys):
    words = ["convert", "--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out"), "--no-verify"]
    assert main([*words, "--upload-repo", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx-lfm2vl: error: {name}: is not a ") and not (tmp_path / "out").exists()
    with pytest.raises(HubError, match="is not a"):
        upload(folder, name, dry_run=True)


def test_convert_and_upload_from_the_command_line(hub, run, tmp_path):
    words = ["convert", "--hf-path", str(GOLDEN / "gen25"), "--mlx-path", str(tmp_path / "out")]
    options = ["-q", "--q-bits", "8", "--q-group-size", "32", "--no-verify", "--upload-repo", NAME, "--private"]
    planned = run(*words, *options, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "model.safetensors" in planned.stdout and hub.requests == []
    done = run(*words, *options, "--overwrite", "--commit-message", "First")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].commit}"
    assert hub.commits == ["First"] and hub.repositories[NAME].private
    assert f"--model {NAME}" in hub.repositories[NAME].files["README.md"].decode()
    assert hub.repositories[NAME].files == contents(tmp_path / "out")


def test_the_upload_command_goes_on_where_convert_stopped(hub, run, folder):
    hub.refusals = [(f"/api/models/{NAME}/commit", 400)]
    failed = run("upload", str(folder), NAME)
    assert failed.returncode == 2 and failed.stderr.startswith(f"mlx-lfm2vl: error: {NAME}: the upload failed")
    assert sent(hub) == 1
    done = run("upload", str(folder), NAME)
    assert done.returncode == 0, done.stderr
    assert sent(hub) == 1 and hub.repositories[NAME].files.keys() == contents(folder).keys()
    assert hub.commits == ["Upload tiny-8bit"]


def test_a_published_model_can_be_fetched_and_answers(hub, run, publish):
    publish()
    picture = str(GOLDEN / "pictures" / "small.png")
    words = ("generate", "--model", NAME, "--image", picture, "--max-tokens", "4")
    done = run(*words)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert isinstance(hub.repositories[NAME], Repository)
