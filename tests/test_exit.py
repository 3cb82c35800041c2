"""How programs end that computed in threads: with their own exit code, soon, and without a word.

MLX lets go of what it keeps of a thread when that ends; where no interpreter is left the process aborts. It is a race,
so several runs of each program.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = 7  # of each program
SECONDS = 20.0  # that a program's end may take on a busy machine; what it would wait for takes longer
BEGINNING = f"""
import asyncio, sys, tempfile, threading, time
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from mlx_lfm2vl import *
SCENE = {str(ROOT / "examples" / "scene.png")!r}
few = GenerationOptions(max_tokens=4)
def in_a_pool(work):
    with ThreadPoolExecutor(1) as pool: return pool.submit(work).result()
def answer(pair=None):
    return generate(*(pair or load("demo")), "What is in this image?", SCENE, options=few)
def run(work, **options):
    thread = threading.Thread(target=work, **options)
    thread.start()
    return thread
"""
ENDING = f"""
print(time.time(), flush=True)
sys.exit({CODE})
"""
LOADED = 'pair = load("demo")\n'
INPUTS = """
import mlx.core as mx
model, folder = pair[0], tempfile.mkdtemp()
other = "float32" if model.backend == "numpy" else "float16"
inputs = AutoProcessor.from_pretrained("demo")(images=np.zeros((64, 64, 3), np.uint8), text="<image>x")
"""
DAEMON = """
begun = threading.Event()
def work():
    pair = load("demo")
    {work}
run(work, daemon=True)
begun.wait()
"""
PROGRAMS = {
    "a thread that loaded": "run(load, args=('demo',)).join()",
    "a thread that loaded and answered": "run(answer).join()",
    "a thread that answered": LOADED + "run(answer, args=(pair,)).join()",
    "a thread that is not joined": LOADED + "run(answer, args=(pair,))",
    "a batch": LOADED + "run(lambda: list(generate_batch(*pair, [GenerationRequest('Hi', options=few)]))).join()",
    "a chat": LOADED + "chat = Chat(*pair, options=few); run(lambda: chat.ask('Hi')).join()",
    "transformers' generate": (
        LOADED
        + "ids = pair[1].tokenizer('Hi', return_tensors='np')['input_ids']; "
        + "run(lambda: pair[0].generate(ids, max_new_tokens=4)).join()"
    ),
    **{
        f"transformers' {name}": LOADED + INPUTS + f"in_a_pool(lambda: {call})"
        for name, call in {
            "forward": "model(input_ids=inputs['input_ids'])",
            "get_image_features": "model.get_image_features(inputs['pixel_values'], inputs['spatial_shapes'])",
            "resize_token_embeddings": "model.resize_token_embeddings(1400)",
            "get_input_embeddings": "model.get_input_embeddings()(mx.array(inputs['input_ids']))",
            "save_pretrained": "model.save_pretrained(folder)",
            "save_pretrained in its own layout": "model.save_pretrained(folder, hf=True)",
            "to of a model": "model.to(other)",
            "to of inputs": "inputs.to('bfloat16')",
            "from_config": "AutoModelForImageTextToText.from_config(model.config)",
        }.items()
    },
    "an answer that is left open": (
        LOADED + "pieces = stream_generate(*pair, 'Hi', SCENE); run(lambda: next(pieces)).join()"
    ),
    "a pool of one": "with ThreadPoolExecutor(1) as pool: pool.submit(answer).result()",
    "a pool of eight": LOADED + "with ThreadPoolExecutor(8) as pool: list(pool.map(answer, [pair] * 16))",
    "a pool that is not shut down": "pool = ThreadPoolExecutor(2); pool.submit(answer).result()",
    "a pool of multiprocessing": (
        "from multiprocessing.pool import ThreadPool; pool = ThreadPool(2); pool.apply(answer)"
    ),
    "asyncio.to_thread": "asyncio.run(asyncio.to_thread(answer))",
    "a daemon that waits for good": DAEMON.format(work="answer(pair); begun.set(); threading.Event().wait()"),
    "a daemon that looks for work": DAEMON.format(work="answer(pair); begun.set()\n    while True: time.sleep(0.03)"),
    "a daemon that is answering": DAEMON.format(
        work="while True:\n        for _ in stream_generate(*pair, 'Hi', SCENE): begun.set()"
    ),
    "a daemon that is loading": DAEMON.format(work="begun.set()\n    while True: load('demo')"),
    "an engine that is not closed": "engine = Engine(lambda: load('demo')); engine.generate('Hi.', options=few)",
    "an engine that is closed": "with Engine(lambda: load('demo')) as engine: engine.generate('Hi.', options=few)",
    "an engine that is answering": (
        "engine = Engine(lambda: load('demo')); request = engine.submit('Hi.'); request.take(0)"
    ),
    "an engine that is loading": "engine = Engine(lambda: load('demo')); request = engine.submit('Hi.')",
    "an engine whose load is held up": (
        "begun = threading.Event(); "
        + "engine = Engine(lambda: load('demo', progress=lambda *_: (begun.set(), time.sleep(60)))); begun.wait()"
    ),
    "an engine whose picture is slow to come": """
