"""Samplers: they choose the next tokens of a batch, row by row, and remember each row's past.

Rows come and go. A row's tokens depend on its own logits, options and seed, not on the rows beside it. A step goes from
logits (B, vocabulary) of 16 or 32 bits to tokens (B,) int32, `NOT_FINITE` in a row whose logits are not all finite,
and is not read back, so that steps can be queued ahead; on a GPU it is one compiled function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..backends.memory import on_gpu
from .logits_process import RowState
from .options import GenerationOptions
from .sampling import LEAST_TEMPERATURE, filter_logits, gumbel, random_bits

NOT_FINITE = -1  # in place of a token that no logits could be chosen by


class Sampler(Protocol):
    """Chooses the next token of every row of a batch."""

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (B, vocabulary) to tokens (B,) int32, which count as seen; `NOT_FINITE` where logits are not."""

    @property
    def reads_tokens(self) -> bool:
        """Whether a row needs its token on the host, by `accept`, before the next call."""

    def accept(self, tokens: list[int]) -> None:
        """Takes the tokens (B,) that the last call chose."""

    def filter(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order."""

    @property
    def state(self) -> list[mx.array]:
        """Arrays that the next call starts from. Once they are evaluated, that call may be in another thread: after a
        call its tokens depend on all of them, after `filter` they are lazy."""


@dataclass(frozen=True)
class SamplingKind:
    """The options that shape the computation. Rows of one kind share it, with numbers of their own."""

    greedy: bool
    penalty: bool
    top_k: int = 0
    top_p: bool = False
    min_p: bool = False
    processed: bool = False  # by the caller's processors
    bias: bool = False
    counts: bool = False  # frequency or presence penalty
    masked: bool = False  # by a grammar

    @classmethod
    def of(cls, options: GenerationOptions) -> SamplingKind:
        greedy = (options.temperature or 0.0) < LEAST_TEMPERATURE
        return cls(
            greedy,
            penalty=(options.repetition_penalty or 1.0) != 1,
            top_k=0 if greedy else options.top_k or 0,
            top_p=not greedy and options.top_p is not None and options.top_p < 1,
            min_p=not greedy and (options.min_p or 0.0) > 0,
            processed=bool(options.logits_processors),
            bias=bool(options.logit_bias),
            counts=bool(options.frequency_penalty or options.presence_penalty),
            masked=options.response_format is not None,
        )

    def within(self, vocabulary: int) -> SamplingKind:
        """The kind that does the same for so many tokens: a `top_k` of all of them is none."""
        return replace(self, top_k=0) if self.top_k >= vocabulary else self


@dataclass(eq=False)
class _Row:
    """One row's options, its number among those of a sampler, the tokens before, what the host knows of it, and the
    generator of its keys: one for each token, made on the host, so that no kernel makes them."""

    options: GenerationOptions
    number: int
    answer: Sequence[int]
    state: RowState | None

    @cached_property
    def generator(self) -> np.random.PCG64:
        made = np.random.PCG64(np.random.SeedSequence(self.options.seed, spawn_key=(self.number,)))
        made.advance(len(self.answer))
        return made

    def keys(self, count: int) -> np.ndarray:
        """64 random bits for each of the next tokens, (count,) uint64. They stay the next ones."""
        made = self.generator.random_raw(count)
        self.generator.advance(-count)
        return made


class UniformSampler:
    """Rows of one kind, sampled alike, which others are joined to.

    Holds each row's random generator and which tokens it has seen; use one for one generation.

    Args:
        options: resolved (no None left but the seed).
        answer: tokens that the rows have sampled before.
        state: of the only row, where the host has a part in it.
        count: of the rows.
    """

    def __init__(
        self, options: GenerationOptions, answer: Sequence[int] = (), state: RowState | None = None, count: int = 1
    ):
        self.kind = SamplingKind.of(options)
        self.reads_tokens = self.kind.processed or self.kind.masked
        self._rows = [_Row(options, row, answer, state) for row in range(count)]
        self._numbers: dict[str, mx.array] | None = None  # of these rows
        self._history: dict[str, mx.array] = {}  # as `sample` takes it: "last" holds the last tokens

    @property
    def state(self) -> list[mx.array]:
        return list(self._history.values())

    def __len__(self) -> int:
        return len(self._rows)

    def observe(self, tokens: mx.array, vocabulary: int) -> None:
        """Counts tokens (B, L) as seen, for the repetition penalty."""
        if self.kind.penalty:
            seen = np.zeros((tokens.shape[0], vocabulary), bool)
            np.put_along_axis(seen, np.array(tokens), True, axis=1)  # a prompt is on the host
            known = self._history.get("seen")
            self._history["seen"] = mx.array(seen) if known is None else known | mx.array(seen)

    def accept(self, tokens: list[int]) -> None:
        if self.reads_tokens:
            for row, token in zip(self._rows, tokens, strict=True):
                if row.state is not None and token != NOT_FINITE:
                    row.state.accept(token)

    def __call__(self, logits: mx.array) -> mx.array:
        step = compiled(self.kind.within(logits.shape[1])) if on_gpu() else partial(sample, self.kind)
        numbers = self._prepare(logits.shape[1])
        tokens, self._history = step(logits, numbers, self._inputs(logits), self._history)
        if not self.kind.greedy:
            self._advance([1] * len(self._rows))
        if self._history:
            self._history["last"] = tokens
        return tokens

    def verify(self, logits: mx.array, blocks: np.ndarray, lengths: Sequence[int]) -> mx.array:
        """The tokens that calls one by one would choose, each behind those of its row's block before. None of them
        counts until `keep` says so.

        Args:
            logits: (B, L, vocabulary), behind each token of the blocks.
            blocks: (B, L): a row's last token, a draft, and anything behind.
            lengths: tokens of each draft.

        Returns:
            (B, L) int32.
        """
        rows, length, vocabulary = logits.shape
        flat = logits.reshape(rows * length, vocabulary)
        numbers = {name: mx.repeat(array, length, axis=0) for name, array in self._prepare(vocabulary).items()}
        history: dict[str, mx.array] = {}
        if self._history:
            before = mx.cumsum(_said(blocks, vocabulary), axis=1, inclusive=False)
            history = {name: _added(self._history[name][:, None], before) for name in self._history if name != "last"}
            history = {name: array.reshape(rows * length, vocabulary) for name, array in history.items()}
            history["last"] = mx.array(blocks.astype(np.int32).reshape(-1))
        step = compiled(self.kind.within(vocabulary)) if on_gpu() else partial(sample, self.kind)
        drafts = [block[1 : 1 + count].tolist() for block, count in zip(blocks, lengths, strict=True)]
        return step(flat, numbers, self._inputs(flat, drafts, length), history)[0].reshape(rows, length)

    def keep(self, blocks: np.ndarray, counts: Sequence[int], last: Sequence[int]) -> None:
        """Counts the first tokens of the blocks that were verified as said, `counts` of each row, and as chosen those
        behind each of them, the `last` of a row among these."""
        if not self.kind.greedy:
            self._advance(counts)
        if not self._history:
            return
        for name in self._history.keys() - {"last"}:
            said = _said(blocks, self._history[name].shape[1])
            said = said * mx.array(np.arange(blocks.shape[1]) < np.array(counts)[:, None])[..., None]
            self._history[name] = _added(self._history[name], said.sum(axis=1))
        self._history["last"] = mx.array(np.array(last, np.int32))

    def filter(self, rows: list[int]) -> None:
        self._rows, self._numbers = [self._rows[row] for row in rows], None
        index = mx.array(rows)
        self._history = {name: array[index] for name, array in self._history.items()}

    def extend(self, other: UniformSampler) -> None:
        """Adds the rows of another sampler of the same kind. The other must not be used any more."""
        known = [array.shape[1] for part in (self, other) for array in part._history.values() if array.ndim == 2]
        if known:
            for part in (self, other):
                part._prepare(known[0])
            self._history = {
                name: mx.concatenate([array, other._history[name]]) for name, array in self._history.items()
            }
        self._rows, self._numbers = self._rows + other._rows, None

    def _advance(self, counts: Sequence[int]) -> None:
        """Goes on behind so many random numbers of each row."""
        for row, count in zip(self._rows, counts, strict=True):
            row.generator.advance(count)

    def _prepare(self, vocabulary: int) -> dict[str, mx.array]:
        """The numbers of the rows. Begins the history of a kind with penalties, where nothing is known."""
        if self._numbers is None:
            options = [row.options for row in self._rows]
            self._numbers = numbers_of(self.kind, options)
            if self.kind.bias:
                self._numbers["bias"] = bias_of(options, vocabulary)
        if not (self.kind.penalty or self.kind.counts):
            return self._numbers
        shape = (len(self._rows), vocabulary)
        if self.kind.penalty and "seen" not in self._history:
            self._history["seen"] = mx.array(np.zeros(shape, bool))
        if self.kind.counts and "counts" not in self._history:
            counts = np.zeros(shape, np.int32)
            for row, own in zip(self._rows, counts, strict=True):
                np.add.at(own, np.array(row.answer, np.int64), 1)
            self._history["counts"] = mx.array(counts)
        if "last" not in self._history:
            self._history["last"] = mx.array(np.full(len(self._rows), NOT_FINITE, np.int32))
        return self._numbers

    def _inputs(
        self, logits: mx.array, drafts: Sequence[Sequence[int]] | None = None, length: int = 1
    ) -> dict[str, mx.array]:
        """The arrays that the host gives to this step, as `sample` takes it: for `length` places of each row, behind
        the tokens of its draft."""
        made: dict[str, mx.array] = {}
        drafts = [()] * len(self._rows) if drafts is None else drafts
        if not self.kind.greedy:
            keys = np.stack([row.keys(length) for row in self._rows]).view(np.uint32)
            made["keys"] = mx.array(keys.reshape(-1, 2))
        states = [row.state for row in self._rows if row.state is not None]
        if self.kind.processed:
            scores, parts = logits.astype(mx.float32), []
            for at, (state, draft) in enumerate(zip(states, drafts, strict=True)):
                own = scores[at * length : (at + 1) * length]
                parts += [state.process(own, draft), own[1 + len(draft) :]]
            made["scores"] = mx.concatenate(parts)
        if self.kind.masked:
            masks: list[np.ndarray] = []
            for state, draft in zip(states, drafts, strict=True):
                assert state.matcher is not None
                own_masks = state.matcher.masks(draft)
                masks += own_masks + own_masks[-1:] * (length - len(own_masks))
            made["mask"] = mx.array(np.stack(masks))
        return made


def _said(blocks: np.ndarray, vocabulary: int) -> mx.array:
    """Whether a token of blocks (B, L) is each of the vocabulary, (B, L, vocabulary) int32."""
    return (mx.arange(vocabulary) == mx.array(blocks)[..., None]).astype(mx.int32)


def _added(history: mx.array, said: mx.array) -> mx.array:
    """A history, "seen" (bool) or "counts", with how often each token was said since."""
    return history | (said > 0) if history.dtype == mx.bool_ else history + said


@lru_cache(maxsize=64)  # top_k is the caller's
def compiled(kind: SamplingKind) -> Callable[..., tuple[mx.array, dict[str, mx.array]]]:
    """`sample` for a GPU. On a CPU that does not pay: MLX would run a C++ compiler for seconds."""
    return mx.compile(partial(sample, kind))


def sample(
    kind: SamplingKind,
    logits: mx.array,
    numbers: dict[str, mx.array],
    inputs: dict[str, mx.array],
    history: dict[str, mx.array],
) -> tuple[mx.array, dict[str, mx.array]]:
    """One step, a pure function: bias, penalties, mask, temperature, top-k, top-p, min-p.

    Args:
        kind: which of them are in force.
        logits: (B, vocabulary), 16 or 32 bits; computed with in float32.
        numbers: as `numbers_of` makes them.
        inputs: of this step. "keys": random keys (B, 2) uint32, unless greedy. "scores": the logits (B, vocabulary)
            float32 that processors made of these. "mask": as `allowed` takes it.
        history: of a kind with penalties. "seen": the tokens that the repetition penalty is for (B, vocabulary) bool.
            "counts": how often the answer has each (B, vocabulary) int32. "last": one more of both (B,) int32.

    Returns:
        The tokens (B,) int32, the first of several that are as likely if greedy, and the history with `last` in it.
    """
    scores = inputs["scores"] if kind.processed else logits.astype(mx.float32)
    if kind.bias:
        scores = scores + numbers["bias"]
    if history:
        last = _ids(logits.shape[1]) == history["last"][:, None]
        history = {
            name: array + last if name == "counts" else array | last
            for name, array in history.items()
            if name != "last"
        }
    if kind.penalty:
        scores = penalize(scores, history["seen"], numbers["penalty"])
    if kind.counts:
        counts = history["counts"]
        scores = scores - (counts * numbers["frequency"] + (counts > 0) * numbers["presence"])
    if kind.masked:
        scores = mx.where(allowed(inputs["mask"], logits.shape[1]), scores, -mx.inf)
    # x - x is 0, or NaN where x is not finite; and the largest score of a row with a NaN is NaN
    scores = scores + (logits - logits)
    if kind.greedy:
        top = scores.max(axis=-1, keepdims=True)
    else:
        scores, top = filter_logits(scores, numbers, kind.within(logits.shape[1]).top_k)
        # A row of a batch differs from its single run by rounding. Between the two likeliest that hardly ever
        # decides; the sums that `mx.random.categorical` draws from have as many edges as there are tokens.
        scores = scores + gumbel(random_bits(inputs["keys"], logits.shape[1]))
    tokens = mx.argmax(scores, axis=-1).astype(mx.int32)
    return mx.where(mx.isfinite(top[:, 0]), tokens, NOT_FINITE), history


def allowed(mask: mx.array, vocabulary: int) -> mx.array:
    """The bits of a mask (B, words) uint32, the first token lowest, as (B, vocabulary) bool."""
    bits = (mask[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    return bits.reshape(mask.shape[0], -1)[:, :vocabulary] != 0


def numbers_of(kind: SamplingKind, options: Sequence[GenerationOptions]) -> dict[str, mx.array]:
    """The numbers that a kind needs, (B, 1) float32 each, but for the bias."""
    columns: dict[str, list[float]] = {}
    if kind.penalty:
        columns["penalty"] = [each.repetition_penalty or 1.0 for each in options]
    if kind.counts:
        columns["frequency"] = [each.frequency_penalty for each in options]
        columns["presence"] = [each.presence_penalty for each in options]
    if not kind.greedy:
        columns["temperature"] = [each.temperature or 1.0 for each in options]
    if kind.top_p:
        columns["top_p"] = [1.0 if each.top_p is None else each.top_p for each in options]
    if kind.min_p:
        columns["log_min_p"] = [math.log(each.min_p or 1.0) for each in options]
    return {name: mx.array(np.array(column, np.float32)[:, None]) for name, column in columns.items()}


def bias_of(options: Sequence[GenerationOptions], vocabulary: int) -> mx.array:
    """The bias that `logit_bias` adds to each logit, (B, vocabulary) float32."""
    made = np.zeros((len(options), vocabulary), np.float32)
    for row, each in zip(made, options, strict=True):
        for token, bias in dict(each.logit_bias).items():
            row[token] += bias
    return mx.array(made)


def penalize(logits: mx.array, seen: mx.array, penalty: float | mx.array) -> mx.array:
    """Makes tokens in `seen` (B, vocabulary) less likely: positive logits divided, negative ones multiplied."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


@lru_cache(maxsize=4)
def _ids(vocabulary: int) -> mx.array:
    """All tokens, int32, never lazy: any thread can use them."""
    return mx.array(np.arange(vocabulary, dtype=np.int32))
