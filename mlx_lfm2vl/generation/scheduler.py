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
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..backends.memory import wired
from ..models.cache import Cache
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..processing.tokenizer import Tokenizer
from .decode import Decoding
from .defaults import generation_config, positions_left
from .options import GenerationOptions
from .response import GenerationResponse, Statistics
from .sampling import NOT_FINITE, chooser
from .text import RowText
from .watch import Cancelled, Pieces, Progress, Stop, advance, check_callable


class Start(Protocol):
    """Prompts that are prefilled together."""

    @property
    def ids(self) -> np.ndarray:
        """The whole prompts (B, L), padded on the left."""

    @property
    def padding(self) -> np.ndarray | None:
        """Padding tokens before each row (B,), or None if there are none."""

    @property
    def cached(self) -> List[int]:
        """Of each row, how many tokens needed no run; known once `begin` has returned."""

    def begin(self, stop: Stop | None, progress: Progress | None) -> Pieces[tuple[Cache, mx.array]]:
        """The cache with the prompts in it, and the logits (B, vocabulary) of their last tokens. Raises `Cancelled`."""


class Sequence:
    """One row: its prompt, its options, and what it has generated so far.

    `generated` has every token, the end token too. `ids` (n,) is the prompt.
    """

    def __init__(
        self, id: int, start: Start, at: int, tokenizer: Tokenizer, options: GenerationOptions, ends: List[int]
    ):
        gap = 0 if start.padding is None else int(start.padding[at])
        self.id, self.start, self.at, self.ids = id, start, at, start.ids[at][gap:]
        self.options, self.ends, self.limit = options, ends, options.max_tokens
        self.detokenizer = RowText(tokenizer, options, ends)
        self.generated: list[int] = []
        self.cancelled = False
        self.began, self.first = 0.0, 0.0
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
        rest, cached = time.perf_counter() - self.began - self.first, self.start.cached[self.at]
        count = len(self.generated)
        return replace(
            prompt_statistics(self.ids, image_token),
            cached_tokens=cached,
            generated_tokens=count,
            time_to_first_token=self.first,
            prompt_tokens_per_second=(len(self.ids) - cached) / self.first if self.first else 0.0,
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
    work: Pieces[Decoding]


Output = tuple[int, GenerationResponse | Exception]


class Scheduler:
    """Rows of one model. `step` gives (id, response) pairs; the last response of a row has a `finish_reason`, and an
    error ends it."""

    def __init__(self, model: Lfm2VlForConditionalGeneration, tokenizer: Tokenizer):
        self._model, self._tokenizer = model, tokenizer
        self._image_token = model.config.image_token_id
        self._prefilling: deque[_Prefill] = deque()
        self._running: list[Sequence] = []  # in the order of `_batch`
        self._batch: Decoding | None = None
        self._count = 0

    def add(
        self,
        start: Start,
        options: List[GenerationOptions],
        *,
        started: List[float],
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> list[Sequence]:
        """Takes prompts that are prefilled together.

        Args:
            start: the prompts.
            options: resolved, for each row.
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
        for at, (each, began) in enumerate(zip(options, started, strict=True)):
            row = Sequence(self._count + at, start, at, self._tokenizer, each, ends)
            row.began, row.limit = began, min(row.limit, positions_left(self._model, len(row.ids)))
            rows.append(row)
        self._count += len(rows)

        def stopped() -> bool:
            return all(row.cancelled for row in rows) or (stop is not None and stop())

        self._prefilling.append(_Prefill(rows, _prefill(self._model, start, options, stopped, progress)))
        return rows

    def cancel(self, id: int) -> None:
        """Ends a row at the next step. May be called from any thread; an id that has finished is nothing."""
        for row in self.sequences():
            if row.id == id:
                row.cancelled = True

    def sequences(self) -> list[Sequence]:
        """The rows that have not finished."""
        return [*self._running, *(row for prefill in list(self._prefilling) for row in prefill.rows)]

    def __len__(self) -> int:
        return len(self.sequences())

    def step(self) -> list[Output]:
        """Runs a chunk of the prompt whose turn it is, and a token of every running row."""
        return [*self._drop_cancelled(), *self._step_prefill(), *self._drop_cancelled(), *self._step_batch()]

    def close(self) -> None:
        """Forgets all rows."""
        self._prefilling.clear()
        self._keep([])

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
                self._batch.join(batch)
        except Cancelled:
            for row in prefill.rows:
                yield self._last(row, "", "cancelled")
        except Exception as error:
            for row in prefill.rows:
                yield row.id, error
        else:
            self._running += prefill.rows

    def _drop_cancelled(self) -> Iterator[Output]:
        cancelled = [row for row in self._running if row.cancelled]
        for row in cancelled:
            yield self._last(row, row.detokenizer.finish(), "cancelled")
        self._keep([row for row in self._running if row not in cancelled])

    def _step_batch(self) -> Iterator[Output]:
        if self._batch is None:
            return
        rows, final = self._running, all(len(row.generated) + 1 >= row.limit for row in self._running)
        try:
            tokens, logprobs = self._batch.step(last=final)
        except Exception as error:  # memory that ran out: the states of the rows no longer agree
            self._keep([])
            yield from ((row.id, error) for row in rows)
            return
        going_on = []
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == NOT_FINITE:
                yield row.id, self._batch.error(at)
                continue
            text = row.push(token, logprobs[at] if logprobs else None)
            if row.detokenizer.stopped:
                yield self._last(row, text, "stop")
            elif len(row.generated) >= row.limit:
                yield self._last(row, text + row.detokenizer.finish(), "length")
            else:
                going_on.append(row)
                if text or row.detokenizer.tool_text:
                    yield row.id, row.respond(text)
        self._keep(going_on)

    def _last(self, row: Sequence, text: str, reason: str) -> Output:
        return row.id, row.respond(text, reason, row.statistics(self._image_token))

    def _keep(self, rows: list[Sequence]) -> None:
        """Goes on with these of the running rows, in their order."""
        if not rows:
            self._batch = None  # what it holds may be large
        elif self._batch is not None and len(rows) < len(self._running):
            self._batch.select([self._running.index(row) for row in rows])
        self._running = rows


def _prefill(
    model: Lfm2VlForConditionalGeneration,
    start: Start,
    options: List[GenerationOptions],
    stop: Stop,
    progress: Progress | None,
) -> Pieces[Decoding]:
    """Runs prompts, so that their rows can be decoded."""
    choose = chooser(options)
    choose.observe(mx.array(_without_padding(start.ids, start.padding)), model.config.text_config.vocab_size)
    cache, logits = yield from start.begin(stop, progress)
    return Decoding(model, cache, logits, choose, start.padding, any(each.logprobs for each in options))


def _without_padding(ids: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """Ids (B, L) whose padding repeats the row's last token, so that padding does not count as said."""
    if padding is None:
        return ids
    return np.where(np.arange(ids.shape[1]) < padding[:, None], ids[:, -1:], ids)


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
