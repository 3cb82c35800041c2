"""The pictures of the next question, in a row of a Tk window. They are chosen, dropped or pasted, and a click takes one
away. In: a function that opens a picture, which is then given to `set`. Out: `pictures`.
"""

from __future__ import annotations

import tkinter as tk
from collections.abc import Callable, Sequence
from functools import partial
from tkinter import filedialog, ttk

from PIL import ImageTk
from session import PictureRead, Source, copied_picture

Open = Callable[[Source | Callable[[], Source]], None]


class Tray(ttk.Frame):
    """A row of small pictures. It takes files that are dropped on the window, where Tk has the extension tkdnd."""

    def __init__(self, parent: tk.Misc, open_picture: Open):
        super().__init__(parent)
        self.pictures: list[PictureRead] = []
        self._open = open_picture
        self._photos: list[ImageTk.PhotoImage] = []  # Tk shows them as long as Python holds them
        self.takes_drops = self._accept_drops()

    def set(self, pictures: Sequence[PictureRead]) -> None:
        """Shows these pictures in place of those that are there."""
        self.pictures = list(pictures)
        for child in self.winfo_children():
            child.destroy()
        self.configure(height=1)  # else an empty row stays as high as it was
        self._photos = [ImageTk.PhotoImage(each.preview.reduce(3), master=self) for each in pictures]
        for each, photo in zip(pictures, self._photos, strict=True):
            button = ttk.Button(self, style="Tray.TButton", image=str(photo), text="✕", compound="left")
            button.configure(command=partial(self.take_away, each))
            button.pack(side="left", padx=(0, 8), pady=(0, 10))

    def take_away(self, picture: PictureRead) -> None:
        """Takes one picture away."""
        self.set([each for each in self.pictures if each is not picture])

    def choose(self) -> None:
        """Asks for files and opens them."""
        for name in filedialog.askopenfilenames(parent=self, title="Open pictures"):
            self._open(name)

    def dropped(self, names: str) -> str:
        """Opens dropped files, a Tcl list of names."""
        for name in self.tk.splitlist(names):
            self._open(str(name))
        return "copy"

    def paste(self, event: object) -> str | None:
        """Opens the picture of the clipboard. Where there is text, the field that has the focus pastes it."""
        try:
            self.clipboard_get()
            return None
        except tk.TclError:
            self._open(self._copied_on_x11() or copied_picture)
            return "break"

    def _copied_on_x11(self) -> bytes:
        try:
            numbers = self.tk.call("selection", "get", "-selection", "CLIPBOARD", "-type", "image/png")
        except tk.TclError:  # another kind of picture, none, or another system
            return b""
        return bytes(int(number, 16) for number in str(numbers).split())

    def _accept_drops(self) -> bool:
        try:
            self.tk.call("package", "require", "tkdnd")
        except tk.TclError:
            return False
        self.tk.call("tkdnd::drop_target", "register", ".", "DND_Files")
        self.tk.call("bind", ".", "<<Drop:DND_Files>>", f"{self.register(self.dropped)} %D")
        return True
