"""One HTTP GET from one address, under a deadline. The one file that imports httpcore2; imported only to fetch.

The connection goes to the address that is given, directly: proxies of the environment are not used. Connecting, TLS,
headers and body together end by the deadline, however slowly a server drips. A body is taken as it is sent, never
decompressed, and not beyond its limit. Failures raise `ImageError`.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from typing import Any

import httpcore2

from ..errors import ImageError


@dataclass(frozen=True)
class Response:
    """A body where `status` is of a success, else none. `location` is where a redirect points."""

    status: int
    reason: str
    location: str | None
    body: bytes


class Unreachable(Exception):
    """No connection came about, so that another address of the host may be tried."""


def http_get(
    scheme: str, host: str, port: int | None, target: str, address: str, deadline: float, limit: int
) -> Response:
    """Asks a server and reads the answer.

    Args:
        scheme, port, target: of the address; `target` is path and query, percent-encoded.
        host: the name in ASCII that the server and its certificate are asked for.
        address: the IP address that is connected.
        deadline: of `time.monotonic`.
        limit: bytes of the body at most.

    Raises:
        Unreachable: no connection came about.
        TimeoutError: the deadline passed.
        ImageError: of anything else, without the picture's name.
    """
    shown = f"[{host}]" if ":" in host else host
    headers: dict[bytes | str, bytes | str] = {
        "Host": shown if port is None else f"{shown}:{port}",
        "User-Agent": "mlx-lfm2vl",
        "Accept": "image/*,*/*;q=0.8",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    url = httpcore2.URL(scheme=scheme, host=address, port=port, target=target)
    try:
        with (
            httpcore2.ConnectionPool(network_backend=_Network(deadline)) as pool,
            pool.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as response,
        ):
            return _read(response, limit)
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
        if time.monotonic() < deadline and not isinstance(error.__context__, ssl.SSLError):
            raise Unreachable(str(error)) from None
        if isinstance(error, httpcore2.ConnectTimeout):
            raise TimeoutError from None
        raise ImageError(f"cannot be fetched ({error})") from None
    except httpcore2.TimeoutException:
        raise TimeoutError from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise ImageError(f"cannot be fetched ({error or type(error).__name__})") from None


def _read(response: httpcore2.Response, limit: int) -> Response:
    fields = {name.lower(): value.decode("utf-8", "replace") for name, value in response.headers}
    status = response.status
    reason = response.extensions.get("reason_phrase", b"").decode("ascii", "replace")
    if not 200 <= status < 300:
        return Response(status, reason, fields.get(b"location"), b"")
    coding = fields.get(b"content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ImageError(f"the server sends it compressed ({coding}), though asked not to; download it and give a file")
    if fields.get(b"content-length", "").isdecimal() and int(fields[b"content-length"]) > limit:
        raise ImageError(f"more than {limit} bytes")
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        if len(body) > limit:
            raise ImageError(f"more than {limit} bytes")
    return Response(status, reason, None, bytes(body))


class _Stream(httpcore2.NetworkStream):
    """A connection of which every wait ends by the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float):
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *arguments: Any, **named: Any) -> httpcore2.NetworkStream:
        named["timeout"] = _left(self._deadline, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(*arguments, **named), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Network(httpcore2.SyncBackend):
    def __init__(self, deadline: float):
        self._deadline = deadline

    def connect_tcp(self, *arguments: Any, **named: Any) -> httpcore2.NetworkStream:
        named["timeout"] = _left(self._deadline, httpcore2.ConnectTimeout)
        return _Stream(super().connect_tcp(*arguments, **named), self._deadline)


def _left(deadline: float, late: type[Exception]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("the time is up")
    return left
