"""The part of an app that has no widgets: a model, a conversation about pictures, and what happens to them as events.

Every method returns at once. Slow work is done by the engine's thread or by threads of its own, and its results are
events. The app takes them by `events()` in its own thread, from a timer, and draws what they say.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageGrab

from mlx_lfm2vl import (
    Engine,
    EngineChat,
    GenerationOptions,
    GenerationResponse,
    ImageError,
    Lfm2VlError,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    Request,
    load,
    load_image,
)

AT_ONCE = 100  # events that an app draws before it looks at its mouse again
PREVIEW = 160  # pixels a side, at most
Source = str | bytes | Image.Image


@dataclass(frozen=True)
class Progress:
    """A model is on its way: bytes of its "download", or of its "weights" that are read."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Loaded:
    """The model is there, and its conversation begins."""

    chat: EngineChat


@dataclass(frozen=True)
class NotLoaded:
    error: Exception


@dataclass(frozen=True)
class PictureRead:
    picture: Image.Image
    preview: Image.Image


@dataclass(frozen=True)
class PictureRefused:
    error: Exception


@dataclass(frozen=True)
class Answer:
    """A piece of the answer, the last one with a `finish_reason`; or the error that came instead."""

    item: GenerationResponse | BaseException


Event = Progress | Loaded | NotLoaded | PictureRead | PictureRefused | Answer


class Session:
    """One model at a time, and one conversation with it. All methods are for the app's own thread.

    Args:
        options: of all answers. None: what the model's makers recommend.
    """

    def __init__(self, options: GenerationOptions | None = None):
        self.options = options
        self.model = ""
        self.engine: Engine | None = None
        self.request: Request | None = None  # the one that is being answered
        self.reading = 0  # pictures that are being read
        self._chat: EngineChat | None = None
        self._loads = self._turns = 0  # events of earlier ones are dropped
        self._arrived: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()  # with the number of load or turn

    @property
    def free(self) -> bool:
        """Whether a question can be asked now."""
        return self._chat is not None and self.request is None and not self.reading

    def load(self, model: str) -> None:
        """Loads a model, in place of the one that is there or on its way. `Progress`, then `Loaded` or `NotLoaded`."""
        self._drop_turn()
        self._loads += 1
        number, self.model, self._chat = self._loads, model, None

        def progress(what: str, done: int, total: int) -> None:  # in threads of the library
            if what != "files":
                self._arrived.put((number, Progress(what, done, total)))

        def loader() -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
            return load(model, progress=progress)

        if self.engine is None:
            self.engine = Engine(loader)
        else:
            self.engine.reload(loader)  # which ends a load or a download that goes on
        self._start(self._wait, number, self.engine)

    def read(self, source: Source | Callable[[], Source]) -> None:
        """Reads a picture: its file, its bytes, or what a function returns. `PictureRead` or `PictureRefused`."""
        self.reading += 1
        self._start(self._read, source)

    def ask(self, text: str, pictures: Sequence[Image.Image] = ()) -> None:
        """Asks the next question of the conversation, which may have pictures. `Answer` after `Answer`."""
        assert self._chat is not None and self.request is None
        self._turns += 1
        number = self._turns

        def sink(item: GenerationResponse | BaseException) -> None:  # in a thread of the request
            self._arrived.put((number, Answer(item)))

        try:
            self.request = self._chat.submit(text, list(pictures) or None, options=self.options, sink=sink)
        except Lfm2VlError as error:
            sink(error)

    def cancel(self) -> None:
        """Ends the answer. Its last piece says `cancelled`."""
        if self.request is not None:
            self.request.cancel()

    def reset(self) -> None:
        """Begins the conversation anew. Nothing more comes of an answer that is being made."""
        self._drop_turn()
        if self._chat is not None:
            self._chat.reset()

    def events(self) -> Iterator[Event]:
        """What has happened since the last call."""
        for _ in range(AT_ONCE):
            try:
                number, event = self._arrived.get_nowait()
            except queue.Empty:
                return
            match event:
                case PictureRead() | PictureRefused():
                    self.reading -= 1
                case Answer(item):
                    if number != self._turns:
                        continue
                    if isinstance(item, BaseException) or item.finish_reason is not None:
                        self.request = None
                case _ if number != self._loads:
                    continue
                case Loaded(chat):
                    self._chat = chat
            yield event

    def close(self) -> None:
        """Ends everything, also a download that goes on."""
        if self.engine is not None:
            self.engine.close()

    def _drop_turn(self) -> None:
        self.cancel()
        self._turns += 1
        self.request = None

    # In threads of their own

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _wait(self, number: int, engine: Engine) -> None:
        try:
            event: Event = Loaded(engine.chat())
        except Exception as error:  # whatever it is, the app tells of it
            event = NotLoaded(error)
        self._arrived.put((number, event))

    def _read(self, source: Source | Callable[[], Source]) -> None:
        try:
            picture = load_image(source() if callable(source) else source)
            preview = picture.copy()
            preview.thumbnail((PREVIEW, PREVIEW))
        except Exception as error:
            self._arrived.put((0, PictureRefused(error)))
        else:
            self._arrived.put((0, PictureRead(picture, preview)))


def copied_picture() -> Source:
    """The picture, or the first of the files, in the clipboard; for `Session.read`."""
    try:
        copied = ImageGrab.grabclipboard()
    except NotImplementedError:  # Linux without xclip and wl-paste
        copied = None
    if not copied:
        raise ImageError("there is no picture in the clipboard")
    return copied[0] if isinstance(copied, list) else copied
