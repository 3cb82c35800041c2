"""A conversation that pays for its own words only: a turn costs its new tokens, a picture is encoded once.

The answer to a turn is that of a cold run of the whole conversation; the cache is an economy and never shows. Not for
several threads at once (see `Engine` for that).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..errors import OptionError, PromptError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing import geometry
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import assign_pictures, expand, image_spans
from ..processing.source import Picture, load_image
from . import saved, sequence
from .defaults import resolved
from .features import FeatureCache, check_features
from .options import GenerationOptions
from .prefix import PrefixCache, check_prefixes
from .question import check_pair, check_tools, checked_pictures, rendered, user_content
from .response import GenerationResponse
from .scheduler import Scheduler, drive
from .turn import ReadPictures, Turn, picture_key
from .watch import Progress, Stop


class Chat:
    """Turns with text and pictures, with one model.

    `messages` is the conversation as the chat template takes it, pictures as RGB PIL images, in which nobody may draw:
    a picture is known by what it was in its first turn. `options` hold for all turns that bring none of their own;
    `tools` are JSON schemas for the template; `features`, `prefixes` (of conversations that begin alike),
    `control_tokens` and `image_overrides` as for `stream_generate`.
    """

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        processor: Lfm2VlProcessor,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: GenerationOptions | None = None,
        features: FeatureCache | None = None,
        prefixes: PrefixCache | None = None,
        control_tokens: bool = False,
        **image_overrides: Any,
    ):
        check_pair(model, processor)
        if not (system is None or isinstance(system, str)):
            raise PromptError(f"system is {type(system).__name__}, expected text")
        if not isinstance(control_tokens, bool):
            raise OptionError(f"control_tokens is {control_tokens!r}, expected True or False")
        check_tools(tools)
        check_features(features)
        check_prefixes(prefixes)
        resolved(model, options)
        self.model, self.processor = model, processor
        self.tools, self.options = tools, GenerationOptions() if options is None else options
        self.features = features if features is not None else FeatureCache()
        self.prefixes = prefixes
        self.image_config = processor.image_processor.configured(**image_overrides)
        self.control_tokens, self._overrides = control_tokens, image_overrides
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._sequence = sequence.Sequence(model.config.text_config)
        self._keys: dict[int, tuple[weakref.ref[Picture], bytes]] = {}  # of the last turn's pictures, by their `id`
        self._close: Callable[[], None] | None = None  # ends the answer that is open

    # Turns

    def stream(
        self,
        text: str,
        images: Any = None,
        *,
        role: str = "user",
        options: GenerationOptions | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Iterator[GenerationResponse]:
        """Adds a turn and answers it piece by piece. `images` as in `stream_generate`, or what `read` made of them;
        `role` "tool" brings a tool's result.

        Turn and answer become part of the conversation when the stream ends, is cancelled or closed, the answer as far
        as it came; a turn that fails, or is cancelled before a word of answer, leaves the conversation as it was. Any
        other call closes the stream that is open. Raises `PromptError` within `stop` or `progress` of another turn.
        """
        if role not in ("user", "tool"):
            raise PromptError(f"role is {role!r}, expected 'user' or 'tool'")
        self._end_open()
        begun = time.perf_counter()
        if not isinstance(images, ReadPictures):
            user_content(text, images)  # what is wrong with them is said before they are read
        read = images if isinstance(images, ReadPictures) else self.read(images)
        started = min(begun, time.perf_counter() - read.seconds)  # it may have been read before
        del images
        content = user_content(text, read.pictures)
        self._keys |= {id(own): (weakref.ref(own), key) for own, key in zip(read.pictures, read.keys, strict=True)}
        messages = [*self.messages, {"role": role, "content": content if read.pictures else text}]
        yield from self._answer(messages, started, options, stop, progress, read)

    def read(self, images: Any) -> ReadPictures:
        """All of a turn's pictures that needs neither the model nor the conversation; in any thread. `images` as in
        `stream_generate`."""
        processor, begun = self.processor.image_processor, time.perf_counter()
        pictures = []
        for given in checked_pictures(images):
            picture = load_image(given, processor.source_policy)
            pictures.append(picture.copy() if picture is given else picture)  # the caller may go on drawing in it
        if not pictures:
            return ReadPictures([], [], None, 0.0)
        keys = [picture_key(picture, self.image_config) for picture in pictures]
        views, _ = processor.encode(pictures, **self._overrides)
        return ReadPictures(pictures, keys, views, time.perf_counter() - begun)

    def ask(self, text: str, images: Any = None, **arguments: Any) -> str:
        """The whole answer of `stream`, with the same arguments."""
        return "".join(piece.text for piece in self.stream(text, images, **arguments))

    def retry(
        self,
        *,
        options: GenerationOptions | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Iterator[GenerationResponse]:
        """Answers the last turn anew, in place of its answer. Raises `PromptError` if there is none."""
        self._end_open()
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise PromptError("there is no answer to try again")
        yield from self._answer(self.messages[:-1], time.perf_counter(), options, stop, progress)

    def undo(self) -> None:
        """Takes the last turn and its answer back. Raises `PromptError` if there is none."""
        self._end_open()
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise PromptError("there is no turn to take back")
        del self.messages[-2:]

    def reset(self) -> None:
        """Begins anew; the system's text stays."""
        self._end_open()
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]
        self._sequence.reset()

    def fork(self) -> Chat:
        """A second conversation with the same past; neither sees what the other does from here on."""
        self._end_open()
        twin = Chat(
            self.model,
            self.processor,
            tools=self.tools,
            options=self.options,
            features=self.features,
            prefixes=self.prefixes,
            control_tokens=self.control_tokens,
            **self._overrides,
        )
        twin.messages = list(self.messages)
        twin._sequence, twin._keys = self._sequence.fork(), dict(self._keys)
        return twin

    def _answer(
        self,
        messages: list[dict[str, Any]],
        started: float,
        options: GenerationOptions | None,
        stop: Stop | None,
        progress: Progress | None,
        read: ReadPictures | None = None,
    ) -> Iterator[GenerationResponse]:
        mx.reset_peak_memory()
        ids, spans, pictures = self._encode(messages)
        held = self._sequence
        said: list[str] = []
        finished = False
        scheduler = Scheduler(self.model, self.processor.tokenizer)
        turn, chosen = Turn(self, ids, spans, pictures, read), [resolved(self.model, options or self.options)]
        rows = scheduler.add(turn, chosen, started=[started], stop=stop, progress=progress)
        pieces = drive(scheduler, rows, stop)

        def close() -> None:
            if pieces.gi_running:  # type: ignore[attr-defined]
                raise PromptError("the conversation is answering; a turn cannot begin within another one's callbacks")
            self._close = None
            pieces.close()  # type: ignore[attr-defined]
            self._commit(messages, said, finished)
            held.hold([*ids, *rows[0].generated], spans)

        self._close = close
        try:
            for _, piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                said.append(piece.text + piece.tool_text)  # a model must find its calls in its past
                finished = finished or piece.finish_reason in ("stop", "length")
                if piece.finish_reason is not None:
                    close()
                yield piece
                if self._close is not close:
                    return
        except GeneratorExit:
            if self._close is close:
                close()
            raise
        except BaseException:
            self._close = None
            held.reset()  # the layers of a step that failed half-way do not agree
            raise

    def _end_open(self) -> None:
        """Ends the answer that is open, as closing its stream does. Raises `PromptError` from within it."""
        if self._close is not None:
            self._close()

    def _commit(self, messages: list[dict[str, Any]], said: list[str], finished: bool) -> None:
        if finished or any(said):
            self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _encode(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[sequence.PictureSpan], list[Picture]]:
        """Ids of the conversation with room for its pictures, whose pixels are not touched yet."""
        processor = self.processor
        text = rendered(processor, messages, self.tools, self.control_tokens)
        pictures = [
            item["image"]
            for message in messages
            if not isinstance(message["content"], str)
            for item in message["content"]
            if item["type"] == "image"
        ]
        markup = processor.markup()
        assign_pictures([text], pictures, markup.image)
        plans = [geometry.plan(picture.height, picture.width, self.image_config) for picture in pictures]
        ids = processor.tokenizer.encode_marked(expand(text, plans, markup).text)
        places = image_spans(ids, plans, processor.image_token_id, markup.markers) if plans else ()
        keys = [self._key(picture) for picture in pictures]
        self._keys = {id(picture): (weakref.ref(picture), key) for picture, key in zip(pictures, keys, strict=True)}
        spans = [sequence.PictureSpan(*place, key) for place, key in zip(places, keys, strict=True)]
        return ids, spans, pictures

    def _key(self, picture: Picture) -> bytes:
        known, key = self._keys.get(id(picture), (None, b""))
        return key if known is not None and known() is picture else picture_key(picture, self.image_config)

    # On disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation, pictures included, as one JSON file; over a saved conversation, never over
        another file. Raises `OutputError`."""
        self._end_open()
        saved.write(path, self.messages)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes up a saved conversation in place of this one, which stays where that fails. Raises `PromptError`
        if it is none, or holds a picture that the processor's `SourcePolicy` refuses."""
        self._end_open()
        self.messages = saved.read(path, self.processor.image_processor.source_policy)
