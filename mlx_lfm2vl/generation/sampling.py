"""From logits to the next token, on the device: nothing is read back, so that steps can be queued ahead.

In: logits (B, vocabulary) of 16 or 32 bits. Out: tokens (B,) int32, `NOT_FINITE` in a row whose logits are not all
finite. A row's tokens depend on its own logits, options and seed, not on the rows beside it. On a GPU a step is one
compiled function: six kernels for the sampling that LFM2-VL's makers recommend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import mlx.core as mx
import numpy as np

from .options import GenerationOptions

LEAST_TEMPERATURE = 1e-30  # float32 makes 0 of what is much smaller; long before, only the likeliest is left
NOT_FINITE = -1  # in place of a token that no logits could be chosen by
BLOCK = 2048  # values of 32 bits that a GPU sorts in one kernel; more take a kernel and two for each doubling


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


def on_gpu() -> bool:
    """Whether functions are compiled, and sorts kept small. On a CPU neither pays: MLX runs a C++ compiler for seconds,
    and `mx.topk` sorts nothing."""
    return mx.default_device() != mx.Device(mx.cpu)


@lru_cache(maxsize=64)  # top_k is the caller's
def compiled(kind: SamplingKind) -> Callable[..., tuple[mx.array, dict[str, mx.array]]]:
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
        scores, top = filter_logits(kind, scores, numbers)
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


def filter_logits(kind: SamplingKind, scores: mx.array, numbers: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    """Scores (B, vocabulary) float32 less their largest and divided by the temperature, -inf at the tokens that top-k,
    then top-p, then min-p rule out; and the largest of each row (B, 1) before.

    The likeliest token always stays. A filter sees the probabilities that the one before has left, as transformers'
    warpers do. Tokens as likely as the least likely one that stays, stay too.
    """
    top_k = kind.within(scores.shape[1]).top_k
    ordered = largest(scores, top_k) if top_k else mx.sort(scores, axis=-1) if kind.top_p else None
    top = scores.max(axis=-1, keepdims=True) if ordered is None else ordered[:, -1:]
    # the largest becomes 0 first, so that no temperature is too small for float32
    scaled = (scores - top) / numbers["temperature"]
    if ordered is not None:
        least = ordered[:, :1]
        if kind.top_p:
            more = (scores >= least).sum(axis=-1, keepdims=True) - top_k if top_k else 0
            least = _nucleus(ordered, numbers["temperature"], numbers["top_p"], more)
        scaled = mx.where(scores < least, -mx.inf, scaled)
    if kind.min_p:
        scaled = mx.where(scaled < numbers["log_min_p"], -mx.inf, scaled)
    return scaled, top


def _nucleus(ordered: mx.array, temperature: mx.array, top_p: mx.array, more: mx.array | int) -> mx.array:
    """The least of some scores (B, n), ascending, that is among the likeliest that together reach `top_p` (B, 1). There
    are `more` scores as large as the first."""
    top = ordered[:, -1:]
    weights = mx.exp((ordered - top) / temperature)
    likelier = mx.cumsum(weights, axis=-1, reverse=True, inclusive=False)
    total = likelier[:, :1] + weights[:, :1] * (1 + more)
    return mx.where(likelier < top_p * total, ordered, top).min(axis=-1, keepdims=True)


def largest(scores: mx.array, count: int) -> mx.array:
    """The `count` largest scores of each row, ascending: (B, n) to (B, count).

    A tournament: the largest of every block of at most `BLOCK` scores, which a GPU sorts in one kernel, then the
    largest of these. A GPU's `mx.topk` sorts the whole row.
    """
    if not on_gpu():
        return mx.sort(mx.topk(scores, count, axis=-1), axis=-1)
    rows, size = scores.shape
    blocks = _blocks(size)
    length = -(-size // blocks)
    if blocks == 1 or 2 * count > length:  # in the second case blocks hardly shrink
        return mx.sort(scores, axis=-1)[:, -count:]
    if blocks * length > size:
        scores = mx.pad(scores, [(0, 0), (0, blocks * length - size)], constant_values=-mx.inf)
    best = mx.sort(scores.reshape(rows, blocks, length), axis=-1)[..., -count:]
    return largest(mx.contiguous(best).reshape(rows, blocks * count), count)


def _blocks(size: int) -> int:
    """Into how many blocks of at most `BLOCK` to divide `size` scores; without a rest if twice the least number can."""
    least = -(-size // BLOCK)
    return next((blocks for blocks in range(least, 2 * least + 1) if size % blocks == 0), least)


def random_bits(keys: mx.array, size: int) -> mx.array:
    """Random numbers (B, size) uint32, a row for each key (B, 2). A row does not depend on the other keys."""
    new_keys = mx.vmap(lambda key: mx.random.split(key, (size + 1) // 2))(keys)  # the only raw bits that MLX gives
    return new_keys.reshape(keys.shape[0], -1)[:, :size]


def gumbel(bits: mx.array) -> mx.array:
    """Gumbel noise, finite, from random bits. The largest sum of logit and noise is at a token drawn by probability."""
    uniform = mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -mx.log(-mx.log(uniform))


@lru_cache(maxsize=4)
def _ids(vocabulary: int) -> mx.array:
    """All tokens, int32, never lazy: any thread can use them."""
    return mx.array(np.arange(vocabulary, dtype=np.int32))
