"""A process that is forked from one that computed: what needs MLX says so at once, the rest works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = f"""
import os, sys, tempfile, time
import mlx.core as mx
import numpy as np
from dataclasses import replace
from mlx_lfm2vl import *
from mlx_lfm2vl.generation.options import generation_config
SCENE = {str(ROOT / "examples" / "scene.png")!r}
few = GenerationOptions(max_tokens=2)
pair = load("demo")
pair[0].generation_config = replace(generation_config(pair[0]), eos_token_ids=())  # answers end where tokens do
engine = Engine(lambda: pair)
model, folder = pair[0], tempfile.mkdtemp()
inputs = AutoProcessor.from_pretrained("demo")(images=np.zeros((64, 64, 3), np.uint8), text="<image>x")
talk = engine.chat(options=few)
talk.ask("Hi", SCENE)
answered = engine.submit("Hi", options=few)
answered.result()
open_ = engine.submit("Tell me everything.", options=GenerationOptions(max_tokens=100000, temperature=2.0, seed=1))
open_.take(0)
def child(work):
    try:
        said = repr(work())
    except Exception as error:
        said = f"{{type(error).__name__}} {{error}}"
    print(said, flush=True)
    os._exit(0)
def new():
    with Engine("demo") as made:
        return made.generate("Hi")
if not (pid := os.fork()):
    child(lambda: WORK)
for _ in range(1200):
    if os.waitpid(pid, os.WNOHANG)[0]:
        break
    time.sleep(0.05)
else:
    os.kill(pid, 9)
    print("hangs")
open_.cancel()
assert engine.generate("Hi", options=few) == answered.result().text
engine.close()
"""
REFUSED = "ForkError this process was forked from one that had used MLX"
WORKS = {
    "submit": ("engine.submit('Hi')", REFUSED),
    "generate of an engine": ("engine.generate('Hi', timeout=9)", REFUSED),
    "the answer that is open": ("open_.result(9)", REFUSED),
    "a turn": ("talk.ask('Hi')", REFUSED),
    "call": ("engine.call(print)", REFUSED),
    "unload": ("engine.unload()", REFUSED),
    "clear_caches": ("engine.clear_caches()", REFUSED),
    "an engine of its own": ("new()", REFUSED),
    "generate": ("generate(*pair, 'Hi')", REFUSED),
    "load": ("load('demo')", REFUSED),
    "transformers' generate": ("pair[0].generate(np.array([[1, 2]]))", REFUSED),
    "transformers' forward": ("model(input_ids=inputs['input_ids']).logits", REFUSED),
    "transformers' get_image_features": (
        "model.get_image_features(inputs['pixel_values'], inputs['spatial_shapes']).pooler_output",
        REFUSED,
    ),
    "transformers' resize_token_embeddings": ("model.resize_token_embeddings(1400).weight", REFUSED),
    "transformers' get_input_embeddings": ("model.get_input_embeddings()(mx.array(inputs['input_ids']))", REFUSED),
    "transformers' save_pretrained": ("model.save_pretrained(folder)", REFUSED),
    "transformers' save_pretrained in its own layout": ("model.save_pretrained(folder, hf=True)", REFUSED),
    "transformers' to of a model": ("model.to('bfloat16')", REFUSED),
    "transformers' to of inputs": ("inputs.to('bfloat16')", REFUSED),
    "transformers' from_config": ("AutoModelForImageTextToText.from_config(model.config)", REFUSED),
    "what was answered": ("answered.result().finish_reason", "'length'"),
    "the conversation": ("len(talk.messages)", "2"),
    "close": ("(engine.close(), open_.cancel())", "(None, None)"),
    "a processor": ("pair[1].image_processor([SCENE] * 8)['pixel_values'].shape[0] > 7", "True"),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.sampled(5)
@pytest.mark.parametrize("work", WORKS)
def test_a_forked_process_works_or_says_that_it_cannot(work, backend):
    text, expected = WORKS[work]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM.replace("WORK", text)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(expected), done.stdout


@pytest.mark.sampled(3)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("state", ["loading", "answering", "closed"])
@pytest.mark.parametrize("where", ["the main thread", "a thread that computes"])
def test_a_forked_process_ends_as_any_other(state, where):
    """By its own end, not `os._exit`, in which Python and this package tidy up."""
    program = f"""
import os, sys, threading, time
from mlx_lfm2vl import Engine, GenerationOptions, generate, load
begun, going_on = threading.Event(), threading.Event()
engine = Engine(lambda: (begun.set(), {state == "loading"} and going_on.wait(60), load("demo"))[2])
assert begun.wait(60)
if {state != "loading"}:
    engine.submit("Hi", options=GenerationOptions(max_tokens=10000, temperature=3.0, seed=1)).take(0)
if {state == "closed"}:
    engine.close()
codes = []
def fork():
    if {where != "the main thread"}:
        generate(*load("demo"), "Hi", max_tokens=2)
    if not (pid := os.fork()):
        sys.exit(3)
    end = time.monotonic() + 60
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, 9)
        time.sleep(0.02)
    codes.append(os.waitstatus_to_exitcode(done[1]))
if {where == "the main thread"}:
    fork()
else:
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
going_on.set()
engine.close()
print(codes)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = 3 if where == "the main thread" else 0  # SystemExit ends no more than a thread
    assert (done.returncode, done.stdout, done.stderr) == (0, f"[{expected}]\n", "")
