"""A sketch for the menu bar of a Mac: `python examples/menubar.py [MODEL]`. It was not run where it was written;
what it does, without widgets, is `menu.py`, which has tests.

Copy a picture, or press Control-Shift-Command-4 and draw a frame; then choose a question from the menu. The answer is
shown in the menu as it comes, and is copied once it is whole. Needs `pip install rumps`.
"""

from __future__ import annotations

import subprocess
import sys

import rumps  # type: ignore[import-not-found, import-untyped, unused-ignore]
from menu import QUESTIONS, Menu
from session import Session

POLL_SECONDS = 0.05


class MenuBar(rumps.App):  # type: ignore[misc]
    """A menu's widgets. Everything here runs in the thread of the menu and returns at once."""

    def __init__(self, model: str):
        super().__init__("LFM2-VL", title="◎", quit_button=None)
        self.actions = Menu(Session(), copy)
        self.line = rumps.MenuItem("")
        self.menu = [
            *(
                rumps.MenuItem(question, callback=lambda sender: self.actions.ask(sender.title))
                for question in QUESTIONS
            ),
            None,
            self.line,
            rumps.MenuItem("Cancel", callback=lambda sender: self.actions.session.cancel()),
            rumps.MenuItem("Load the model again", callback=lambda sender: self.actions.load(model)),
            None,
            rumps.MenuItem("Quit", callback=self.quit),
        ]
        self.actions.load(model)
        self.timer = rumps.Timer(self.poll, POLL_SECONDS)
        self.timer.start()

    def poll(self, timer: rumps.Timer) -> None:
        """Draws what has happened."""
        self.actions.poll()
        self.line.title = self.actions.line

    def quit(self, sender: rumps.MenuItem) -> None:
        """Ends everything first: AppKit ends the process without Python's own end."""
        self.actions.session.close()
        rumps.quit_application(sender)


def copy(text: str) -> None:
    """Puts a text into the clipboard."""
    subprocess.run(["pbcopy"], input=text, text=True, check=True)


if __name__ == "__main__":
    MenuBar(sys.argv[1] if len(sys.argv) > 1 else "demo").run()
