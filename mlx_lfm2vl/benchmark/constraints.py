"""The cost of a form and what it saves: the time of a step with a mask beside one without, and the runs of the model
that an answer of six fields takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..constraints.response_format import ResponseFormat
from ..generation.options import GenerationOptions
from ..generation.response import Statistics
from ..generation.stream import stream_generate
from ..generation.watch import Stop, check
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.processor import Lfm2VlProcessor
from .ask import GREEDY
from .report import Constraints

PROMPT = "Describe a thing that you know well, in every detail."
ANYTHING = ResponseFormat.regex("(?s:.)*")
FIELDS: dict[str, Any] = {
    "name": {"type": "string", "maxLength": 12},
    "colour": {"enum": ["red", "green", "blue", "black", "white"]},
    "position": {"enum": ["left", "right", "top", "bottom"]},
    "count": {"type": "integer", "minimum": 0, "maximum": 99},
    "visible": {"type": "boolean"},
    "category": {"enum": ["animal", "plant", "person", "vehicle", "building"]},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}


def measure(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    tokens: int,
    several: Callable[[Callable[[], tuple[float, float]]], list[tuple[float, float]]],
    stop: Stop | None = None,
) -> Constraints:
    """Measures a model whose answers do not end by themselves.

    Args:
        model: the model.
        processor: its processor.
        tokens: of the answers that are timed.
        several: repeats a measurement.
        stop: true ends the work.

    Raises:
        Cancelled
    """

    def answered(options: GenerationOptions) -> Statistics:
        *_, last = stream_generate(model, processor, PROMPT, options=options, stop=stop)
        check(stop)
        assert last.statistics is not None
        return last.statistics

    def both() -> tuple[float, float]:
        plain = replace(GREEDY, max_tokens=tokens)
        pair = [answered(each).tokens_per_second for each in (plain, replace(plain, response_format=ANYTHING))]
        return 1 / pair[0], 1 / pair[1]

    times = several(both)
    made = answered(replace(GREEDY, response_format=SCHEMA, max_tokens=None))
    step, masked = (statistics.median(pair[at] for pair in times) for at in (0, 1))
    return Constraints(step, masked, made.generated_tokens, made.model_steps)
