"""The rows that are being answered, side by side in one batch: a step is one run of the model at most.

Where drafts are proposed and the last tokens are known, the run is over these and the drafts. Where they are not known
yet, since the batch is a step ahead, the step only reads them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from typing import NamedTuple

from ..models.cache import Cache
from .decode import GenerationBatch
from .logprobs import RowLogprobs
from .pace import Pace
from .response import FinishReason
from .sampler import NOT_FINITE
from .sequence import Sequence
from .speculation import BLOCK, BlockSpeculation


class Outcome(NamedTuple):
    """The outcome of a step for a row: the text that became certain, why the answer ends, if it does, or the error that
    ends it."""

    row: Sequence
    text: str
    reason: FinishReason | None
    error: Exception | None


class Running:
    """`rows` in the order of their `batch`, which is None while there are none."""

    def __init__(self, vocabulary: int) -> None:
        self.rows: list[Sequence] = []
        self.batch: GenerationBatch | None = None
        self._vocabulary = vocabulary
        self._pace: Pace | None = None  # of rows whose drafts end by the clock
        self.lost = False  # whether drafts have cost more time than they may
        self._proposed = False  # in the last step, which only read the tokens before

    def join(self, rows: List[Sequence], batch: GenerationBatch) -> None:
        """Goes on with other rows, of which nothing was read yet, too."""
        if self.batch is None:
            self.batch = batch
        else:
            self.batch.extend(batch)
        self.rows += rows

    def keep(self, rows: list[Sequence]) -> None:
        """Goes on with these of the rows, in their order."""
        if not rows:
            self.batch = None  # what it holds may be large
        elif self.batch is not None and len(rows) < len(self.rows):
            self.batch.filter([self.rows.index(row) for row in rows])
            if all(row.drafter is None for row in rows):
                self.batch.follow(None)
        self.rows = rows

    def cache_of(self, row: Sequence) -> Cache:
        """The states of a row, which goes on no longer."""
        assert self.batch is not None
        return self.batch.row_cache(self.rows.index(row))

    def step(self) -> list[Outcome]:
        """The next token of every row, or several where drafts are right. After an error the rows' states no longer
        agree."""
        assert self.batch is not None
        if not any(row.speculation is not None and row.speculation.timed for row in self.rows):
            return self._step(self.batch, late=False)[0]
        self._pace = self._pace or Pace(time.perf_counter)
        count = len(self.rows)
        before = sum(len(row.generated) for row in self.rows)
        first = any(not row.generated for row in self.rows)
        late = not self._proposed and not self._pace.pays(count)
        self._pace.begin()
        outcomes, plain = self._step(self.batch, late)
        if plain and not first:  # the first token's step waits for the prompt
            self._pace.plain(count)
        elif not first:
            self._pace.drafted(count, (sum(len(row.generated) for row in self.rows) - before) / count)
        self.lost = self._pace.lost
        return outcomes

    def _step(self, batch: GenerationBatch, late: bool) -> tuple[list[Outcome], bool]:
        """A step, and whether drafts had no part in it. `late`: whether those that end by the clock have to."""
        blocks, ready, drafts = False, False, list[list[int]]()
        if any(row.speculation is not None for row in self.rows):
            most, ready = BLOCK // len(self.rows) - 1, batch.ready
            blocks = ready and not late and self._read_blocks(batch, most)
            drafts = [
                []
                if row.speculation is None or (late and row.speculation.timed)
                else row.speculation.propose(most, self._vocabulary, ready)
                for row in self.rows
            ]
        if late and self.lost:
            for row in self.rows:
                row.undrafted += row.speculation is not None and row.speculation.timed
        self._proposed = any(drafts) and not ready
        if any(drafts) and ready:
            return self._verify(batch, drafts), False
        last = any(drafts) or all(len(row.generated) + 1 >= row.limit for row in self.rows)
        tokens, logprobs = batch.step(last=last)
        outcomes = [
            self._take(batch, at, [token], None if logprobs is None else [logprobs[at]])
            for at, token in enumerate(tokens)
        ]
        return outcomes, not (ready or blocks or any(drafts))  # a step behind a draft begins two runs

    def _read_blocks(self, batch: GenerationBatch, most: int) -> bool:
        """Lets a drafter propose for its rows, if one of them wants a draft; whether it did."""
        drafting = [row.speculation for row in self.rows]
        if not any(isinstance(each, BlockSpeculation) and each.wanted(most) for each in drafting):
            return False
        for each, tokens, confidence in zip(drafting, *batch.draft(), strict=True):
            if isinstance(each, BlockSpeculation):
                each.take(tokens, confidence)
        return True

    def _verify(self, batch: GenerationBatch, drafts: List[List[int]]) -> list[Outcome]:
        tokens, logprobs = batch.verify(drafts)
        made, kept = [], []
        for at, (row, draft, own) in enumerate(zip(self.rows, drafts, tokens, strict=True)):
            before = len(row.generated)
            made.append(self._take(batch, at, own, None if logprobs is None else logprobs[at], verified=True))
            taken = len(row.generated) - before
            kept.append(own[: max(1, taken)])
            if row.speculation is not None and draft:
                row.speculation.count(len(draft), min(taken, len(own) - 1))
        batch.keep(kept)
        return made

    def _take(
        self,
        batch: GenerationBatch,
        at: int,
        tokens: List[int],
        logprobs: List[RowLogprobs] | None,
        verified: bool = False,
    ) -> Outcome:
        """Gives a row the tokens of a step, as far as its answer goes on. `verified`: they were drafts, of which the
        host's part in the row does not know."""
        row, text, reason = self.rows[at], "", None
        row.steps += 1
        for number, token in enumerate(tokens):
            if token != NOT_FINITE and verified and row.state is not None:
                row.state.accept(token)
            if token == NOT_FINITE:
                return Outcome(row, text, None, row.error(batch.error(at)))
            if row.matcher is not None and row.matcher.error is not None:
                return Outcome(row, text, None, row.matcher.error)
            more, reason = row.push(token, None if logprobs is None else logprobs[number])
            text += more
            if reason is not None:
                break
        return Outcome(row, text, reason, None)
