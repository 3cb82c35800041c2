"""Many requests at once: pictures of all sizes through the tower together, one padded prefill, one decode.

A row's answer is the one it would have alone: padding is masked in attention and convolutions and shifts no position.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import mlx.core as mx

from ..errors import Lfm2VlError, OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .prompt_cache import PromptCache, check_prompt_cache
from .request import EncodedPrompt, GenerationRequest, check_pair, encode
from .response import Completion, GenerationResponse
from .scheduler import Scheduler, drive
from .vision_cache import VisionCache, check_vision_cache
from .watch import Stop, check_callable

BATCH_SIZE = 8


def generate_batch(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    requests: Iterable[GenerationRequest],
    *,
    batch_size: int = BATCH_SIZE,
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
    stop: Stop | None = None,
) -> Iterator[Completion]:
    """Answers in the order of the requests, `batch_size` of them at a time; requests are read as they are needed.

    What requests begin with alike (a system prompt, a picture) is prefilled once, within a batch and from one to the
    next; `prompt_cache`: where such beginnings are kept (one of its own, unless given). A request whose pictures or
    prompt are wrong becomes a `Completion` with the error and hurts no other. `stop` ends the batch in hand with
    "cancelled" and reads no further. Raises `OptionError`.
    """
    check_pair(model, processor)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
    if not isinstance(requests, Iterable) or isinstance(requests, (str, GenerationRequest)):
        raise OptionError(f"requests is {type(requests).__name__}, expected several GenerationRequests")
    check_vision_cache(vision_cache)
    check_prompt_cache(prompt_cache)
    check_callable("stop", stop)
    prompt_cache = prompt_cache if prompt_cache is not None else PromptCache()
    group: list[GenerationRequest] = []
    for request in requests:
        group.append(request)
        if len(group) == batch_size:
            yield from _answer(model, processor, group, vision_cache, prompt_cache, stop)
            group = []
            if stop is not None and stop():
                return
    if group:
        yield from _answer(model, processor, group, vision_cache, prompt_cache, stop)


def _answer(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    group: Sequence[GenerationRequest],
    vision_cache: VisionCache | None,
    prompt_cache: PromptCache,
    stop: Stop | None,
) -> list[Completion]:
    started = time.perf_counter()
    mx.reset_peak_memory()
    answers: dict[int, Completion] = {}
    present: list[int] = []
    prompts: list[EncodedPrompt] = []
    for index, request in enumerate(group):
        try:
            prompts.append(encode(model, processor, request))
            present.append(index)
        except Lfm2VlError as error:
            answers[index] = Completion(error=error)
    if prompts:
        scheduler = Scheduler(model, processor.tokenizer, vision_cache=vision_cache, prompt_cache=prompt_cache)
        rows = scheduler.add(prompts, started=[started] * len(prompts), stop=stop)
        del prompts
        responses: dict[int, list[GenerationResponse]] = {index: [] for index in present}
        for at, item in drive(scheduler, rows, stop):
            if isinstance(item, GenerationResponse):
                responses[present[at]].append(item)
            elif not isinstance(item, Lfm2VlError):
                raise item
            elif responses[present[at]] or len(group) == 1:
                answers[present[at]] = Completion(error=item)
            else:  # what failed for several may be the fault of one
                answers[present[at]] = _answer(
                    model, processor, [group[present[at]]], vision_cache, prompt_cache, stop
                )[0]
        for index, made in responses.items():
            if index not in answers:
                answers[index] = Completion.of(made)
    return [answers[index] for index in range(len(group))]
