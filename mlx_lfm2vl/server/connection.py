"""A connection to the server: uvicorn's, with limits on their number, on the time until a request's head has come and
until a client reads on, and with errors as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import first_line
from .api_error import ApiError
from .limits import Limits


def connection_type(limits: Limits) -> type[H11Protocol]:
    """The class of connections within these limits."""

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None  # until a head has come
        _unread: asyncio.TimerHandle | None = None  # until the client reads on

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._refuse(503, "the server has too many connections; try again later")
            else:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_here()
            self.resume_writing()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._head_is_here()
            elif self._timer is None:
                self._await_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread is None:  # closing would wait for the client
                self._unread = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def send_400_response(self, msg: str) -> None:
            error = sys.exc_info()[1]  # uvicorn passes the words of h11 to its log only
            reason = f" ({first_line(error)})" if isinstance(error, h11.RemoteProtocolError) else ""
            self._refuse(400, f"this is no HTTP request, or its head is too long{reason}")

        def _await_head(self) -> None:
            self._timer = self.loop.call_later(limits.head_seconds, self._too_slow)

        def _head_is_here(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._refuse(408, f"the head of the request has not come within {limits.head_seconds:g} seconds")

        def _refuse(self, status: int, message: str) -> None:
            """Answers in a shape that clients of both protocols read, and closes the connection."""
            if self.transport.is_closing():
                return
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                error = ApiError(status, message)
                body: dict[str, Any] = {"type": "error", **error.body(False, "")}
                data = json.dumps(body).encode()
                headers = [("content-type", "application/json"), ("content-length", str(len(data)))]
                headers += [("connection", "close"), *error.headers.items()]
                for event in (h11.Response(status_code=status, headers=headers), h11.Data(data), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection
