"""Long runs: memory, open files and threads stay as they are, and the last answer is as right as the first.

`make soak` runs them; their figures go to build/soak.jsonl, and the last ones are told in docs/reliability.md.
"""

import ctypes
import gc
import json
import os
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_lfm2vl import (
    Engine,
    GenerationOptions,
    GenerationRequest,
    PromptCache,
    VisionCache,
    generate_batch,
    load,
    stream_generate,
)

pytestmark = pytest.mark.soak

FIGURES = Path(__file__).parent.parent / "build" / "soak.jsonl"
SHORT = GenerationOptions(max_tokens=3, logprobs=True)
LIBC = ctypes.CDLL(None)
GROWTH = 1.02  # of memory, at most
if hasattr(LIBC, "mallopt"):  # glibc: one arena (M_ARENA_MAX); those of threads keep what is free at their ends
    LIBC.mallopt(-8, 1)


class Watch:
    """What the process holds, sampled as the work goes on."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int, int]] = []
        self.started = time.perf_counter()

    def look(self) -> None:
        gc.collect()
        mx.clear_cache()
        if hasattr(LIBC, "malloc_trim"):  # glibc keeps what was freed, tens of MB of it, more or less by chance
            LIBC.malloc_trim(0)
        resident = int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) * 1024
        self.samples.append((resident, mx.get_active_memory(), len(os.listdir("/dev/fd")), threading.active_count()))

    def check(self, name: str, count: int) -> None:
        """The last quarter of the samples against the first. Each sample but the first was taken after the warm-up."""
        warm = self.samples[1:]
        part = max(1, len(warm) // 4)
        first, last = (np.median(np.array(some), axis=0) for some in (warm[:part], warm[-part:]))
        figures = {
            "test": name,
            "count": count,
            "seconds": round(time.perf_counter() - self.started),
            "resident_first": int(first[0]),
            "resident_last": int(last[0]),
            "mlx_first": int(first[1]),
            "mlx_last": int(last[1]),
            "files": int(last[2]),
            "threads": int(last[3]),
        }
        FIGURES.parent.mkdir(exist_ok=True)
        with FIGURES.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        assert last[0] < first[0] * GROWTH and last[1] <= first[1] * GROWTH, figures
        assert last[2] <= first[2] and last[3] <= first[3], figures


def noise(rng: np.random.Generator, largest: int) -> Image.Image:
    height, width = rng.integers(1, largest, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def answer(model, processor, text: str, picture: Image.Image | None) -> list[tuple[int, float]]:
    """Tokens and their logprobs, to the last bit."""
    pieces = stream_generate(model, processor, text, picture, options=SHORT)
    return [pair for piece in pieces for pair in zip(piece.tokens, piece.logprobs or (), strict=True)]


def test_a_thousand_pictures_of_any_size():
    model, processor = load("demo")
    rng = np.random.default_rng(0)
    firsts = [(f"What is {n}?", noise(rng, 300)) for n in range(5)]
    before = [answer(model, processor, *question) for question in firsts]
    watch = Watch()
    for number in range(1000):
        answer(model, processor, f"What is {number}?", noise(rng, 900 if number % 20 == 7 else 260))
        if number % 50 == 49:
            watch.look()
    watch.check("pictures", 1000)
    assert [answer(model, processor, *question) for question in firsts] == before


def test_ten_thousand_texts():
    model, processor = load("demo")
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["red", "ring", "where", "is", "the", "small", "<image>"], k=9)) for _ in range(10_000)
    ]
    before = [answer(model, processor, text, None) for text in texts[:20]]
    watch = Watch()
    for number, text in enumerate(texts):
        answer(model, processor, text, None)
        if number % 250 == 249:
            watch.look()
    watch.check("texts", 10_000)
    assert [answer(model, processor, text, None) for text in texts[:20]] == before


def test_a_batch_of_two_thousand_rows(tmp_path):
    """Each with a picture of its own, read from disk as it is needed; some rows wrong.

    Memory is looked at where a hundred's last rows run: their pictures have one size, so that rows at work count alike.
    """
    model, processor = load("demo")
    rng = np.random.default_rng(2)
    watch, errors = Watch(), 0

    def questions():
        for n in range(2000):
            name = tmp_path / f"{n}.png"
            if n % 50 != 3:
                height, width = rng.integers(1, 260, 2) if n % 100 < 60 else (130, 130)
                Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(name)
            yield GenerationRequest(f"What is {n:04}?", name, options=GenerationOptions(max_tokens=2))

    prompts, pictures = PromptCache(4 * 2**20), VisionCache(2**20)  # full after the warm-up
    made = generate_batch(model, processor, questions(), prompt_cache=prompts, vision_cache=pictures)
    for n, completion in enumerate(made):
        errors += completion.error is not None
        if n % 100 == 79:
            watch.look()
    watch.check("batch", 2000)
    assert errors == 40


def test_eight_threads_send_200_requests_each_and_cancel_at_random():
    model, processor = load("demo")
    rng = np.random.default_rng(1)
    pictures = [None, *(noise(rng, 300) for _ in range(5)), noise(rng, 900)]
    texts = ["Hello.", "What is this?", "Where is the red ring? " * 6]
    longest = GenerationOptions(max_tokens=12)
    expected = {
        (text, at): tuple(
            token
            for piece in stream_generate(model, processor, text, picture, options=longest)
            for token in piece.tokens
        )
        for text in texts
        for at, picture in enumerate(pictures)
    }
    watch, done, lock = Watch(), [0, 0], threading.Lock()
    with Engine(lambda: (model, processor), max_queue=8) as engine:
        for text, at in expected:  # what it remembers of pictures and prompts is there before memory is watched
            engine.generate(text, pictures[at], options=SHORT)

        def look() -> None:
            if done[0] >= 75:  # the first sample is not counted
                engine.clear_caches()  # what is remembered depends on which questions met
                engine.call(lambda *_: watch.look())

        # Looked at while nobody asks: what waits holds its pixels.
        pause = threading.Barrier(8, look, timeout=600)

        def client(seed: int) -> None:
            choose = random.Random(seed)
            for number in range(200):
                text, at, most = choose.choice(texts), choose.randrange(len(pictures)), choose.randint(1, 12)
                options = GenerationOptions(max_tokens=most)
                request = engine.submit(text, pictures[at], options=options, wait=600)
                cancelled = choose.random() < 0.3
                if cancelled:
                    time.sleep(choose.random() * 0.1)
                    request.cancel()
                completion = request.result(600)
                alone = expected[text, at][:most]
                if completion.finish_reason == "cancelled":
                    assert cancelled and completion.tokens == alone[: len(completion.tokens)]
                else:
                    assert completion.tokens == alone
                with lock:
                    done[0] += 1
                    done[1] += completion.finish_reason == "cancelled"
                if number % 4 == 3:
                    pause.wait()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(8)))
        watch.check(f"engine, {done[1]} cancelled", done[0])
    assert done[0] == 1600 and done[1] > 160
