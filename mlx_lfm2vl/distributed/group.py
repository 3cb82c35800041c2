"""The group of the processes that `mlx.launch` started, and bytes from its first one to all."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..backends.thread_state import computing
from ..errors import DistributedError, first_line

LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # in the environment of a rank: of mlx.launch, and of mpirun below it


@computing
def launched_group() -> mx.distributed.Group | None:
    """The group of this process, None where it is alone. Waits for the other ranks. Raises `DistributedError`."""
    if not any(name in os.environ for name in LAUNCHED):
        return None
    hostfile = os.environ.get("MLX_HOSTFILE")
    if hostfile is not None and not Path(hostfile).read_text().strip():
        return None  # of `mlx.launch -n 1`, which MLX itself does not read
    try:
        group = mx.distributed.init(strict=False)
    except RuntimeError as error:
        raise DistributedError(f"the ranks do not reach each other ({first_line(error)}); see the hostfile") from None
    return group if group.size() > 1 else None


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
