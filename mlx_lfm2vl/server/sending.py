"""Responses as they are sent: whole ones as JSON, and streams of server-sent events whose clients never wait long for a
sign of life."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import Send

from .api_error import ApiError, api_error

Event = tuple[str | None, Any]  # its name, if it has one, and its data
COMMENT = b": keep-alive\n\n"  # which clients pass over
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes each event on as it comes
]


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def send_json(send: Send, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
    """A whole response."""
    data = as_json(value)
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    head += [(name.encode(), text.encode()) for name, text in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})


class EventStream:
    """A response of server-sent events, which begins with the first that is written. `heartbeat` is written where
    nothing else was for `seconds`."""

    def __init__(self, send: Send, seconds: float, heartbeat: bytes):
        self.begun = False
        self.count = 0  # of events
        self._send, self._seconds, self._heartbeat = send, seconds, heartbeat
        self._ended = False
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    async def begin(self) -> None:
        """Sends the head of the response."""
        await self._write(b"")

    async def add(self, event: Event) -> None:
        await self._write(_event(*event))
        self.count += 1

    async def end(self, event: Event | None = None) -> None:
        """Sends the last event, if there is one more, and ends the response."""
        await self._write(b"" if event is None else _event(*event), last=True)

    async def beat(self) -> None:
        """Writes the heartbeat from time to time; runs until it is cancelled."""
        while True:
            await asyncio.sleep(self._last + self._seconds - self._clock())
            if self._clock() - self._last >= self._seconds:
                await self._write(self._heartbeat)

    async def _write(self, data: bytes, last: bool = False) -> None:
        async with self._lock:
            if self._ended:
                return
            self._ended, self._last = last, self._clock()
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            if data or last:
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})


@contextlib.asynccontextmanager
async def event_stream(
    send: Send, seconds: float, heartbeat: bytes, of_error: Callable[[ApiError, int], Event]
) -> AsyncIterator[EventStream]:
    """A stream that ends with the block. An error within it is raised. If the stream has begun by then, it is its last
    event, too, of which `of_error` is told the number from 0 on."""
    stream = EventStream(send, seconds, heartbeat)
    beat = asyncio.create_task(stream.beat())
    try:
        yield stream
        await stream.end()
    except Exception as error:
        if stream.begun:
            await stream.end(of_error(api_error(error), stream.count))
        raise
    finally:
        beat.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beat


def _event(name: str | None, data: Any) -> bytes:
    text = data.encode() if isinstance(data, str) else as_json(data)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n"
