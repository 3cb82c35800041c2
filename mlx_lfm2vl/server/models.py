"""The models of a server: each is downloaded and loaded when it is first asked for, and let go of when another one
needs its memory or nobody has asked for it for long. All runs in the event loop but `_fetch` and `_read`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..engine.engine import Engine
from ..engine.queue import Loaded
from ..errors import (
    ConfigError,
    EngineClosedError,
    HubError,
    Lfm2VlError,
    OptionError,
    OutOfMemoryError,
    TemplateError,
    TokenizerError,
    WeightsError,
)
from ..generation.draft_model import check_draft
from ..generation.lockstep import Lead
from ..hub import resolve
from ..hub.names import of_page, split
from ..pretrained import load
from ..processing.processor import Lfm2VlProcessor
from ..threads import cancellation
from .api_error import ApiError
from .fields import shown

REASONS = {  # why a model cannot be loaded, for callers, who are told no names of files
    HubError: "it is not on the server's disk and cannot be fetched",
    ConfigError: "its JSON files are missing, damaged or make no sense",
    WeightsError: "its weight files are missing or damaged, or do not fit its configuration",
    TokenizerError: "its tokenizer is missing or damaged",
    TemplateError: "its chat template is missing or damaged",
    OutOfMemoryError: "it does not fit into memory",
    OptionError: "an option of the server does not fit it",
}
CLOSE_SECONDS = 5.0
LOOK_SECONDS = 1.0  # between looks for models that nobody asks for


@dataclass(frozen=True)
class ModelsSettings:
    """Settings of all models: `memory_budget`, bytes that the weight files of loaded models have together (None: what
    fits); `keep_alive`, seconds after the last answer until a model is let go of (None: never); arguments of `load` and
    `Engine`; `lead`, of the other ranks that share them; `draft`, as in `GenerationOptions`, for all answers."""

    memory_budget: int | None = None
    keep_alive: float | None = None
    load: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    lead: Lead | None = None
    draft: Any = None


class Model:
    """A model that a server offers, by its name `id`. `state`: "unloaded", "downloading", "loading", "loaded" or
    "failed"; while it is one of the two in the middle, `progress` says how much is done, and of what. `error`: why it
    has failed, without names of files; the next request tries again."""

    def __init__(self, source: str):
        self.source, self.id = source, name_of(source)
        self.created = int(time.time())
        self.state = "unloaded"
        self.progress: tuple[str, int, int] | None = None
        self.error: str | None = None
        self.engine: Engine | None = None
        self.config: ModelConfig | None = None  # and its processor, while it is loaded
        self.processor: Lfm2VlProcessor | None = None
        self.bytes = 0  # of its weight files, once they are here
        self.users = 0  # requests that are being answered
        self.last_used = 0.0  # time.monotonic()
        self.opening: asyncio.Task[None] | None = None

    def told(self, what: str, done: int, total: int) -> None:
        """Takes note of what is done, from any thread: of a download its bytes, as soon as they are known."""
        if what != "files" or self.progress is None or self.progress[0] == what:
            self.progress = (what, done, total)


class Models:
    """The models of a server. `log` is told of each that is loaded, let go of, or cannot be loaded."""

    def __init__(self, sources: Sequence[str], settings: ModelsSettings, log: Callable[[str], None]):
        self._settings, self._log = settings, log
        self._models = {model.id: model for model in map(Model, sources)}
        self._order = asyncio.Lock()  # who makes room for a model
        self._idle = asyncio.Event()  # set where a model may have no more users
        # not set while a model waits for the memory of others: new requests come behind it
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def find(self, id: str) -> Model:
        """The model of this name. Raises `ApiError`."""
        if id not in self._models:
            known = ", ".join(self._models)
            raise ApiError(
                404,
                f"the model {shown(id, 120)} is not served here; there is {known}",
                param="model",
                code="model_not_found",
            )
        return self._models[id]

    @contextlib.asynccontextmanager
    async def use(self, id: str) -> AsyncIterator[Model]:
        """A model that stays loaded within the block. Raises `ApiError` and what loading raises."""
        model = self.find(id)
        await self._room.wait()
        model.users += 1
        try:
            if model.engine is not None and model.engine.closed:  # its thread has ended with an error
                model.state, model.engine = "unloaded", None
            while model.state != "loaded":
                self._check_open()
                if model.opening is None:
                    model.opening = asyncio.create_task(self._open(model))
                    model.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
                await asyncio.shield(model.opening)
            yield model
        finally:
            model.users -= 1
            model.last_used = time.monotonic()
            self._idle.set()

    async def let_go_of_idle(self) -> None:
        """Lets go of models that nobody has asked for within `keep_alive`; runs until it is cancelled."""
        while self._settings.keep_alive is not None:
            await asyncio.sleep(min(LOOK_SECONDS, self._settings.keep_alive or LOOK_SECONDS))
            for model in self:
                late = time.monotonic() - model.last_used >= self._settings.keep_alive
                if model.state == "loaded" and not model.users and late:
                    await self._let_go(model)

    async def close(self) -> None:
        """Ends all answers, loads and downloads."""
        self._closed = True
        engines = [model.engine for model in self if model.engine is not None]
        await asyncio.gather(*(engine.aclose(CLOSE_SECONDS) for engine in engines))
        tasks = [model.opening for model in self if model.opening is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    # Opening

    async def _open(self, model: Model) -> None:
        try:
            model.state, model.error = "downloading", None
            folder = await asyncio.to_thread(self._fetch, model)
            model.state, model.progress = "loading", None
            model.bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            async with self._order:
                await self._make_room(model)
                await self._load(model, folder)
            model.state, model.last_used = "loaded", time.monotonic()
            self._log(f"model {model.id} is loaded")
        except Lfm2VlError as error:
            self._log(f"model {model.id} cannot be loaded: {error}")
            if not isinstance(error, EngineClosedError):
                reasons = (reason for kind, reason in REASONS.items() if isinstance(error, kind))
                model.state, model.error = "failed", next(reasons, "an error of its files")
            if isinstance(error, (OutOfMemoryError, EngineClosedError)):
                raise
            told = f"the model {model.id} cannot be loaded: {model.error}; the server's log says more"
            raise ApiError(503, told, param="model", code="model_not_loaded") from error
        finally:
            if model.state not in ("loaded", "failed"):
                model.state = "unloaded"
            model.opening = model.progress = None

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the server is about to stop")

    def _fetch(self, model: Model) -> Path:
        with cancellation(self._check_open):
            return resolve(model.source, progress=model.told)

    async def _make_room(self, model: Model) -> None:
        """Lets go of the models that were used least recently, as the budget demands; waits for one that has users."""
        budget = self._settings.memory_budget
        if budget is not None and model.bytes > budget:
            raise OutOfMemoryError(
                f"{model.id}: its weights have {model.bytes} bytes, the budget of all models {budget}"
            )
        try:
            while budget is not None and model.bytes + sum(other.bytes for other in self._loaded()) > budget:
                self._room.clear()
                self._idle.clear()
                if not await self._let_go_of_one():
                    await self._idle.wait()
        finally:
            self._room.set()

    async def _load(self, model: Model, folder: Path) -> None:
        """Loads a model; where memory does not suffice, the others go first."""
        while True:
            try:
                if model.engine is None:
                    model.engine = Engine(partial(self._read, model, folder), **self._settings.engine)
                return await asyncio.to_thread(model.engine.wait_until_ready)
            except BaseException as error:
                if model.engine is not None and not model.engine.closed:
                    await asyncio.to_thread(model.engine.unload, CLOSE_SECONDS)  # the next try loads anew
                if not isinstance(error, OutOfMemoryError) or not await self._let_go_of_one():
                    raise

    def _read(self, model: Model, folder: Path) -> Loaded:
        loaded = load(folder, progress=model.told, **self._settings.load)
        check_draft(loaded[0].config, self._settings.draft)
        loaded[0].lead = self._settings.lead
        model.config, model.processor = loaded[0].config, loaded[1]
        return loaded

    def _loaded(self) -> list[Model]:
        return [model for model in self if model.state == "loaded"]

    async def _let_go_of_one(self) -> bool:
        """Whether there was a model without users."""
        idle = sorted((model for model in self._loaded() if not model.users), key=lambda model: model.last_used)
        if idle:
            await self._let_go(idle[0])
        return bool(idle)

    async def _let_go(self, model: Model) -> None:
        assert model.engine is not None
        model.state, model.config, model.processor = "unloaded", None, None
        if model.engine.closed:  # its thread has ended with an error
            model.engine = None
        else:
            with contextlib.suppress(EngineClosedError):  # it ends meanwhile
                await asyncio.to_thread(model.engine.unload, CLOSE_SECONDS)
        self._log(f"model {model.id} is unloaded")


def check_name(source: str) -> None:
    """Raises `OptionError` for what is neither a folder nor a repository's name, and so can never be loaded."""
    there = source == "demo" or Path(source).expanduser().exists()
    if not there and split(of_page(source)[0]) is None:
        raise OptionError(f"{source}: no such folder, and not a hub repository name like 'LiquidAI/LFM2-VL-450M'")


def name_of(source: str) -> str:
    """The name by which a model is asked for: that of the hub, or of its folder, never the path."""
    path = Path(source).expanduser()
    return path.resolve().name if source != "demo" and os.path.isdir(path) else source
