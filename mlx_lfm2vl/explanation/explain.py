"""`explain`: an answer, and where in the pictures the model's attention lay while it wrote it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from ..errors import AnswerError, PromptError
from ..generation.arguments import CallOverrides
from ..generation.options import GenerationOptions
from ..generation.request import GenerationRequest, check_pair, conversation, encode
from ..generation.response import Completion
from ..generation.stream import stream_generate
from ..generation.vision_cache import VisionCache
from ..generation.watch import Cancelled, Progress, Stop, check_callable
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing import geometry
from ..processing.load_image import Picture, load_image
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import pictures_of, with_page_items
from .attention import answer_attentions
from .explanation import Explanation
from .picture_map import picture_map

_STOPPED = "the answer was stopped before it was explained"


def explain(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    prompt: str | Sequence[Mapping[str, Any]],
    images: Any = None,
    *,
    system: str | None = None,
    options: GenerationOptions | None = None,
    per_head: bool = False,
    stop: Stop | None = None,
    progress: Progress | None = None,
    control_tokens: bool = False,
    **overrides: Unpack[CallOverrides],
) -> Explanation:
    """Answers a question about pictures as `stream_generate` does, and then runs prompt and answer once more to see the
    attention of each token of the answer over the pictures.

    It is where the model read from, not why it answered so (docs/explain.md).

    Args:
        model: as `load` returns it.
        processor: the same.
        prompt, images, system, options, control_tokens, overrides: as for `stream_generate`.
        per_head: keep the attention of each head, not their mean.
        stop: asked many times a second and between tokens; true ends the work with an `AnswerError`.
        progress: told of the tokens of the prompt that have run and of all. The prompt runs twice, so they are twice as
            many as it has.

    Returns:
        The answer with its attention, in the pictures' own coordinates.

    Raises:
        PromptError: there is no picture, or the answer is empty.
        AnswerError: `stop` ended the work.
        Lfm2VlError: what `stream_generate` raises.
    """
    check_pair(model, processor)
    check_callable("stop", stop)
    check_callable("progress", progress)
    image_overrides: dict[str, Any] = {**overrides}
    if image_overrides.pop("videos", None) is not None:
        raise PromptError("explain is for pictures; ask about a video with generate")
    chosen = GenerationOptions.of(options, image_overrides)
    config = processor.image_processor.configured(**image_overrides)
    messages, pictures = _loaded(processor, conversation(prompt, images, system), image_overrides)
    if not pictures:
        raise PromptError("there is no picture in which an answer could be seen; give one")
    request = GenerationRequest(messages, None, None, None, chosen, image_overrides, control_tokens)
    vision_cache = VisionCache()
    responses = stream_generate(
        *(model, processor, messages),
        options=chosen,
        vision_cache=vision_cache,
        stop=stop,
        progress=None if progress is None else lambda done, count: progress(done, 2 * count),
        control_tokens=control_tokens,
        **image_overrides,
    )
    completion = Completion.of(list(responses))
    if completion.finish_reason == "cancelled":
        raise AnswerError(_STOPPED)
    tokens = completion.tokens
    if not tokens:
        raise PromptError("the answer is empty, so there is nothing to explain; ask otherwise")
    encoded = encode(model, processor, request)
    count = len(encoded.ids)
    again = None if progress is None else lambda done: progress(count + done, 2 * count)
    try:
        weights = answer_attentions(model, encoded, tokens, vision_cache, stop=stop, progress=again)
    except Cancelled:
        raise AnswerError(_STOPPED) from None
    if progress is not None:
        progress(2 * count, 2 * count)
    plans = [geometry.plan(picture.height, picture.width, config) for picture in pictures]
    maps = [
        picture_map(each if per_head else each.mean(axis=1), plan) for each, plan in zip(weights, plans, strict=True)
    ]
    kinds = enumerate(model.config.text_config.layer_types)
    layers = tuple(index for index, kind in kinds if kind != "conv")
    text, spans = _spoken(processor, tokens)
    return Explanation(text, tokens, spans, layers, tuple(pictures), tuple(maps))


def _loaded(
    processor: Lfm2VlProcessor, messages: list[dict[str, Any]], overrides: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Picture]]:
    """The messages with their pictures read, pages of PDF documents one by one, and these pictures."""
    image_processor = processor.image_processor
    policy, config = image_processor.source_policy, image_processor.configured(**overrides)
    (messages,), _ = with_page_items([messages], None, policy)
    items = [item for message in messages for item in message.get("content") or () if isinstance(item, dict)]
    if any(item["type"] == "video" for item in items):
        raise PromptError("a message holds a video, which is not explained; give its frames as pictures")
    (sources,) = pictures_of([messages], None, policy)
    if len(sources) != sum(item["type"] == "image" for item in items):
        raise PromptError("an image item of the conversation holds two pictures; give each an item of its own")
    pictures = [load_image(source, policy, config) for source in sources]
    rest = iter(pictures)

    def read(item: Any) -> Any:
        return {"type": "image", "image": next(rest)} if item["type"] == "image" else item

    made = [
        message
        if isinstance(message.get("content"), str | None)
        else {**message, "content": list(map(read, message["content"]))}
        for message in messages
    ]
    return made, pictures


def _spoken(processor: Lfm2VlProcessor, tokens: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of tokens, and the characters (start, end) of it that each has made certain."""

    def decoded(some: Sequence[int]) -> str:
        return str(processor.decode(some, skip_special_tokens=True))

    held: list[int] = []  # tokens from the last whole character on
    length, ends = 0, [0]  # of the text before them
    for token in tokens:
        held += [token] if decoded([token]) else []
        text = decoded(held)
        certain = text.rstrip("\N{REPLACEMENT CHARACTER}")
        ends.append(length + len(certain) if certain else ends[-1])
        if certain == text:
            length, held = length + len(text), []
        elif len(held) > 8:  # bytes that are no UTF-8; a character has at most four
            early, late = decoded(held[:-4]), held[-4:]
            if early + decoded(late) == text:
                length, held = length + len(early), late
    return decoded(tokens), tuple(itertools.pairwise(ends))
