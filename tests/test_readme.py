"""The README does what it says: its Python and console examples run as printed.

They run in order, without a network. Where the README shows output, the output must be that.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


def blocks(kind: str) -> list[str]:
    return [body for language, body in BLOCKS if language == kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what a clone has for examples, and an environment with the program on the path and no network."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    program = folder / "bin" / "mlx-lfm2vl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mlx_lfm2vl "$@"\n')
    program.chmod(0o755)
    return folder, os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


def run(command: list[str], place: tuple[Path, dict[str, str]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=place[0], env=place[1], text=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_console_examples_run_and_print_what_is_shown(place):
    checked = 0
    for block in blocks("console"):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.strip().partition("\n")
            done = run(shlex.split(command), place)
            refused = "error: " in shown
            assert done.returncode == (2 if refused else 0), f"{command}\n{done.stdout}"
            assert done.stdout.strip(), command
            if shown:
                assert done.stdout.strip() == shown.strip(), command
                checked += 1
    assert checked >= 6


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_examples_run(place, code):
    done = run([sys.executable, "-c", code], place)
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip()


def test_other_blocks_only_set_up():
    """What is not run here is run elsewhere: by a person, or by the tests of set-up."""
    assert {language for language, _ in BLOCKS} == {"console", "python", "sh"}
    for line in "".join(blocks("sh")).splitlines():
        assert re.match(r"(make (demo|test)|pip install)\b", line)


def test_the_targets_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", TEXT, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_paths_that_it_names_exist():
    tree = TEXT.split("## Where things are")[1].split("## ")[0]
    entries = re.findall(r"^( +)([\w./]+)  ", tree, re.M)
    assert len(entries) >= 10
    for indent, name in entries:
        assert (ROOT / ("mlx_lfm2vl" if len(indent) > 4 else "") / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
