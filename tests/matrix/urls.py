"""Addresses of pictures: what is fetched, from whom, how much of it and for how long; and data: URIs."""

from __future__ import annotations

import base64
import contextlib
import gzip
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from conftest import load_array
from containers import NOISE, encoded
from PIL import Image

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.fetch import fetch, redirected
from mlx_lfm2vl.processing.load_image import load_image

from .bench import Bench
from .row import Gives, Refused, Row, without_bench
from .web import Reply, Server, response

PNG = encoded(Image.fromarray(NOISE), "PNG")
OPEN: dict[str, Any] = {"allow_private_addresses": True, "timeout": 10}
PUBLIC = "93.184.216.34"  # an address that anyone may be given; here its connections end at the row's own server


def served(reply: Reply, path: str = "/a.png", **policy: Any) -> Callable[[Bench], np.ndarray]:
    """What a picture is whose server answers so."""

    def act(bench: Bench) -> np.ndarray:
        server = bench.web({"/a.png": reply, "/b.png": response("200 OK", PNG)})
        return load_array(server.url + path, SourcePolicy(**{**OPEN, **policy}))

    return act


def redirects(count: int) -> Callable[[Bench], np.ndarray]:
    def act(bench: Bench) -> np.ndarray:
        hops = {f"/{n}": response("302 Found", Location=f"/{n - 1}") for n in range(1, count + 1)}
        server = bench.web({**hops, "/0": response("200 OK", PNG)})
        return load_array(f"{server.url}/{count}", SourcePolicy(**OPEN))

    return act


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def endless(piece: bytes, begin: bytes, pause: float = 0) -> Callable[[socket.socket], None]:
    """Sends `begin` and then `piece` until the client goes away."""

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(begin)
            while True:
                connection.sendall(piece)
                time.sleep(pause)

    return send


OK = b"HTTP/1.1 200 OK\r\n\r\n"
LARGE = bytes(200_000)


def silent(connection: socket.socket) -> None:
    time.sleep(30)


def in_time(act: Callable[[Bench], Any], seconds: float) -> Callable[[Bench], Any]:
    """The act, which must have ended by then, however it ends."""

    def timed(bench: Bench) -> Any:
        started = time.monotonic()
        try:
            return act(bench)
        finally:
            assert time.monotonic() - started < seconds

    return timed


def slow(name: str, reply: Reply) -> Row:
    """A server that drips faster than any single wait may last and never ends."""
    return Row(
        f"slow: {name}",
        in_time(served(reply, timeout=0.5), 20),
        Refused(ImageError, "http://127.0.0.1:", "no whole answer within 0.5 seconds"),
        seconds=60,
    )


# --- who may be asked -------------------------------------------------------------------------------------------------

PRIVATE = (
    *(
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
    ),
    *("192.0.0.8", "192.0.0.192", "192.88.99.1", "198.18.0.1", "203.0.113.7", "240.0.0.1"),
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[fe80::1]", "[fd00::1]", "[ff02::1]"),
    *(
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[2001::1]",
        "[::ffff:0:127.0.0.1]",
    ),
)


def private(host: str) -> Row:
    return Row(
        f"private: {host}",
        lambda _: load_image(f"http://{host}:9/a.png", SourcePolicy(timeout=5)),
        Refused(ImageError, f"http://{host}:9/a.png", "is a private address", "allow_private_addresses"),
    )


def through_a_name(addresses: list[str], *paths: str) -> Callable[[Bench], Any]:
    """A public name with those addresses, its server, and what is said of its picture; then what was connected."""

    def act(bench: Bench) -> Any:
        server = bench.web({"/a.png": response("200 OK", PNG)})
        connected = bench.internet({"pictures.example.com": addresses}, server)
        pixels = load_array("http://pictures.example.com/a.png", SourcePolicy(timeout=5))
        np.testing.assert_array_equal(pixels, NOISE)
        return [address for address, _ in connected], server.asked

    return act


