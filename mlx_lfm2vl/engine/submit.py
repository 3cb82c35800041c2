"""What every way to submit a request takes, and how asyncio waits for a place in the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypedDict

from ..errors import QueueFullError
from .handle import Request, Sink, check_seconds

PLACE_SECONDS = 0.02  # between looks for a place in the queue


class RequestArguments(TypedDict, total=False):
    """Of a request of an engine."""

    deadline: float | None
    wait: float
    sink: Sink | None


async def placed(
    submit: Callable[..., Request], *, wait: float = 0.0, deadline: float | None = None, **arguments: Any
) -> Request:
    """The request, once there is a place for it. Raises `QueueFullError` after `wait` seconds."""
    begun = time.monotonic()
    end = begun + check_seconds("wait", wait)
    left = None if deadline is None else check_seconds("deadline", deadline)
    while True:
        try:
            return submit(deadline=left, **arguments)
        except QueueFullError:
            if time.monotonic() >= end:
                raise
            await asyncio.sleep(PLACE_SECONDS)
            left = None if deadline is None else max(0.0, begun + deadline - time.monotonic())
