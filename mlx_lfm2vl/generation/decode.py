"""The decode step of single prompts, chats and padded batches alike.

After the first token, which is told at once, a batch is one step ahead: the next step is dispatched before the last
token is read, so that the device has work while Python has. Where drafts say how answers may go on, `verify` runs them
in one step, and is not ahead: what may follow is only known once its tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..backends.memory import allocations
from ..backends.thread_state import computing
from ..errors import NotFiniteError, OutOfMemoryError
from ..models.cache import GROWTH_STEP, Cache, Drafter
from ..models.dspark import DSparkDraftModel
from ..models.layers import Context
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from .batched_sampler import BatchedSampler
from .chunked_prefill import clear_outgrown
from .finite import not_finite
from .logprobs import Logprobs, RowLogprobs
from .sampler import Sampler, UniformSampler


class GenerationBatch:
    """Rows that are being decoded, one step ahead of what was read once the first tokens were. `ready`: whether all
    tokens that were chosen were returned, and the step behind them is not dispatched, so that `verify` can follow."""

    def __init__(
        self,
        model: Lfm2VlForConditionalGeneration,
        cache: Cache,
        logits: mx.array,
        sampler: Sampler,
        padding: np.ndarray | None = None,
        top_logprobs: int | None = None,
        first: bool = True,
    ):
        """Chooses the tokens behind logits (B, vocabulary). `padding`: tokens of it before each row (B,).
        `top_logprobs`: how many likeliest tokens' logprobs are wanted beside the chosen ones'; None is none at all.
        `first`: whether the tokens are the answers' first, which are told before the step after them is dispatched."""
        self._model, self._cache, self._sampler, self._padding = model, cache, sampler, padding
        self._gaps: np.ndarray | None = None  # (B, n): whether columns count, where drafts left some that do not
        self._top = top_logprobs
        with allocations("the answer's first token"):
            self._next = self._chosen(logits)
        self._blocks, self._start = np.zeros((0, 0), np.int32), 0  # of the drafts that are verified, and their column
        self._first, self.ready = first, False

    def _chosen(self, logits: mx.array) -> tuple[mx.array, Logprobs | None]:
        tokens = self._sampler(logits)
        logprobs = None if self._top is None else Logprobs.of(logits, tokens, self._top)
        mx.async_eval(tokens, logprobs.arrays if logprobs else [], self._sampler.state)
        return tokens, logprobs

    def _dispatch(self) -> None:
        """Runs the model over the tokens of `_next`, and makes it those that follow them."""
        body, before = self._model.model, self._cache.offset
        embeds = body.language_model.embed(self._next[0][:, None])
        hidden = body.language_model(embeds, self._context(1), self._cache)
        logits = self._model.logits(hidden)[:, 0]
        if self._sampler.reads_tokens and not self.ready:
            mx.async_eval(logits, self._cache.arrays)  # the device has work while the host reads and looks ahead
            self._sampler.accept(self._next[0].tolist())  # type: ignore[arg-type]
        self._next, self.ready = self._chosen(logits), False
        clear_outgrown(self._cache, before)

    def _context(self, length: int) -> Context:
        if self._gaps is None:
            return Context.following(length, self._cache.offset, self._padding)
        return Context.among(self._columns(self._cache.offset + length), length)

    def _columns(self, count: int) -> np.ndarray:
        """Which of the first `count` columns of each row count, (B, count) bool. Those behind `_gaps` do."""
        if self._gaps is None:
            padding = np.zeros(self._next[0].shape[0], np.int64) if self._padding is None else self._padding
            return np.arange(count) >= padding[:, None]
        return np.pad(self._gaps, [(0, 0), (0, count - self._gaps.shape[1])], constant_values=True)

    @computing
    def step(self, last: bool = False) -> tuple[list[int], list[RowLogprobs] | None]:
        """The next token of every row (`NOT_FINITE` where its logits were not), and its logprobs if wanted.

        Unless it is the first or the `last` step the one after is dispatched first, and the cache holds the tokens
        returned.
        """
        with allocations("the answer's next token"):
            if self.ready:
                self._dispatch()
            tokens, logprobs = self._next
            if last or self._first:
                if self._sampler.reads_tokens:
                    self._sampler.accept(tokens.tolist())  # type: ignore[arg-type]
                self._first, self.ready = False, True
            else:
                self._dispatch()
            return tokens.tolist(), None if logprobs is None else logprobs.rows()  # type: ignore[return-value]

    def follow(self, drafter: Drafter | None) -> None:
        """Lets a drafter read along, or none."""
        self._cache.follow(drafter)

    @computing
    def draft(self) -> tuple[list[list[int]], list[list[float]]]:
        """The tokens that the drafter expects behind those that were chosen, a block for each row, and how likely each
        of them is right where all before it are. To be called where `ready`."""
        with allocations("a draft"):
            drafter, past = self._cache.drafter, self._cache.offset
            assert isinstance(drafter, DSparkDraftModel)
            count, context = drafter.config.block_size, self._context(drafter.config.block_size)
            mask = None
            if self._padding is not None or self._gaps is not None:
                mask = mx.array(np.pad(self._columns(past), [(0, 0), (0, count)], constant_values=True)[:, None, None])
            body = self._model.model.language_model
            tokens, confidence = drafter.propose(
                self._next[0],
                body.embed,
                self._model.logits,
                count,
                replace(context, attention_mask=mask),
                self._cache.draft_layers,
            )
            mx.eval(tokens, confidence)
        return tokens.tolist(), confidence.tolist()  # type: ignore[return-value]

    @computing
    def verify(self, drafts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[RowLogprobs]] | None]:
        """The next tokens of every row by one run of the model: those of its draft that it would have chosen, and the
        one behind them, with their logprobs if wanted. `keep` must follow.

        Every token is the one that steps would choose, by the row's own options and random numbers: a draft only says
        what is computed together. (Drafts and tokens that share their random numbers: Daliri, Musco and Suresh,
        "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024.)

        Args:
            drafts: for each row, tokens that may follow, or none; for one row at least one.
        """
        with allocations("the answer's next tokens"):
            lengths = [len(draft) for draft in drafts]
            shape = len(drafts), 1 + max(lengths)
            self._blocks, self._start = np.zeros(shape, np.int32), self._cache.offset
            self._blocks[:, 0] = self._next[0].tolist()
            for block, draft in zip(self._blocks, drafts, strict=True):
                block[1 : 1 + len(draft)] = draft
            body = self._model.model
            self._cache.record()
            embeds = body.language_model.embed(mx.array(self._blocks))
            logits = self._model.logits(body.language_model(embeds, self._context(shape[1]), self._cache))
            mx.async_eval(logits, self._cache.arrays)  # the device has work while the host makes masks
            assert isinstance(self._sampler, (UniformSampler, BatchedSampler))
            chosen = self._sampler.verify(logits, self._blocks, lengths)
            logprobs = None
            if self._top is not None:
                logprobs = Logprobs.of(logits.reshape(-1, logits.shape[2]), chosen.reshape(-1), self._top).rows()
            tokens: list[list[int]] = chosen.tolist()  # type: ignore[assignment]
        counts = [
            1 + next((at for at, pair in enumerate(zip(draft, own, strict=False)) if pair[0] != pair[1]), len(draft))
            for draft, own in zip(drafts, tokens, strict=True)
        ]
        tokens = [own[:count] for own, count in zip(tokens, counts, strict=True)]
        rows = [at * shape[1] for at in range(shape[0])]
        if logprobs is None:
            return tokens, None
        return tokens, [logprobs[at : at + count] for at, count in zip(rows, counts, strict=True)]

    def keep(self, tokens: Sequence[Sequence[int]]) -> None:
        """Goes on behind these tokens of every row, the first that `verify` returned, at least one."""
        counts, last = [len(own) for own in tokens], [own[-1] for own in tokens]
        if min(counts) < max(counts):
            gaps = self._columns(self._start + max(counts))
            self._gaps = gaps & (np.arange(gaps.shape[1]) < self._start + np.array(counts)[:, None])
        assert isinstance(self._sampler, (UniformSampler, BatchedSampler))
        self._sampler.keep(self._blocks, counts, last)
        self._cache.trim(self._start, counts)
        self._next = mx.array(np.array(last, np.int32)), None
        clear_outgrown(self._cache, self._start)
        end = self._cache.offset
        if self._gaps is not None and end - self._columns(end).sum(axis=1).max() >= GROWTH_STEP:
            self._close_gaps()
        self._evaluate()

    def _close_gaps(self) -> None:
        """Moves the columns that count to the right, where there is any that does not between them."""
        if self._gaps is None:
            return
        columns = self._columns(self._cache.offset)
        counts = columns.sum(axis=1)
        padding = counts.max() - counts
        self._cache.select(
            np.stack([np.pad(np.flatnonzero(own), (before, 0)) for own, before in zip(columns, padding, strict=True)])
        )
        self._padding, self._gaps = padding if padding.any() else None, None

    def extend(self, other: GenerationBatch) -> None:
        """Goes on with the rows of another, of which nothing was read yet, behind one's own. Columns that are padding
        in all rows are given up. Goes on without them where it raises `OutOfMemoryError`."""
        parts = (self, other)
        if self.ready:
            begun = self._cache.checkpoint(detach=False)
            try:
                with allocations("the answer's next token"):
                    self._dispatch()
            except BaseException:
                self._cache.rewind(begun)  # the rows go on from where they were
                raise
        self._close_gaps()
        counts = [part._next[0].shape[0] for part in parts]
        paddings = [
            np.zeros(count, np.int64) if part._padding is None else part._padding
            for part, count in zip(parts, counts, strict=True)
        ]
        cuts = [int(padding.min()) for padding in paddings]
        with allocations("the answers side by side"):
            merged = Cache.merge([part._cache for part in parts], cuts)
            mx.eval(merged.arrays)
        moved = [padding + merged.offset - part._cache.offset for part, padding in zip(parts, paddings, strict=True)]
        padding = np.concatenate(moved)
        self._cache, self._padding = merged, padding if padding.any() else None
        self._sampler = BatchedSampler([part._sampler for part in parts])
        self._top = max((part._top for part in parts if part._top is not None), default=None)
        logprobs = Logprobs.merge([part._next[1] for part in parts], counts)
        self._next, self._first = (mx.concatenate([part._next[0] for part in parts]), logprobs), False
        self._evaluate()

    def error(self, row: int) -> NotFiniteError:
        """Why a row's logits were not finite."""
        return not_finite(self._model, self._cache, row)

    def row_cache(self, row: int) -> Cache:
        """The cache of a row, which goes on no longer. Of the only row it is the cache itself."""
        self._close_gaps()
        padding = 0 if self._padding is None else int(self._padding[row])
        if self._next[0].shape[0] == 1 and not padding:
            mx.eval(self._cache.arrays)
            return self._cache
        return self._cache.row(row, padding)

    def filter(self, rows: list[int]) -> None:
        """Goes on with these rows only."""
        self._close_gaps()
        index = mx.array(rows)
        tokens, logprobs = self._next
        self._next = (tokens[index], None if logprobs is None else logprobs.filter(index))
        self._cache.filter(index)
        self._sampler.filter(rows)
        if self._padding is not None:
            padding = self._padding[rows]
            if (cut := int(padding.min())) >= GROWTH_STEP:  # the longest has left, with most of the columns
                self._cache, padding = Cache.merge([self._cache], [cut]), padding - cut
            self._padding = padding if padding.any() else None
        self._evaluate()

    def _evaluate(self) -> None:
        """Dispatches all that the next step starts from, so that it may run in another thread. Where memory runs out,
        that step will say so."""
        with suppress(OutOfMemoryError), allocations("the answer's next token"):
            tokens, logprobs = self._next
            mx.async_eval(tokens, logprobs.arrays if logprobs else [], self._cache.arrays, self._sampler.state)
