"""The loop that answers: a step runs a chunk of one prompt, and a token of every row that is being answered.

In go prompts that are ready to run, and cancels; out come responses by the id of their row. Single answers, chat turns,
batches and the engine all drive this loop. It has no threads and no clock: who drives it decides when a step runs.

    waiting -> prefilling (its turn comes with those of other prompts) -> running -> finished
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as List
from contextlib import suppress
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations, wired
from ..errors import OutOfMemoryError
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.tokenizer import Tokenizer
from .decode import GenerationBatch
from .defaults import generation_config, positions_left
from .detokenizer import Detokenizer
from .passes import prefill_chunk
from .prefill import prefill_rows
from .prompt_cache import SHORTEST_PASS, PromptCache, Recorder, shared_length
from .request import EncodedPrompt
from .response import GenerationResponse, Statistics
from .sampling import NOT_FINITE, make_sampler
from .vision_cache import VisionCache
from .watch import Cancelled, Pieces, Progress, Stop, advance, check_callable


class Sequence:
    """One row: its prompt, its options, and what it has generated so far.

    `generated` has every token, the end token too. `ids` (n,) is the prompt.
    """

    def __init__(self, id: int, prompt: EncodedPrompt, tokenizer: Tokenizer, ends: List[int], began: float):
        self.id, self.ids, self.options = id, prompt.ids, prompt.options
        self.ends, self.limit = ends, prompt.options.max_tokens
        self.detokenizer = Detokenizer(tokenizer, prompt.options, ends)
        self.generated: list[int] = []
        self.cached = 0  # tokens of the prompt that needed no run
        self.recorder: Recorder | None = None  # of what others may begin with
        self.cancelled = False
        self.began, self.first = began, 0.0
        self._tokens: list[int] = []  # those not yet in a response
        self._logprobs: list[float] = []

    def push(self, token: int, logprob: float | None) -> str:
        """Takes the next token, and gives the text that it makes certain."""
        self.generated.append(token)
        self.first = self.first or time.perf_counter() - self.began
        text = self.detokenizer.push(token)
        if token not in self.ends:
            self._tokens.append(token)
            self._logprobs += [] if logprob is None else [logprob]
        return text

    def respond(self, text: str, reason: str | None = None, statistics: Statistics | None = None) -> GenerationResponse:
        logprobs = tuple(self._logprobs) if self.options.logprobs else None
        made = GenerationResponse(
            text, tuple(self._tokens), reason, statistics, logprobs, self.detokenizer.take_tool_text()
        )
        self._tokens, self._logprobs = [], []
        return made

    def statistics(self, image_token: int) -> Statistics:
        """What the row took until now."""
        rest, count = time.perf_counter() - self.began - self.first, len(self.generated)
        return replace(
            prompt_statistics(self.ids, image_token),
            cached_tokens=self.cached,
            generated_tokens=count,
            time_to_first_token=self.first,
            prompt_tokens_per_second=(len(self.ids) - self.cached) / self.first if self.first else 0.0,
            tokens_per_second=(count - 1) / rest if count > 1 and rest > 0 else 0.0,
        )


def prompt_statistics(ids: np.ndarray, image_token: int) -> Statistics:
    """Those of a prompt (n,) that nothing was answered to."""
    images = int(np.count_nonzero(ids == image_token))
    return Statistics(len(ids), 0, images, 0, 0.0, 0.0, 0.0, mx.get_peak_memory())


@dataclass(eq=False)
class _Prefill:
    """Rows whose prompts are run together, and the work that is left."""

    rows: list[Sequence]
    work: Pieces[GenerationBatch]  # returns the batch that they begin


Output = tuple[int, GenerationResponse | Exception]


class Scheduler:
    """Rows of one model. `step` gives (id, response) pairs; the last response of a row has a `finish_reason`, and an
    error ends it."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        tokenizer: Tokenizer,
        *,
        vision_cache: VisionCache | None = None,
        prompt_cache: PromptCache | None = None,
    ):
        for cache in (vision_cache, prompt_cache):
            if cache is not None:
                cache.bind(model)
        self._model, self._tokenizer = model, tokenizer
        self._vision_cache, self._prompt_cache = vision_cache, prompt_cache
        self._image_token = model.config.image_token_id
        self._rows: dict[int, Sequence] = {}  # those that have not finished
        self._prefilling: deque[_Prefill] = deque()
        self._running: list[Sequence] = []  # in the order of `_batch`
        self._batch: GenerationBatch | None = None
        self._count = 0

    def add(
        self,
        prompts: List[EncodedPrompt],
        *,
        started: List[float],
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> list[Sequence]:
        """Takes prompts that are prefilled together.

        Args:
            prompts: whose pictures' patches are taken when they are encoded.
            started: `time.perf_counter()` when each row began.
            stop: asked until their first tokens whether all of these rows are cancelled.
            progress: told of the tokens of these prompts.

        Raises:
            PromptError: if there is no room for an answer.
        """
        check_callable("stop", stop)
        check_callable("progress", progress)
        ends = generation_config(self._model).eos_token_ids
        rows = []
        for at, (prompt, began) in enumerate(zip(prompts, started, strict=True)):
            row = Sequence(self._count + at, prompt, self._tokenizer, ends, began)
            row.limit = min(row.limit, positions_left(self._model, len(row.ids)))
            rows.append(row)
        self._count += len(rows)
        for group in self._groups(prompts):
            self._begin([rows[at] for at in group], [prompts[at] for at in group], stop, progress)
        return rows

    def _groups(self, prompts: List[EncodedPrompt]) -> list[list[int]]:
        """Which prompts (by index) are prefilled together: those that begin alike, of which the beginning is run once,
        and those of one chunk. Nobody waits for a longer prompt of others."""
        groups: list[list[int]] = []
        chunk = prefill_chunk(self._model.config.text_config, 1, 0)
        for index, prompt in enumerate(prompts):
            for group in groups:
                others = [prompts[at] for at in group]
                short = all(len(each.ids) <= chunk for each in (prompt, *others))
                if short or (self._prompt_cache is not None and any(_alike(prompt, each) for each in others)):
                    group.append(index)
                    break
            else:
                groups.append([index])
        return groups

    def _begin(
        self, rows: list[Sequence], prompts: list[EncodedPrompt], stop: Stop | None, progress: Progress | None
    ) -> None:
        def stopped() -> bool:
            return all(row.cancelled for row in rows) or (stop is not None and stop())

        self._rows |= {row.id: row for row in rows}
        self._prefilling.append(_Prefill(rows, self._prefill(rows, prompts, stopped, progress)))

    def cancel(self, id: int) -> None:
        """Ends a row at the next step. May be called from any thread; an id that has finished is nothing."""
        row = self._rows.get(id)
        if row is not None:
            row.cancelled = True

    def __len__(self) -> int:
        return len(self._rows)

    def step(self) -> list[Output]:
        """Runs a chunk of the prompt whose turn it is, and a token of every running row."""
        return [*self._drop_cancelled(), *self._step_prefill(), *self._drop_cancelled(), *self._step_batch()]

    def close(self) -> None:
        """Forgets all rows."""
        self._prefilling.clear()
        self._rows.clear()
        self._keep([])

    def _prefill(
        self, rows: List[Sequence], prompts: list[EncodedPrompt], stop: Stop, progress: Progress | None
    ) -> Pieces[GenerationBatch]:
        """Runs prompts, so that their rows can be decoded."""
        made = yield from prefill_rows(
            self._model, prompts, self._vision_cache, self._prompt_cache, stop=stop, progress=progress
        )
        for row, cached, recorder in zip(rows, made.cached, made.recorders, strict=True):
            row.cached, row.recorder = cached, recorder
        options = [row.options for row in rows]
        sampler = make_sampler(options)
        sampler.observe(mx.array(_right_aligned(rows)), self._model.config.text_config.vocab_size)
        logprobs = any(each.logprobs for each in options)
        return GenerationBatch(self._model, made.cache, made.logits, sampler, made.padding, logprobs)

    def _step_prefill(self) -> Iterator[Output]:
        if not self._prefilling:
            return
        prefill = self._prefilling.popleft()
        try:
            batch = advance(prefill.work)
            if batch is None:
                self._prefilling.append(prefill)
                return
            if self._batch is None:
                self._batch = batch
            else:
                self._batch.extend(batch)
        except Cancelled:
            for row in prefill.rows:
                yield self._last(row, "", "cancelled")
        except Exception as error:
            for row in prefill.rows:
                yield self._failed(row, error)
        else:
            self._running += prefill.rows

    def _drop_cancelled(self) -> Iterator[Output]:
        cancelled = [row for row in self._running if row.cancelled]
        for row in cancelled:
            yield self._last(row, row.detokenizer.finish(), "cancelled")
            self._remember(row)
        self._keep([row for row in self._running if row not in cancelled])

    def _step_batch(self) -> Iterator[Output]:
        if self._batch is None:
            return
        rows, final = self._running, all(len(row.generated) + 1 >= row.limit for row in self._running)
        try:
            tokens, logprobs = self._batch.step(last=final)
        except Exception as error:  # memory that ran out: the states of the rows no longer agree
            self._keep([])
            yield from (self._failed(row, error) for row in rows)
            return
        going_on = []
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == NOT_FINITE:
                yield self._failed(row, self._batch.error(at))
                continue
            text = row.push(token, logprobs[at] if logprobs else None)
            if row.detokenizer.stopped:
                yield self._last(row, text, "stop")
                self._remember(row)
            elif len(row.generated) >= row.limit:
                yield self._last(row, text + row.detokenizer.finish(), "length")
                self._remember(row)
            else:
                going_on.append(row)
                if text or row.detokenizer.tool_text:
                    yield row.id, row.respond(text)
        self._keep(going_on)

    def _remember(self, row: Sequence) -> None:
        """Gives the states of a row that has finished to the prompt cache, its answer included; nothing where memory
        runs out."""
        if row.recorder is None or self._batch is None or self._prompt_cache is None:
            return
        with suppress(OutOfMemoryError), allocations("the prompt cache"):
            cache = self._batch.row_cache(self._running.index(row))
            row.recorder.take(cache)
            self._prompt_cache.put(row.recorder.entry(cache, row.generated))
        row.recorder = None  # its checkpoints are the entry's now

    def _last(self, row: Sequence, text: str, reason: str) -> Output:
        self._rows.pop(row.id, None)
        return row.id, row.respond(text, reason, row.statistics(self._image_token))

    def _failed(self, row: Sequence, error: Exception) -> Output:
        self._rows.pop(row.id, None)
        return row.id, error

    def _keep(self, rows: list[Sequence]) -> None:
        """Goes on with these of the running rows, in their order."""
        if not rows:
            self._batch = None  # what it holds may be large
        elif self._batch is not None and len(rows) < len(self._running):
            self._batch.filter([self._running.index(row) for row in rows])
        self._running = rows


def _alike(one: EncodedPrompt, other: EncodedPrompt) -> bool:
    """Whether two prompts begin with enough alike to be worth a pass of its own."""
    return shared_length(one.ids, one.spans, other.ids, other.spans) >= SHORTEST_PASS


def _right_aligned(rows: List[Sequence]) -> np.ndarray:
    """The prompts (B, L); shorter ones repeat their last token before them, so that padding does not count as said."""
    length = max(len(row.ids) for row in rows)
    return np.stack([np.concatenate([np.full(length - len(row.ids), row.ids[-1]), row.ids]) for row in rows])


@wired
def drive(
    scheduler: Scheduler, rows: List[Sequence], stop: Stop | None = None
) -> Iterator[tuple[int, GenerationResponse | Exception]]:
    """Steps until these rows have finished. `stop`, asked after each token, cancels them all.

    Yields (index among the rows, response or error).
    """
    indices = {row.id: index for index, row in enumerate(rows)}
    while len(scheduler):
        for id, item in scheduler.step():
            yield indices[id], item
        if stop is not None and stop():
            for id in indices:
                scheduler.cancel(id)
