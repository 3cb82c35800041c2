"""A conversation whose turns run in an engine's thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .chat import Chat
from .question import is_remote_question, snapshot
from .request import Request, Sink
from .response import GenerationResponse
from .watch import Stop, check_callable

T = TypeVar("T")


class Host(Protocol):
    """What a conversation needs of an engine."""

    def call(self, function: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], T], *, line: object) -> T: ...

    def enqueue(
        self,
        work: Callable[[Request, Any], None],
        deadline: float | None,
        wait: float,
        sink: Sink | None,
        *,
        read: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], Any] | None,
        remote: bool,
        line: object,
    ) -> Request: ...


class EngineChat:
    """A `Chat` whose turns run in an engine's thread, in the order in which they are asked for; methods are those of
    `Chat`. Pictures are read, resized and cut before, in another thread of the engine."""

    def __init__(self, engine: Host, chat: Chat):
        self._engine, self._chat = engine, chat

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it stands after the last finished turn."""
        return list(self._chat.messages)

    def submit(
        self,
        text: str,
        images: Any = None,
        *,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        stop: Stop | None = None,
        **arguments: Any,
    ) -> Request:
        """A turn as a request; `deadline`, `wait`, `sink` as for `Engine.submit`, the others as for `Chat.stream` (a
        `stop` of one's own is asked in the engine's thread)."""
        given = None if images is None else snapshot(images)
        read = None if images is None else lambda *_: self._chat.read(given)
        return self._submit(
            lambda pictures, **more: self._chat.stream(text, pictures, **arguments, **more),
            deadline,
            wait,
            sink,
            stop,
            read,
            is_remote_question(None, images),
        )

    def stream(self, text: str, images: Any = None, **arguments: Any) -> Iterator[GenerationResponse]:
        return iter(self.submit(text, images, **arguments))

    def ask(self, text: str, images: Any = None, **arguments: Any) -> str:
        """The whole answer; what interrupts the wait for it cancels it."""
        request = self.submit(text, images, **arguments)
        try:
            return request.result().text
        finally:
            request.cancel()

    def submit_retry(
        self,
        *,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        stop: Stop | None = None,
        **arguments: Any,
    ) -> Request:
        """The last turn anew, as a request."""
        return self._submit(lambda _, **more: self._chat.retry(**arguments, **more), deadline, wait, sink, stop)

    def retry(self, **arguments: Any) -> Iterator[GenerationResponse]:
        return iter(self.submit_retry(**arguments))

    def undo(self) -> None:
        self._call(self._chat.undo)

    def reset(self) -> None:
        self._call(self._chat.reset)

    def fork(self) -> EngineChat:
        return EngineChat(self._engine, self._call(self._chat.fork))

    def save(self, path: Any) -> None:
        self._call(lambda: self._chat.save(path))

    def load(self, path: Any) -> None:
        self._call(lambda: self._chat.load(path))

    def _call(self, function: Callable[[], T]) -> T:
        return self._engine.call(lambda *_: function(), line=self._chat)

    def _submit(
        self,
        turn: Callable[..., Iterator[GenerationResponse]],
        deadline: float | None,
        wait: float,
        sink: Sink | None,
        stop: Stop | None,
        read: Callable[[Lfm2VlForConditionalGeneration, Lfm2VlProcessor], Any] | None = None,
        remote: bool = False,
    ) -> Request:
        check_callable("stop", stop)

        def work(request: Request, pictures: Any) -> None:
            def stopped() -> bool:
                return request.stopped() or (stop is not None and stop())

            with contextlib.closing(turn(pictures, stop=stopped)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    request.deliver(piece)

        return self._engine.enqueue(work, deadline, wait, sink, read=read, remote=remote, line=self._chat)
