"""Limits of what a client may send, and the reader of bodies within them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.types import Receive, Scope

from .api_error import ApiError


@dataclass(frozen=True)
class Limits:
    """Limits of one request: `body_bytes`, `pictures`, `videos`, `pixels` of a picture, `video_pixels` of all frames of
    a video file, `parts` (messages and items of their content), `tools`, `schema_characters` of each JSON schema,
    `choices` (OpenAI's n), `stops` (texts). Of a connection, in seconds: `head_seconds` and `body_seconds` until a head
    or a body has come, `send_seconds` that a client may take to read a piece, `keep_alive_seconds` between two
    requests, `heartbeat_seconds` after which a stream that waits gives a sign of life. Of the server: `connections`;
    `bodies_bytes` of the bodies of all requests that come or are being answered."""

    body_bytes: int = 64 * 2**20
    pictures: int = 64
    videos: int = 4
    pixels: int = 50_000_000
    video_pixels: int = 2**35
    parts: int = 4096
    tools: int = 128
    schema_characters: int = 2**18
    choices: int = 16
    stops: int = 16
    head_seconds: float = 10.0
    body_seconds: float = 120.0
    send_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    heartbeat_seconds: float = 10.0
    connections: int = 512
    bodies_bytes: int = 512 * 2**20


class BodyReader:
    """Reads the bodies of requests, all together within the limits."""

    def __init__(self, limits: Limits):
        self._limits, self._held = limits, 0

    @contextlib.asynccontextmanager
    async def body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The body of a request, which counts within the block. Raises `ApiError` for one that is too large or too
        slow, and `ConnectionError` where the client goes away."""
        headers = dict(scope["headers"])
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise ApiError(415, "the body is not declared as JSON; send the header Content-Type: application/json")
        coding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if coding != "identity":
            raise ApiError(415, f"the body is compressed ({coding[:40]}), which is not read here; send it as it is")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            raise self._too_large()
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds) as limit:
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    size, self._held = size + len(piece), self._held + len(piece)
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    if self._held > self._limits.bodies_bytes:
                        raise ApiError(429, "too many large requests are here at the same time; try again later")
                    pieces.append(piece)
            pieces = [b"".join(pieces)]
            del message, piece  # nothing of it is kept here
            yield pieces.pop()
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(408, f"the body has not come within {self._limits.body_seconds:g} seconds") from None
        finally:
            self._held -= size

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, f"the body has more than {most} bytes; send fewer or smaller pictures and videos")
