"""One question, one answer: `stream_generate` piece by piece, `generate` all at once; and the steps of a `Scheduler`,
for all who drive one."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Unpack

import mlx.core as mx

from ..backends.memory import wired_limit
from ..errors import OptionError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..processing.tokenizer import Tokenizer
from ..threads import cancellation
from .arguments import CallOverrides, GenerateArguments
from .lockstep import LeadingScheduler
from .options import GenerationOptions
from .prompt_cache import PromptCache
from .request import GenerationRequest, check_pair, encode
from .response import GenerationResponse
from .scheduler import Output, Scheduler
from .sequence import Sequence as Row
from .vision_cache import VisionCache
from .watch import Progress, Stop, check_callable


def stream_generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]] | GenerationRequest,
    images: Any = None,
    *,
    videos: Any = None,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: GenerationOptions | None = None,
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
    control_tokens: bool = False,
    **overrides: Unpack[CallOverrides],
) -> Generator[GenerationResponse, None, None]:
    """Answers a question about pictures, or one without any.

    `prompt`: the user's text, or a conversation as the chat template takes it (then pictures stand in its messages, and
    `images` and `system` must be left out), or a `GenerationRequest`, which holds all that is asked. `images`: one
    picture or several, each a PIL image, NumPy array, path, URL, data URI or bytes; they come before the text.
    `videos`: one or a list of them, each a `Video` of `load_video` or what that reads; behind the pictures. `tools`:
    for the template, JSON schemas of functions. `vision_cache`: where encoded pictures are kept for the next call;
    `prompt_cache`: where beginnings of prompts are. `stop`: asked between tokens and, before the first, many times a
    second; true ends the answer with "cancelled". `progress`: told of the tokens of the prompt. `control_tokens`:
    tokens such as `<|im_end|>` in the texts are what they are for the model; without it they are text like any other.
    `overrides`: as for `Lfm2VlProcessor` (`max_image_tokens` ...), and fields of `GenerationOptions` (`max_tokens=64`),
    in place of those of `options`. Generation ends at the model's end token, at a stop text, at `max_tokens`, or when
    the model's positions are used up. Closing the iterator stops the work.

    Raises the library's typed errors: those of the request before the first response, `NotFiniteError` and
    `OutOfMemoryError` also later.
    """
    started = time.perf_counter()
    mx.reset_peak_memory()
    check_pair(model, processor)
    image_overrides: dict[str, Any] = {**overrides}
    if isinstance(prompt, GenerationRequest):
        beside = {
            "images": images,
            "videos": videos,
            "system": system,
            "tools": tools,
            "options": options,
            **image_overrides,
        }
        beside["control_tokens"] = control_tokens or None
        if name := next((name for name, value in beside.items() if value is not None), None):
            raise OptionError(f"{name} is given beside a GenerationRequest; put it into the request")
        request = prompt
    else:
        chosen = GenerationOptions.of(options, image_overrides)
        request = GenerationRequest(prompt, images, system, tools, chosen, image_overrides, control_tokens, videos)
    scheduler = make_scheduler(model, processor.tokenizer, vision_cache=vision_cache, prompt_cache=prompt_cache)
    row = scheduler.add(encode(model, processor, request), started=started)
    yield from drive(scheduler, row, stop, progress)


def generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]] | GenerationRequest,
    images: Any = None,
    **arguments: Unpack[GenerateArguments],
) -> str:
    """The whole text of `stream_generate`, with the same arguments and errors. Tool calls are no text; they are in the
    pieces of `stream_generate`."""
    return "".join(piece.text for piece in stream_generate(model, processor, prompt, images, **arguments))


def make_scheduler(
    model: Lfm2VlForConditionalGeneration,
    tokenizer: Tokenizer,
    *,
    vision_cache: VisionCache | None = None,
    prompt_cache: PromptCache | None = None,
) -> Scheduler:
    """A scheduler for the model: of this process alone, or of rank 0 where others share the model. Raises `OptionError`
    for what is no cache, or one of another model."""
    for cache, kind in ((vision_cache, VisionCache), (prompt_cache, PromptCache)):
        if cache is not None:
            kind.check(cache)
    made = Scheduler if model.lead is None else LeadingScheduler
    return made(model, tokenizer, vision_cache=vision_cache, prompt_cache=prompt_cache)


def step(scheduler: Scheduler, stop: Stop) -> list[Output]:
    """One step. `stop` is asked before, and within a prompt's layers by a backend that computes when it is called; true
    cancels all rows."""

    def ask() -> None:
        if stop():
            scheduler.cancel_all()

    ask()
    with cancellation(ask):
        return scheduler.step()


def drive(
    scheduler: Scheduler, row: Row, stop: Stop | None = None, progress: Progress | None = None
) -> Generator[GenerationResponse, None, None]:
    """The responses of the only row of a scheduler. Raises what went wrong with it.

    Args:
        scheduler: which holds no other row.
        row: what `Scheduler.add` returned.
        stop: as in `step`.
        progress: told of the tokens of the prompt that are done, and of all.
    """
    for name, function in (("stop", stop), ("progress", progress)):
        if function is not None:
            check_callable(name, function)
    before = 0
    with wired_limit():
        while len(scheduler):
            outputs = scheduler.step() if stop is None else step(scheduler, stop)
            if progress is not None and row.prefilled > before:
                progress(row.prefilled, len(row.ids))
            before = row.prefilled
            for _, item in outputs:
                if isinstance(item, Exception):
                    raise item
                yield item
