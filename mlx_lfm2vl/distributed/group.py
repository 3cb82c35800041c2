"""The group of the processes that `mlx.launch` started, bytes from its first one to all, and errors of one as those of
all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..backends.thread_state import computing
from ..config import parse_json
from ..errors import DistributedError, OutOfMemoryError, first_line, short

LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # in the environment of a rank: of mlx.launch, and of mpirun below it
MESSAGE = 512  # bytes of an error's, for other ranks
_ADDRESS = re.compile(r"\S+:\d{1,5}")


@dataclass(frozen=True)
class Launch:
    """How this process was started. `hosts`: the addresses of each rank of the back end ring, None of another one."""

    rank: str
    hosts: list[list[str]] | None

    @property
    def waits_for(self) -> str:
        """A line that says which ranks `launched_group` waits for."""
        if self.hosts is not None:
            others = [each for rank, host in enumerate(self.hosts) if str(rank) != self.rank for each in host[:1]]
            which = f"of the back end ring, at {short(', '.join(others))}"
        elif coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
            which = f"of the back end jaccl, and the coordinator at {coordinator}"
        else:
            which = f"of the back end {'nccl' if 'NCCL_HOST_IP' in os.environ else 'mpi'}"
        return f"rank {self.rank} waits for the other ranks {which}; all must be started, with the same hostfile"


def launch() -> Launch | None:
    """How the environment says that this process was started, None for a process alone. Raises `DistributedError`."""
    rank = next((os.environ[name] for name in LAUNCHED if name in os.environ), None)
    if rank is None:
        return None
    hostfile = os.environ.get("MLX_HOSTFILE")
    if hostfile is None:
        return Launch(rank, None)
    if len(hosts := addresses(hostfile)) < 2:
        return None
    rank = os.environ.get("MLX_RANK", "0")
    if rank not in map(str, range(len(hosts))):
        raise DistributedError(
            f"MLX_RANK is {rank!r}, but {hostfile} has {len(hosts)} ranks; start them with mlx.launch, which sets both"
        )
    return Launch(rank, hosts)


@computing
def launched_group() -> mx.distributed.Group | None:
    """The group of this process, None where it is alone. Waits for the other ranks. Raises `DistributedError`."""
    if launch() is None:
        return None
    try:
        group = mx.distributed.init(strict=False)
    except RuntimeError as error:
        raise DistributedError(f"the ranks do not reach each other ({first_line(error)}); see the hostfile") from None
    return group if group.size() > 1 else None


def addresses(hostfile: str) -> list[list[str]]:
    """The addresses (host:port) of each rank, as `mlx.launch` writes them for the back end ring; for one rank it writes
    an empty file, which MLX itself does not read. Raises `DistributedError`."""
    wrong = "start the ranks with mlx.launch, which writes it"
    try:
        text = Path(hostfile).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DistributedError(f"{hostfile}: MLX_HOSTFILE cannot be read ({reason}); {wrong}") from None
    if not text.strip():
        return []
    try:
        hosts = parse_json(text)
    except ValueError as error:
        raise DistributedError(f"{hostfile}: MLX_HOSTFILE is not JSON ({first_line(error)}); {wrong}") from None
    if not isinstance(hosts, list) or not all(map(_are_addresses, hosts)):
        raise DistributedError(f'{hostfile}: MLX_HOSTFILE is no list of ranks like ["10.0.0.1:5000"]; {wrong}')
    return hosts


def _are_addresses(host: object) -> bool:
    return isinstance(host, list) and bool(host) and all(_ADDRESS.fullmatch(str(each)) for each in host)


@computing
def broadcast(group: mx.distributed.Group, data: bytes = b"") -> bytes:
    """The `data` of rank 0, in every rank. Raises `DistributedError` where a rank is gone."""
    own = np.frombuffer(data if group.rank() == 0 else b"", np.uint8)
    try:
        length = np.array(mx.distributed.all_sum(mx.array([len(own)], mx.int32), group=group))
        sent = mx.array(own) if group.rank() == 0 else mx.zeros(tuple(length.tolist()), mx.uint8)
        return np.array(mx.distributed.all_sum(sent, group=group)).tobytes()
    except RuntimeError as error:
        raise DistributedError(f"a rank is gone ({first_line(error)}); start the command again") from None


@contextmanager
def agreed(group: mx.distributed.Group) -> Iterator[None]:
    """Lets all ranks of a group leave the block with an `OutOfMemoryError` where one of them has one, which it names.
    All must come to the same blocks. Raises `DistributedError` where a rank is gone."""
    own: OutOfMemoryError | None = None
    try:
        yield
    except OutOfMemoryError as error:
        own = error
    text = np.zeros(MESSAGE, np.uint8)
    if own is not None:
        said = np.frombuffer(f"rank {group.rank()}: {own}".encode()[:MESSAGE], np.uint8)
        text[: len(said)] = said
    try:
        if not mx.distributed.all_sum(mx.array(int(own is not None)), group=group).item():
            return
        every = np.array(mx.distributed.all_gather(mx.array(text)[None], group=group))
    except RuntimeError as error:
        raise DistributedError(f"a rank is gone ({first_line(error)}); start the command again") from None
    first = next(each for each in every if each.any())
    raise OutOfMemoryError(first[first > 0].tobytes().decode(errors="replace"))
