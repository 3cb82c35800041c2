"""Downloads a picture's bytes, within what a `SourcePolicy` allows. httpx2 is imported only when a URL is fetched.

Contract: http and https only, on every hop; no host on a private or loopback address unless allowed, and the connection
goes to the very address that was checked (a name that resolves differently a moment later gains nothing); size and time
are limited while the body streams. Each failure is an `ImageError` of one line that begins with the URL.
"""

from __future__ import annotations

import ipaddress
import socket
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ImageError

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS = 5


@dataclass(frozen=True)
class SourcePolicy:
    """What pictures may come from and how large they may be.

    `max_pixels` is the limit on height x width (Pillow has its own at 179 million), `max_bytes` on what is downloaded
    or inlined, `timeout` in seconds on a whole download. URLs of hosts on private or loopback addresses are refused
    unless `allow_private_addresses`.
    """

    allow_urls: bool = True
    allow_paths: bool = True
    allow_private_addresses: bool = False
    max_pixels: int = 150_000_000
    max_bytes: int = 256 * 2**20
    timeout: float = 30.0


DEFAULT_POLICY = SourcePolicy()


def short(name: str) -> str:
    """A name for messages: one line, of bounded length."""
    line = " ".join(name.split())
    return line if len(line) <= 120 else line[:100] + "..."


def fetch(url: str, policy: SourcePolicy) -> bytes:
    """The body behind a URL. Every hop is checked anew, and the connection goes to the address that was checked."""
    if not policy.allow_urls:
        raise ImageError(f"{short(url)}: URLs are not allowed here; give the picture itself")
    import httpx2

    deadline = time.monotonic() + policy.timeout
    label, target = short(url), url
    try:
        with httpx2.Client(timeout=policy.timeout, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("GET", **_request(target, label, policy)) as response:
                    if response.is_redirect:
                        target = urllib.parse.urljoin(target, response.headers["location"])
                        continue
                    if not response.is_success:
                        raise ImageError(
                            f"{label}: the server answered {response.status_code} {response.reason_phrase}"
                        )
                    return _body(response, label, deadline, policy)
            raise ImageError(f"{label}: more than {MAX_REDIRECTS} redirects")
    except httpx2.TimeoutException:
        raise ImageError(f"{label}: no answer within {policy.timeout:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{label}: cannot be fetched ({short(str(error)) or type(error).__name__})") from None


def _body(response: httpx2.Response, label: str, deadline: float, policy: SourcePolicy) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > policy.max_bytes:
            raise ImageError(f"{label}: more than {policy.max_bytes} bytes")
        if time.monotonic() > deadline:
            raise ImageError(f"{label}: not complete within {policy.timeout:g} seconds")
    return bytes(body)


def _request(url: str, label: str, policy: SourcePolicy) -> dict[str, Any]:
    """The request for one hop, addressed to the checked IP address, with the host's name where servers look for it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError(f"{label}: only http and https are followed, not {short(url)}")
    host, port = parts.hostname, parts.port
    try:
        found = socket.getaddrinfo(host, port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"{label}: the host {short(host)} is not found ({error})") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not policy.allow_private_addresses and not all(map(_is_public, addresses)):
        raise ImageError(f"{label}: {short(host)} is a private address, which is not fetched from here")
    address = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
    shown = f"[{host}]" if ":" in host else host
    return {
        "url": parts._replace(netloc=address + (f":{port}" if port else ""), fragment="").geturl(),
        "headers": {
            "Host": shown + (f":{port}" if port else ""),
            "User-Agent": "mlx-lfm2vl",
            "Accept-Encoding": "identity",
        },
        "extensions": {"sni_hostname": host},
    }


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast
