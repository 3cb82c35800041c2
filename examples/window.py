"""A window that talks with a model about pictures: `python examples/window.py [PICTURE ...] [--model MODEL]`.

Pictures come from files or from the clipboard, or are dropped on the window (`pip install tkinterdnd2`). Nothing here
waits: what is slow is the session's, whose events a timer draws. Needs tkinter, which comes with Python on a Mac
(Debian: python3-tk, python3-pil.imagetk).
"""

from __future__ import annotations

import argparse
import signal
import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import font, ttk

from PIL import ImageTk
from session import Answer, Loaded, NotLoaded, PictureRead, PictureRefused, Progress, Session, Source
from theme import DARK, LIGHT, paint, system_is_dark
from tray import Tray

from mlx_lfm2vl import FinishReason, GenerationResponse

MODELS = ("demo", "LiquidAI/LFM2.5-VL-450M", "LiquidAI/LFM2.5-VL-1.6B", "LiquidAI/LFM2.5-VL-3B")
POLL_MILLISECONDS = 15
ENDS: dict[FinishReason, str] = {
    "stop": "done",
    "length": "cut off: the answer was too long",
    "cancelled": "cancelled",
    "deadline": "cut off: the answer took too long",
}


class Window:
    """Widgets around a session. Everything here runs in the thread of the event loop and returns at once."""

    def __init__(self, root: tk.Tk, session: Session, model: str = "demo"):
        self.root, self.session = root, session
        self._asked: tuple[str, Sequence[PictureRead]] = "", ()  # comes back if it cannot be answered
        self._photos: list[ImageTk.PhotoImage] = []  # Tk shows them as long as Python holds them
        root.title("mlx-lfm2vl")
        root.geometry("720x640")
        root.minsize(480, 400)
        root.columnconfigure(0, weight=1)
        root.rowconfigure(1, weight=1)
        self._build_top(model)
        self._build_talk()
        self._build_bottom()
        self.dark = not system_is_dark(root)
        self.toggle_theme()
        self.load()
        root.after(POLL_MILLISECONDS, self._poll)

    def _build_top(self, model: str) -> None:
        top = ttk.Frame(self.root, padding=(12, 10))
        top.grid(row=0, sticky="ew")
        top.columnconfigure(0, weight=1)
        self.model = ttk.Combobox(top, values=MODELS)  # a folder or another repository can be typed
        self.model.set(model)
        self.model.bind("<<ComboboxSelected>>", lambda event: self.load())
        self.model.bind("<Return>", lambda event: self.load())
        self.retry_button = ttk.Button(top, text="Try again", command=self.load)
        self.new_button = ttk.Button(top, text="New conversation", command=self.begin_anew)
        self.theme_button = ttk.Button(top, width=6, command=self.toggle_theme)
        self.model.grid(row=0, column=0, sticky="ew")
        for column, button in enumerate((self.retry_button, self.new_button, self.theme_button), start=1):
            button.grid(row=0, column=column, padx=(8, 0))

    def _build_talk(self) -> None:
        frame = ttk.Frame(self.root)
        frame.grid(row=1, sticky="nsew")
        frame.columnconfigure(0, weight=1)
        frame.rowconfigure(0, weight=1)
        self.talk = tk.Text(frame, wrap="word", state="disabled", width=1, height=1, padx=20, pady=12, spacing2=3)
        large = font.nametofont("TkDefaultFont").copy()
        large.configure(size=round(large.cget("size") * 1.1))
        self.talk.configure(borderwidth=0, highlightthickness=0, font=large)
        self.talk.grid(row=0, column=0, sticky="nsew")
        scrollbar = ttk.Scrollbar(frame, command=self.talk.yview)
        scrollbar.grid(row=0, column=1, sticky="ns")
        self.talk.configure(yscrollcommand=scrollbar.set)

    def _build_bottom(self) -> None:
        bottom = ttk.Frame(self.root, padding=(12, 10, 12, 8))
        bottom.grid(row=2, sticky="ew")
        bottom.columnconfigure(1, weight=1)
        self.tray = Tray(bottom, self.open)
        self.tray.grid(row=0, columnspan=3, sticky="w")
        self.open_button = ttk.Button(bottom, text="Picture ...", command=self.tray.choose)
        self.question = ttk.Entry(bottom)
        self.question.insert(0, "What is in this image?")
        self.question.bind("<Return>", lambda event: self.ask())
        self.question.bind("<<Paste>>", self.tray.paste)
        self.ask_button = ttk.Button(bottom, style="Accent.TButton", width=8, command=self.ask_or_cancel)
        self.root.bind("<Escape>", lambda event: self.session.cancel())
        self.open_button.grid(row=1, column=0)
        self.question.grid(row=1, column=1, sticky="ew", padx=8)
        self.ask_button.grid(row=1, column=2)
        self.state = ttk.Label(bottom, style="Faint.TLabel")
        self.state.bind("<Configure>", lambda event: self.state.configure(wraplength=event.width))
        self.state.grid(row=2, columnspan=3, sticky="ew", pady=(8, 0))
        self.bar = ttk.Progressbar(bottom)
        self.bar.grid(row=3, columnspan=3, sticky="ew", pady=(4, 0))
        self.question.focus_set()

    # What a person does

    def load(self) -> None:
        """Loads the model that is chosen, in place of another; once more, if that failed."""
        name = self.model.get().strip()
        if name:
            self.session.load(name)
            self._show(f"loading {name} ...")
            self.retry_button.grid_remove()
            self.bar.configure(value=0)
            self.bar.grid()
            self._show_buttons()

    def begin_anew(self) -> None:
        """Forgets the conversation."""
        self.session.reset()
        self.talk.configure(state="normal")
        self.talk.delete("1.0", "end")
        self.talk.configure(state="disabled")
        self._photos.clear()
        self._begin()
        self._show_buttons()

    def toggle_theme(self) -> None:
        """From light to dark, and back."""
        self.dark = not self.dark
        palette = DARK if self.dark else LIGHT
        paint(self.root, palette)
        self.theme_button.configure(text="Light" if self.dark else "Dark")
        self.talk.configure(background=palette.page, foreground=palette.text, selectbackground=palette.accent)
        self.talk.tag_configure("question", background=palette.question, lmargincolor=palette.question)
        self.talk.tag_configure("question", rmargin=14, rmargincolor=palette.question, spacing1=8, spacing3=8)
        self.talk.tag_configure("answer", spacing1=10, spacing3=18, rmargin=14)
        self.talk.tag_configure("note", foreground=palette.faint, spacing3=10)
        self.talk.tag_configure("hint", foreground=palette.faint)
        self.talk.tag_configure("error", foreground=palette.error, spacing1=8, spacing3=10)
        for tag in ("question", "answer", "note", "hint", "error"):
            self.talk.tag_configure(tag, lmargin1=14, lmargin2=14)
        self.talk.tag_raise("sel")

    def open(self, source: Source | Callable[[], Source]) -> None:
        """Reads a picture for the next question."""
        self.session.read(source)
        self._show_buttons()

    def ask_or_cancel(self) -> None:
        self.session.cancel() if self.session.request else self.ask()

    def ask(self) -> None:
        """Asks the question with its pictures, and clears the field for the next one."""
        text = self.question.get().strip()
        if not text or not self.session.free:
            return
        self._asked = text, self.tray.pictures
        self.session.ask(text, [each.picture for each in self.tray.pictures])
        self._drop_hint()
        self._say_pictures(self.tray.pictures)
        self._say(f"{text}\n", "question")
        self._set_next("", ())
        self._show("thinking ...")
        self._show_buttons()

    # What arrives

    def _poll(self) -> None:
        for event in self.session.events():
            match event:
                case Progress(what, done, total):
                    self._show_progress(what, done, total)
                case Loaded():
                    self._begin()
                    self.bar.grid_remove()
                case NotLoaded(error):
                    self._show(f"cannot be loaded: {error}", "Error.TLabel")
                    self.bar.grid_remove()
                    self.retry_button.grid()
                case PictureRead(picture):
                    self.tray.set([*self.tray.pictures, event])
                    self._show(f"{picture.width} x {picture.height} pixels")
                case PictureRefused(error):
                    self._say(f"{error}\n", "error")
                case Answer(item):
                    self._answered(item)
            self._show_buttons()
        self.root.after(POLL_MILLISECONDS, self._poll)

    def _answered(self, item: GenerationResponse | BaseException) -> None:
        if isinstance(item, BaseException):
            self._say(f"{item}\n", "error")
            self._show("something went wrong", "Error.TLabel")
            if not self.question.get():
                self._set_next(*self._asked)
            return
        self._say(item.text, "answer")
        if item.finish_reason is None:
            self._show("answering ...")
            return
        self._say("\n", "answer")
        report = ENDS[item.finish_reason]
        if item.statistics and item.statistics.generated_tokens:
            report += (
                f" · {item.statistics.generated_tokens} tokens at {item.statistics.tokens_per_second:.0f}/s,"
                f" the first after {item.statistics.time_to_first_token:.2f} s"
            )
        self._show(report)

    # Drawing

    def _begin(self) -> None:
        self._drop_hint()
        self._say(f"A conversation with {self.session.model}\n", "note")
        ways = "Open, paste or drop a picture" if self.tray.takes_drops else "Open or paste a picture"
        self._say(f"{ways}, and ask about it. Escape ends an answer.\n", "hint")
        self._show("ready")

    def _drop_hint(self) -> None:
        if place := self.talk.tag_ranges("hint"):
            self.talk.configure(state="normal")
            self.talk.delete(*place)
            self.talk.configure(state="disabled")

    def _say(self, text: str, tag: str) -> None:
        """Writes at the end, and shows it unless the reader has scrolled away from there."""
        at_end = self.talk.yview()[1] == 1.0
        self.talk.configure(state="normal")
        self.talk.insert("end", text, tag)
        self.talk.configure(state="disabled")
        if at_end or tag == "question":
            self.talk.see("end")

    def _say_pictures(self, pictures: Sequence[PictureRead]) -> None:
        if not pictures:
            return
        self.talk.configure(state="normal")
        for each in pictures:
            self._photos.append(photo := ImageTk.PhotoImage(each.preview, master=self.root))
            self.talk.image_create("end", image=str(photo), padx=4)
            self.talk.tag_add("question", "end-2c")
        self.talk.configure(state="disabled")
        self._say("\n", "question")

    def _set_next(self, text: str, pictures: Sequence[PictureRead]) -> None:
        self.question.delete(0, "end")
        self.question.insert(0, text)
        self.tray.set(pictures)

    def _show_progress(self, what: str, done: int, total: int) -> None:
        self.bar.configure(maximum=max(total, 1), value=done)
        self._show(f"{self.session.model}: {what}, {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    def _show_buttons(self) -> None:
        answering = self.session.request is not None
        self.ask_button.configure(text="Cancel" if answering else "Ask")
        self.ask_button.configure(state="normal" if answering or self.session.free else "disabled")

    def _show(self, text: str, style: str = "Faint.TLabel") -> None:
        self.state.configure(text=text, style=style)


def new_root() -> tk.Tk:
    """A window on which files can be dropped, where tkinterdnd2 is installed."""
    try:
        from tkinterdnd2 import TkinterDnD  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return tk.Tk()
    root: tk.Tk = TkinterDnD.Tk()
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description="Talk with a model about pictures, in a window.")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="pictures of the first question")
    parser.add_argument("--model", default="demo", help="folder, hub repository, or demo, the bundled model (default)")
    args = parser.parse_args()
    root = new_root()
    signal.signal(signal.SIGINT, lambda number, frame: root.quit())  # Ctrl-C closes the window
    session = Session()
    window = Window(root, session, args.model)
    for picture in args.pictures:
        window.open(picture)
    root.mainloop()
    session.close()


if __name__ == "__main__":
    main()
