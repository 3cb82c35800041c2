"""Pictures of the terminal for the docs: types into a shell of 80 columns and draws what its screen shows.

`python -m tools.screenshots [NAME ...]` writes docs/images/terminal-NAME.png. It takes the test packages (pexpect,
pyte, and the font of matplotlib).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pexpect
import pyte
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images"
COLUMNS, ROWS = 80, 60
SIZE, MARGIN = 22, 24  # pixels of the font and around the text
PAPER, INK = "#1c1f26", "#d7dae0"
COLOURS = {"cyan": "#56b6c2", "brightcyan": "#7fdbe6", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b"}
PROMPT = "$ "


class Terminal:
    """A shell on a terminal, in a folder with the examples and with the program on its path."""

    def __init__(self, folder: Path):
        program = folder / "bin" / "mlx-lfm2vl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mlx_lfm2vl "$@"\n')
        program.chmod(0o755)
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        own = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PS1": PROMPT,
            "TERM": "xterm-256color",
            "HF_HUB_CACHE": str(folder / "hub"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._shell = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile", "-i"],
            cwd=str(folder),
            env=os.environ | own,
            dimensions=(ROWS, COLUMNS),
            timeout=600,
        )
        self.wait(PROMPT)

    def line(self) -> str:
        """The screen's line up to the cursor."""
        return str(self.screen.display[self.screen.cursor.y][: self.screen.cursor.x])

    def wait(self, prompt: str, quiet: float = 0.5) -> None:
        """Draws until nothing more comes behind a prompt. Raises `pexpect.EOF` if the shell ends."""
        last = time.monotonic()
        while self.line() != prompt or time.monotonic() - last < quiet:
            try:
                self._stream.feed(self._shell.read_nonblocking(4096, 0.1))
                last = time.monotonic()
            except pexpect.TIMEOUT:
                continue

    def type(self, text: str, prompt: str = PROMPT) -> None:
        """Types a line and Enter, and waits for the next prompt."""
        self._shell.send(f"{text}\r")
        self.wait(prompt)

    def clear(self) -> None:
        self.type("clear")


def generate(terminal: Terminal) -> None:
    terminal.type('mlx-lfm2vl generate --image examples/scene.png -p "What is in this image?"')
    terminal.type('echo "Which image shows a red triangle?" > question.txt')
    terminal.type("mlx-lfm2vl generate --image examples/s*.png --verbose < question.txt")
    terminal.type("mlx-lfm2vl generate --imgae examples/scene.png")


def chat(terminal: Terminal) -> None:
    terminal.type("mlx-lfm2vl chat --model demo --max-tokens 12", "> ")
    terminal.type("What is in this image? examples/scene.png", "> ")
    terminal.type("/continue", "> ")
    terminal.type("What colour is the ring?", "> ")
    terminal.type("/undo", "> ")
    terminal.type("/set temperature 0.5", "> ")
    terminal.type("/imags", "> ")
    terminal.type("/exit")


def batch(terminal: Terminal) -> None:
    terminal.type("mlx-lfm2vl batch examples --model demo --output answers.csv")
    terminal.type("head -n 4 answers.csv | cut -c -79")
    terminal.type("cp examples/scene.png examples/more.png")
    terminal.type("mlx-lfm2vl batch examples --model demo --output answers.csv")


def convert(terminal: Terminal) -> None:
    terminal.type("mlx-lfm2vl convert --hf-path demo --mlx-path demo-4bit -q --q-bits 4")
    terminal.type("ls demo-4bit")


def models(terminal: Terminal) -> None:
    for name, bits in (("me/demo-4bit", 4), ("me/demo-8bit", 8)):
        snapshot = f"hub/models--{name.replace('/', '--')}/snapshots/{'0' * 40}"
        terminal.type(
            f"mlx-lfm2vl convert --hf-path demo --mlx-path {snapshot} -q --q-bits {bits} --no-verify 2> convert.log"
        )
    terminal.clear()
    terminal.type("mlx-lfm2vl models")
    terminal.type("mlx-lfm2vl models --remove me/demo-8bit")


SHOTS: dict[str, Callable[[Terminal], None]] = {
    "generate": generate,
    "chat": chat,
    "batch": batch,
    "convert": convert,
    "models": models,
}


def drawn(screen: pyte.Screen) -> Image.Image:
    """The rows above the last prompt as a picture."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (ImageFont.truetype(fonts / f"DejaVuSansMono{kind}.ttf", SIZE) for kind in ("", "-Bold"))
    width, height = plain.getlength("M"), round(SIZE * 1.35)
    rows = screen.cursor.y
    image = Image.new("RGB", (round(width * COLUMNS) + 2 * MARGIN, height * rows + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    for row in range(rows):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            at = (MARGIN + column * width, MARGIN + row * height)
            draw.text(at, cell.data, COLOURS.get(cell.fg, INK), bold if cell.bold else plain)
    return image.quantize(32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SHOTS)}; all of them without any")
    for name in parser.parse_args().names or SHOTS:
        with tempfile.TemporaryDirectory() as folder:
            terminal = Terminal(Path(folder))
            SHOTS[name](terminal)
            file = OUT / f"terminal-{name}.png"
            drawn(terminal.screen).save(file, optimize=True)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
