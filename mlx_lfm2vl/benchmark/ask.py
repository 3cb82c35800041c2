"""One question in stages, with a clock between them, and several questions at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..generation.batch import generate_batch
from ..generation.chunked_prefill import Prompt, encode_views_in_pieces, prefill_in_pieces
from ..generation.decode import GenerationBatch
from ..generation.options import GenerationOptions, positions_left
from ..generation.request import GenerationRequest, encode
from ..generation.sampler import UniformSampler
from ..generation.watch import Progress, Stop, check, whole
from ..models.cache import Cache, KeyValueCache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.load_image import load_image
from ..processing.processor import Lfm2VlProcessor
from ..weights.names import parameters
from .report import PARTS, Batch

T = TypeVar("T")
PROMPT = "What is in this image?"
TEXT_PROMPT = "Tell me in a few sentences how a lighthouse works."
GREEDY = GenerationOptions(temperature=0.0, top_p=1.0, min_p=0.0, top_k=0, repetition_penalty=1.0)


@dataclass(frozen=True)
class Run:
    """One question; see `report.Answer`. `tokens` are the answer's."""

    prompt_tokens: int
    image_tokens: int
    tokens: tuple[int, ...]
    parts: dict[str, float]
    first_token: float
    tokens_per_second: float
    bytes_per_token: int
    peak_memory: int


def draw(size: tuple[int, int], seed: int, folder: Path) -> Path:
    """A JPEG file of (width, height) in `folder`: gradients and rectangles, as a photograph has smooth parts and edges;
    another `seed` is another picture."""
    width, height = size
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    start, across, down = rng.uniform(0, 255, 3), rng.uniform(-128, 128, 3), rng.uniform(-128, 128, 3)
    pixels = start + x[None, :, None] * across + y[..., None] * down
    for _ in range(12):
        left, top = rng.integers(0, width), rng.integers(0, height)
        right, bottom = left + 1 + rng.integers(0, width // 3 + 1), top + 1 + rng.integers(0, height // 3 + 1)
        pixels[top:bottom, left:right] = rng.uniform(0, 255, 3)
    file = folder / f"{width}x{height}-{seed}.jpg"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, quality=90)
    return file


def ask(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    file: Path | None,
    tokens: int,
    stop: Stop | None = None,
) -> Run:
    """One question about a picture (or none), its answer `tokens` long unless positions run out. Raises `Cancelled` and
    what `stream_generate` raises."""
    mx.reset_peak_memory()
    laps = [time.perf_counter()]
    picture = None if file is None else load_image(file)
    laps.append(time.perf_counter())
    request = GenerationRequest(TEXT_PROMPT if file is None else PROMPT, picture, options=GREEDY)
    prompt = encode(model, processor, request)
    ids = prompt.ids[None]
    tokens = min(tokens, positions_left(model, ids.shape[1], bool(prompt.pictures)))
    laps.append(time.perf_counter())
    images = None
    if prompt.pictures:
        (encoded,) = prompt.pictures
        images = whole(encode_views_in_pieces(model, encoded.take(), encoded.spatial_shapes), stop)
    del prompt, request, picture
    laps.append(time.perf_counter())
    cache = model.make_cache()
    sampler = UniformSampler(GREEDY)
    logits = whole(prefill_in_pieces(model, Prompt(ids, images=images), cache), stop)
    steps = GenerationBatch(model, cache, logits, sampler)
    del images
    answer = steps.step(last=tokens == 1)[0]
    laps.append(time.perf_counter())
    while len(answer) < tokens:
        check(stop)
        answer += steps.step(last=len(answer) + 1 == tokens)[0]
    rest = time.perf_counter() - laps[-1]
    return Run(
        prompt_tokens=ids.shape[1],
        image_tokens=int(np.count_nonzero(np.isin(ids, model.config.placeholders))),
        tokens=tuple(answer),
        parts={part: end - start for part, start, end in zip(PARTS, laps, laps[1:], strict=False)},
        first_token=laps[-1] - laps[0],
        tokens_per_second=(tokens - 1) / rest if tokens > 1 else 0.0,
        bytes_per_token=bytes_per_token(model, cache, ids.shape[1] + tokens // 2),
        peak_memory=mx.get_peak_memory(),
    )


def ask_together(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    files: Sequence[Path],
    tokens: int,
    stop: Stop | None = None,
) -> Batch:
    """A question about each picture, all in one batch. Raises `Cancelled`."""
    options = replace(GREEDY, max_tokens=tokens)
    questions = [GenerationRequest(PROMPT, file, options=options) for file in files]
    start = time.perf_counter()
    answers = list(generate_batch(model, processor, questions, batch_size=len(files), stop=stop))
    seconds = time.perf_counter() - start
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    check(stop)
    made = sum(answer.statistics.generated_tokens for answer in answers if answer.statistics)
    with Image.open(files[0]) as picture:
        name = f"{picture.width}x{picture.height}"
    return Batch(len(files), name, made, seconds, len(files) / seconds, made / seconds, mx.get_peak_memory())


def bytes_per_token(model: Lfm2VlForConditionalGeneration, cache: Cache, length: int) -> int:
    """Bytes that a step after `length` tokens reads: the weights of the language model and head as they are in
    memory (of untied embeddings one row), keys and values so far, and convolution states."""
    body = model.model.language_model
    weights = nbytes(body)
    if "lm_head" in model:
        table, head = nbytes(body.embed_tokens), nbytes(model["lm_head"])
        weights += head - table + table // model.config.text_config.vocab_size
    states = 0
    for layer in cache.layers:
        for array in layer.states:
            states += array.nbytes * length // array.shape[2] if isinstance(layer, KeyValueCache) else array.nbytes
    return weights + states


def nbytes(module: nn.Module) -> int:
    return sum(array.nbytes for array in parameters(module).values())


@dataclass
class Counter:
    """Repeats work, tells of it, and asks whether to go on. `steps`: runs in all."""

    repeats: int
    steps: int
    progress: Progress | None = None
    stop: Stop | None = None
    done: int = 0

    def tick(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.steps)

    def stopped(self) -> bool:
        return self.stop is not None and self.stop()

    def some(self, work: Callable[[], T]) -> list[T]:
        """At least one result, and all unless it was stopped."""
        found: list[T] = []
        while len(found) < self.repeats and not (found and self.stopped()):
            found.append(work())
            self.tick()
        return found

    def all(self, work: Callable[[], T]) -> list[T]:
        """All results after the first, which warms up. Raises `Cancelled`."""
        found: list[T] = []
        for _ in range(self.repeats + 1):
            check(self.stopped)
            found.append(work())
            self.tick()
        return found[1:]
