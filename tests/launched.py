"""Processes as `mlx.launch --backend ring` starts them, without its own process between."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from test_cli import ROOT

QUICK = {"OPENBLAS_NUM_THREADS": "1", "MLX_LFM2VL_RANK_SILENCE": "20"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that systems give to connections: no other test gets one meanwhile."""
    ports: set[int] = set()
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


def start(
    folder: Path,
    count: int,
    command: Sequence[object],
    environment: dict[str, str] | None = None,
    folders: Sequence[Path] = (),
    stdin: int = subprocess.DEVNULL,
) -> list[subprocess.Popen[str]]:
    """A command in each of `count` ranks on this machine, `folder` for the hostfile; `folders` are where each runs."""
    hostfile = folder / "ring.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]) if count > 1 else "")
    environment = {**os.environ, **QUICK, "MLX_HOSTFILE": str(hostfile), "PYTHONPATH": str(ROOT), **(environment or {})}
    return [
        subprocess.Popen(
            list(map(str, command)),
            env={**environment, "MLX_RANK": str(rank)},
            cwd=folders[rank] if folders else ROOT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def start_ranks(folder: Path, count: int, *words: object, **options: Any) -> list[subprocess.Popen[str]]:
    """The program with these words, see `start`."""
    return start(folder, count, [sys.executable, "-m", "mlx_lfm2vl", *words], **options)


def ended(ranks: list[subprocess.Popen[str]], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        said = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, out, without_waits(err)) for rank, (out, err) in zip(ranks, said, strict=True)]


def without_waits(err: str) -> str:
    """What a rank said, but that it waited for the others: one may begin long after another."""
    return "".join(line for line in err.splitlines(keepends=True) if " waits for " not in line)
