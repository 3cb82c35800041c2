"""One question, one answer: `stream_generate` piece by piece, `generate` all at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..errors import PromptError
from ..model.lfm2vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .decode import Prompt
from .features import FeatureCache
from .options import GenerationOptions
from .run import GenerationPiece, Statistics, resolved, run
from .watch import Progress, Stop

__all__ = ["GenerationPiece", "Statistics", "conversation", "generate", "stream_generate"]


def stream_generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]],
    images: Any = None,
    *,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: GenerationOptions | None = None,
    features: FeatureCache | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
    **image_overrides: Any,
) -> Iterator[GenerationPiece]:
    """Answers a question about pictures, or one without any.

    `prompt`: the user's text, or a conversation as the chat template takes it (then pictures stand in its messages,
    and `images` and `system` must be left out). `images`: one picture or several, each a PIL image, NumPy array, path,
    URL, data URI or bytes; they come before the text. `tools`: for the template, JSON schemas of functions.
    `features`: where encoded pictures are kept for the next call. `stop`: asked between passes, chunks and tokens; true
    ends the answer with "cancelled". `progress`: told of the tokens of the prompt. `image_overrides`: as for
    `Lfm2VlProcessor` (`max_image_tokens`, `do_image_splitting` ...). Generation ends at the model's end token, at a
    stop text, at `options.max_tokens`, or when the model's positions are used up. Closing the iterator stops the work.

    Raises the library's typed errors, all before the first piece.
    """
    started = time.perf_counter()
    mx.reset_peak_memory()
    inputs = processor.apply_chat_template(
        conversation(prompt, images, system),
        tools=tools,
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
    del inputs
    for _, piece in run(
        model,
        processor.tokenizer,
        ready,
        [resolved(model, options)],
        started=started,
        features=features,
        stop=stop,
        progress=progress,
    ):
        yield piece


def generate(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]],
    images: Any = None,
    **arguments: Any,
) -> str:
    """The whole text of `stream_generate`, with the same arguments and errors. Tool calls are no text; they are in the
    pieces of `stream_generate`."""
    return "".join(piece.text for piece in stream_generate(model, processor, prompt, images, **arguments))


def conversation(
    prompt: str | Sequence[Mapping[str, Any]], images: Any = None, system: str | None = None
) -> list[dict[str, Any]]:
    """The messages of one question: the system's text if any, then the user's pictures and text."""
    if not isinstance(prompt, str):
        if images is not None or system is not None:
            raise PromptError("prompt is a conversation; put pictures and the system's text into its messages")
        return [dict(message) for message in prompt]
    content = user_content(prompt, images)
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def user_content(text: str, images: Any = None) -> list[dict[str, Any]]:
    """A user's turn: pictures first, then the text. Raises `PromptError` if there is neither."""
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if not text and not pictures:
        raise PromptError("prompt is empty and there is no picture; give one of them")
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [*content, {"type": "text", "text": text}] if text else content
