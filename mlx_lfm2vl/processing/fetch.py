"""Downloads a picture's bytes, within what a `SourcePolicy` allows.

Contract: http and https only, on every hop, and never from https to http; no host on a private or loopback address
unless allowed, however the address is written, and the connection goes to the very address that was checked (a name
that resolves differently a moment later gains nothing); names, connections, headers and bodies share one time limit,
and size is limited while the body streams. Addresses with a user name or password are refused, so that none is sent or
written to a log. Each failure is an `ImageError` of one line that begins with the URL.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..errors import ImageError, OptionError, short

if TYPE_CHECKING:
    from .http_get import Response

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
ALLOW_PRIVATE = " unless that is allowed (allow_private_addresses, --allow-private-urls)"  # the way out of its owner
_CREDENTIALS = re.compile(r"([^/?#]*//)[^/?#]*@")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL = tuple(  # IANA's special-purpose registries, of which Python's `is_global` lacks some in some versions
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
    )
)
_GLOBAL = ipaddress.IPv6Network("2000::/3")  # all that is given out of IPv6; elsewhere lie many ways to write IPv4


@dataclass(frozen=True)
class SourcePolicy:
    """A policy on what pictures may come from and how large they may be.

    `max_pixels` is the limit on height x width, `max_video_pixels` on height x width x frames of a video file that are
    decoded, `max_bytes` on what is downloaded or inlined, `max_pages` on the pages of a PDF in one place,
    `max_pictures` on all pictures of a call, pages and frames that are seen as pictures counted (None: any number),
    `timeout` in seconds on a whole download. URLs of hosts on private or loopback addresses are refused unless
    `allow_private_addresses`. Raises `OptionError`.
    """

    allow_urls: bool = True
    allow_paths: bool = True
    allow_private_addresses: bool = False
    max_pixels: int = 150_000_000
    max_bytes: int = 256 * 2**20
    timeout: float = 30.0
    max_pages: int = 100
    max_pictures: int | None = None
    max_video_pixels: int = 2**40

    def __post_init__(self) -> None:
        for each in fields(self):
            value, is_flag = getattr(self, each.name), isinstance(each.default, bool)
            if is_flag and not isinstance(value, bool):
                raise OptionError(f"{each.name} is {value!r}, expected True or False")
            if is_flag or (each.default is None and value is None):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise OptionError(f"{each.name} is {value!r}, expected a number above 0")


DEFAULT_POLICY = SourcePolicy()


def fetch(url: str, policy: SourcePolicy) -> bytes:
    """The body behind a URL. Every hop is checked anew, and the connection goes to the address that was checked."""
    if found := _CREDENTIALS.match(url):
        shown = short(f"{found[1]}...@{url[found.end() :]}")
        raise ImageError(f"{shown}: addresses with a user name or password are not fetched; download it yourself")
    label = short(url)
    if not policy.allow_urls:
        raise ImageError(f"{label}: URLs are not allowed here; give the picture itself")
    deadline = time.monotonic() + policy.timeout
    target = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = _get(target, deadline, policy)
            if 200 <= response.status < 300:
                return response.body
            if response.status not in REDIRECTS or response.location is None:
                raise ImageError(f"the server answered {response.status} {short(response.reason)}".rstrip())
            target = redirected(target, response.location)
        raise ImageError(f"more than {MAX_REDIRECTS} redirects; give the address that they end at")
    except ImageError as error:
        raise ImageError(f"{label}: {error}") from None
    except TimeoutError:
        raise ImageError(f"{label}: no whole answer within {policy.timeout:g} seconds") from None


def redirected(url: str, location: str) -> str:
    """The address that a redirect leads to. Raises `ImageError` where it would leave encryption."""
    try:
        target = urllib.parse.urljoin(url, location)
    except ValueError:
        raise ImageError(f"redirects to {short(location)}, which is no address") from None
    if url.lower().startswith("https:") and target.lower().startswith("http:"):
        raise ImageError(f"redirects from https to {short(target)}, which is not followed; give that address")
    return target


def _get(url: str, deadline: float, policy: SourcePolicy) -> Response:
    from .http_get import Unreachable, http_get

    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:  # brackets, ports
        raise ImageError(f"is no address that can be fetched ({short(str(error))})") from None
    if scheme not in ("http", "https") or not host:
        raise ImageError(f"only http and https are followed, not {short(url)}")
    if parts.username is not None:
        raise ImageError("redirects to an address with a user name, which is not followed")
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ImageError(f"the host {short(host)} is not found (it is no name of a host)") from None
    target = urllib.parse.quote(parts.path or "/", safe="%/:=&?~+!$,;'@()*[]")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="%/:=&?~+!$,;'@()*[]")
    addresses = _resolved(host, port or (443 if scheme == "https" else 80), deadline)
    if not policy.allow_private_addresses and not all(map(_is_public, addresses)):
        raise ImageError(f"{short(host)} is a private address, which is not fetched from{ALLOW_PRIVATE}")
    failures = []
    for address in addresses:
        try:
            return http_get(scheme, host, port, target, str(address), deadline, int(policy.max_bytes))
        except Unreachable as error:
            failures.append(str(error))
    raise ImageError(f"cannot be fetched ({short(failures[0])})")


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _resolved(host: str, port: int, deadline: float) -> list[Address]:
    """All addresses of a host, without repeats. The system's resolver knows no time limit, hence the thread."""
    found: list[list[Address] | Exception] = []

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            names = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries)
            found.append([ipaddress.ip_address(name) for name in names])
        except (OSError, ValueError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, name="mlx-lfm2vl host name", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise ImageError(f"the host {short(host)} is not found ({short(str(found[0]))})")
    return found[0]


def _is_public(address: Address) -> bool:
    """Whether anyone on the internet may reach it; an IPv4 address inside an IPv6 address counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
        if address not in _GLOBAL:
            return False
    special = any(address in network for network in _SPECIAL if network.version == address.version)
    return address.is_global and not address.is_multicast and not special