def public_that_redirects(location: str) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        secret = bench.web({"/a.png": response("200 OK", PNG)})
        server = bench.web({"/a.png": response("302 Found", Location=location.format(port=secret.port))})
        bench.internet({"pictures.example.com": [PUBLIC], "inside.example.com": ["10.0.0.1"]}, server)
        try:
            return load_array("http://pictures.example.com/a.png", SourcePolicy(timeout=5))
        finally:
            assert secret.asked == []

    return act


WHO = [
    *(private(host) for host in PRIVATE),
    Row(
        "private addresses are fetched from where they are allowed",
        served(response("200 OK", PNG)),
        Gives(NOISE),
    ),
    Row(
        "a public name is asked by its name at its address",
        through_a_name([PUBLIC]),
        Gives(([PUBLIC], [("/a.png", "pictures.example.com")])),
    ),
    *(
        Row(
            f"a public name on {kind}",
            through_a_name([address]),
            Gives(([address], [("/a.png", "pictures.example.com")])),
        )
        for kind, address in (("IPv6", "2606:2800:220:1::1"), ("a public address through NAT64", "64:ff9b::5db8:d822"))
    ),
    Row(
        "a name that turns private after the check is connected where it was checked",
        through_a_name([PUBLIC, "127.0.0.1"]),
        Gives(([PUBLIC], [("/a.png", "pictures.example.com")])),
    ),
    Row(
        "a public name on a private address",
        through_a_name(["10.0.0.1"]),
        Refused(ImageError, "http://pictures.example.com/a.png", "is a private address", "allow_private_addresses"),
    ),
    *(
        Row(
            f"a public server redirects to {location.partition('/a')[0]}",
            public_that_redirects(location),
            Refused(ImageError, "http://pictures.example.com/a.png: ", what, way),
        )
        for location, what, way in (
            ("http://127.0.0.1:{port}/a.png", "127.0.0.1 is a private address", "allow_private_addresses"),
            ("//localhost:{port}/a.png", "localhost is a private address", "allow_private_addresses"),
            ("http://inside.example.com/a.png", "inside.example.com is a private address", "allow_private_addresses"),
            ("http://[::ffff:127.0.0.1]:{port}/a.png", "is a private address", "allow_private_addresses"),
            ("file:///etc/passwd", "only http and https are followed, not file:///etc/passwd", ""),
            ("ftp://pictures.example.com/a.png", "only http and https are followed, not ftp://", ""),
            ("data:image/png;base64,aaaa", "only http and https are followed, not data:", ""),
            ("http://me:secret@pictures.example.com/a.png", "redirects to an address with a user name", ""),
            ("http://[half/a.png", "which is no address", ""),
        )
    ),
    Row(
        "a redirect out of encryption",
        lambda _: redirected("https://example.com/a", "http://example.com/a"),
        Refused(ImageError, "http://example.com/a", "redirects from https to http", "give that address"),
    ),
    Row(
        "a redirect into encryption",
        lambda _: redirected("http://example.com/a", "https://example.com/a"),
        Gives("https://example.com/a"),
    ),
    Row(
        "URLs forbidden",
        lambda _: load_image("https://example.com/a.png", SourcePolicy(allow_urls=False)),
        Refused(ImageError, "https://example.com/a.png", "URLs are not allowed here", "give the picture itself"),
    ),
    Row(
        "a user name and a password, which the message leaves out",
        lambda _: load_image("https://me:secret@example.com/a.png"),
        Refused(ImageError, "https://...@example.com/a.png", "with a user name or password", "download it yourself"),
    ),
    Row(
        "an @ in the path is none",
        served(response("404 Not Found"), "/@b.png"),
        Refused(ImageError, "@b.png", "answered 404"),
    ),
]


# --- what servers do --------------------------------------------------------------------------------------------------


def asked(path: str) -> Callable[[Bench], Any]:
    """The paths and names that a server is asked for."""

    def act(bench: Bench) -> Any:
        server = bench.web({})
        with contextlib.suppress(ImageError):
            fetch(server.url + path, SourcePolicy(**OPEN))
        return [found for found, _ in server.asked]

    return act


def past_a_proxy(bench: Bench) -> Any:
    proxy = bench.web({})
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        bench.monkeypatch.setenv(name, proxy.url)
    pixels = served(response("200 OK", PNG))(bench)
    assert proxy.asked == []
    return pixels


def closed_port(bench: Bench) -> Any:
    server: Server = bench.web({})
    server.close()
    return load_image(f"{server.url}/a.png", SourcePolicy(**OPEN))


def wrong(name: str, reply: Reply, what: str, way: str = "", **policy: Any) -> Row:
    return Row(
        f"server: {name}", served(reply, **policy), Refused(ImageError, "http://127.0.0.1:", what, way), seconds=60
    )


SERVERS = [
    Row("server: a body of known length", served(response("200 OK", PNG)), Gives(NOISE)),
    Row("server: a body in chunks", served(chunked(PNG[:100], PNG[100:])), Gives(NOISE)),
    Row("server: a body that ends with the connection", served(OK + PNG), Gives(NOISE)),
    Row("server: of another type", served(response("200 OK", PNG, Content_Type="text/plain")), Gives(NOISE)),
    *(Row(f"server: {n} redirects", redirects(n), Gives(NOISE)) for n in (1, 5)),
    Row(
        "server: 6 redirects",
        redirects(6),
        Refused(ImageError, "http://127.0.0.1:", "more than 5 redirects", "give the address that they end at"),
    ),
    *(
        Row(f"server: a redirect {status}", served(response(status, Location="b.png")), Gives(NOISE))
        for status in ("301 Moved Permanently", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect")
    ),
    wrong("a redirect to nowhere", response("302 Found"), "the server answered 302 Found"),
    wrong("a redirect to itself", response("302 Found", Location="/a.png"), "more than 5 redirects"),
    wrong("not modified", response("304 Not Modified"), "the server answered 304 Not Modified"),
    wrong("not found", response("404 Not Found"), "the server answered 404 Not Found"),
    wrong("broken", response("500 Internal Server Error", PNG), "the server answered 500 Internal Server Error"),
    wrong("a reason with an escape", b"HTTP/1.1 404 \t\xff\r\n\r\n", "the server answered 404"),
    wrong("an empty body", response("200 OK"), "there are no bytes in it", "give those of a picture file"),
    wrong("a web page", response("200 OK", b"<html>"), "a web page", "give the address of the picture in it"),
    wrong("fewer bytes than it says", response("200 OK", PNG, Content_Length="9999"), "cannot be fetched (peer closed"),
    wrong("more bytes than it says", response("200 OK", PNG, Content_Length="50"), "damaged"),
    wrong("a length that is none", response("200 OK", PNG, Content_Length="many"), "cannot be fetched"),
    wrong("no HTTP", b"220 ftp.example.com\r\n", "cannot be fetched"),
    wrong("nothing at all", b"", "cannot be fetched (Server disconnected"),
    wrong("headers without end", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000, "cannot be fetched"),
    wrong(
        "compressed, though asked not to",
        response("200 OK", gzip.compress(PNG), Content_Encoding="gzip"),
        "sends it compressed (gzip)",
        "download it and give a file",
    ),
    wrong(
        "a compressed bomb",
        response("200 OK", gzip.compress(bytes(20_000_000)), Content_Encoding="gzip"),
        "sends it compressed (gzip)",
        "download it and give a file",
    ),
    wrong("more bytes than allowed", response("200 OK", LARGE), "more than 100000 bytes", max_bytes=100_000),
    wrong("more bytes than allowed, in chunks", chunked(LARGE), "more than 100000 bytes", max_bytes=100_000),
    wrong("bytes without end", endless(LARGE, OK), "more than 100000 bytes", max_bytes=100_000),
    wrong(
        "a length beyond what is allowed, and no body",
        endless(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", 0.1),
        "more than 268435456 bytes",
    ),
    slow("nothing is said", silent),
    slow("headers drip", endless(b"A", b"HTTP/1.1 200 OK\r\nX: ", 0.05)),
    slow("the body drips", endless(b"x", OK, 0.05)),
    slow("the sizes of chunks drip", endless(b"0", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0.05)),
    slow("redirects drip", endless(b" ", b"HTTP/1.1 302 Found\r\nLocation: ", 0.05)),
    Row(
        "server: nobody listens",
        closed_port,
        Refused(ImageError, "http://127.0.0.1:", "Connection refused"),
    ),
    Row(
        "request: spaces, letters and escapes in a path",
        asked("/a b é%20\x1b?q=é#part"),
        Gives(["/a%20b%20%C3%A9%20%1B?q=%C3%A9"]),
    ),
    Row("request: past the environment's proxy", past_a_proxy, Gives(NOISE)),
    Row("request: no path", asked("?a=1"), Gives(["/?a=1"])),
    Row("request: line breaks cannot add headers", asked("/a\r\nX-More: 1"), Gives(["/aX-More:%201"])),
]


# --- what is no address -----------------------------------------------------------------------------------------------


def no_address(url: str, what: str, way: str = "") -> Row:
    return Row(
        f"address {url[:30]!r}",
        lambda _: load_image(url, SourcePolicy(timeout=5)),
        Refused(ImageError, url[:20], what, way),
    )


ADDRESSES = [
    no_address("http://", "only http and https are followed"),
    no_address("http:///a.png", "only http and https are followed"),
    no_address("http:a.png", "only http and https are followed"),
    no_address("http://host:99999999/a", "is no address that can be fetched"),
    no_address("http://host:port/a", "is no address that can be fetched"),
    no_address("http://[::1/a.png", "is no address that can be fetched"),
    no_address("http://no-such-host.invalid/a", "the host no-such-host.invalid is not found"),
    no_address("http://exa mple/", "the host exa mple is not found"),
    no_address("http://" + "a" * 300 + "/", "is not found"),
    no_address("http://é..é/", "is not found"),
    no_address("ftp://example.com/a.png", "only http, https, file and data addresses and paths can be read"),
    no_address("gopher://127.0.0.1/", "only http, https, file and data addresses and paths can be read"),
    no_address("data:image/png;base64", "needs a comma before its data"),
    no_address("data:image/png;base64,@@@", "is not base64", "encode the bytes of a picture file"),
    no_address("data:image/png;base64,AAAAA", "is not base64", "encode the bytes of a picture file"),
    no_address("data:,", "there are no bytes in it", "give those of a picture file"),
    no_address("data:,hello", "not a picture in a format that Pillow reads", "convert it to PNG or JPEG"),
    *(
        Row(
            f"a data: URI of too many bytes, {kind}",
            without_bench(load_image, uri, SourcePolicy(max_bytes=1000)),
            Refused(ImageError, uri[:20], "more than 1000 bytes", "make it smaller"),
        )
        for kind, uri in (("base64", "data:;base64," + "A" * 5000), ("plain", "data:," + "A" * 5000))
    ),
    *(
        Row(f"a data: URI {kind}", without_bench(load_array, uri), Gives(NOISE))
        for kind, uri in (
            ("of base64", "data:image/png;base64," + base64.b64encode(PNG).decode()),
            ("in capitals", "DATA:IMAGE/PNG;BASE64," + base64.b64encode(PNG).decode()),
            ("of base64 over several lines", "data:;base64," + base64.encodebytes(PNG).decode()),
            ("of base64 with escapes", "data:;base64," + base64.b64encode(PNG).decode().replace("+", "%2B")),
            ("of escapes", "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)),
        )
    ),
]

ROWS = [*WHO, *SERVERS, *ADDRESSES]
