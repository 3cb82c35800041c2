"""A server for rows about URLs: each path answers with the bytes that it is given, or does what a function does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping

Reply = bytes | Callable[[socket.socket], None]


def response(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP response with its length; header names are written with _ for -."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {headers.pop('Content_Length', len(body))}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Listens on a loopback port until `close`. `asked` are the paths that were asked for, with the Host header."""

    def __init__(self, replies: Mapping[str, Reply]):
        self._replies = replies
        self.asked: list[tuple[str, str]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._socket.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # the client may go away
            request = b""
            while b"\r\n\r\n" not in request:
                if not (more := connection.recv(4096)):
                    return
                request += more
            head = request.decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            host = next(line.partition(": ")[2] for line in head if line.lower().startswith("host:"))
            self.asked.append((path, host))
            reply = self._replies.get(path, response("404 Not Found"))
            if isinstance(reply, bytes):
                connection.sendall(reply)
            else:
                reply(connection)
