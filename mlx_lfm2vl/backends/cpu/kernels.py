"""Whole layers on NumPy's arrays, float32, in threads that do as much as they can before they wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...threads import check_cancelled, parallel_for
from .arrays import HEIGHT, PRODUCT, attention, gelu_tanh_into, in_blocks, layer_norm, product, rms_norm, swiglu_into

ROWS = 64  # the least that a thread is begun for


def _in_rows(work: Callable[[slice], None], rows: int, multiplications: int) -> None:
    """`work` on slices that make up `range(rows)`; each row takes so many multiplications."""

    def several(start: int, end: int) -> None:
        for at in range(start, end, HEIGHT):
            work(slice(at, min(at + HEIGHT, end)))

    parallel_for(several, rows, max(ROWS, PRODUCT // multiplications))


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
        check_cancelled()
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
        in_blocks(gelu_tanh_into, inner, inner)
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
    x: np.ndarray,
    past: tuple[np.ndarray, ...],
    eps: float,
    parameters: dict[str, np.ndarray],
    mask: np.ndarray | None = None,
    whole: bool = False,
) -> tuple[np.ndarray, ...]:
    """A layer of the backbone with a convolution of K taps: (B, L, width), the K - 1 taps before, (B, 1, width) each,
    and `mask` (B, L, 1), false at padding -> the same shape, the last K - 1 taps, and, where the `whole` is asked for,
    all K - 1 + L as one array. Parameters by their names in `Lfm2DecoderLayer`."""
    (_, length, width), of = x.shape, parameters
    normed = rms_norm(x, of["operator_norm.weight"], eps)
    if mask is not None:
        normed *= mask
    projected = product(normed, of["conv.in_proj.weight"])
    gate_in, gate_out, value = (projected[..., at * width : (at + 1) * width] for at in range(3))
    taps = np.concatenate([*past, gate_in * value], axis=1)
    columns = np.ascontiguousarray(of["conv.conv.weight"][..., 0].T)  # (K, width)
    mixed = taps[:, :length] * columns[0]
    for k, column in enumerate(columns[1:], 1):
        mixed += taps[:, k : k + length] * column
    mixed *= gate_out
    made = feed_forward(product(mixed, of["conv.out_proj.weight"], x), eps, of)
    return made, *(taps[:, at : at + 1] for at in range(length, taps.shape[1])), *([taps] if whole else [])


def attention_inputs(
    x: np.ndarray, num_queries: int, eps: float, parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An attention layer's queries (B, num_queries, heads, dim) of the last tokens, and keys and values (B, L,
    kv_heads, dim) of all."""
    of, depth = parameters, parameters["self_attn.q_layernorm.weight"].size
    normed = rms_norm(x, of["operator_norm.weight"], eps)

    def made(kind: str, tokens: np.ndarray) -> np.ndarray:
        return product(tokens, of[f"self_attn.{kind}_proj.weight"]).reshape(len(x), tokens.shape[1], -1, depth)

    queries = rms_norm(made("q", normed[:, -num_queries:]), of["self_attn.q_layernorm.weight"], eps)
    keys = rms_norm(made("k", normed), of["self_attn.k_layernorm.weight"], eps)
    return queries, keys, made("v", normed)


def attention_output(
    residual: np.ndarray, mixed: np.ndarray, eps: float, parameters: dict[str, np.ndarray]
) -> np.ndarray:
    """The rest of that layer: (B, queries, width) and the output of the heads, (B, queries, heads * dim)."""
    return feed_forward(product(mixed, parameters["self_attn.out_proj.weight"], residual), eps, parameters)


def attention_step(
    x: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    past: int,
    offset: np.ndarray,
    mask: np.ndarray | None,
    frequencies: np.ndarray,
    eps: float,
    parameters: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All of that layer for one token a row: (B, 1, width), with `keys` and `values` (B, kv_heads, room, dim), of which
    the first `past` columns are used, the token's position `offset` (or one a row), and `mask` (B, 1, 1, past + 1),
    true where it sees a key -> the same shape, and the token's own key and value (B, kv_heads, 1, dim).

    In a single token's attention there is so little to do that waiting for MLX's thread would take most of the time.
    """
    keys, values = keys[:, :, :past], values[:, :, :past]
    batch, kv_heads, _, depth = keys.shape
    queries, key, value = attention_inputs(x, 1, eps, parameters)
    queries, key = (_rotated(y, offset, frequencies) for y in (queries, key))
    key, value = (y.reshape(batch, kv_heads, 1, depth) for y in (key, value))
    queries = queries.reshape(batch, kv_heads, -1, depth) * np.float32(depth**-0.5)
    scores = np.empty((*queries.shape[:3], past + 1), np.float32)
    np.matmul(queries, keys.swapaxes(2, 3), out=scores[..., :past])
    np.matmul(queries, key.swapaxes(2, 3), out=scores[..., past:])
    if mask is not None:
        np.copyto(scores, -1e30, where=~mask)
    scores -= scores.max(axis=3, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=3, keepdims=True)
    mixed = scores[..., :past] @ values
    mixed += scores[..., past:] * value
    return attention_output(x, mixed.reshape(batch, 1, -1), eps, parameters), key, value


def _rotated(x: np.ndarray, offset: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """(B, 1, heads, dim) at rotary positions `offset`, as `mx.fast.rope` turns them."""
    angles = offset.astype(np.float32).reshape(-1, 1, 1, 1) * (np.float32(1) / frequencies)
    cos, sin = np.cos(angles), np.sin(angles)
    half = x.shape[3] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=3)


def feed_forward(x: np.ndarray, eps: float, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """The second half of a layer of the backbone."""
    of = parameters
    normed = rms_norm(x, of["ffn_norm.weight"], eps)
    inner = product(normed, of["feed_forward.w1.weight"])
    in_blocks(swiglu_into, inner, inner, product(normed, of["feed_forward.w3.weight"]))
    return product(inner, of["feed_forward.w2.weight"], x)
