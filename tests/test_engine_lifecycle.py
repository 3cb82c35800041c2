"""An engine's beginning and end: its arguments, its loader, `close`, and the end of the process."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from conftest import endless_model
from engines import FOREVER, enqueued, occupied

from mlx_lfm2vl import load
from mlx_lfm2vl.engine.engine import Engine
from mlx_lfm2vl.engine.handle import SinkThreads
from mlx_lfm2vl.errors import ConfigError, EngineClosedError, OptionError, OutputError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queue", 0),
        ("max_batch", True),
        ("cache_limit", -1),
        ("wired_limit", 0.5),
        ("idle_seconds", "long"),
        ("idle_seconds", 1e12),
        ("idle_seconds", float("nan")),
        ("vision_cache_bytes", None),
        ("prompt_cache_bytes", -1),
        ("loader", 3),
    ],
)
def test_limits_are_checked(name, value):
    with pytest.raises(OptionError, match=f"{name} is {value!r}, expected"):
        Engine(**{"loader": endless_model, name: value})


def test_a_model_in_place_of_its_loader_is_refused():
    with pytest.raises(OptionError, match="loader is Lfm2VlForConditionalGeneration, expected a model's name"):
        Engine(load("demo")[0])  # type: ignore[arg-type]


def test_a_model_that_does_not_load_is_told_to_all_who_ask(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with Engine(lambda: load(tmp_path)) as engine:
        with pytest.raises(ConfigError, match="model_type"):
            engine.wait_until_ready(60)
        with pytest.raises(ConfigError, match="model_type"):
            engine.submit("Hello.").result(60)
        lengths = []
        for _ in range(5):
            with pytest.raises(ConfigError) as raised:
                engine.wait_until_ready(60)
            lengths.append(len(traceback.extract_tb(raised.value.__traceback__)))
        assert len(set(lengths)) == 1


@pytest.mark.parametrize("made", [5, (1, 2), None])
def test_what_a_loader_returns_is_checked(made):
    with Engine(lambda: made) as engine:
        with pytest.raises(OptionError, match=r"the loader returned .*, expected \(model, processor\)"):
            engine.wait_until_ready(30)
        with pytest.raises(OptionError, match="the loader returned"):
            engine.generate("Hi.")


def test_nobody_waits_for_a_thread_that_has_died(monkeypatch):
    with Engine(endless_model) as engine:
        engine.wait_until_ready(60)
        _, release = occupied(engine)
        waiting = engine.submit("Hello.")
        monkeypatch.setattr(engine._worker, "_take", lambda: 1 / 0)
        release.set()
        with pytest.raises(EngineClosedError, match="has ended with an error: ZeroDivisionError"):
            waiting.result(30)
        with pytest.raises(EngineClosedError, match="has ended with an error: ZeroDivisionError"):
            engine.generate("Hello.")


def test_an_engine_that_ended_says_the_error_as_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    with Engine("demo", prompt_cache_folder=tmp_path / "file" / "within") as engine:
        with pytest.raises((EngineClosedError, OutputError), match="cannot be kept there"):
            engine.generate("Hello.")
        with pytest.raises(EngineClosedError, match=r"with an error: /.*prompts cannot be kept there"):
            engine.generate("Hello.")


def test_closing_does_not_wait_for_a_picture(slow_path):
    engine = Engine(endless_model)
    request = engine.submit("What is this?", slow_path)
    assert slow_path.asked.wait(60)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10 and not engine._worker.thread.is_alive()
    with pytest.raises(EngineClosedError, match="before the request began"):
        request.result(5)


def test_closing_ends_everything_and_returns():
    engine = Engine(endless_model)
    running = engine.submit("Tell me everything.", options=FOREVER)
    next(iter_pieces := iter(running))
    blocked = enqueued(engine, lambda: None)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 20
    assert list(iter_pieces)[-1].finish_reason == "cancelled"
    with pytest.raises(EngineClosedError, match="before the request began"):
        blocked.result(5)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        engine.submit("Hello.")
    engine.close()
    assert not engine._worker.thread.is_alive()


@pytest.mark.parametrize("way", ["close", "exit"])
def test_a_sink_that_waits_for_the_closing_thread_holds_nothing_up(way):
    """A bounded queue whose reader is the thread that closes. What is lost is told."""
    script = f"""
