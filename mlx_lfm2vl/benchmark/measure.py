"""The measurements: one question in stages, with a clock between them, and many questions at once.

The stages are those of `stream_generate`, called one after the other with the same arguments, so that their sum is the
time to the first token. Answers are greedy and never end before their number of tokens, so that every run is equally
long. Pictures are drawn from a seed and read from JPEG files. MLX must be the process's alone: memory is counted as it
counts it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx

from ..backends.memory import wired_limit
from ..errors import OptionError
from ..generation.options import generation_config
from ..generation.watch import Cancelled, Progress, Stop
from ..hub import resolve
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..pretrained import load
from ..weights.atomic_folder import scratch
from ..weights.names import parameters
from .ask import Counter, Run, ask, ask_together, draw
from .extras import Subject, draft_for
from .machine import describe, import_seconds, memory_bandwidth
from .report import PARTS, Answer, Batch, Report

TEXT = "text"  # in place of a size: a question without a picture
Size = tuple[int, int] | None  # (width, height), or None: no picture
BATCH_PICTURE = (256, 256)


@dataclass(frozen=True)
class Plan:
    """The measurements: questions of `sizes`, batches of `batch_sizes` pictures, what a form of the answer costs
    (`constraints`), what drafts of n-grams save (`drafts`) and those of a `draft_model`, waits of second questions
    (`again`), `tokens` an answer, each `repeats` times after one run to warm up. Raises `OptionError`."""

    sizes: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    tokens: int
    repeats: int
    constraints: bool = False
    drafts: bool = False
    draft_model: str | None = None
    again: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise OptionError(f"repeats is {self.repeats}, expected at least 1")
        if self.tokens < 2:
            raise OptionError(f"tokens is {self.tokens}, expected at least 2: speed is counted after the first")
        if any(size < 1 for size in self.batch_sizes):
            raise OptionError(f"batch_sizes is {self.batch_sizes}, expected numbers of at least 1")
        if not self.kinds:
            raise OptionError("neither sizes nor batch sizes are given; there is nothing to measure")

    @property
    def kinds(self) -> int:
        """How many kinds of runs there are."""
        drafting = self.drafts or self.draft_model is not None
        return len(self.sizes) + len(self.batch_sizes) + self.constraints + drafting + self.again

    @property
    def steps(self) -> int:
        """Runs in all, as `progress` counts them: those of import and loading, too."""
        return 1 + 2 * self.repeats + self.kinds * (self.repeats + 1)


def benchmark(
    path_or_repo: str,
    plan: Plan,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Report:
    """Measures a model. What must be downloaded is downloaded before.

    `progress` is told of the runs done; `stop` ends the work within a token, and the report holds what was measured
    until then. Raises the library's typed errors.
    """
    counter = Counter(plan.repeats, plan.steps, progress, stop)
    folder = resolve(path_or_repo, revision=revision)
    bandwidth = memory_bandwidth()
    counter.tick()
    imports = statistics.median(counter.some(import_seconds))
    loads: list[float] = []
    while len(loads) < plan.repeats and not (loads and counter.stopped()):
        model = processor = None  # never two models at once
        mx.clear_cache()
        start = time.perf_counter()
        model, processor = load(folder, adapter=adapter)
        loads.append(time.perf_counter() - start)
        counter.tick()
    assert model is not None and processor is not None
    if plan.draft_model is not None:  # one that does not fit is told before the work; its memory is not held meanwhile
        draft_for(model, plan.draft_model)
        mx.clear_cache()
    model.generation_config = replace(generation_config(model), eos_token_ids=())
    before = imports + statistics.median(loads)
    asked: list[tuple[Size, list[Run]]] = []
    batches: list[Batch] = []
    more: dict[str, Any] = {"complete": False}
    subject = Subject(model, processor, counter)
    with scratch() as folder, wired_limit(), contextlib.suppress(Cancelled):
        for size in plan.sizes:
            file = None if size is None else draw(size, 0, folder)
            asked.append((size, counter.all(partial(ask, model, processor, file, plan.tokens, counter.stopped))))
        for count in plan.batch_sizes:
            files = [draw(BATCH_PICTURE, number, folder) for number in range(count)]
            together = partial(ask_together, model, processor, files, plan.tokens, counter.stopped)
            batches.append(_medians(counter.all(together)))
        if plan.constraints:
            more["constraints"] = subject.constraints(plan.tokens)
        if plan.drafts or plan.draft_model is not None:
            own = None if plan.draft_model is None else draft_for(model, plan.draft_model)
            more["drafts"] = subject.drafts(draw(BATCH_PICTURE, 0, folder), plan.tokens, plan.drafts, own)
            del own
        if plan.again:
            more["again"] = subject.again(draw(BATCH_PICTURE, 0, folder))
        more["complete"] = True
    if not counter.stopped():
        bandwidth = max(bandwidth, memory_bandwidth())  # other work may have disturbed the first
    answers = [_answer(size, runs, before, bandwidth) for size, runs in asked]
    return Report(
        model=path_or_repo,
        machine=describe(),
        bandwidth=bandwidth,
        weights=_weights(model),
        repeats=plan.repeats,
        import_seconds=imports,
        load_seconds=statistics.median(loads),
        answers=tuple(answers),
        batches=tuple(batches),
        draft_model=plan.draft_model,
        **more,
    )


def _weights(model: Lfm2VlForConditionalGeneration) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for array in parameters(model).values():
        dtype = str(array.dtype).removeprefix("mlx.core.")
        sizes[dtype] = sizes.get(dtype, 0) + array.nbytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _answer(size: Size, runs: Sequence[Run], before: float, bandwidth: float) -> Answer:
    first = statistics.median(run.first_token for run in runs)
    speed = statistics.median(run.tokens_per_second for run in runs)
    return Answer(
        picture=TEXT if size is None else f"{size[0]}x{size[1]}",
        prompt_tokens=runs[0].prompt_tokens,
        image_tokens=runs[0].image_tokens,
        generated_tokens=len(runs[0].tokens),
        parts={part: statistics.median(run.parts[part] for run in runs) for part in PARTS},
        first_token=first,
        from_start=before + first,
        tokens_per_second=speed,
        bytes_per_token=runs[0].bytes_per_token,
        bandwidth_share=runs[0].bytes_per_token * speed / bandwidth,
        peak_memory=max(run.peak_memory for run in runs),
    )


def _medians(runs: Sequence[Batch]) -> Batch:
    seconds = statistics.median(run.seconds for run in runs)
    return replace(
        runs[0],
        seconds=seconds,
        pictures_per_second=runs[0].size / seconds,
        tokens_per_second=runs[0].generated_tokens / seconds,
        peak_memory=max(run.peak_memory for run in runs),
    )
