"""Connections of all ranks to rank 0, for work that goes on when one of them is lost.

MLX's own operations need every rank. These need the two that talk: lines of JSON over TCP, and an empty line now and
then, so that a rank that is gone or whose machine is silent is told from one that is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..config import parse_json
from ..errors import DistributedError
from .group import addresses, broadcast

SILENCE = "MLX_LFM2VL_RANK_SILENCE"  # of the environment: seconds after which a rank that says nothing is lost
BEATS = 6  # empty lines in that time
HELLO, MAX_HELLO = 5.0, 1000  # seconds for a first line, and its bytes
Came = queue.Queue[tuple[int, dict[str, Any] | None]]  # a rank, and what it says; None once it is lost


def silence() -> float:
    """The seconds after which a rank that says nothing is lost. Raises `DistributedError`."""
    given = os.environ.get(SILENCE, "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise DistributedError(f"{SILENCE} is {given!r}, expected a number of seconds from 1 to 86400")
    return seconds


def patience() -> float:
    """The seconds that a rank waits for another one that is at work. Raises `DistributedError`."""
    return silence() / BEATS


class Link:
    """A connection to a rank. What comes goes into `came`, None last of all; `lost` is set then."""

    def __init__(self, rank: int, connection: socket.socket, came: Came):
        self.rank, self.lost = rank, threading.Event()
        self._socket, self._came, self._lock = connection, came, threading.Lock()
        self._closed = threading.Event()
        self._silence = silence()
        connection.settimeout(self._silence)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for work in (self._read, self._beat):
            threading.Thread(target=work, name="mlx-lfm2vl link", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Says something. False where the rank is lost."""
        return self._write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Ends the connection; what was sent arrives."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _write(self, line: bytes) -> bool:
        try:
            with self._lock:
                self._socket.sendall(line)
        except OSError:
            self._end()
        return not self.lost.is_set()

    def _read(self) -> None:
        try:
            with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
                for line in lines:
                    if line.strip():
                        self._came.put((self.rank, json.loads(line)))
        finally:  # whatever comes, who waits for this rank learns that it is lost
            self._end()
            self._came.put((self.rank, None))

    def _beat(self) -> None:
        while not self._closed.wait(self._silence / BEATS) and not self.lost.is_set():
            self._write(b"\n")

    def _end(self) -> None:
        self.lost.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def connect(group: mx.distributed.Group, came: Came) -> dict[int, Link]:
    """The links of rank 0 to the others, or of another one to rank 0, by rank. In rank 0 those are missing that do not
    come within `silence()`. Raises `DistributedError`."""
    return _listen(group, came) if group.rank() == 0 else _reach(group, came)


def _listen(group: mx.distributed.Group, came: Came) -> dict[int, Link]:
    host, token = _own_address(), secrets.token_hex(16)
    try:
        server = socket.create_server((host, 0), backlog=group.size())
    except OSError as error:
        raise DistributedError(
            f"rank 0 cannot listen at {host} ({error.strerror or error}); see the hostfile"
        ) from None
    links: dict[int, Link] = {}
    with server:
        broadcast(group, json.dumps([host, server.getsockname()[1], token]).encode())
        end = time.monotonic() + silence()
        while len(links) < group.size() - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                rank = greeted(connection, token, min(end, time.monotonic() + HELLO))
                if rank is None or rank in links:
                    connection.close()
                else:
                    links[rank] = Link(rank, connection, came)
    return links


def _reach(group: mx.distributed.Group, came: Came) -> dict[int, Link]:
    host, port, token = json.loads(broadcast(group))
    try:
        connection = socket.create_connection((host, port), timeout=silence())
        connection.sendall(json.dumps([token, group.rank()]).encode() + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise DistributedError(f"rank 0 is not reached at {host}:{port} ({reason}); see the hostfile") from None
    return {0: Link(0, connection, came)}


def greeted(connection: socket.socket, token: str, end: float) -> int | None:
    """The rank that a connection's first line names, beside the token; None for a stranger, and for one who has not
    said it by `end`, in seconds of `time.monotonic`."""
    try:
        said = parse_json(_first_line(connection, end).decode())
    except (OSError, ValueError):
        return None
    match said:
        case [str(given), int(rank)] if secrets.compare_digest(given.encode(), token.encode()):
            return rank
    return None


def _first_line(connection: socket.socket, end: float) -> bytes:
    """The bytes up to the first line break, read one by one: what follows is the link's."""
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_HELLO:
        connection.settimeout(max(0.001, end - time.monotonic()))
        if not (byte := connection.recv(1)):
            break
        line += byte
    return line


def _own_address() -> str:
    """The address at which the others reach rank 0: what the hostfile of the ring, or jaccl's or nccl's coordinator,
    says."""
    if hostfile := os.environ.get("MLX_HOSTFILE"):
        return addresses(hostfile)[0][0].rpartition(":")[0]
    if coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
        return coordinator.rpartition(":")[0]
    return os.environ.get("NCCL_HOST_IP") or socket.gethostname()
