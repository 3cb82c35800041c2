"""Products, norms, activations and attention on NumPy's arrays, float32, in blocks that stay in a core's cache and in
several threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache

import numpy as np

from ...threads import blas_on_one_thread, check_cancelled, parallel_for

BLOCK = 2**17  # numbers of an elementwise function at a time: 512 KiB stay in a core's cache, and take a while
FEW = 3  # rows of which each alone is multiplied faster than all together
HEIGHT = 512  # rows of a product at a time, some tens of milliseconds
WEIGHTS, PRODUCT = 2**18, 2**24  # OpenBLAS multiplies a row with fewer weights, or fewer numbers in all, in one thread
# The least that a thread of ours is begun for, some tenths of a millisecond, and how much it works on at a time
SHARE, SCORES = 2**17, 2**18  # scores of attention


# Products


def product(x: np.ndarray, weight: np.ndarray, *added: np.ndarray) -> np.ndarray:
    """(..., in) by (out, in) -> (..., out), and what is added to it: biases (out,), residuals (..., out)."""
    rows = x.reshape(-1, x.shape[-1])
    small = weight.size < WEIGHTS if len(rows) <= FEW else rows.size * len(weight) < PRODUCT
    with blas_on_one_thread if small else nullcontext():
        made = np.empty((len(rows), len(weight)), np.float32)
        if len(rows) <= FEW:
            for row, out in zip(rows, made, strict=True):
                np.dot(weight, row, out=out)
        else:
            for at in range(0, len(rows), HEIGHT):
                check_cancelled()
                np.matmul(rows[at : at + HEIGHT], weight.T, out=made[at : at + HEIGHT])
    made = made.reshape(*x.shape[:-1], len(weight))
    for other in added:
        made += other
    return made


# Norms


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """The layer norm of rows (n, width)."""
    made = x - x.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", made, made)[:, None] / np.float32(x.shape[1])
    made *= 1 / np.sqrt(variance + np.float32(eps))
    made *= weight
    made += bias
    return made


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """The RMS norm over the last axis of (..., width)."""
    squares = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    made: np.ndarray = x / np.sqrt(squares + np.float32(eps))
    made *= weight
    return made


# Activations


def in_blocks(function: Callable[..., None], made: np.ndarray, *given: np.ndarray) -> None:
    """Writes into `made`, which may be one of those given, what an elementwise function writes into its last argument.
    All of them are contiguous."""
    result = np.empty(BLOCK, np.float32)
    made, *flat = (array.reshape(-1) for array in (made, *given))
    for at in range(0, made.size, BLOCK):
        part = result[: len(made[at : at + BLOCK])]
        function(*(array[at : at + BLOCK] for array in flat), part)
        made[at : at + BLOCK] = part


def gelu_tanh_into(x: np.ndarray, made: np.ndarray) -> None:
    """GELU approximated by tanh: x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    np.multiply(x, x, out=made)
    made *= -0.07135481282687
    made -= 1.5957691216057308
    made *= x
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def silu_into(x: np.ndarray, made: np.ndarray) -> None:
    """x / (1 + e^-x)"""
    np.negative(x, out=made)
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def swiglu_into(gate: np.ndarray, up: np.ndarray, made: np.ndarray) -> None:
    """`silu(gate) * up`"""
    silu_into(gate, made)
    made *= up


# Attention


@lru_cache(maxsize=4)  # of at most 1 MiB each; all layers ask for the same
def _causal(rows: int) -> np.ndarray:
    """(rows, rows) float32 to add to the scores of the last keys: the last query sees all of them, each one before it
    one key less."""
    return np.triu(np.full((rows, rows), -1e30, np.float32), k=1)


def attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, mask: np.ndarray | str | None = None
) -> np.ndarray:
    """(B, H, L, D) and twice (B, K, S, D), H a multiple of K, -> (B, L, H, D): all heads of a token beside each other,
    as the next product takes them. `mask` is "causal", or (B or 1, 1, L, S) bool, true where a query sees a key."""
    batch, heads, length, depth = queries.shape
    kv_heads, total = keys.shape[1:3]
    step = min(length, max(1, SCORES // total))
    made = np.empty((batch, length, heads, depth), np.float32)
    unseen = ~mask if isinstance(mask, np.ndarray) else None

    def work(start: int, end: int) -> None:
        scores = np.empty(step * total, np.float32)
        for row, head in (divmod(unit, heads) for unit in range(start, end)):
            source = head * kv_heads // heads
            for first in range(0, length, step):
                check_cancelled()
                last = min(first + step, length)
                seen = total - length + last if isinstance(mask, str) else total
                block = scores[: (last - first) * seen].reshape(last - first, seen)
                np.matmul(queries[row, head, first:last] * np.float32(scale), keys[row, source, :seen].T, out=block)
                if unseen is not None:
                    np.copyto(block, -1e30, where=unseen[min(row, len(unseen) - 1), 0, first:last])
                elif mask is not None and length > 1:
                    block[:, seen - (last - first) :] += _causal(last - first)
                block -= block.max(axis=1, keepdims=True)
                np.exp(block, out=block)
                sums = block.sum(axis=1, keepdims=True)
                np.divide(block @ values[row, source, :seen], sums, out=made[row, first:last, head])

    parallel_for(work, batch * heads, -(-SHARE // (length * total)))
    return made