import socket
site = socket.create_server(('127.0.0.1', 0))
engine = Engine(lambda: load('demo', source_policy=SourcePolicy(allow_private_addresses=True)))
request = engine.submit('Hi.', f'http://127.0.0.1:{site.getsockname()[1]}/')
site.accept()
""",
    "a picture that is slow to come, and Ctrl-C": """
import os, signal, socket
site = socket.create_server(('127.0.0.1', 0))
pair = load('demo', source_policy=SourcePolicy(allow_private_addresses=True))
run(lambda: (site.accept(), os.kill(os.getpid(), signal.SIGINT)))
try: generate(*pair, 'Hi.', f'http://127.0.0.1:{site.getsockname()[1]}/')
except KeyboardInterrupt: pass
""",
    "a wait that a signal's handler ends": """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
engine = Engine('demo')
request = engine.submit('Hi.')
run(lambda: (request.take(0), os.kill(os.getpid(), signal.SIGTERM)))
try: request.result(); threading.Event().wait()
except SystemExit: pass
""",
    "an engine that nobody holds": "Engine('demo').submit('Hi.', options=few).result()",
    "an engine that is loading and that nobody holds": "Engine('demo')",
    "a daemon that compiles a form": DAEMON.format(
        work="begun.set()\n    for n in range(9**9): ResponseFormat.choice([f'v{n}x{i}' for i in range(4000)])"
    ),
    "an engine that compiles a form": """
engine = Engine("demo")
engine.wait_until_ready()
form = {"type": "array", "items": {"enum": [f"value{i}" for i in range(9000)]}}
engine.submit("Hi.", options=GenerationOptions(response_format=form))
""",
    "an engine whose loader sleeps": "engine = Engine(lambda: time.sleep(60))",
}


def ends(program: str, backend: str, times: int, at_once: int = 1) -> None:
    """Runs a program some times and checks how it ends."""
    command = [sys.executable, "-c", BEGINNING + program + ENDING]
    environment = os.environ | {"MLX_LFM2VL_BACKEND": backend, "PYTHONPATH": str(ROOT)}

    def run(_: int) -> tuple[int, str, float]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr, time.time() - float(done.stdout)

    with ThreadPoolExecutor(at_once) as pool:
        for code, err, seconds in pool.map(run, range(times)):
            assert (code, err) == (CODE, "")
            assert seconds < SECONDS


@pytest.mark.parametrize("program", list(PROGRAMS)[::7])
def test_a_program_ends_with_its_own_exit_code(program, backend):
    ends(PROGRAMS[program], backend, times=1)


@pytest.mark.soak
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_with_its_own_exit_code_20_times(program, backend):
    ends(PROGRAMS[program], backend, times=20, at_once=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fopencookie is glibc's")
def test_a_foreign_thread_may_answer_in_each_of_its_calls():
    """Python sees a thread of C end with each callback from it, and another one come, on one thread of the system."""
    program = """
import ctypes
pair = load("demo")
answers = []
def say(*_):
    answers.append((answer(pair), threading.get_native_id()))
    return 4
write = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(say)
close = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda *_: say() - 4)
class Calls(ctypes.Structure):
    _fields_ = [(name, kind) for name, kind in (
        ("read", ctypes.c_void_p), ("write", type(write)), ("seek", ctypes.c_void_p), ("close", type(close)))]
libc = ctypes.CDLL(None)
libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, Calls]
libc.fopencookie.restype = ctypes.c_void_p
file = libc.fopencookie(None, b"w", Calls(None, write, None, close))
libc.fputs(b"text", ctypes.c_void_p(file))
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, libc.fclose, ctypes.c_void_p(file))  # which calls both
libc.pthread_join(thread, None)
(one, first), (other, second) = answers
assert one == other == answer(pair) and first == second != threading.get_native_id()
"""
    ends(program, "mlx", times=1)
