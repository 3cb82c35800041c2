"""Who may ask: callers with the API key, if there is one; of web pages those of this server and those that are named.
Without the key only `/health` and the files of the server's own page are answered, which are `/` and `/static/*`.

A page on the internet must not reach a server on this machine. Its name may be made to resolve to 127.0.0.1 (DNS
rebinding), so a request must name this machine in `Host`: by an IP address, which no other page has, `localhost`, or a
name that was allowed. `Origin`, which browsers send with all that changes anything, must be of this server or allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from ..errors import OptionError, short
from .api_error import ApiError

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\sA-Z/?#@,*]+")  # as browsers send it
OPEN = ("/", "/health")  # to callers without the key; and what lies below /static/


@dataclass(frozen=True)
class Access:
    """`api_key`: None asks for none. `hosts`: names of this machine beside localhost. `origins`: of web pages that may
    ask, such as `https://app.example`. Raises `OptionError`."""

    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.hosts:
            if host_of(name) != name:
                raise OptionError(
                    f"{short(name)} is no name that --allow-host takes; give it in small letters "
                    "without a port, such as studio.local"
                )
        for origin in self.origins:
            if ORIGIN.fullmatch(origin) is None:
                raise OptionError(
                    f"{short(origin)} is no origin that --allow-origin takes; give scheme, host and maybe a port, in "
                    "small letters and without a path, such as https://app.example or http://localhost:3000"
                )

    def check(self, scope: Scope) -> None:
        """Raises `ApiError` unless the request may be answered."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (host in ("localhost", *self.hosts) or is_address(host)):
            raise ApiError(
                403,
                "the header Host does not name this server; ask for it by its IP address, or start it "
                "with --allow-host NAME",
                code="host_not_allowed",
            )
        for origin in headers.getlist("origin"):
            if origin not in self.origins and origin.partition("://")[2].lower() != hosts[0].lower():
                raise ApiError(
                    403,
                    "web pages of other origins may not ask this server; start it with --allow-origin ORIGIN",
                    code="origin_not_allowed",
                )
        if scope["path"] not in OPEN and not scope["path"].startswith("/static/"):
            self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        if self.api_key is None:
            return
        bearers = [value for value in headers.getlist("authorization") if value[:7].lower() == "bearer "]
        given = [value.partition(" ")[2].strip() for value in bearers] + headers.getlist("x-api-key")
        expected = self.api_key.encode()
        right = [hmac.compare_digest(key.encode("latin-1"), expected) for key in given]
        if not right or not all(right):
            raise ApiError(
                401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
            )


def host_of(header: str) -> str | None:
    """The host of a header `Host`, in small letters, without its port; None where it is none."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    whole = parts.netloc == header and parts.username is None and not header.endswith(":")
    return parts.hostname.rstrip(".") if whole and parts.hostname else None


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a server that listens at this address is reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
