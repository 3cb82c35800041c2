"""Which tokens may be drawn, and the draw: top-k, top-p and min-p, and random numbers, on the device.

Nothing is read back, so that steps can be queued ahead. A row depends on its own scores, numbers and keys, not on the
rows beside it. On a GPU few kernels do it: six for the sampling that LFM2-VL's makers recommend.
"""

from __future__ import annotations

import mlx.core as mx

from ..backends.memory import on_gpu

LEAST_TEMPERATURE = 1e-30  # float32 makes 0 of what is much smaller; long before, only the likeliest is left
BLOCK = 2048  # values of 32 bits that a GPU sorts in one kernel; more take a kernel and two for each doubling


def filter_logits(scores: mx.array, numbers: dict[str, mx.array], top_k: int) -> tuple[mx.array, mx.array]:
    """Scores (B, vocabulary) float32 less their largest and divided by the temperature, -inf at the tokens that top-k,
    then top-p, then min-p rule out; and the largest of each row (B, 1) before. `numbers`: as those of a step;
    `top_k`: 0 is none.

    The likeliest token always stays. A filter sees the probabilities that the one before has left, as transformers'
    warpers do. Tokens as likely as the least likely one that stays, stay too.
    """
    ordered = largest(scores, top_k) if top_k else mx.sort(scores, axis=-1) if "top_p" in numbers else None
    top = scores.max(axis=-1, keepdims=True) if ordered is None else ordered[:, -1:]
    # the largest becomes 0 first, so that no temperature is too small for float32
    scaled = (scores - top) / numbers["temperature"]
    if ordered is not None:
        least = ordered[:, :1]
        if "top_p" in numbers:
            more = (scores >= least).sum(axis=-1, keepdims=True) - top_k if top_k else 0
            least = _nucleus(ordered, numbers["temperature"], numbers["top_p"], more)
        scaled = mx.where(scores < least, -mx.inf, scaled)
    if "log_min_p" in numbers:
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
    largest of these. A GPU's `mx.topk` sorts the whole row; a CPU's sorts nothing.
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
