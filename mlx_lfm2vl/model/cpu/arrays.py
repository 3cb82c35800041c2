"""The model's computations on NumPy's arrays, float32, in blocks that stay in a core's cache and in several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache

import numpy as np

from ...threads import cores, together

BLOCK = 2**15  # numbers of an elementwise function at a time: 128 KiB, so that several arrays stay in a core's cache
FEW = 3  # rows of which each alone is multiplied faster than all together
WEIGHTS, PRODUCT = 2**18, 2**24  # OpenBLAS multiplies a row with fewer weights, or fewer numbers in all, in one thread
# The least that a thread of ours is begun for, some tenths of a millisecond, and how much it works on at a time
SHARE, SCORES = 2**17, 2**18  # scores of attention
ROWS, HEIGHT = 64, 256  # rows of a layer


# Products


def product(x: np.ndarray, weight: np.ndarray, *added: np.ndarray) -> np.ndarray:
    """(..., in) by (out, in) -> (..., out), and what is added to it: biases (out,), residuals (..., out)."""
    rows = x.reshape(-1, x.shape[-1])
    small = weight.size < WEIGHTS if len(rows) <= FEW else rows.size * len(weight) < PRODUCT
    with cores if small else nullcontext():
        made = np.stack([weight @ row for row in rows]) if 1 <= len(rows) <= FEW else rows @ weight.T
    made = made.reshape(*x.shape[:-1], len(weight))
    for other in added:
        made += other
    return made


# Norms


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Of rows (n, width)."""
    made = x - x.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", made, made)[:, None] / np.float32(x.shape[1])
    made *= 1 / np.sqrt(variance + np.float32(eps))
    made *= weight
    made += bias
    return made


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Of the last axis."""
    squares = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    made: np.ndarray = x / np.sqrt(squares + np.float32(eps))
    made *= weight
    return made


# Activations


def _in_blocks(function: Callable[..., None], made: np.ndarray, *given: np.ndarray) -> None:
    """Writes into `made`, which may be one of those given, what an elementwise function writes into its last argument.
    All of them are contiguous."""
    result = np.empty(BLOCK, np.float32)
    made, *flat = (array.reshape(-1) for array in (made, *given))
    for at in range(0, made.size, BLOCK):
        part = result[: len(made[at : at + BLOCK])]
        function(*(array[at : at + BLOCK] for array in flat), part)
        made[at : at + BLOCK] = part


def _elementwise(function: Callable[..., None], *given: np.ndarray) -> np.ndarray:
    contiguous = [np.ascontiguousarray(array) for array in given]
    made = np.empty_like(contiguous[0])
    _in_blocks(function, made, *contiguous)
    return made


def _gelu_tanh(x: np.ndarray, made: np.ndarray) -> None:
    np.multiply(x, x, out=made)
    made *= -0.07135481282687
    made -= 1.5957691216057308
    made *= x
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def _silu(x: np.ndarray, made: np.ndarray) -> None:
    np.negative(x, out=made)
    np.exp(made, out=made)
    made += 1.0
    np.divide(x, made, out=made)


def _swiglu(gate: np.ndarray, up: np.ndarray, made: np.ndarray) -> None:
    _silu(gate, made)
    made *= up


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its approximation by tanh: x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return _elementwise(_gelu_tanh, x)


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^-x)"""
    return _elementwise(_silu, x)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`silu(gate) * up`"""
    return _elementwise(_swiglu, gate, up)


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

    together(work, batch * heads, -(-SHARE // (length * total)))
    return made


# Whole layers, which go to and from MLX once, and whose threads do as much as they can before they wait for each other


def _in_rows(work: Callable[[slice], None], rows: int, multiplications: int) -> None:
    """`work` on slices that make up `range(rows)`; each row takes so many multiplications."""

    def several(start: int, end: int) -> None:
        for at in range(start, end, HEIGHT):
            work(slice(at, min(at + HEIGHT, end)))

    together(several, rows, max(ROWS, PRODUCT // multiplications))


def encoder_layer(
    x: np.ndarray,
    groups: Sequence[tuple[int, int]],
    heads: int,
    eps: tuple[float, float],
    parameters: dict[str, np.ndarray],
) -> np.ndarray:
    """A layer of the vision tower with GELU by tanh: (..., patches, width) -> the same shape. `groups`: how many views,
    of how many patches, that lie there one after another. Parameters by their names in `Siglip2EncoderLayer`."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    made, queries, keys, values = (np.empty_like(rows) for _ in range(4))
    of = parameters

    def multiply(x: np.ndarray, name: str, out: np.ndarray | None = None) -> np.ndarray:
        out = np.matmul(x, of[f"{name}.weight"].T, out=out)
        out += of[f"{name}.bias"]
        return out

    def norm(x: np.ndarray, number: int) -> np.ndarray:
        return layer_norm(x, of[f"layer_norm{number}.weight"], of[f"layer_norm{number}.bias"], eps[number - 1])

    def project(some: slice) -> None:
        normed = norm(rows[some], 1)
        for kind, out in zip("qkv", (queries, keys, values), strict=True):
            multiply(normed, f"self_attn.{kind}_proj", out[some])

    def finish(some: slice) -> None:
        out = multiply(mixed[some], "self_attn.out_proj", made[some])
        out += rows[some]
        inner = multiply(norm(out, 2), "mlp.fc1")
        _in_blocks(_gelu_tanh, inner, inner)
        out += multiply(inner, "mlp.fc2")

    _in_rows(project, len(rows), 3 * width**2)
    found, at = [], 0
    for views, patches in groups:
        some = slice(at, at := at + views * patches)
        q, k, v = (y[some].reshape(views, patches, heads, -1).transpose(0, 2, 1, 3) for y in (queries, keys, values))
        found.append(attention(q, k, v, (width // heads) ** -0.5).reshape(-1, width))
    mixed = found[0] if len(found) == 1 else np.concatenate(found)
    _in_rows(finish, len(rows), width**2 + 2 * of["mlp.fc1.weight"].size)
    return made.reshape(x.shape)


def conv_layer(
    x: np.ndarray, past: tuple[np.ndarray, ...], eps: float, parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    """A layer of the backbone with a convolution of K taps: (B, L, width) and the K - 1 taps before, (B, 1, width) each
    -> the same shape, and the last taps. Parameters by their names in `Lfm2DecoderLayer`."""
    length, of = x.shape[1], parameters
    projected = product(rms_norm(x, of["operator_norm.weight"], eps), of["conv.in_proj.weight"])
    gate_in, gate_out, value = np.split(projected, 3, axis=-1)
    taps = np.concatenate([*past, gate_in * value], axis=1)
    columns = np.ascontiguousarray(of["conv.conv.weight"][..., 0].T)  # (K, width)
    mixed = taps[:, :length] * columns[0]
    for k, column in enumerate(columns[1:], 1):
        mixed += taps[:, k : k + length] * column
    mixed *= gate_out
    made = feed_forward(product(mixed, of["conv.out_proj.weight"], x), eps, of)
    return made, *(taps[:, at : at + 1] for at in range(length, taps.shape[1]))


def attention_inputs(
    x: np.ndarray, asked: int, heads: int, kv_heads: int, eps: float, parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a layer with attention: queries (B, asked, heads, dim), of the last tokens, keys and values (B, L, kv_heads,
    dim)."""
    of, batch = parameters, len(x)
    normed = rms_norm(x, of["operator_norm.weight"], eps)

    def made(kind: str, tokens: np.ndarray, count: int) -> np.ndarray:
        return product(tokens, of[f"self_attn.{kind}_proj.weight"]).reshape(batch, tokens.shape[1], count, -1)

    queries = rms_norm(made("q", normed[:, -asked:], heads), of["self_attn.q_layernorm.weight"], eps)
    keys = rms_norm(made("k", normed, kv_heads), of["self_attn.k_layernorm.weight"], eps)
    return queries, keys, made("v", normed, kv_heads)


def attention_output(
    residual: np.ndarray, mixed: np.ndarray, eps: float, parameters: dict[str, np.ndarray]
) -> np.ndarray:
    """The rest of that layer: (B, asked, width) and what the heads made of the last tokens, (B, asked, heads * dim)."""
    return feed_forward(product(mixed, parameters["self_attn.out_proj.weight"], residual), eps, parameters)


def feed_forward(x: np.ndarray, eps: float, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """The second half of a layer of the backbone."""
    of = parameters
    normed = rms_norm(x, of["ffn_norm.weight"], eps)
    inner = product(normed, of["feed_forward.w1.weight"])
    _in_blocks(_swiglu, inner, inner, product(normed, of["feed_forward.w3.weight"]))
    return product(inner, of["feed_forward.w2.weight"], x)
