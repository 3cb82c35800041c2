"""A window that asks a model about a picture: `python examples/window.py [PICTURE] [--model MODEL]`.

Shows how an app uses `Engine`. The model lives in the engine's thread and every slow thing happens there or in a thread
of its own; what they deliver lands in a queue that the window looks into every few milliseconds. So the window answers
to the mouse while the model loads, sees and speaks. Needs tkinter, which comes with Python on a Mac (Debian:
python3-tk), and takes dropped files where Tk has the tkdnd extension.
"""

from __future__ import annotations

import argparse
import queue
import threading
import tkinter as tk
from tkinter import filedialog, ttk
from typing import Any

from PIL import Image, ImageTk

from mlx_lfm2vl import Engine, GenerationOptions, GenerationResponse, Lfm2VlError, Request, load
from mlx_lfm2vl.processing.load_image import load_image

POLL_MILLISECONDS = 15
PREVIEW = 320  # pixels a side, at most


class Window:
    """Widgets around an engine. Everything here runs in the thread of the event loop and returns at once."""

    def __init__(self, root: tk.Tk, engine: Engine, options: GenerationOptions | None = None):
        self.root, self.engine, self.options = root, engine, options or GenerationOptions()
        self.picture: Image.Image | None = None
        self.request: Request | None = None
        self.ready = False
        self._arrived: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()  # (what, of which, value)
        self._opened = 0
        self._build()
        self.takes_drops = self._accept_drops()
        self._show_state("loading the model ...")
        self._poll()

    def _build(self) -> None:
        self.root.title("mlx-lfm2vl")
        self.root.minsize(760, 420)
        self.root.columnconfigure(1, weight=1)
        self.root.rowconfigure(0, weight=1)

        left = ttk.Frame(self.root, padding=8, width=PREVIEW + 16)
        left.grid(row=0, column=0, rowspan=2, sticky="ns")
        left.grid_propagate(False)
        left.rowconfigure(0, weight=1)
        left.columnconfigure(0, weight=1)
        self.preview = ttk.Label(left, text="no picture", anchor="center")
        self.preview.grid(row=0, column=0, sticky="nsew")
        self.open_button = ttk.Button(left, text="Open a picture ...", command=self.choose)
        self.open_button.grid(row=1, column=0, sticky="ew")

        self.talk = tk.Text(self.root, wrap="word", state="disabled", width=48, height=16, padx=8, pady=8)
        self.talk.tag_configure("question", foreground="#1a5fb4")
        self.talk.tag_configure("error", foreground="#c01c28")
        self.talk.grid(row=0, column=1, sticky="nsew", padx=(0, 8), pady=8)

        line = ttk.Frame(self.root)
        line.grid(row=1, column=1, sticky="ew", padx=(0, 8))
        line.columnconfigure(0, weight=1)
        self.question = ttk.Entry(line)
        self.question.grid(row=0, column=0, sticky="ew")
        self.question.insert(0, "What is in this image?")
        self.question.bind("<Return>", lambda event: self.ask())
        self.ask_button = ttk.Button(line, text="Ask", command=self.ask_or_cancel, state="disabled")
        self.ask_button.grid(row=0, column=1, padx=(8, 0))
        self.root.bind("<Escape>", lambda event: self.cancel())

        self.state = ttk.Label(self.root, padding=(8, 4), relief="sunken")
        self.state.grid(row=2, column=0, columnspan=2, sticky="ew", pady=(8, 0))
        self.question.focus_set()

    def _accept_drops(self) -> bool:
        """Files may be dropped on the window, where Tk has the extension for it."""
        try:
            self.root.tk.call("package", "require", "tkdnd")
        except tk.TclError:
            return False
        self.root.tk.call("tkdnd::drop_target", "register", ".", "DND_Files")
        self.root.tk.call("bind", ".", "<<Drop:DND_Files>>", f"{self.root.register(self.dropped)} %D")
        return True

    # What a person does

    def choose(self) -> None:
        """Asks for a file and opens it."""
        name = filedialog.askopenfilename(parent=self.root, title="Open a picture")
        if name:
            self.open(str(name))

    def dropped(self, names: str) -> str:
        """Opens the first of the dropped files (a Tcl list of names)."""
        files = self.root.tk.splitlist(names)
        if files:
            self.open(files[0])
        return "copy"

    def open(self, name: str) -> None:
        """Reads a picture in a thread of its own: a large photograph takes longer than a window may pause."""
        self._opened += 1
        number = self._opened

        def read() -> None:
            try:
                picture = load_image(name)
                preview = picture.copy()
                preview.thumbnail((PREVIEW, PREVIEW))
                self._arrived.put(("picture", number, (picture, preview)))
            except Exception as error:  # whatever it is, the window tells of it
                self._arrived.put(("no picture", number, error))

        threading.Thread(target=read, daemon=True).start()

    def ask_or_cancel(self) -> None:
        self.cancel() if self.request else self.ask()

    def ask(self) -> None:
        """Sends the question, with the picture if there is one, to the engine."""
        text = self.question.get().strip()
        if not text or self.request or not self.ready:
            return
        self._say(f"{text}\n", "question")
        arrived = self._arrived

        def sink(item: GenerationResponse | BaseException) -> None:  # in the engine's thread
            arrived.put(("answer", None, item))

        try:
            images = None if self.picture is None else [self.picture]
            self.request = self.engine.submit(text, images, options=self.options, sink=sink)
        except Lfm2VlError as error:
            self._say(f"{error}\n\n", "error")
            return
        self.ask_button.configure(text="Cancel")
        self._show_state("thinking ...")

    def cancel(self) -> None:
        if self.request:
            self.request.cancel()

    # What arrives

    def _poll(self) -> None:
        if not self.ready:
            self._look_at_engine()
        for _ in range(100):  # not more at once than a window may pause for
            try:
                what, number, value = self._arrived.get_nowait()
            except queue.Empty:
                break
            if what == "answer":
                self._answered(value)
            elif number == self._opened:  # else another picture was chosen meanwhile
                self._read(value)
        self.root.after(POLL_MILLISECONDS, self._poll)

    def _look_at_engine(self) -> None:
        try:
            self.engine.wait_until_ready(timeout=0)
        except TimeoutError:
            return
        except Exception as error:
            self._show_state(f"the model cannot be loaded: {error}")
            self.ready = False
            return
        self.ready = True
        self.ask_button.configure(state="normal")
        self._show_state("ready")

    def _read(self, value: Any) -> None:
        if isinstance(value, Exception):
            self._say(f"{value}\n\n", "error")
            return
        self.picture, preview = value
        self._photo = ImageTk.PhotoImage(preview, master=self.root)  # Tk shows it as long as Python holds it
        self.preview.configure(image=self._photo, text="")
        assert self.picture is not None
        self._show_state(f"{self.picture.width} x {self.picture.height} pixels")

    def _answered(self, item: GenerationResponse | BaseException) -> None:
        if isinstance(item, BaseException):
            self._say(f"{item}\n\n", "error")
            self._end("something went wrong")
            return
        self._say(item.text)
        if item.finish_reason is None:
            self._show_state("answering ...")
            return
        self._say("\n\n")
        ends = {"stop": "done", "length": "cut off: the answer was too long", "cancelled": "cancelled"}
        report = ends[item.finish_reason]
        if item.statistics and item.statistics.generated_tokens:
            report += (
                f" · {item.statistics.generated_tokens} tokens at {item.statistics.tokens_per_second:.0f}/s,"
                f" the first after {item.statistics.time_to_first_token:.2f} s"
            )
        self._end(report)

    def _end(self, report: str) -> None:
        self.request = None
        self.ask_button.configure(text="Ask")
        self._show_state(report)

    def _say(self, text: str, tag: str = "") -> None:
        self.talk.configure(state="normal")
        self.talk.insert("end", text, tag)
        self.talk.configure(state="disabled")
        self.talk.see("end")

    def _show_state(self, text: str) -> None:
        self.state.configure(text=text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a model about a picture, in a window.")
    parser.add_argument("picture", nargs="?", help="a picture to begin with")
    parser.add_argument("--model", default="demo", help="folder, hub repository, or demo, the bundled model (default)")
    args = parser.parse_args()
    with Engine(lambda: load(args.model)) as engine:
        root = tk.Tk()
        window = Window(root, engine)
        if args.picture:
            window.open(args.picture)
        root.mainloop()


if __name__ == "__main__":
    main()
