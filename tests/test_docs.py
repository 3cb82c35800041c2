"""The pages of docs/ do what they say: examples run as printed, tables name what there is.

A page's examples run in order in one folder, its Python as one program. Where output is shown it must be that, but for
numbers that a digest or the model's tokenizer decides.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_lfm2vl
from mlx_lfm2vl.cli import build_parser
from mlx_lfm2vl.cli.chat import HELP

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
SCENE = ROOT / "examples" / "scene.png"


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[page], re.M | re.S)
    return [(language, body) for language, body in found if not languages or language in languages]


@pytest.fixture
def place(tmp_path):
    """A folder as the reader's, and an environment with the program on the path and without a network."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "pictures").mkdir()
    for name in ("photo.jpg", "a.png", "b.png", "pictures/1.png", "pictures/2.png", "pictures/3.png"):
        shutil.copyfile(SCENE, tmp_path / name)
    (tmp_path / "question.txt").write_text("What is in this image?\n")
    program = tmp_path / "bin" / "mlx-lfm2vl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mlx_lfm2vl "$@"\n')
    program.chmod(0o755)
    return tmp_path, os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


def run(command: list[str], place) -> subprocess.CompletedProcess[str]:
    folder, environment = place
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def without_counts(text: str) -> str:
    return re.sub(r'(_tokens": |"settings": )("\w+"|\d+)', r"\1...", text.strip())


def test_the_command_lines_examples_run_and_print_what_is_shown(place):
    shown_outputs = 0
    for language, body in blocks("command-line", "console", "json"):
        if language == "json":
            (place[0] / "rows.jsonl").write_text(body)
            continue
        for part in body.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.strip().partition("\n")
            done = run(["sh", "-c", command], place)
            assert done.returncode == (2 if "error: " in shown else 0), f"{command}\n{done.stdout}"
            assert done.stdout.strip(), command
            if shown:
                assert without_counts(done.stdout) == without_counts(shown), command
                shown_outputs += 1
            if "--json" in command:
                assert_fields(json.loads(done.stdout))
    assert shown_outputs >= 5


def test_the_performance_pages_examples_print_tables_of_that_form(place):
    """Measured numbers differ; the columns and what was measured do not."""

    def form(text: str) -> list[str]:
        rows = [line for line in text.splitlines() if line.startswith("|")]
        return [re.sub(r"\| [\d.]+( GB| %)?(?= \|)", "| #", row) for row in rows]

    for _, body in blocks("performance", "console"):
        command, _, shown = body.removeprefix("$ ").partition("\n")
        done = run(["sh", "-c", command], place)
        assert done.returncode == 0, done.stdout
        assert form(done.stdout) == form(shown) and len(form(shown)) > 4


def test_every_option_of_bench_is_on_its_page():
    parsers = next(a for a in build_parser()._actions if hasattr(a, "choices") and a.choices).choices
    known = {option for action in parsers["bench"]._actions for option in action.option_strings} - {"-h", "--help"}
    section = PAGES["performance"].split("## Beside")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", section)) == known


def assert_fields(made: dict) -> None:
    """The table of --json's fields is complete, in the order of the object."""
    section = PAGES["command-line"].split("`--json` prints")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.M) == list(made)
    assert set(made["images"][0]) == {"source", "tokens"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_is_one_program_that_runs(page, place):
    program = "\n".join(body for _, body in blocks(page, "python"))
    done = run([sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program], place)
    assert done.returncode == 0, done.stdout
    assert "At the left there is a large black ring, and at the bottom right a large pink square." in done.stdout
    assert "nowhere.png: no such picture" in done.stdout
    assert "cancelled\n" in done.stdout and "[ToolCall(name='place_of', arguments={'name': 'ring'})]" in done.stdout


def test_every_option_of_these_commands_is_on_the_page():
    parsers = next(a for a in build_parser()._actions if hasattr(a, "choices") and a.choices).choices
    commands = ("generate", "chat", "batch", "doctor")
    for command in commands:
        for action in parsers[command]._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert f"{option}" in PAGES["command-line"], f"{command} {option}"
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGES["command-line"])) - {"--help"}:
        assert any(option in parsers[c]._option_string_actions for c in commands), option


def test_every_chat_command_is_on_the_page():
    table = re.findall(r"^\| `(/\w+)", PAGES["command-line"], re.M)
    assert table == re.findall(r"^(/\w+)", HELP, re.M)


def test_the_links_lead_somewhere():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            if path:
                assert (ROOT / "docs" / path).exists(), f"{page}: {link}"
            else:
                titles = [
                    re.sub(r"[^\w -]", "", t).replace(" ", "-").lower() for t in re.findall(r"^#+ (.*)", text, re.M)
                ]
                assert anchor in titles, f"{page}: {link}"


def test_the_names_that_the_api_page_imports_are_public():
    for names in re.findall(r"^from mlx_lfm2vl import (.*)$", PAGES["python"], re.M):
        assert set(names.split(", ")) <= set(mlx_lfm2vl.__all__)
