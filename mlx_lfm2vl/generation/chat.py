"""A conversation that pays for its own words only: a turn costs its new tokens, a picture is encoded once.

The answer to a turn is that of a cold run of the whole conversation; the caches are an economy and never show. Not for
several threads at once (see `Engine` for that).
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import mlx.core as mx

from ..errors import PromptError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .arguments import PictureOverrides, Role, TurnArguments
from .conversation import Conversation, Turn
from .options import GenerationOptions
from .prompt_cache import PromptCache
from .request import EncodedPrompt, user_content
from .response import GenerationResponse
from .stream import drive, make_scheduler
from .vision_cache import VisionCache
from .watch import Progress, Stop


class Chat:
    """Turns with text and pictures, with one model.

    Args:
        model: as `load` returns it.
        processor: the same.
        system: the system's text.
        tools: JSON schemas for the template.
        options: for all turns that bring none of their own.
        vision_cache: where encoded pictures are kept; one of its own unless given.
        prompt_cache: where the states of the conversation are kept, and found by others that begin alike; one of its
            own unless given.
        control_tokens: as for `stream_generate`.
        image_overrides: the same.
    """

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        processor: Lfm2VlProcessor,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: GenerationOptions | None = None,
        vision_cache: VisionCache | None = None,
        prompt_cache: PromptCache | None = None,
        control_tokens: bool = False,
        **image_overrides: Unpack[PictureOverrides],
    ):
        self._model = model
        self._conversation = Conversation(
            model,
            processor,
            system=system,
            tools=tools,
            options=options,
            control_tokens=control_tokens,
            **image_overrides,
        )
        self.vision_cache = VisionCache() if vision_cache is None else VisionCache.check(vision_cache)
        self.prompt_cache = PromptCache() if prompt_cache is None else PromptCache.check(prompt_cache)
        self._close: Callable[[], None] | None = None  # ends the answer that is open

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as the chat template takes it, pictures as RGB PIL images, in which nobody may draw."""
        return self._conversation.messages

    @messages.setter
    def messages(self, messages: list[dict[str, Any]]) -> None:
        self._end_open()
        self._conversation.messages = messages

    @property
    def options(self) -> GenerationOptions:
        """For turns that bring none of their own."""
        return self._conversation.options

    @options.setter
    def options(self, options: GenerationOptions) -> None:
        self._conversation.options = options

    # Turns

    def stream(
        self,
        text: str,
        images: Any = None,
        *,
        videos: Any = None,
        role: Role = "user",
        options: GenerationOptions | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Generator[GenerationResponse, None, None]:
        """Adds a turn and answers it, response by response. `images` and `videos` as in `stream_generate`; `role`
        "tool" brings a tool's result.

        Turn and answer become part of the conversation when the stream ends, is cancelled or closed, the answer as far
        as it came; a turn that fails, or is cancelled before a word of answer, leaves the conversation as it was. Any
        other call closes the stream that is open. Raises `PromptError` within `stop` or `progress` of another turn.
        """

        def begin(**named: Any) -> tuple[Turn, EncodedPrompt]:
            user_content(text, images, videos)  # what is wrong with them is said before they are read
            read = self._conversation.read(images, videos)
            return self._conversation.ask(text, read, role=role, **named)

        return self._answer(begin, options=options, stop=stop, progress=progress)

    def ask(self, text: str, images: Any = None, **arguments: Unpack[TurnArguments]) -> str:
        """The whole answer of `stream`, with the same arguments. Raises `PromptError` where another thread's call ends
        it before."""
        responses = list(self.stream(text, images, **arguments))
        if not responses or responses[-1].finish_reason is None:
            raise PromptError("another thread's call ended the answer; use `Engine.chat`, which takes turns of several")
        return "".join(response.text for response in responses)

    def retry(
        self,
        *,
        options: GenerationOptions | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Generator[GenerationResponse, None, None]:
        """Answers the last turn anew, in place of its answer. Raises `PromptError` if there is none."""
        return self._answer(self._conversation.ask_again, options=options, stop=stop, progress=progress)

    def continue_final_message(
        self,
        *,
        options: GenerationOptions | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Generator[GenerationResponse, None, None]:
        """Goes on with the last answer, such as one that `max_tokens` cut off. The responses are what is new; in the
        conversation it stands behind what was there. Raises `PromptError` if there is no answer."""
        begin = partial(self._conversation.ask_again, continued=True)
        return self._answer(begin, options=options, stop=stop, progress=progress)

    def undo(self) -> None:
        """Takes the last turn and its answer back. Raises `PromptError` if there is none."""
        self._end_open()
        self._conversation.undo()

    def reset(self) -> None:
        """Begins anew; the system's text stays."""
        self._end_open()
        self._conversation.reset()

    def fork(self) -> Chat:
        """A second conversation with the same past; neither sees what the other does from here on."""
        self._end_open()
        twin = copy.copy(self)
        twin._conversation = self._conversation.fork()
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation, pictures included, as one JSON file; over a saved conversation, never over another
        file. Raises `OutputError`."""
        self._end_open()
        self._conversation.save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes up a saved conversation in place of this one, which stays where that fails. Raises `PromptError` if it
        is none, or holds a picture that the processor's `SourcePolicy` refuses."""
        self._end_open()
        self._conversation.load(path)

    def _answer(
        self,
        begin: Callable[..., tuple[Turn, EncodedPrompt]],
        *,
        options: GenerationOptions | None,
        stop: Stop | None,
        progress: Progress | None,
    ) -> Generator[GenerationResponse, None, None]:
        """Answers the turn that `begin` begins, in place of one that is open."""
        self._end_open()
        started = time.perf_counter()
        turn, prompt = begin(options=options, cancel=lambda: None)
        try:
            mx.reset_peak_memory()
            tokenizer = self._conversation.processor.tokenizer
            scheduler = make_scheduler(
                self._model, tokenizer, vision_cache=self.vision_cache, prompt_cache=self.prompt_cache
            )
            row = scheduler.add(prompt, started=started)
        except BaseException:
            turn.fail()
            raise
        del prompt
        responses = drive(scheduler, row, stop, progress)

        def close() -> None:
            if responses.gi_running:  # type: ignore[attr-defined]
                raise PromptError(
                    "the conversation is answering; a turn cannot begin within another one's callbacks, nor in another "
                    "thread (use `Engine.chat`, which takes turns of several)"
                )
            self._close = None
            responses.close()
            turn.close()
            scheduler.cancel(row.id)
            scheduler.step()  # its states go to the prompt cache

        self._close = close
        try:
            for item in responses:
                turn.hear(item)
                if item.finish_reason is not None:
                    self._close = None
                yield item
                if self._close is not close:
                    return
        except GeneratorExit:
            if self._close is close:
                close()
            raise
        except BaseException:
            self._close = None
            turn.fail()
            raise

    def _end_open(self) -> None:
        """Ends the answer that is open, as closing its stream does. Raises `PromptError` from within it."""
        if self._close is not None:
            self._close()
