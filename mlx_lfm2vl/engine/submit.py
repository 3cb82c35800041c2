"""The arguments of every way to submit a request, its reading and placing, and the check of a whole result."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any, TypedDict

from ..errors import EngineClosedError, QueueFullError
from ..generation.arguments import OptionFields, PromptArguments
from ..generation.options import ModelSettings
from ..generation.request import EncodedPrompt, GenerationRequest, encode
from ..generation.response import Completion
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .handle import MOST_SECONDS, Request, Sink, check_seconds

PLACE_SECONDS = 0.02  # between looks for a place in the queue


class RequestArguments(TypedDict, total=False):
    """Options of a request of an engine."""

    deadline: float | None
    wait: float
    sink: Sink | None


class SubmitArguments(PromptArguments, OptionFields, RequestArguments, total=False):
    """Options of `Engine.submit`."""


def settings(model: weakref.ref[Lfm2VlForConditionalGeneration]) -> ModelSettings:
    """The settings of a model that is still there. Raises `EngineClosedError`."""
    known = model()
    if known is None:
        raise EngineClosedError("the engine let go of its model before the request was read; ask again")
    return ModelSettings(known.config, getattr(known, "generation_config", None))


def read_request(
    model: weakref.ref[Lfm2VlForConditionalGeneration], processor: Lfm2VlProcessor, request: GenerationRequest
) -> EncodedPrompt:
    """All of a request that needs no MLX."""
    prompt = encode(settings(model), processor, request)
    _ = prompt.spans  # goes through all patches
    return prompt


def whole(request: Request, completion: Completion) -> Completion:
    """The result of a request. Raises `EngineClosedError` where the engine itself cut it off."""
    if completion.finish_reason == "cancelled" and request.abandoned:
        raise EngineClosedError("the engine let go of its model before the result was whole; ask again")
    return completion


async def placed(
    submit: Callable[..., Request], *, wait: float = 0.0, deadline: float | None = None, **arguments: Any
) -> Request:
    """The request, once there is a place for it. Raises `QueueFullError` after `wait` seconds, or at the deadline, and
    `RuntimeError` where asyncio does not run."""
    asyncio.get_running_loop()
    begun = time.monotonic()
    left = None if deadline is None else check_seconds("deadline", deadline)
    end = begun + min(check_seconds("wait", wait), MOST_SECONDS if left is None else left)
    while True:
        try:
            return submit(deadline=left, **arguments)
        except QueueFullError:
            if time.monotonic() >= end:
                raise
            await asyncio.sleep(PLACE_SECONDS)
            left = None if deadline is None else max(0.0, begun + deadline - time.monotonic())
