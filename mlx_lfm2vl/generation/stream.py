"""Answers as text: `generate` for all at once, `stream_generate` piece by piece.

A piece never splits a character, and the pieces together are the decoded answer. The last piece carries the reason of
the end and the statistics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import GenerationConfig
from ..errors import PromptError
from ..model.cache import Cache
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from ..processing.tokenizer import StreamDecoder
from .decode import Prompt, decode, prefill
from .options import GenerationOptions
from .sampling import Sampler


@dataclass(frozen=True)
class Statistics:
    """Counts in tokens, time in seconds, memory in bytes.

    `time_to_first_token` runs from the call, so it includes reading and resizing the pictures, vision and prefill;
    `prompt_tokens_per_second` is `prompt_tokens` over that time; `tokens_per_second` counts the tokens after the first.
    `peak_memory` is MLX's since the call.
    """

    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    time_to_first_token: float
    prompt_tokens_per_second: float
    tokens_per_second: float
    peak_memory: int


@dataclass(frozen=True)
class GenerationPiece:
    """Some text and the tokens behind it. `finish_reason` is "stop" (the model ended) or "length" on the last piece."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    statistics: Statistics | None = None


def stream_generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]],
    images: Any = None,
    *,
    system: str | None = None,
    options: GenerationOptions | None = None,
    **image_overrides: Any,
) -> Iterator[GenerationPiece]:
    """Answers a question about pictures, or one without any.

    `prompt`: the user's text, or a conversation as the chat template takes it (then pictures stand in its messages, and
    `images` and `system` must be left out). `images`: one picture or several, each a PIL image, NumPy array, path, URL,
    data URI or bytes; they come before the text. `image_overrides`: as for `Lfm2VlProcessor` (`max_image_tokens`,
    `do_image_splitting` ...). Generation ends at the model's end token, at `options.max_tokens`, or when the model's
    positions are used up. Closing the iterator stops the work.

    Raises the library's typed errors, all before the first piece.
    """
    started = time.perf_counter()
    mx.reset_peak_memory()
    inputs = processor.apply_chat_template(
        conversation(prompt, images, system),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        **image_overrides,
    )
    ready = Prompt(
        input_ids=inputs["input_ids"],
        pixel_values=inputs.get("pixel_values"),
        spatial_shapes=inputs.get("spatial_shapes"),
    )
    resolved = (options or GenerationOptions()).resolve(generation_config(model))
    yield from _stream(model, processor, ready, resolved, started)


def generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]],
    images: Any = None,
    *,
    system: str | None = None,
    options: GenerationOptions | None = None,
    **image_overrides: Any,
) -> str:
    """The whole answer of `stream_generate`, with the same arguments and errors."""
    pieces = stream_generate(model, processor, prompt, images, system=system, options=options, **image_overrides)
    return "".join(piece.text for piece in pieces)


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], images: Any = None, system: str | None = None
) -> list[dict[str, Any]]:
    """The messages of one question: the system's text if any, then the user's pictures and text."""
    if not isinstance(prompt, str):
        if images is not None or system is not None:
            raise PromptError("prompt is a conversation; put pictures and the system's text into its messages")
        return [dict(message) for message in prompt]
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if not prompt and not pictures:
        raise PromptError("prompt is empty and there is no picture; give one of them")
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if prompt:
        content.append({"type": "text", "text": prompt})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def generation_config(model: Lfm2VlForConditionalGeneration) -> GenerationConfig:
    """The checkpoint's, which `load` attaches; without one, the end tokens of config.json."""
    attached = getattr(model, "generation_config", None)
    return attached if attached is not None else GenerationConfig(eos_token_ids=model.config.eos_token_ids)


def _stream(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: Prompt,
    options: GenerationOptions,
    started: float,
) -> Iterator[GenerationPiece]:
    room = positions_left(model, prompt)
    ends = set(generation_config(model).eos_token_ids)
    cache = Cache(model.config.text_config)
    sampler = Sampler(options)
    sampler.observe(mx.array(prompt.input_ids), model.config.text_config.vocab_size)
    logits = prefill(model, prompt, cache)
    decoder = StreamDecoder(processor.tokenizer)
    held: list[int] = []
    count, first, reason = 0, 0.0, "length"
    steps = decode(model, prompt, cache, logits, sampler, min(options.max_tokens, room))
    for (token,) in steps:
        count += 1
        first = first or time.perf_counter() - started
        if token in ends:
            reason = "stop"
            break
        held.append(token)
        if text := decoder.push([token]):
            yield GenerationPiece(text, tuple(held))
            held = []
    steps.close()  # type: ignore[attr-defined]
    seconds = time.perf_counter() - started - first
    yield GenerationPiece(
        decoder.finish(),
        tuple(held),
        reason,
        Statistics(
            prompt_tokens=prompt.input_ids.shape[1],
            image_tokens=int(np.count_nonzero(prompt.input_ids == model.config.image_token_id)),
            generated_tokens=count,
            time_to_first_token=first,
            prompt_tokens_per_second=prompt.input_ids.shape[1] / first,
            tokens_per_second=(count - 1) / seconds if count > 1 else 0.0,
            peak_memory=mx.get_peak_memory(),
        ),
    )


def positions_left(model: Lfm2VlForConditionalGeneration, prompt: Prompt) -> int:
    """New tokens that fit behind the prompt. Raises `PromptError` if there is no room for one."""
    limit = model.config.text_config.max_position_embeddings
    length = prompt.input_ids.shape[1]
    if length >= limit:
        raise PromptError(
            f"the prompt has {length} tokens, but the model has {limit} positions; use fewer or smaller pictures"
        )
    return limit - length
