"""A conversation as messages: how its turns become prompts, and what of them stays.

It computes nothing by MLX. `Chat` drives a scheduler with its prompts; in an engine they join the others' requests. All
methods may be called from any thread; none waits for an answer.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from ..errors import OptionError, PromptError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import assign_pictures, expand, image_spans
from . import saved
from .arguments import PictureOverrides
from .messages import check_tools
from .options import GenerationOptions, grammar_of, positions_left, resolved
from .request import EncodedPrompt, check_pair, rendered, user_content
from .response import GenerationResponse
from .turn_pictures import ReadPictures, TurnPictures


class Turn:
    """A turn that is being answered. It becomes part of its conversation when it ends. `answer`: the beginning of its
    answer, if that is known."""

    def __init__(
        self, conversation: Conversation, messages: list[dict[str, Any]], answer: str, cancel: Callable[[], None]
    ):
        self._conversation, self._messages, self._cancel = conversation, messages, cancel
        self._said = [answer]

    @property
    def _open(self) -> bool:
        return self._conversation.turn is self

    def hear(self, response: GenerationResponse) -> None:
        """Takes a response; the last one ends the turn."""
        with self._conversation.lock:
            if not self._open:
                return
            self._said.append(response.text + response.tool_text)  # a model must find its calls in its past
            if response.finish_reason is not None:
                self._end(response.finish_reason in ("stop", "length"))

    def fail(self) -> None:
        """Leaves the conversation as it was before the turn."""
        with self._conversation.lock:
            if self._open:
                self._conversation.turn = None

    def close(self) -> None:
        """Ends the turn with the answer as far as it came; without a word of it, nothing of the turn stays."""
        with self._conversation.lock:
            if self._open:
                self._cancel()
                self._end(False)

    def _end(self, finished: bool) -> None:
        self._conversation.turn = None
        if finished or any(self._said):
            self._conversation.messages = [*self._messages, {"role": "assistant", "content": "".join(self._said)}]


class Conversation:
    """Turns with text and pictures, for one model; arguments as for `Chat`."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        processor: Lfm2VlProcessor,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: GenerationOptions | None = None,
        control_tokens: bool = False,
        **image_overrides: Unpack[PictureOverrides],
    ):
        check_pair(model, processor)
        if not (system is None or isinstance(system, str)):
            raise PromptError(f"system is {type(system).__name__}, expected text")
        if not isinstance(control_tokens, bool):
            raise OptionError(f"control_tokens is {control_tokens!r}, expected True or False")
        if tools is not None:
            check_tools(tools)
        resolved(model, options)
        self.tools, self.options = tools, GenerationOptions() if options is None else options
        self.control_tokens = control_tokens
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.lock = threading.RLock()
        self.turn: Turn | None = None  # the one that is open
        self._model: weakref.ref[Lfm2VlForConditionalGeneration] = weakref.ref(model)
        processor.image_processor.configured(**image_overrides)  # raises
        self._pictures = TurnPictures(processor, image_overrides)

    @property
    def processor(self) -> Lfm2VlProcessor:
        return self._pictures.processor

    @property
    def model(self) -> Lfm2VlForConditionalGeneration:
        """The model, which whoever drives the conversation keeps: a conversation alone holds none in memory."""
        model = self._model()
        assert model is not None
        return model

    def use(self, model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor) -> None:
        """Goes on with a model, be it another one."""
        with self.lock:
            if self._model() is not model:
                self._model = weakref.ref(model)
                self._pictures = TurnPictures(processor, self._pictures.overrides)

    # Turns

    def read(self, images: Any, videos: Any = None) -> ReadPictures:
        """Reads, resizes and cuts the pictures and videos of a turn, without looking at the conversation. Arguments as
        in `stream_generate`. Raises `PromptError` and `ImageError`."""
        return self._pictures.read(images, videos)

    def ask(
        self,
        text: str,
        images: ReadPictures,
        *,
        role: str,
        options: GenerationOptions | None,
        cancel: Callable[[], None],
    ) -> tuple[Turn, EncodedPrompt]:
        """Begins a turn, in place of one that is open. `cancel` ends the work on its answer. Raises `PromptError`."""
        if role not in ("user", "tool"):
            raise PromptError(f"role is {role!r}, expected 'user' or 'tool'")
        content = user_content(text, images.pictures, images.videos)
        with self.lock:
            self.end_open()
            self._pictures.add(images)
            shown = content if images.encoded else text
            return self._begin([*self.messages, {"role": role, "content": shown}], options, cancel)

    def ask_again(
        self, *, continued: bool = False, options: GenerationOptions | None, cancel: Callable[[], None]
    ) -> tuple[Turn, EncodedPrompt]:
        """Begins the last turn anew: in place of its answer, or with it, if it is `continued`. Raises `PromptError` if
        there is none, or one to continue is no text."""
        with self.lock:
            self.end_open()
            if not self.messages or self.messages[-1]["role"] != "assistant":
                raise PromptError(f"there is no answer to {'continue' if continued else 'try again'}")
            answer = self.messages[-1]["content"] if continued else ""
            if not isinstance(answer, str):
                raise PromptError("the last answer is a list of items; only a text can be continued")
            answer = answer.rstrip("\N{REPLACEMENT CHARACTER}")  # of a character that was cut
            return self._begin(self.messages[:-1], options, cancel, answer)

    def _begin(
        self,
        messages: list[dict[str, Any]],
        options: GenerationOptions | None,
        cancel: Callable[[], None],
        answer: str = "",
    ) -> tuple[Turn, EncodedPrompt]:
        prompt = self._encode(messages, resolved(self.model, options or self.options), answer)
        positions_left(self.model, len(prompt.ids), bool(prompt.pictures))  # raises if there is no room for an answer
        self.turn = Turn(self, messages, answer, cancel)
        return self.turn, prompt

    def end_open(self) -> None:
        """Ends the turn that is open, as closing its stream does."""
        with self.lock:
            if self.turn is not None:
                self.turn.close()

    def undo(self) -> None:
        """As `Chat.undo`; of the turn that is being answered, if one is."""
        with self.lock:
            if self.turn is not None:
                before = self.messages
                self.end_open()
                if self.messages is before:  # without a word of answer it is no part of the conversation
                    return
            if not self.messages or self.messages[-1]["role"] != "assistant":
                raise PromptError("there is no turn to take back")
            self.messages = self.messages[:-2]

    def reset(self) -> None:
        """As `Chat.reset`."""
        with self.lock:
            self.end_open()
            self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def fork(self) -> Conversation:
        """As `Chat.fork`, with the past as it stands."""
        with self.lock:
            twin = copy.copy(self)
            twin.lock, twin.turn = threading.RLock(), None
            twin.messages, twin._pictures = list(self.messages), self._pictures.fork()
            return twin

    # On disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `Chat.save`, as the conversation stands."""
        with self.lock:
            messages = list(self.messages)
        saved.write(path, messages)

    def load(self, path: str | os.PathLike[str]) -> None:
        """As `Chat.load`."""
        messages = saved.read(path, self.processor.image_processor.source_policy)
        with self.lock:
            self.end_open()
            self.messages = messages

    # Prompts

    def _encode(self, messages: list[dict[str, Any]], options: GenerationOptions, answer: str) -> EncodedPrompt:
        processor = self.processor
        messages = processor.with_videos(messages, processor.image_processor.source_policy)
        text = rendered(processor, messages, self.tools, self.control_tokens, answer)
        encoded, plans = self._pictures.of(messages)
        markup = processor.markup()
        assign_pictures([text], encoded, *markup.placeholders)
        ids = processor.tokenizer.encode_marked(expand(text, plans, markup).text)
        places = image_spans(ids, plans, processor.placeholder_ids, markup.markers) if plans else ()
        grammar = grammar_of(self.model, processor.tokenizer, options)
        if grammar is not None and answer:
            grammar = grammar.behind(processor.tokenizer.encode(answer, add_special_tokens=False))
        return EncodedPrompt(np.array(ids, np.int64), options, tuple(encoded), tuple(places), grammar)
