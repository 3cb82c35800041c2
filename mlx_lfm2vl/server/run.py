"""A server from its settings to its end: a socket, uvicorn, signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import uvicorn

from ..adapters.read import read_adapter
from ..errors import OptionError, OutputError, short
from .access import Access, is_address, is_loopback
from .answering import Answering
from .api_request import Rules
from .app import make_app
from .connection import connection_type
from .log import Write
from .metrics import Metrics
from .models import Models, ModelsSettings, check_name, name_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)  # of IPv6: no network, or not at all
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # all addresses of a machine, and its own
BACKLOG = 1024  # connections that the system holds until they are taken
LAST_SECONDS = 5.0  # that connections have to close once all answers have ended


@dataclass(frozen=True)
class Settings:
    """Settings of a server. `port` 0: one that is free. `open_to_all`: other addresses than this machine's own may be
    used without an API key. `deadline`: seconds that an answer may take (None: any). `shutdown_seconds`: that answers
    may still take once the server is told to stop. Raises `OptionError`, and for an adapter what `read_adapter`
    raises."""

    models: Sequence[str] = ("demo",)
    host: str = "127.0.0.1"
    port: int = 8080
    access: Access = field(default_factory=Access)
    open_to_all: bool = False
    rules: Rules = field(default_factory=Rules)
    model_settings: ModelsSettings = field(default_factory=ModelsSettings)
    deadline: float | None = None
    shutdown_seconds: float = 10.0

    def __post_init__(self) -> None:
        for source in self.models:
            check_name(source)
        if (adapter := self.model_settings.load.get("adapter")) is not None:
            read_adapter(adapter)
        if len(set(map(name_of, self.models))) < len(self.models):
            raise OptionError("two of the models have the same name; rename one of the folders")
        if self.host != "localhost" and not is_address(self.host):
            raise no_address(self.host)
        if not is_loopback(self.host) and self.access.api_key is None and not self.open_to_all:
            raise OptionError(
                f"{self.host} is reached from other machines, so it needs an API key (--api-key-file, "
                "MLX_LFM2VL_API_KEY) or --no-api-key, which lets anyone ask"
            )


class Server:
    """A server that listens from the start; `run` answers until `stop` is called, or a signal comes. `write` gets the
    lines of its log, in the thread that runs."""

    def __init__(self, settings: Settings, write: Write):
        self._settings, self._write = settings, write
        self._socket = listening(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        self._uvicorn: _Uvicorn | None = None
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """The address without a path. A server at all addresses of its machine is at that of the loopback, too."""
        host = EVERYWHERE.get(self._settings.host, self._settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self) -> None:
        """Answers until the end, in the calling thread."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Takes no more requests; those that are being answered may still end, for a time. Returns at once."""
        self._stopping.set()
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    async def _run(self) -> None:
        settings = self._settings
        models = Models(settings.models, settings.model_settings, self._write)
        answering = Answering(models, settings.rules, settings.deadline, settings.model_settings.draft)
        limits = settings.rules.limits
        config = uvicorn.Config(
            make_app(answering, settings.access, Metrics(), self._write),
            http=connection_type(limits),
            backlog=BACKLOG,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(limits.keep_alive_seconds),
            timeout_graceful_shutdown=int(settings.shutdown_seconds + 2 * LAST_SECONDS),
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the server has a log of its own
        self._uvicorn = _Uvicorn(config)
        self._uvicorn.should_exit = self._stopping.is_set()
        idle = asyncio.create_task(models.let_go_of_idle())
        cut = asyncio.create_task(self._cut_answers(self._uvicorn, models))
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            for task in (idle, cut):
                task.cancel()
            await asyncio.gather(idle, cut, return_exceptions=True)
            await models.close()
            answering.close()

    async def _cut_answers(self, server: _Uvicorn, models: Models) -> None:
        """Ends the answers that go on for too long after the server was told to stop."""
        while not server.should_exit:
            await asyncio.sleep(0.1)
        self._write("stopping")
        await asyncio.sleep(self._settings.shutdown_seconds)
        await models.close()


class _Uvicorn(uvicorn.Server):
    """A server that ends in order at a signal, at the second one at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        if threading.current_thread() is not threading.main_thread():  # only there Python allows a handler
            yield
            return
        before = {number: signal.signal(number, self._told) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, *_: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def no_address(host: str) -> OptionError:
    return OptionError(
        f"--host {short(host)!r} is no IP address of this machine; give one, such as 127.0.0.1 or 0.0.0.0"
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket at an IP address or localhost. Raises `OptionError` where that is none of this machine, and
    `OutputError`."""
    name = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ipaddress.ip_address(name).version == 6 else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            # asyncio sets TCP_NODELAY only where the protocol is named; without it a body waits for an acknowledgement
            made = opened.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((name, port))
            made.listen(BACKLOG)
        except OSError as error:
            if error.errno in NO_ADDRESS:
                raise no_address(host) from None
            raise OutputError(
                f"{host}:{port} cannot be listened at ({error.strerror}); choose another --port"
            ) from None
        opened.pop_all()
        return made
