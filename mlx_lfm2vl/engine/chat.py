"""A conversation whose turns are requests of an engine, answered beside all others."""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Unpack

from ..errors import PromptError
from ..generation.arguments import RetryArguments, Role, TurnArguments
from ..generation.conversation import Conversation, Turn
from ..generation.messages import is_remote, snapshot
from ..generation.options import GenerationOptions
from ..generation.request import EncodedPrompt, user_content
from ..generation.response import GenerationResponse
from ..generation.turn_pictures import ReadPictures
from ..generation.watch import Progress, Stop, check_callable
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .handle import Request, Sink
from .queue import Job
from .submit import RequestArguments, placed, whole


class AskArguments(TurnArguments, RequestArguments, total=False):
    """Options of `EngineChat.submit`."""


class AskAgainArguments(RetryArguments, RequestArguments, total=False):
    """Options of `EngineChat.submit_retry` and `submit_continue_final_message`."""


class EngineChat:
    """A `Chat` in an engine; methods are those of `Chat`. Its turns are answered in the order in which they are asked
    for, beside other requests. All methods may be called from any thread, and none but `ask` waits for an answer: one
    that changes the conversation ends the turn that is being answered, as it stands, and leaves turns that wait. It
    holds no model: once the engine is closed it can be read and saved."""

    def __init__(self, put: Callable[[Job, float], None], conversation: Conversation):
        """`put`: the engine's method that queues a job, after at most so many seconds."""
        self._put, self._conversation = put, conversation

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it stands after the last finished turn."""
        return list(self._conversation.messages)

    def submit(
        self,
        text: str,
        images: Any = None,
        *,
        videos: Any = None,
        role: Role = "user",
        options: GenerationOptions | None = None,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """A turn as a request; `deadline`, `wait`, `sink`, `progress` as for `Engine.submit`, `options` and the others
        as for `Chat.stream` (a `stop` of one's own is asked in the engine's thread). It is asked after the turns that
        wait."""
        given, moving = snapshot(images), snapshot(videos)

        def read() -> ReadPictures:
            user_content(text, given, moving)
            return self._conversation.read(given, moving)

        begin = functools.partial(self._conversation.ask, text, role=role)
        remote = is_remote(None, [images, videos])
        return self._submit(Request(deadline, sink, stop), begin, options, wait, progress, read, remote)

    def stream(
        self, text: str, images: Any = None, **arguments: Unpack[AskArguments]
    ) -> Generator[GenerationResponse, None, None]:
        """The responses to a turn; arguments as for `submit`. Closing it cancels the turn."""
        return iter(self.submit(text, images, **arguments))

    def ask(self, text: str, images: Any = None, **arguments: Unpack[AskArguments]) -> str:
        """The whole answer; what interrupts the wait for it cancels it. `EngineClosedError` where the engine's `close`,
        `unload` or `reload` comes first."""
        request = self.submit(text, images, **arguments)
        try:
            return whole(request, request.result()).text
        finally:
            request.cancel()

    async def astream(
        self, text: str, images: Any = None, **arguments: Unpack[AskArguments]
    ) -> AsyncGenerator[GenerationResponse, None]:
        """`stream` for asyncio: leaving the loop, or cancelling the task, ends the turn."""
        request = await placed(functools.partial(self.submit, text, images), **arguments)
        async with contextlib.aclosing(aiter(request)) as responses:
            async for response in responses:
                yield response

    async def aask(self, text: str, images: Any = None, **arguments: Unpack[AskArguments]) -> str:
        """`ask` for asyncio; cancelling the task ends the turn."""
        request = await placed(functools.partial(self.submit, text, images), **arguments)
        return whole(request, await request).text

    def submit_retry(
        self,
        *,
        options: GenerationOptions | None = None,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """The last turn anew, as a request; arguments as for `submit`."""
        return self._submit(Request(deadline, sink, stop), self._conversation.ask_again, options, wait, progress)

    def retry(self, **arguments: Unpack[AskAgainArguments]) -> Generator[GenerationResponse, None, None]:
        """The responses to `submit_retry`."""
        return iter(self.submit_retry(**arguments))

    def submit_continue_final_message(
        self,
        *,
        options: GenerationOptions | None = None,
        deadline: float | None = None,
        wait: float = 0.0,
        sink: Sink | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """The rest of the last answer, as a request; arguments as for `submit`."""
        begin = functools.partial(self._conversation.ask_again, continued=True)
        return self._submit(Request(deadline, sink, stop), begin, options, wait, progress)

    def continue_final_message(
        self, **arguments: Unpack[AskAgainArguments]
    ) -> Generator[GenerationResponse, None, None]:
        """The responses to `submit_continue_final_message`."""
        return iter(self.submit_continue_final_message(**arguments))

    def undo(self) -> None:
        """As `Chat.undo`; raises as it does."""
        self._conversation.undo()

    def reset(self) -> None:
        """As `Chat.reset`."""
        self._conversation.reset()

    def fork(self) -> EngineChat:
        """As `Chat.fork`."""
        return EngineChat(self._put, self._conversation.fork())

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `Chat.save`; raises as it does."""
        self._conversation.save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """As `Chat.load`; raises as it does."""
        self._conversation.load(path)

    def _submit(
        self,
        request: Request,
        begin: Callable[..., tuple[Turn, EncodedPrompt]],
        options: GenerationOptions | None,
        wait: float,
        progress: Progress | None,
        read: Callable[[], ReadPictures] | None = None,
        remote: bool = False,
    ) -> Request:
        """Queues the request for the turn that `begin` begins with what `read` returns, if anything is to be read.
        `remote`: it may wait for the network."""
        check_callable("progress", progress)
        begun: list[EncodedPrompt] = []

        def encode(model: weakref.ref[Lfm2VlForConditionalGeneration], processor: Lfm2VlProcessor) -> EncodedPrompt:
            if begun:  # a turn that is answered a second time goes on
                return begun[0]
            if (known := model()) is not None:
                self._conversation.use(known, processor)
            del known  # it may be let go of while a picture is slow
            pictures = [] if read is None else [read()]
            with self._conversation.lock:
                known = model()
                if known is None or request.stopped() or request.done:  # another turn may have begun since
                    raise PromptError("the turn was cancelled before it began")
                request.turn, prompt = begin(*pictures, options=options, cancel=request.cancel)
            _ = prompt.spans  # goes through all patches
            begun.append(prompt)
            if request.done:
                request.turn.fail()
            return prompt

        self._put(Job(request, encode, progress=progress, remote=remote, line=self._conversation), wait)
        return request
