"""The example window, driven on a display of its own: real widgets, real events, the real engine.

Skipped only where there is no tkinter, or no display and no Xvfb to make one. Keeps a screenshot in build/window.png.
"""

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import GOLDEN

from mlx_lfm2vl import Engine, GenerationOptions, GenerationRequest, generate, generate_batch, load

tk = pytest.importorskip("tkinter", reason="this Python has no tkinter")

ROOT = Path(__file__).parent.parent
SCENE = ROOT / "examples" / "scene.png"
KEYS = {" ": "space", "?": "question", "<": "less", ">": "greater", ".": "period"}
PATIENCE = 0.050  # seconds that a window may let an event wait


@pytest.fixture(scope="module")
def display():
    """The name of a display: an Xvfb of our own, else the one there is."""
    if not shutil.which("Xvfb"):
        if sys.platform == "darwin" or os.environ.get("DISPLAY"):
            yield None
            return
        pytest.skip("there is no display, and no Xvfb to start one")
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-noreset"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with open(reading) as answer:
        number = answer.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def window_module():
    spec = importlib.util.spec_from_file_location("window", ROOT / "examples" / "window.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(display, window_module):
    """Opens a window for a model; gives it with its event loop under control."""
    open_: list[tuple[Any, Engine]] = []

    def begin(model: object = "demo", **options: object) -> "Driven":
        engine = Engine(lambda: load(model))  # type: ignore[arg-type]
        root = tk.Tk(screenName=display)
        open_.append((root, engine))
        return Driven(window_module.Window(root, engine, GenerationOptions(**options)), display)  # type: ignore[arg-type]

    yield begin
    for root, engine in open_:
        root.destroy()
        engine.close()
    gc.collect()  # in this thread: no other may touch what is left of Tk


class Driven:
    """A window whose event loop runs while something is awaited, and is timed."""

    def __init__(self, window, display: str | None):
        self.window, self.root, self.display = window, window.root, display
        self.longest = 0.0

    def run(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Runs the event loop; `longest` is the longest time that an event had to wait."""
        end, due = time.monotonic() + seconds, time.perf_counter()
        self.longest = 0.0

        def tick() -> None:
            nonlocal due
            self.longest = max(self.longest, time.perf_counter() - due)
            if until() or time.monotonic() > end:
                self.root.quit()
                return
            due = time.perf_counter() + 0.005
            self.root.after(5, tick)

        self.root.after(0, tick)
        self.root.mainloop()
        assert until(), f"not in {seconds} s; the window says {self.window.state.cget('text')!r}: {self.text!r}"

    @property
    def text(self) -> str:
        return self.window.talk.get("1.0", "end-1c")

    def ready(self) -> None:
        self.run(lambda: self.window.ready)

    def type(self, text: str) -> None:
        """Through the keyboard, in place of what stands there."""
        entry = self.window.question
        entry.focus_force()
        self.root.update()
        entry.event_generate("<Control-slash>")  # selects all
        for character in text:
            entry.event_generate("<Key>", keysym=KEYS.get(character, character))

    def key(self, name: str) -> None:
        self.window.question.event_generate(f"<{name}>")

    def ended(self) -> bool:
        return self.window.request is None


def test_open_ask_watch_cancel_ask_again(start):
    driven = start()
    window = driven.window
    driven.ready()
    assert window.state.cget("text") == "ready"
    window.open(str(SCENE))
    driven.run(lambda: window.picture is not None)
    assert window.state.cget("text").endswith(" pixels")

    model, processor = load("demo")
    for number, question in enumerate(("What is in this image?", "How many objects are there?")):
        driven.type(question)
        before = driven.text
        driven.key("Return")
        assert window.ask_button.cget("text") == "Cancel"
        driven.run(driven.ended)
        answer = generate(model, processor, question, [SCENE])
        assert driven.text == f"{before}{question}\n{answer}\n\n"
        assert window.state.cget("text").startswith("done · ") and window.ask_button.cget("text") == "Ask"
        if not number:
            screenshot(driven)


def screenshot(driven: Driven) -> None:
    from PIL import ImageGrab

    driven.root.update()
    (ROOT / "build").mkdir(exist_ok=True)
    left, top = driven.root.winfo_rootx(), driven.root.winfo_rooty()
    box = (left, top, left + driven.root.winfo_width(), top + driven.root.winfo_height())
    ImageGrab.grab(bbox=box, xdisplay=driven.display).save(ROOT / "build" / "window.png")
    assert (ROOT / "build" / "window.png").stat().st_size > 5000


def test_the_window_answers_within_50_ms_while_the_model_sees_and_speaks(start):
    """One picture of eight must pass without a longer wait. On a machine with other work any process is now and then
    kept waiting, but a window that blocks does so with every picture."""
    driven = start(GOLDEN / "gen25", max_tokens=150)
    driven.ready()
    waits = []
    for name in ("large", "landscape", "portrait", "photo", "square", "tall", "wide", "strip"):
        driven.window.picture = None
        driven.window.open(str(GOLDEN / "pictures" / f"{name}.png"))
        driven.run(lambda: driven.window.picture is not None)
        before = len(driven.text)
        driven.window.ask_button.invoke()
        driven.run(driven.ended)
        assert len(driven.text) > before + 50
        waits.append(driven.longest)
        if driven.longest < PATIENCE:
            break
    print(f"longest waits: {', '.join(f'{wait * 1000:.1f} ms' for wait in waits)}")
    assert min(waits) < PATIENCE, waits


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_cancelling_ends_the_answer_at_once_and_the_next_question_is_answered(start, how):
    driven = start(GOLDEN / "gen25", max_tokens=20000, temperature=3.0, seed=1)
    driven.ready()
    driven.window.ask_button.invoke()
    length = len(driven.text)
    driven.run(lambda: len(driven.text) > length + 20)  # it streams
    begun = time.monotonic()
    driven.key("Escape") if how == "Escape" else driven.window.ask_button.invoke()
    driven.run(driven.ended)
    assert time.monotonic() - begun < 2 and driven.window.state.cget("text").startswith("cancelled")
    driven.window.options = GenerationOptions(max_tokens=3)
    driven.window.ask_button.invoke()
    driven.run(driven.ended)
    question = GenerationRequest("What is in this image?", options=driven.window.options)
    expected = next(generate_batch(*load(GOLDEN / "gen25"), [question])).text
    assert driven.text.endswith(f"What is in this image?\n{expected}\n\n")


def test_what_goes_wrong_is_said_in_the_window(start, tmp_path):
    weights: list[mx.array] = []

    def damage(model, processor):
        weights.append(model.model.language_model.embedding_norm.weight)
        model.model.language_model.embedding_norm.weight = weights[0] * mx.nan

    def repair(model, processor):
        model.model.language_model.embedding_norm.weight = weights[0]

    driven = start()
    driven.ready()
    (tmp_path / "no picture.png").write_text("words")
    driven.window.open(str(tmp_path / "no picture.png"))
    driven.run(lambda: "no picture.png: not a picture" in driven.text)
    driven.window.engine.call(damage)
    driven.type("What is this?")
    driven.key("Return")
    driven.run(driven.ended)
    assert "holds NaN" in driven.text.splitlines()[-2] and driven.window.state.cget("text") == "something went wrong"
    driven.window.engine.call(repair)
    driven.type("Hello.")
    driven.key("Return")
    driven.run(driven.ended)
    assert driven.window.state.cget("text").startswith("done")


def test_a_model_that_cannot_be_loaded_is_said_in_the_window(start, tmp_path):
    driven = start(tmp_path)
    driven.run(lambda: "has no config.json" in driven.window.state.cget("text"))
    assert str(driven.window.ask_button.cget("state")) == "disabled"


def test_the_file_dialog_and_dropped_files_open_pictures(start, tmp_path):
    driven = start()
    driven.ready()
    call = driven.root.tk.call
    name = tmp_path / "my scene.png"
    shutil.copyfile(SCENE, name)
    if driven.root.tk.call("tk", "windowingsystem") == "x11":  # elsewhere the dialog is the system's own

        def choose() -> None:
            call(".__tk_filedialog.contents.f2.ent", "delete", "0", "end")
            call(".__tk_filedialog.contents.f2.ent", "insert", "0", str(name))
            call(".__tk_filedialog.contents.f2.ok", "invoke")

        driven.root.after(500, choose)
        driven.window.open_button.invoke()
        driven.run(lambda: driven.window.picture is not None)
        driven.window.picture = None
    assert driven.window.dropped("{" + str(name) + "} other.png") == "copy"
    driven.run(lambda: driven.window.picture is not None)
