"""The menu of examples/menubar.py without its widgets, with the real session, engine and model."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_lfm2vl import GenerationOptions, demo, generate, load

EXAMPLES = Path(__file__).parent.parent / "examples"
MISSING = "model: has no config.json; it is not a model folder"
QUESTION = "What is in this image?"


@pytest.fixture
def start(monkeypatch):
    """Makes a menu whose pictures are those of a list; gives it with the list and with what it copied."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from menu import Menu
    from session import Session

    monkeypatch.setattr("session.AT_ONCE", 1)  # so that each event is seen
    sessions: list[Session] = []

    def begin(model: str = "demo", **options: object):
        sessions.append(session := Session(GenerationOptions(**options) if options else None))  # type: ignore[arg-type]
        pictures: list[Any] = [str(EXAMPLES / "scene.png")]
        copied: list[str] = []
        menu = Menu(session, copied.append, lambda: pictures[-1])
        menu.load(model)
        return menu, pictures, copied

    yield begin
    for session in sessions:
        session.close()


def run(menu, until: Callable[[], bool]) -> list[str]:
    """Polls as a timer does; the lines that were shown meanwhile."""
    lines, end = [menu.line], time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, lines
        menu.poll()
        if menu.line != lines[-1]:
            lines.append(menu.line)
        time.sleep(0.005)
    return lines


@pytest.mark.backends("mlx", "numpy")
def test_a_question_about_the_copied_picture_is_answered(start):
    menu, pictures, copied = start()
    assert menu.line == "loading demo ..."
    lines = run(menu, lambda: menu.session.free)
    assert "demo: weights, 100%" in lines and lines[-1] == "demo is ready"
    for name in ("scene.png", "shapes.png"):  # each in a conversation of its own
        pictures.append(str(EXAMPLES / name))
        menu.ask(QUESTION)
        assert menu.line == f"{QUESTION} ..."
        lines = run(menu, lambda: len(copied) == len(pictures) - 1)
        answer = generate(*load("demo"), QUESTION, str(EXAMPLES / name))
        assert copied[-1] == answer and len(lines) > 10
        assert menu.line == f"... {answer[-56:]}" and max(map(len, lines)) == 60


@pytest.mark.backends("mlx", "numpy")
def test_an_answer_that_is_cancelled_is_not_copied(start, endless):
    menu, _, copied = start(str(endless), max_tokens=100_000)
    run(menu, lambda: menu.session.free)
    menu.ask(QUESTION)
    run(menu, lambda: menu.line not in (f"{QUESTION} ...", ""))
    menu.ask("Read the text.")
    assert menu.line == "not asked, one thing at a time: Read the text."
    menu.session.cancel()
    run(menu, lambda: menu.session.free)
    assert menu.line == f"cancelled: {QUESTION}" and copied == []


def test_a_picture_that_cannot_be_read_is_told(start):
    menu, pictures, copied = start()
    run(menu, lambda: menu.session.free)
    for name in ("absent.png", "a" * 60):
        pictures.append(name)
        menu.ask(QUESTION)
        run(menu, lambda: menu.session.free)
        error = f"{name}: no such picture"
        assert menu.line == (error if len(error) <= 60 else f"{error[:56]} ...") and copied == []


def test_a_model_that_is_missing_can_be_loaded_again(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    menu, _, copied = start("model")
    run(menu, lambda: menu.line == MISSING)
    menu.ask(QUESTION)
    assert menu.line.startswith("not asked") and copied == []
    shutil.copytree(demo.path(), tmp_path / "model", dirs_exist_ok=True)
    menu.load("model")
    run(menu, lambda: menu.session.free)
    menu.ask(QUESTION)
    run(menu, lambda: bool(copied))


def test_a_question_whose_model_is_gone_by_then_is_not_asked(start, tmp_path, slow_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    menu, pictures, copied = start()
    run(menu, lambda: menu.session.free)
    pictures.append(slow_path)
    menu.ask(QUESTION)
    assert slow_path.asked.wait(60)
    menu.load("model")
    run(menu, lambda: menu.line == MISSING)
    slow_path.release.set()
    run(menu, lambda: menu.session.reading == 0)
    assert menu.line == f"not asked, the model is not ready: {QUESTION}" and copied == []
