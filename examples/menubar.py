"""A sketch for the menu bar of a Mac: `python examples/menubar.py [MODEL]`. It was not run where it was written.

Copy a picture, or press Control-Shift-Command-4 and draw a frame; then choose a question from the menu. The answer is
shown in the menu as it comes, and is copied once it is whole. Needs `pip install rumps`.
"""

from __future__ import annotations

import subprocess
import sys

import rumps  # type: ignore[import-not-found, import-untyped, unused-ignore]
from session import Answer, Loaded, NotLoaded, PictureRead, PictureRefused, Progress, Session, copied_picture

from mlx_lfm2vl import GenerationResponse

QUESTIONS = ("What is in this image?", "Read the text.", "Describe the image in detail.")
POLL_SECONDS = 0.05
WIDTH = 60  # characters of a line of the menu


class MenuBar(rumps.App):  # type: ignore[misc]
    """A menu around a session. Everything here runs in the thread of the menu and returns at once."""

    def __init__(self, model: str):
        super().__init__("LFM2-VL", title="◎")
        self.session = Session()
        self.question = self.answer = ""
        self.state = rumps.MenuItem("")
        self.menu = [
            *(rumps.MenuItem(question, callback=self.ask) for question in QUESTIONS),
            None,
            self.state,
            rumps.MenuItem("Cancel", callback=lambda sender: self.session.cancel()),
            rumps.MenuItem("Load the model again", callback=lambda sender: self.session.load(self.session.model)),
        ]
        self.session.load(model)
        self.timer = rumps.Timer(self.poll, POLL_SECONDS)
        self.timer.start()

    def ask(self, sender: rumps.MenuItem) -> None:
        """Reads the picture of the clipboard, for the question that was chosen."""
        if self.session.free:
            self.question = str(sender.title)
            self.session.read(copied_picture)

    def poll(self, timer: rumps.Timer) -> None:
        """Draws what has happened."""
        for event in self.session.events():
            match event:
                case Progress(what, done, total):
                    self.show(f"{what}: {done / max(total, 1):.0%}")
                case Loaded():
                    self.show(f"{self.session.model} is ready")
                case NotLoaded(error) | PictureRefused(error):
                    self.show(str(error))
                case PictureRead(picture) if self.session.free:
                    self.answer = ""
                    self.session.reset()  # each picture is a conversation of its own
                    self.session.ask(self.question, [picture])
                case Answer(GenerationResponse() as piece):
                    self.answer += piece.text
                    self.show(self.answer)
                    if piece.finish_reason is not None:
                        subprocess.run(["pbcopy"], input=self.answer, text=True, check=True)
                case Answer(error):
                    self.show(str(error))

    def show(self, text: str) -> None:
        self.state.title = text if len(text) <= WIDTH else f"... {text[-WIDTH:]}"


if __name__ == "__main__":
    MenuBar(sys.argv[1] if len(sys.argv) > 1 else "demo").run()
