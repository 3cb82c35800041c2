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
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from ..errors import OptionError, PromptError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing import geometry
from ..processing.load_image import Picture, load_image
from ..processing.pages import pages_of
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import assign_pictures, expand, image_spans
from . import saved
from .arguments import PictureOverrides
from .defaults import grammar_of, positions_left, resolved
from .messages import check_tools, checked_pictures, user_content
from .options import GenerationOptions
from .request import EncodedPicture, EncodedPrompt, check_pair, rendered, split_pictures
from .response import GenerationResponse


@dataclass(frozen=True)
class ReadPictures:
    """The pictures of a turn, RGB, and what the model takes of each."""

    pictures: list[Picture]
    encoded: list[EncodedPicture]


class Turn:
    """A turn that is being answered. It becomes part of its conversation when it ends. `answer`: the beginning of its
    answer, if that is known."""

    def __init__(
        self, conversation: Conversation, messages: list[dict[str, Any]], answer: str, cancel: Callable[[], None]
    ):
        self._conversation, self._messages, self._cancel = conversation, messages, cancel
        self._said = [answer]
        self.open = True

    def hear(self, response: GenerationResponse) -> None:
        """Takes a response; the last one ends the turn."""
        with self._conversation.lock:
            if not self.open:
                return
            self._said.append(response.text + response.tool_text)  # a model must find its calls in its past
            if response.finish_reason is not None:
                self._end(response.finish_reason in ("stop", "length"))

    def fail(self) -> None:
        """Leaves the conversation as it was before the turn."""
        with self._conversation.lock:
            if self.open:
                self.open = False
                self._conversation.forget(self)

    def close(self) -> None:
        """Ends the turn with the answer as far as it came; without a word of it, nothing of the turn stays."""
        with self._conversation.lock:
            if self.open:
                self._cancel()
                self._end(False)

    def _end(self, finished: bool) -> None:
        self.open = False
        self._conversation.forget(self)
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
        check_tools(tools)
        resolved(model, options)
        self.tools, self.options = tools, GenerationOptions() if options is None else options
        self.control_tokens, self._overrides = control_tokens, image_overrides
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.lock = threading.RLock()
        self._turn: Turn | None = None  # the one that is open
        self._encoded: dict[int, tuple[weakref.ref[Picture], EncodedPicture]] = {}  # of pictures, by their `id`
        self._model: weakref.ref[Lfm2VlForConditionalGeneration] = weakref.ref(model)
        self.processor, self.image_config = processor, processor.image_processor.configured(**image_overrides)

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
                self._model, self.processor, self._encoded = weakref.ref(model), processor, {}
                self.image_config = processor.image_processor.configured(**self._overrides)

    # Turns

    def read(self, images: Any) -> ReadPictures:
        """Reads, resizes and cuts the pictures of a turn, without looking at the conversation. `images` as in
        `stream_generate`. Raises `PromptError` and `ImageError`."""
        pictures = []
        policy = self.processor.image_processor.source_policy
        for given in pages_of(checked_pictures(images), policy):
            picture = load_image(given, policy, self.image_config)
            picture = picture.copy() if picture is given else picture  # the caller may go on drawing in it
            picture.info = {}  # what it says is obeyed; a saved conversation must not say it again
            pictures.append(picture)
        return ReadPictures(pictures, self._encode_pictures(pictures))

    def _encode_pictures(self, pictures: list[Picture]) -> list[EncodedPicture]:
        if not pictures:
            return []
        arrays, plans = self.processor.image_processor.encode(pictures, **self._overrides)
        known = [weakref.ref(picture) for picture in pictures]

        def again(number: int) -> np.ndarray:
            """The patches of a picture that is still part of the conversation."""
            picture = known[number]()
            assert picture is not None
            return self.processor.image_processor.encode([picture], **self._overrides)[0]["pixel_values"]

        return split_pictures(arrays, [len(plan.spatial_shapes) for plan in plans], again)

    def ask(
        self,
        text: str,
        images: ReadPictures,
        *,
        role: str = "user",
        options: GenerationOptions | None = None,
        cancel: Callable[[], None],
    ) -> tuple[Turn, EncodedPrompt]:
        """Begins a turn, in place of one that is open. `cancel` ends the work on its answer. Raises `PromptError`."""
        if role not in ("user", "tool"):
            raise PromptError(f"role is {role!r}, expected 'user' or 'tool'")
        content = user_content(text, images.pictures)
        with self.lock:
            self.end_open()
            for picture, encoded in zip(images.pictures, images.encoded, strict=True):
                self._encoded[id(picture)] = weakref.ref(picture), encoded
            return self._begin(
                [*self.messages, {"role": role, "content": content if images.pictures else text}], options, cancel
            )

    def ask_again(
        self, *, options: GenerationOptions | None = None, cancel: Callable[[], None]
    ) -> tuple[Turn, EncodedPrompt]:
        """Begins the last turn anew, in place of its answer. Raises `PromptError` if there is none."""
        with self.lock:
            self.end_open()
            if not self.messages or self.messages[-1]["role"] != "assistant":
                raise PromptError("there is no answer to try again")
            return self._begin(self.messages[:-1], options, cancel)

    def continue_final_message(
        self, *, options: GenerationOptions | None = None, cancel: Callable[[], None]
    ) -> tuple[Turn, EncodedPrompt]:
        """Begins the last turn with its answer, which goes on. Raises `PromptError` if there is none, or it is no
        text."""
        with self.lock:
            self.end_open()
            if not self.messages or self.messages[-1]["role"] != "assistant":
                raise PromptError("there is no answer to continue")
            answer = self.messages[-1]["content"]
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
        self._turn = Turn(self, messages, answer, cancel)
        return self._turn, prompt

    def forget(self, turn: Turn) -> None:
        """Takes note that a turn has ended."""
        if self._turn is turn:
            self._turn = None

    def end_open(self) -> None:
        """Ends the turn that is open, as closing its stream does."""
        with self.lock:
            if self._turn is not None:
                self._turn.close()

    def undo(self) -> None:
        """Takes the last turn and its answer back, or the one that is being answered. Raises `PromptError` if there is
        none."""
        with self.lock:
            if self._turn is not None:
                before = self.messages
                self.end_open()
                if self.messages is before:  # without a word of answer it is no part of the conversation
                    return
            if not self.messages or self.messages[-1]["role"] != "assistant":
                raise PromptError("there is no turn to take back")
            self.messages = self.messages[:-2]

    def reset(self) -> None:
        """Begins anew; the system's text stays."""
        with self.lock:
            self.end_open()
            self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def fork(self) -> Conversation:
        """A second conversation with the past as it stands; neither sees what the other does from here on."""
        with self.lock:
            twin = copy.copy(self)
            twin.lock, twin._turn = threading.RLock(), None
            twin.messages, twin._encoded = list(self.messages), dict(self._encoded)
            return twin

    # On disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation as it stands, pictures included, as one JSON file; over a saved conversation, never
        over another file. Raises `OutputError`."""
        with self.lock:
            messages = list(self.messages)
        saved.write(path, messages)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes up a saved conversation in place of this one, which stays where that fails. Raises `PromptError` if it
        is none, or holds a picture that the processor's `SourcePolicy` refuses."""
        messages = saved.read(path, self.processor.image_processor.source_policy)
        with self.lock:
            self.end_open()
            self.messages = messages

    # Prompts

    def _encode(self, messages: list[dict[str, Any]], options: GenerationOptions, answer: str) -> EncodedPrompt:
        processor = self.processor
        text = rendered(processor, messages, self.tools, self.control_tokens, answer)
        pictures: list[Picture] = [
            item["image"]
            for message in messages
            if not isinstance(message["content"], str)
            for item in message["content"]
            if item["type"] == "image"
        ]
        markup = processor.markup()
        assign_pictures([text], pictures, *markup.placeholders)
        plans = [geometry.plan(picture.height, picture.width, self.image_config) for picture in pictures]
        ids = processor.tokenizer.encode_marked(expand(text, plans, markup).text)
        places = image_spans(ids, plans, processor.placeholder_ids, markup.markers) if plans else ()
        encoded = [self._encoded_picture(picture) for picture in pictures]
        self._encoded = {
            id(picture): (weakref.ref(picture), each) for picture, each in zip(pictures, encoded, strict=True)
        }
        grammar = grammar_of(self.model, processor.tokenizer, options)
        if grammar is not None and answer:
            grammar = grammar.behind(processor.tokenizer.encode(answer, add_special_tokens=False))
        return EncodedPrompt(np.array(ids, np.int64), options, tuple(encoded), tuple(places), grammar)

    def _encoded_picture(self, picture: Picture) -> EncodedPicture:
        known, encoded = self._encoded.get(id(picture), (None, None))
        if encoded is not None and known is not None and known() is picture:
            return encoded
        return self._encode_pictures([picture])[0]
