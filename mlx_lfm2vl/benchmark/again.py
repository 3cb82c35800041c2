"""Waits for the first token beyond a first question: of a second one about the same picture, and after idling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..generation.prompt_cache import PromptCache
from ..generation.stream import stream_generate
from ..generation.vision_cache import VisionCache
from ..generation.watch import Stop, check
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .ask import GREEDY, PROMPT
from .report import Again

SECOND = "Which colours does it have?"
IDLE, GLANCE = 5.0, 0.05  # seconds without work; between two looks at whether to stop


def measure(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    file: Path,
    several: Callable[[Callable[[], tuple[float, float, float]]], list[tuple[float, float, float]]],
    stop: Stop | None = None,
) -> Again:
    """Measures a model, as `constraints.measure` does. `file`: a picture's. Raises `Cancelled`."""
    options = replace(GREEDY, max_tokens=2)

    def wait(question: str, prompts: PromptCache, views: VisionCache) -> float:
        """Seconds from the call to the first token, the file read anew."""
        *_, last = stream_generate(
            model, processor, question, file, options=options, prompt_cache=prompts, vision_cache=views, stop=stop
        )
        check(stop)
        assert last.statistics is not None
        return last.statistics.time_to_first_token

    def every() -> tuple[float, float, float]:
        prompts, views = PromptCache(), VisionCache()
        first, second = (wait(question, prompts, views) for question in (PROMPT, SECOND))
        end = time.perf_counter() + IDLE
        while time.perf_counter() < end:
            check(stop)
            time.sleep(GLANCE)
        return first, second, wait(PROMPT, PromptCache(), VisionCache())

    first, second, idle = (statistics.median(some) for some in zip(*several(every), strict=True))
    return Again(first, second, idle, IDLE)
