"""The worth of drafts: answers with and without them, to a question about a picture and to the same question, asked
again behind its answer; and what wrong ones cost that end by the clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..generation.draft_model import DraftModel, check_draft
from ..generation.options import GenerationOptions
from ..generation.response import Completion, Statistics
from ..generation.speculation import Draft
from ..generation.stream import stream_generate
from ..generation.watch import Stop, check
from ..models.dspark import DSparkDraftModel
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load_draft
from ..processing.processor import Lfm2VlProcessor
from .ask import GREEDY, PROMPT
from .report import Drafts


class WrongDraft:
    """A `Draft` of tokens that stand far from the last ones."""

    timed = True

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        return [(tokens[-1] + self._vocabulary // 2 + at) % self._vocabulary for at in range(count)]


def load_for(model: Lfm2VlForConditionalGeneration, path_or_repo: str) -> DraftModel | DSparkDraftModel:
    """A draft model for a model. Raises `OptionError` where it does not fit, and what `load_draft` raises."""
    made = load_draft(path_or_repo)
    check_draft(model.config, made)
    return made


def measure(
    model: Lfm2VlForConditionalGeneration,
    processor: Lfm2VlProcessor,
    file: Path,
    tokens: int,
    several: Callable[[Callable[[], list[Statistics]]], list[list[Statistics]]],
    stop: Stop | None = None,
    *,
    ngrams: bool = True,
    draft_model: DraftModel | DSparkDraftModel | None = None,
) -> tuple[Drafts, ...]:
    """Measures a model whose answers do not end by themselves, as `constraints.measure` does. `file`: a picture's;
    `ngrams`: whether drafts of these are measured, and wrong ones, `draft_model`: those of a model. Raises
    `Cancelled`."""
    plain = replace(GREEDY, max_tokens=tokens)

    def answered(prompt: list[dict[str, Any]], options: GenerationOptions) -> Completion:
        made = Completion.of(list(stream_generate(model, processor, prompt, options=options, stop=stop)))
        check(stop)
        return made

    asked = {"type": "text", "text": PROMPT}
    question = {"role": "user", "content": [{"type": "image", "image": file}, asked]}
    answer = {"role": "assistant", "content": answered([question], plain).text}
    again: list[dict[str, Any]] = [question, answer, {"role": "user", "content": [asked]}]
    kinds: dict[str, tuple[list[dict[str, Any]], Draft | DSparkDraftModel | Literal["ngram", "auto"]]] = {}
    if ngrams:
        kinds = {
            "first": ([question], "ngram"),
            "again": (again, "ngram"),
            "again, auto": (again, "auto"),
            "all wrong": ([question], WrongDraft(model.config.text_config.vocab_size)),
        }
    if draft_model is not None:
        kinds |= {"first, model": ([question], draft_model), "again, model": (again, draft_model)}

    def every() -> list[Statistics]:
        made = [
            answered(prompt, replace(plain, draft=draft)) for prompt, own in kinds.values() for draft in (None, own)
        ]
        return [each.statistics for each in made if each.statistics is not None]

    runs = list(zip(*several(every), strict=True))
    speeds = [statistics.median(each.tokens_per_second for each in some) for some in runs]
    return tuple(
        Drafts(
            kind,
            speeds[2 * at],
            speeds[2 * at + 1],
            runs[2 * at + 1][0].generated_tokens,
            runs[2 * at + 1][0].model_steps,
            runs[2 * at + 1][0].drafted_tokens,
            runs[2 * at + 1][0].accepted_tokens,
        )
        for at, kind in enumerate(kinds)
    )
