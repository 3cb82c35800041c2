"""Servers on loopback, in a thread of the tests, and their official clients."""

import base64
import contextlib
import functools
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import openai
from conftest import GOLDEN

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.server.models import ModelsSettings
from mlx_lfm2vl.server.run import Server, Settings

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTION = "What is in this image?"
ANSWER = "At the left there is a large black ring, and at the bottom right a large pink square."
SAFE = SourcePolicy(allow_urls=False, allow_paths=False)


class Running:
    """A server that answers; `lines` is its log."""

    def __init__(self, settings: Settings):
        self.lines: list[str] = []
        self.server = Server(settings, self.lines.append)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return self.server.url

    def openai(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, **more})

    def anthropic(self, **more: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(**{"base_url": self.url, "api_key": "any", "max_retries": 0, **more})

    def raw(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> tuple[int, Any, Any]:
        """A response to a request as it is: its status, headers, and body, which is parsed if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            data = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, response.headers, json.loads(data) if is_json else data.decode()
        finally:
            connection.close()

    def line(self, id: str) -> str:
        """The line of a request, which is written when it has ended."""
        return until(lambda: next((line for line in self.lines if f" {id}" in line and " req_" in line), ""))

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


def until(value: Any, seconds: float = 120.0) -> Any:
    """What the function returns, once it is true."""
    end = time.monotonic() + seconds
    while not (found := value()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.01)
    return found


def settings_of(*models: str | Path, **changes: Any) -> Settings:
    """Settings of a server on a free port that offers models of these names or folders."""
    hosting = ModelsSettings(load={"source_policy": SAFE}, engine={"max_queue": 128})
    changes.setdefault("shutdown_seconds", 1.0)
    return replace(Settings(tuple(map(str, models)) or ("demo",), port=0, model_settings=hosting), **changes)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Running]:
    running = Running(settings)
    try:
        yield running
    finally:
        running.stop()


@functools.cache
def data_uri(name: str) -> str:
    """A picture of examples/ as a data URI."""
    return "data:image/png;base64," + base64_of(name)


@functools.cache
def base64_of(name: str) -> str:
    path = EXAMPLES / f"{name}.png"
    return base64.b64encode((path if path.exists() else GOLDEN / "pictures" / path.name).read_bytes()).decode()


def about(name: str, text: str = QUESTION, **picture: str) -> Any:
    """OpenAI's messages: a question about a picture."""
    image = {"type": "image_url", "image_url": {"url": data_uri(name), **picture}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
