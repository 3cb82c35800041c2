"""The rows that are being answered, side by side in one batch: a step is one run of the model at most.

Where drafts are proposed and the last tokens are known, the run is over these and the drafts. Where they are not known
yet, since the batch is a step ahead, the step only reads them.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import NamedTuple

from ..models.cache import Cache
from .decode import GenerationBatch
from .logprobs import RowLogprobs
from .response import FinishReason
from .sampling import NOT_FINITE
from .sequence import Sequence
from .speculation import BLOCK


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
        self.rows = rows

    def cache_of(self, row: Sequence) -> Cache:
        """The states of a row, which goes on no longer."""
        assert self.batch is not None
        return self.batch.row_cache(self.rows.index(row))

    def step(self) -> list[Outcome]:
        """The next token of every row, or several where drafts are right. After an error the rows' states no longer
        agree."""
        assert self.batch is not None
        most = BLOCK // len(self.rows) - 1
        ready = self.batch.ready
        drafts = [row.propose(most, self._vocabulary, ready) for row in self.rows]
        if any(drafts) and ready:
            return self._verify(self.batch, drafts)
        last = any(drafts) or all(len(row.generated) + 1 >= row.limit for row in self.rows)
        tokens, logprobs = self.batch.step(last=last)
        return [
            self._take(self.batch, at, [token], None if logprobs is None else [logprobs[at]])
            for at, token in enumerate(tokens)
        ]

    def _verify(self, batch: GenerationBatch, drafts: List[List[int]]) -> list[Outcome]:
        tokens, logprobs = batch.verify(drafts)
        made, kept = [], []
        for at, (row, draft, own) in enumerate(zip(self.rows, drafts, tokens, strict=True)):
            before = len(row.generated)
            made.append(self._take(batch, at, own, None if logprobs is None else logprobs[at], verified=True))
            taken = len(row.generated) - before
            kept.append(own[: max(1, taken)])
            row.count_draft(len(draft), min(taken, len(own) - 1))
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
            if (wrong := row.error(batch.error(at) if token == NOT_FINITE else None)) is not None:
                return Outcome(row, text, None, wrong)
            more, reason = row.push(token, None if logprobs is None else logprobs[number])
            text += more
            if reason is not None:
                break
        return Outcome(row, text, reason, None)
