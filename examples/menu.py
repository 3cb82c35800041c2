"""The part of a menu bar's app that has no widgets: questions about one picture each. In: a question that was chosen.
Out: a line that says how things stand, and the answer, to be copied.
"""

from __future__ import annotations

from collections.abc import Callable

from session import (
    Answer,
    Loaded,
    NotLoaded,
    PictureRead,
    PictureRefused,
    Progress,
    Session,
    Source,
    copied_picture,
)

from mlx_lfm2vl import GenerationResponse

QUESTIONS = ("What is in this image?", "Read the text.", "Describe the image in detail.")
WIDTH = 60  # characters of a line of the menu


class Menu:
    """Questions and answers of a session. All methods are for the app's own thread and return at once.

    Args:
        session: with a model, or without one yet.
        copy: called with each answer that is whole.
        picture: called in a thread of its own for the picture of a question.
    """

    def __init__(self, session: Session, copy: Callable[[str], None], picture: Callable[[], Source] = copied_picture):
        self.session = session
        self.line = ""
        self._copy, self._picture = copy, picture
        self._question = self._answer = ""

    def load(self, model: str) -> None:
        """Loads a model; once more, if that failed."""
        self.session.load(model)
        self._show(f"loading {model} ...")

    def ask(self, question: str) -> None:
        """Asks about the picture that is there now. While another answer is on its way, it says so."""
        if not self.session.free:
            self._show(f"not asked, one thing at a time: {question}")
            return
        self._question = question
        self.session.read(self._picture)
        self._show(f"{question} ...")

    def poll(self) -> None:
        """Takes note of what has happened; for a timer."""
        for event in self.session.events():
            match event:
                case Progress(what, done, total):
                    self._show(f"{self.session.model}: {what}, {done / max(total, 1):.0%}")
                case Loaded():
                    self._show(f"{self.session.model} is ready")
                case NotLoaded(error) | PictureRefused(error):
                    self._show(str(error))
                case PictureRead(picture):
                    if self.session.free:
                        self._answer = ""
                        self.session.reset()  # each picture is a conversation of its own
                        self.session.ask(self._question, [picture])
                    else:  # another model is being loaded
                        self._show(f"not asked, the model is not ready: {self._question}")
                case Answer(GenerationResponse() as piece):
                    self._answer += piece.text
                    self._show(self._answer, end=True)
                    if piece.finish_reason in ("stop", "length"):
                        self._copy(self._answer)
                    elif piece.finish_reason is not None:
                        self._show(f"{piece.finish_reason}: {self._question}")
                case Answer(error):
                    self._show(str(error))

    def _show(self, text: str, *, end: bool = False) -> None:
        """Makes a text the line: its beginning, or its end, where it is longer."""
        text, kept = " ".join(text.split()), WIDTH - 4
        self.line = text if len(text) <= WIDTH else f"... {text[-kept:]}" if end else f"{text[:kept]} ..."
