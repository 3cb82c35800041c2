"""What the rows of the matrix work with: a folder of their own, the small checkpoint, the program."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_lfm2vl.cli import main

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
MODEL = GOLDEN / "gen25"


@dataclass(frozen=True)
class Ended:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


class Bench:
    """`folder` is empty when a row begins, and the working directory. `monkeypatch` and `capfd` are pytest's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self.folder, self.monkeypatch, self._capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def write(self, name: str, content: bytes | str) -> Path:
        """A file of the folder with that content."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self) -> Path:
        """A copy of the small checkpoint, to damage; `MODEL` is the checkpoint itself."""
        return Path(shutil.copytree(MODEL, self.folder / "model"))

    def cli(self, *argv: object, stdin: bytes = b"") -> Ended:
        """Runs the program in this process, with `stdin` piped into it."""
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        self._capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Ended(code, *self._capfd.readouterr())

    def process(self, *argv: object, stdin: bytes = b"", environment: dict[str, str] | None = None) -> Ended:
        """Runs the program in a process of its own, which takes a second; for what only a process shows."""
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lfm2vl", *map(str, argv)],
            input=stdin,
            capture_output=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
