"""Heads as the published models have them, 64 and 72 wide, and 128: sizes that fused attention of a GPU is made for, and
that the small checkpoints never reach. Each backend is held against a plain computation in float64.

Lengths: a GPU has one kernel for up to 8 queries and one for more, and buffers of keys grow at 256.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_lfm2vl import generate, load
from mlx_lfm2vl.backends import cpu
from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig
from mlx_lfm2vl.generation.decode import _context
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.lfm2 import Lfm2Model
from mlx_lfm2vl.models.siglip2 import Siglip2Encoder, groups_of

pytestmark = pytest.mark.backends("mlx", "numpy")

HEADS = {64: (4, 2), 128: (4, 1), 72: (2, 2)}  # heads and key-value heads by their width; text 72 wide is no public one
HIDDEN = 128
LONGEST = 270  # tokens
CLOSE = {mx.float32: 2e-5, mx.bfloat16: 4e-2, mx.float16: 5e-3}  # of the largest number

Weights = dict[str, np.ndarray]


# The plain computation


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rotated(x: np.ndarray, theta: float) -> np.ndarray:
    """(L, heads, dim) at positions 0, 1 ...: number i turns together with number i + dim / 2."""
    length, _, dim = x.shape
    angles = np.arange(length)[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    turn = np.exp(1j * angles)[:, None]
    pairs = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def causal_attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(L, heads, dim) and twice (L, kv_heads, dim), token by token: each sees itself and what is before it."""
    length, heads, dim = queries.shape
    group, made = heads // keys.shape[1], np.zeros_like(queries)
    for at in range(length):
        for head in range(heads):
            seen = slice(0, at + 1)
            weights = softmax(keys[seen, head // group] @ queries[at, head] / np.sqrt(dim))
            made[at, head] = weights @ values[seen, head // group]
    return made


def text_oracle(config: Lfm2Config, of: Weights, x: np.ndarray) -> np.ndarray:
    """The hidden states (L, hidden) of one row, which has no padding."""
    length, dim, eps = len(x), config.head_dim, config.norm_eps
    for index, kind in enumerate(config.layer_types):
        own = {name.removeprefix(f"layers.{index}."): array for name, array in of.items()}
        normed = rms(x, own["operator_norm.weight"], eps)
        if kind == "conv":
            gate_in, gate_out, value = np.split(normed @ own["conv.in_proj.weight"].T, 3, axis=1)
            taps = config.conv_L_cache
            padded = np.concatenate([np.zeros((taps - 1, HIDDEN)), gate_in * value])
            kernel = own["conv.conv.weight"][..., 0]
            mixed = sum(padded[tap : tap + length] * kernel[:, tap] for tap in range(taps))
            x = x + (gate_out * mixed) @ own["conv.out_proj.weight"].T
        else:
            project = {
                name: (normed @ own[f"self_attn.{name}_proj.weight"].T).reshape(length, -1, dim) for name in "qkv"
            }
            queries, keys = (
                rotated(rms(project[name], own[f"self_attn.{name}_layernorm.weight"], eps), config.rope_theta)
                for name in "qk"
            )
            mixed = causal_attention(queries, keys, project["v"]).reshape(length, -1)
            x = x + mixed @ own["self_attn.out_proj.weight"].T
        normed = rms(x, own["ffn_norm.weight"], eps)
        gate, up = (normed @ own[f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ own["feed_forward.w2.weight"].T
    return rms(x, of["embedding_norm.weight"], eps)


def tower_oracle(config: Siglip2VisionConfig, of: Weights, x: np.ndarray) -> np.ndarray:
    """The features (patches, hidden) of one view, before the last norm."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + config.layer_norm_eps)
        return scaled * of[f"{name}.weight"] + of[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ of[f"{name}.weight"].T + of[f"{name}.bias"]

    patches, dim = len(x), config.head_dim
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        normed = norm(x, f"{layer}layer_norm1")
        queries, keys, values = (
            linear(normed, f"{layer}self_attn.{name}_proj").reshape(patches, -1, dim).transpose(1, 0, 2)
            for name in "qkv"
        )
        mixed = softmax(queries @ keys.transpose(0, 2, 1) / np.sqrt(dim)) @ values
        x = x + linear(mixed.transpose(1, 0, 2).reshape(patches, -1), f"{layer}self_attn.out_proj")
        inner = linear(norm(x, f"{layer}layer_norm2"), f"{layer}mlp.fc1")
        inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{layer}mlp.fc2")
    return x


# The models


def randomised(module: nn.Module, dtype: mx.Dtype) -> Weights:
    """Gives a module random weights, and says in float64 what they are."""
    rng = np.random.default_rng(7)

    def drawn(name: str, shape: tuple[int, ...]) -> mx.array:
        numbers = rng.normal(size=shape)
        if "norm" in name:
            numbers = 1 + 0.2 * numbers if name.endswith("weight") else 0.2 * numbers
        elif len(shape) == 2:
            numbers *= 1.5 * shape[1] ** -0.5
        return mx.array(numbers.astype(np.float32)).astype(dtype)

    made = [(name, drawn(name, array.shape)) for name, array in tree_flatten(module.parameters())]
    module.update(tree_unflatten(made))
    mx.eval(module.parameters())
    return {name: np.array(array.astype(mx.float32)).astype(np.float64) for name, array in made}


@cache_by_backend
def text_of(dim: int, dtype: mx.Dtype) -> tuple[Lfm2Model, Weights]:
    heads, kv_heads = HEADS[dim]
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
    kinds = ["conv", "full_attention", "full_attention", "conv"]
    config = {"layer_types": kinds, "num_hidden_layers": 4, "vocab_size": 8, "intermediate_size": 96}
    model = Lfm2Model(Lfm2Config.from_dict({**sizes, **config, "block_auto_adjust_ff_dim": False}))
    weights = randomised(model, dtype)
    if backend_now() == "numpy":
        cpu.accelerate(model)
    else:
        for layer in model.layers:
            if "conv" in layer:
                layer.conv.conv.fuse()
    return model, weights


@cache_by_backend
def tower_of(dim: int, dtype: mx.Dtype) -> tuple[Siglip2Encoder, Siglip2VisionConfig, Weights]:
    sizes = {"hidden_size": 2 * dim, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 200}
    config = Siglip2VisionConfig.from_dict(sizes)
    encoder = Siglip2Encoder(config)
    weights = randomised(encoder, dtype)
    if backend_now() == "numpy":
        cpu.accelerate(encoder)
    else:
        for layer in encoder.layers:
            layer.self_attn.fuse()
    return encoder, config, weights


def backend_now() -> str:
    import os

    from mlx_lfm2vl import backends

    return os.environ[backends.VARIABLE]


def inputs(*shape: int, dtype: mx.Dtype) -> tuple[mx.array, np.ndarray]:
    """Random numbers, as MLX's and in float64."""
    made = mx.array(np.random.default_rng(11).normal(size=shape).astype(np.float32)).astype(dtype)
    return made, np.array(made.astype(mx.float32)).astype(np.float64)


@cache_by_backend
def expected_text(dim: int, dtype: mx.Dtype, rows: int) -> np.ndarray:
    """Of the oracle (rows, LONGEST, hidden)."""
    model, weights = text_of(dim, dtype)
    _, exact = inputs(rows, LONGEST, HIDDEN, dtype=dtype)
    return np.stack([text_oracle(model.config, weights, row) for row in exact])


def assert_close(made: mx.array, expected: np.ndarray, dtype: mx.Dtype, what: str = "") -> None:
    assert made.dtype == dtype, "numbers keep their type"
    difference = np.abs(np.array(made.astype(mx.float32)) - expected).max() / np.abs(expected).max()
    assert difference < CLOSE[dtype], f"{what}: {difference:.1e}"
