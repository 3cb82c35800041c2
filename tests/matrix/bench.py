"""What the rows of the matrix work with: a folder of their own, the small checkpoint, the program."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_lfm2vl.cli import main

from .web import Reply, Server

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
        self._closing: list[Callable[[], None]] = []
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

    def web(self, replies: Mapping[str, Reply]) -> Server:
        """A server of this machine that answers paths so; it is closed when the row ends."""
        server = Server(replies)
        self._closing.append(server.close)
        return server

    def internet(self, names: Mapping[str, list[str]], server: Server) -> list[tuple[str, int]]:
        """Lets names resolve to the addresses listed, one a look-up and the last ever after, and connections to public
        addresses end at `server`. Returns the addresses that are connected, as they come."""
        left = {name: list(addresses) for name, addresses in names.items()}
        look_up, connect = socket.getaddrinfo, socket.create_connection
        connected: list[tuple[str, int]] = []

        def resolved(host: str, port: int, *more: Any, **named: Any) -> Any:
            if host in left:
                address = left[host].pop(0) if len(left[host]) > 1 else left[host][0]
                return look_up(address, port, *more, **named)
            return look_up(host, port, *more, **named)

        def connection(address: tuple[str, int], *more: Any, **named: Any) -> socket.socket:
            connected.append(address)
            return connect(("127.0.0.1", server.port), *more, **named)

        self.monkeypatch.setattr(socket, "getaddrinfo", resolved)
        self.monkeypatch.setattr(socket, "create_connection", connection)
        return connected

    def close(self) -> None:
        for close in self._closing:
            close()

    def cli(self, *argv: object, stdin: bytes = b"") -> Ended:
        """Runs the program in this process, with `stdin` piped into it."""
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        self._capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Ended(code, *self._capfd.readouterr())

    def process(self, *argv: object, stdin: bytes = b"", path: Sequence[Path] = ()) -> Ended:
        """Runs the program in a process of its own, which takes a second; for what only a process shows. Modules in the
        folders `path` come before others."""
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lfm2vl", *map(str, argv)],
            input=stdin,
            capture_output=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])},
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
