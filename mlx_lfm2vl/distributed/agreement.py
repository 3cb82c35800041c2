"""Ranks that go on together or fail together: what one of them alone cannot do is an error of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from ..errors import DistributedError, OutOfMemoryError, first_line

LONGEST = 512  # bytes of a message


@contextmanager
def agreed(group: mx.distributed.Group) -> Iterator[None]:
    """Lets all ranks of a group leave the block with an `OutOfMemoryError` where one of them has one, which it names.
    All must come to the same blocks. Raises `DistributedError` where a rank is gone."""
    own: OutOfMemoryError | None = None
    try:
        yield
    except OutOfMemoryError as error:
        own = error
    text = np.zeros(LONGEST, np.uint8)
    if own is not None:
        said = np.frombuffer(f"rank {group.rank()}: {own}".encode()[:LONGEST], np.uint8)
        text[: len(said)] = said
    try:
        if not mx.distributed.all_sum(mx.array(int(own is not None)), group=group).item():
            return
        every = np.array(mx.distributed.all_gather(mx.array(text)[None], group=group))
    except RuntimeError as error:
        raise DistributedError(f"a rank is gone ({first_line(error)}); start the command again") from None
    first = next(each for each in every if each.any())
    raise OutOfMemoryError(first[first > 0].tobytes().decode(errors="replace"))