import queue, threading, time
from mlx_lfm2vl import Engine, load
begun = threading.Event()
names = set()
items = queue.Queue(maxsize=2)
engine = Engine(lambda: (begun.wait(60), load("demo"))[1])
def sink(item):
    names.add(threading.current_thread().name)
    items.put(item)
for _ in range(12):
    engine.submit("Hello.", sink=sink)
begun.set()
while not items.full():
    time.sleep(0.01)
if {way == "close"}:
    engine.close()
    assert "MainThread" not in names and names, names
print("here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "here\n")
    (said,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert re.search(r"RuntimeWarning: the process ends before \d+ sinks of an engine took all responses", said)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", ["close", "exit", "close in a sink", "close, then exit"])
def test_a_slow_sink_is_given_all_before_the_end(way):
    """While it takes no longer than closing may."""
    script = f"""
import threading, time
from mlx_lfm2vl import Engine, GenerationOptions
heard, closed = [], threading.Event()
def sink(item):
    time.sleep(0.02)
    if {way == "close, then exit"} and len(heard) == 3:
        closed.wait(60)
    heard.append(item.text)
    if item.finish_reason is not None:
        print(item.finish_reason, "".join(heard) == text, flush=True)
def closing(item):
    if item.finish_reason is not None:
        engine.close(timeout=60)
        print("".join(heard) == text, flush=True)
engine = Engine("demo")
options = GenerationOptions(max_tokens=8)
question = "What is in this image?", {str(ROOT / "examples" / "scene.png")!r}
text = engine.generate(*question, options=options)
engine.submit(*question, options=options, sink=sink).result()
if {way == "close"}:
    engine.close(timeout=60)
elif {way == "close in a sink"}:
    engine.submit(*question, options=options, sink=closing)
    while not engine.closed:
        time.sleep(0.01)
elif {way == "close, then exit"}:
    while len(heard) < 3:
        time.sleep(0.01)
    engine.close(timeout=0.1)
    assert len(heard) == 3
    closed.set()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "length True\n" + "True\n" * (way == "close in a sink")


def test_closing_that_ctrl_c_interrupts_waits_for_sinks_when_it_is_repeated():
    entered, release = threading.Event(), threading.Event()

    def sink(_: object) -> None:
        entered.set()
        release.wait(60)

    sinks = SinkThreads()
    sinks.start(sink, lambda _: ValueError(), lambda _: None)
    assert entered.wait(60)
    ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ctrl_c.start()
        sinks.wait(time.monotonic() + 60)
    threading.Timer(0.5, release.set).start()
    sinks.wait(time.monotonic() + 60)
    assert release.is_set() and not sinks.behind


@pytest.mark.parametrize(
    "error", [StopIteration(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
def test_what_a_loader_raises_arrives_as_itself(error):
    def loader():
        raise error

    with Engine(loader) as engine:
        for ask in (engine.wait_until_ready, lambda: engine.generate("Hello."), lambda: next(engine.stream("Hello."))):
            with pytest.raises(type(error)) as raised:
                ask()
            assert raised.value is error


def test_a_signals_handler_may_cancel_and_close_at_any_moment():
    script = """
import signal, sys
from mlx_lfm2vl import Engine, EngineClosedError, GenerationOptions, load
pair, requests, closing = load("demo"), [], []
def handler(*_):
    for request in requests[-3:]:
        request.cancel()
    if closing:
        engine.close()
signal.signal(signal.SIGALRM, handler)
for number in range(60):
    requests.clear(), closing.clear()
    engine = Engine(lambda: pair)
    engine.wait_until_ready()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + number * 0.0001)
        for _ in range(5):
            requests.append(engine.submit("Hello.", options=GenerationOptions(max_tokens=3), sink=lambda item: None))
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + number * 0.0001)
        closing.append(True)
        for request in requests[: number % 5]:
            request.result()
        engine.close()
    except EngineClosedError:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    engine.close()
print("well")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")
