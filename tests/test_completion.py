"""Tab in a shell: bash, zsh and fish themselves, at a terminal, with the program on their PATH."""

import os
import shutil
import sys
from functools import partial

import pytest
from typist import Typist

from mlx_lfm2vl.cli.completion import SHELLS

START = {
    "bash": (("bash", "--norc", "--noprofile", "-i"), "PS1='$ '"),
    "zsh": (("zsh", "-f", "-i"), "PS1='$ '; autoload -U compinit; compinit -u -D"),
    "fish": (
        ("fish", "--no-config", "-i"),
        "function fish_prompt; echo '$ '; end; set -g fish_autosuggestion_enabled 0",
    ),
}
SOURCE = {name: f'eval "$(mlx-lfm2vl completion {name})"' for name in SHELLS}
SOURCE["fish"] = "mlx-lfm2vl completion fish | source"
LINES = [  # what is typed before Tab, and the line behind it
    ("gener", "generate"),
    ("help doc", "help doctor"),
    ("generate --repet", "generate --repetition-penalty"),
    ("generate --model own", "generate --model owner/name"),
    ("bench dem", "bench demo"),
    ("chat --image pict", "chat --image pictures/"),
    ("chat --image a pictures/sc", "chat --image a pictures/scene.png"),
    ("generate --json-schema pictures/sc", "generate --json-schema pictures/scene.png"),
    ("convert --mlx-path pi", "convert --mlx-path pictures/"),
    ("convert --q-mode nv", "convert --q-mode nvfp4"),
    ("models --remove ow", "models --remove owner/name"),
]


def shown(person: Typist, line: str) -> bool:
    return person.lines()[-1] == line


@pytest.mark.parametrize("name", SHELLS)
def test_tab_completes_in_a_shell(name, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("a" * 40)
    for folder in (snapshot, tmp_path / "bin", tmp_path / "pictures"):
        folder.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "pictures" / "scene.png").touch()
    program = tmp_path / "bin" / "mlx-lfm2vl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlx_lfm2vl "$@"\n')
    program.chmod(0o755)
    shell, begin = START[name]
    person = Typist(
        tmp_path,
        program=shell,
        PATH=f"{program.parent}:{os.environ['PATH']}",
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HOME=str(tmp_path),
    )
    person.type(f"{begin}; {SOURCE[name]}; echo re''ady\r")
    person.wait(lambda: "ready" in person.lines())
    for typed, expected in LINES:
        person.wait(partial(shown, person, "$"))
        for keys, words in ((f"mlx-lfm2vl {typed}", typed), ("\t", expected)):
            person.type(keys)
            person.wait(partial(shown, person, f"$ mlx-lfm2vl {words}"))
        person.type("\x15")  # Ctrl-U
    person.type("exit\r")
    assert person.end() == 0
