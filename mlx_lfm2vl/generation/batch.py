"""Many requests, some of them at a time: as one is answered, the next takes its place.

A row's answer is the one it would have alone: padding is masked in attention and convolutions and shifts no position.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

import mlx.core as mx

from ..backends.memory import wired_limit
from ..errors import Lfm2VlError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .prompt_cache import PromptCache
from .request import GenerationRequest, check_pair, encode
from .response import Completion, GenerationResponse
from .sequence import Sequence
from .stream import make_scheduler, step
from .vision_cache import VisionCache
from .watch import Progress, Stop, check_callable

BATCH_SIZE = 8
PICTURE_BYTES, PROMPT_BYTES = 16 * 2**20, 256 * 2**20  # of a batch's own caches: its rows share little


def generate_batch(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    requests: Iterable[GenerationRequest],
    *,
    batch_size: int = BATCH_SIZE,
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
) -> Generator[Completion, None, None]:
    """Answers in the order of the requests, `batch_size` of them at a time; requests are read as they are needed.

    The beginnings that requests share (a system prompt, a picture) are prefilled once. A request whose pictures or
    prompt are wrong becomes a `Completion` with the error and hurts no other.

    Args:
        model: the model.
        processor: its processor.
        requests: read one by one, as places become free.
        batch_size: requests that are answered at a time, at least 1.
        vision_cache: where encoded pictures are kept. None is one of its own, of 16 MiB.
        prompt_cache: where beginnings are kept. None is one of its own, of 256 MiB.
        stop: asked between steps; true ends the requests that were read with "cancelled", and no other is read.
        progress: told of the tokens that are done of the prompts that were read, and of all of these.

    Raises:
        OptionError
    """
    check_pair(model, processor)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
    if not isinstance(requests, Iterable) or isinstance(requests, (str, GenerationRequest)):
        raise OptionError(f"requests is {type(requests).__name__}, expected several GenerationRequests")
    check_callable("stop", stop)
    check_callable("progress", progress)
    vision_cache = VisionCache(PICTURE_BYTES) if vision_cache is None else vision_cache
    prompt_cache = PromptCache(PROMPT_BYTES) if prompt_cache is None else prompt_cache
    scheduler = make_scheduler(model, processor.tokenizer, vision_cache=vision_cache, prompt_cache=prompt_cache)
    waiting = enumerate(requests)
    rows: dict[int, tuple[int, Sequence, list[GenerationResponse]]] = {}  # by id, with the numbers of their requests
    answers: dict[int, Completion] = {}  # of requests that wait for an earlier one
    number, more = 0, True
    read = told = 0  # tokens of prompts: of all, and what progress was told
    mx.reset_peak_memory()
    with wired_limit():
        while more or len(scheduler):
            while more and len(scheduler) < batch_size:
                started = time.perf_counter()
                index, request = next(waiting, (-1, None))
                if request is None:
                    more = False
                    break
                try:
                    row = scheduler.add(encode(model, processor, request), started=started)
                    rows[row.id] = index, row, []
                    read += len(row.ids)
                except Lfm2VlError as error:
                    answers[index] = Completion(error=error)
                    break
                del request
            for id, item in scheduler.step() if stop is None else step(scheduler, stop):
                index, _, responses = rows[id]
                if isinstance(item, GenerationResponse):
                    responses.append(item)
                    if item.finish_reason is not None:
                        answers[index] = Completion.of(responses)
                elif isinstance(item, Lfm2VlError):
                    answers[index] = Completion(error=item)
                else:
                    raise item
                if index in answers:
                    del rows[id]
            now = read - sum(len(row.ids) - row.prefilled for _, row, _ in rows.values())
            if progress is not None and now > told:
                told = now
                progress(now, read)
            while number in answers:
                yield answers.pop(number)
                number += 1
            more = more and not (stop is not None and stop())
