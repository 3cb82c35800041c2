"""Measurements beyond a first answer, of a model whose answers do not end by themselves: the cost of a form and what it
saves, the worth of drafts, and waits for the first token of a second question and after idling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..constraints.response_format import ResponseFormat
from ..generation.draft_model import DraftModel, check_draft
from ..generation.prompt_cache import PromptCache
from ..generation.response import Completion, Statistics
from ..generation.speculation import Draft
from ..generation.stream import stream_generate
from ..generation.vision_cache import VisionCache
from ..generation.watch import check
from ..models.dspark import DSparkDraftModel
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load_draft
from ..processing.processor import Lfm2VlProcessor
from .ask import GREEDY, PROMPT, Counter
from .report import Again, Constraints, Drafts

ABOUT = "Describe a thing that you know well, in every detail."
SECOND = "Which colours does it have?"
IDLE, GLANCE = 5.0, 0.05  # seconds without work; between two looks at whether to stop
AnyDraft = Draft | DSparkDraftModel | Literal["ngram", "auto"]
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


@dataclass(frozen=True)
class Subject:
    """A model that is measured, and what repeats the work. Its methods raise `Cancelled`."""

    model: Lfm2VlForConditionalGeneration
    processor: Lfm2VlProcessor
    counter: Counter

    def constraints(self, tokens: int) -> Constraints:
        """The time of a step with a mask beside one without, in answers of `tokens`, and the runs of the model that an
        answer of six fields takes."""

        def both() -> list[float]:
            made = [self._answered(ABOUT, max_tokens=tokens, response_format=form)[1] for form in (None, ANYTHING)]
            return [1 / each.tokens_per_second for each in made]

        step, masked = map(statistics.median, zip(*self.counter.all(both), strict=True))
        _, made = self._answered(ABOUT, response_format=SCHEMA, max_tokens=None)
        return Constraints(step, masked, made.generated_tokens, made.model_steps)

    def drafts(self, file: Path, tokens: int, ngrams: bool, draft_model: AnyDraft | None) -> tuple[Drafts, ...]:
        """Answers of `tokens` with and without drafts, to a question about a picture's file and to the same question,
        asked again behind its answer; and what wrong ones cost that end by the clock. `ngrams`: whether drafts of
        these are measured, and wrong ones, `draft_model`: those of a model."""
        asked = {"type": "text", "text": PROMPT}
        first: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image", "image": file}, asked]}]
        text, _ = self._answered(first, max_tokens=tokens)
        again = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": [asked]}]
        kinds: dict[str, tuple[list[dict[str, Any]], AnyDraft]] = {}
        if ngrams:
            wrong = WrongDraft(self.model.config.text_config.vocab_size)
            kinds = {"first": (first, "ngram"), "again": (again, "ngram")}
            kinds |= {"again, auto": (again, "auto"), "all wrong": (first, wrong)}
        if draft_model is not None:
            kinds |= {"first, model": (first, draft_model), "again, model": (again, draft_model)}

        def every() -> list[Statistics]:
            pairs = ((prompt, draft) for prompt, own in kinds.values() for draft in (None, own))
            return [self._answered(prompt, max_tokens=tokens, draft=draft)[1] for prompt, draft in pairs]

        runs = list(zip(*self.counter.all(every), strict=True))
        speeds = [statistics.median(each.tokens_per_second for each in some) for some in runs]
        made = []
        for kind, plain, drafting, (run, *_) in zip(kinds, speeds[::2], speeds[1::2], runs[1::2], strict=True):
            counts = (run.generated_tokens, run.model_steps, run.drafted_tokens, run.accepted_tokens)
            made.append(Drafts(kind, plain, drafting, *counts))
        return tuple(made)

    def again(self, file: Path) -> Again:
        """Waits for the first token of a question about a picture's file, of a second one about the same, and of one
        after idling."""

        def wait(question: str, caches: dict[str, Any]) -> float:
            return self._answered(question, file, caches, max_tokens=2)[1].time_to_first_token

        def every() -> tuple[float, float, float]:
            caches = {"prompt_cache": PromptCache(), "vision_cache": VisionCache()}
            first, second = wait(PROMPT, caches), wait(SECOND, caches)
            end = time.perf_counter() + IDLE
            while time.perf_counter() < end:
                check(self.counter.stopped)
                time.sleep(GLANCE)
            return first, second, wait(PROMPT, {"prompt_cache": PromptCache(), "vision_cache": VisionCache()})

        first, second, idle = map(statistics.median, zip(*self.counter.all(every), strict=True))
        return Again(first, second, idle, IDLE)

    def _answered(
        self, prompt: Any, file: Path | None = None, caches: dict[str, Any] | None = None, **options: Any
    ) -> tuple[str, Statistics]:
        """A greedy answer."""
        how: dict[str, Any] = {"options": replace(GREEDY, **options), "stop": self.counter.stopped, **(caches or {})}
        made = Completion.of(list(stream_generate(self.model, self.processor, prompt, file, **how)))
        check(self.counter.stopped)
        assert made.statistics is not None
        return made.text, made.statistics


class WrongDraft:
    """A `Draft` of tokens that stand far from the last ones."""

    timed = True

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        return [(tokens[-1] + self._vocabulary // 2 + at) % self._vocabulary for at in range(count)]


def draft_for(model: Lfm2VlForConditionalGeneration, path_or_repo: str) -> DraftModel | DSparkDraftModel:
    """A draft model for a model. Raises `OptionError` where it does not fit, and what `load_draft` raises."""
    made = load_draft(path_or_repo)
    check_draft(model.config, made)
    return made
