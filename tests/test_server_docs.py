"""The examples of docs/server.md, executed against a server; its tables name what there is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ANSWER

from mlx_lfm2vl.cli import serve
from mlx_lfm2vl.cli.options import Parser

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.fixture
def example(server, tmp_path):
    """The blocks of a language, with the server's own address, and a folder with the pictures of a clone."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def found(language):
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
        return [block.replace("http://127.0.0.1:8080", server.url) for block in blocks]

    return found


def run(command, folder, **more):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_for_curl_are_answered(example, tmp_path):
    chat, task = example("console")
    made = json.loads(run(["sh", "-c", chat.removeprefix("$ ")], tmp_path))
    assert made["choices"][0]["message"]["content"] == ANSWER
    (box,) = json.loads(run(["sh", "-c", task.removeprefix("$ ")], tmp_path))["data"]
    assert box["label"] == "ring" and box["left"] < box["right"]


def test_the_python_clients_print_the_answer(example, tmp_path):
    program = "\n".join(example("python"))
    assert run([sys.executable, "-c", program], tmp_path) == f"{ANSWER}\n{ANSWER}\n"


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory):
    """A folder with the client for Node, from npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "openai@6"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install the client: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "node_modules"


def test_the_client_for_node_prints_the_answer(example, tmp_path, node_modules):
    (program,) = example("javascript")
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "ask.mjs").write_text(program)
    assert run(["node", "ask.mjs"], tmp_path) == ANSWER


def test_the_settings_of_an_editor_name_this_server(example, server):
    (settings,) = example("json")
    (provider,) = json.loads(settings)["language_models"]["openai_compatible"].values()
    assert provider["api_url"] == f"{server.url}/v1"
    assert {model["name"] for model in provider["available_models"]} == {m.id for m in server.openai().models.list()}


def test_every_option_of_serve_is_on_the_page():
    parser = Parser()
    serve.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE)) == known


def test_every_path_of_the_server_is_on_the_page(server):
    table = PAGE.split("## What is offered")[1].split("## ")[0]
    named = re.findall(r"`(/[\w/]+)", table.split("| chat completions |")[0])
    paths = {path.rstrip("/") for path in named}
    for path in paths:
        status, _, _ = server.raw("GET", path)
        assert status in (200, 405), path
    assert server.raw("GET", "/v1/nothing")[0] == 404
    assert "/v1/responses" in paths and len(paths) == 12
