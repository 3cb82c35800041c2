"""Heads as the published models have them, 64 and 72 wide, and 128: sizes that fused attention of a GPU is made for and
that the small checkpoints never reach. Each backend is held against a plain computation in float64.

Lengths: a GPU has one kernel for up to 8 queries and one for more, and buffers of keys grow at 256.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN
from mlx.utils import tree_map

from mlx_lfm2vl import generate, load
from mlx_lfm2vl.backends import cpu
from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.layers import Context
from mlx_lfm2vl.models.lfm2 import Lfm2Model
from mlx_lfm2vl.models.siglip2 import Siglip2Encoder
from mlx_lfm2vl.weights.names import parameters

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

    made = {name: drawn(name, array.shape) for name, array in parameters(module).items()}
    module.load_weights(list(made.items()))
    mx.eval(module.parameters())
    return {name: np.array(array.astype(mx.float32)).astype(np.float64) for name, array in made.items()}


@cache
def text_of(dim: int, dtype: mx.Dtype, backend: str) -> tuple[Lfm2Model, Weights]:
    heads, kv_heads = HEADS[dim]
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
    kinds = ["conv", "full_attention", "full_attention", "conv"]
    config = {"layer_types": kinds, "num_hidden_layers": 4, "vocab_size": 8, "intermediate_size": 96}
    model = Lfm2Model(Lfm2Config.from_dict({**sizes, **config, "block_auto_adjust_ff_dim": False}))
    weights = randomised(model, dtype)
    if backend == "numpy":
        cpu.accelerate(model)
    else:
        for layer in model.layers:
            if "conv" in layer:
                layer.conv.conv.fuse()
    return model, weights


@cache
def tower_of(dim: int, dtype: mx.Dtype, backend: str) -> tuple[Siglip2Encoder, Siglip2VisionConfig, Weights]:
    sizes = {"hidden_size": 2 * dim, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 200}
    config = Siglip2VisionConfig.from_dict(sizes)
    encoder = Siglip2Encoder(config)
    weights = randomised(encoder, dtype)
    if backend == "numpy":
        cpu.accelerate(encoder)
    else:
        for layer in encoder.layers:
            layer.self_attn.fuse()
    return encoder, config, weights


def inputs(*shape: int, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, np.ndarray]:
    """Random numbers, as MLX's and in float64."""
    made = mx.array(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)).astype(dtype)
    return made, np.array(made.astype(mx.float32)).astype(np.float64)


def assert_close(made: mx.array, expected: np.ndarray, what: object = "") -> None:
    bound = CLOSE[made.dtype]
    assert made.shape == expected.shape, what
    difference = np.abs(np.array(made.astype(mx.float32)) - expected).max() / np.abs(expected).max()
    assert difference < bound, f"{what}: {difference:.1e}"


# Attention alone


@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize("keys", [255, 256, 257])
@pytest.mark.parametrize("queries", [1, 2, 8, 9, 33, 255])
def test_attention_sees_what_its_mask_says(dim, keys, queries, backend):
    """A causal mask of fewer queries than keys belongs to the last keys; a mask may be one for all rows."""
    model, _ = text_of(dim, mx.float32, backend)
    heads, kv_heads = HEADS[dim]
    q, exact_q = inputs(2, heads, queries, dim)
    k, exact_k = inputs(2, kv_heads, keys, dim)
    v, exact_v = k[:, :, ::-1] * 2, exact_k[:, :, ::-1] * 2
    places = np.arange(keys - queries, keys)[:, None]
    causal = np.arange(keys)[None] <= places
    holes = np.random.default_rng(3).random((2, 1, queries, keys)) < 0.3
    holes[..., 0] = True
    seen: dict[str, tuple[Any, np.ndarray]] = {
        "causal": ("causal", causal[None, None]),
        "rows of their own": (mx.array(holes), holes),
        "one for all": (mx.array(holes[:1]), holes[:1]),
    }
    if queries == 1:
        seen["none"] = (None, np.ones((1, 1, 1, keys), bool))
    group = heads // kv_heads
    scores = exact_q @ exact_k.repeat(group, axis=1).swapaxes(2, 3) / np.sqrt(dim)
    for name, (mask, true) in seen.items():
        made = model.layers[1].self_attn.scaled_dot_product_attention(q, k, v, mask)
        expected = softmax(np.where(true, scores, -np.inf)) @ exact_v.repeat(group, axis=1)
        assert_close(made, expected, name)


# The backbone

CHUNKS = {
    "whole": [LONGEST],
    "in equal chunks": [90, 90, 90],
    "in small chunks": [1, 2, 7, 8, 9, 16, 33, 64, 130],
    "then single tokens": [254, 1, 1, 1, 1, 1, 1, 10],
}


def run(model: Lfm2Model, x: mx.array, chunks: Sequence[int], padding: np.ndarray | None = None) -> mx.array:
    """The hidden states of all tokens, which come in chunks."""
    cache, made, start = Cache(model.config), [], 0
    for length in chunks:
        part = x[:, start : start + length]
        made.append(model(part, Context.following(length, cache.offset, padding), cache))
        start += length
    assert {array.dtype for array in cache.arrays} == {x.dtype}
    return mx.concatenate(made, axis=1)


@cache
def expected_text(dim: int, dtype: mx.Dtype, gap: int = 0) -> np.ndarray:
    """The oracle's hidden states of a row behind so much padding."""
    _, exact = inputs(1, LONGEST, HIDDEN, dtype=dtype)
    model, weights = text_of(dim, dtype, "mlx")
    assert isinstance(model.config, Lfm2Config)
    return text_oracle(model.config, weights, exact[0, gap:])


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_a_prompt_is_the_plain_computations(dim, chunks, backend):
    model, _ = text_of(dim, mx.float32, backend)
    x, _ = inputs(1, LONGEST, HIDDEN)
    assert_close(run(model, x, chunks)[0], expected_text(dim, mx.float32))


@pytest.mark.sampled(12)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("gaps", [(0, 5, 200), (3, 8)], ids=str)
def test_padded_rows_are_the_plain_computations(dim, chunks, gaps, backend):
    """Each row behind its padding; whole chunks may be padding."""
    model, _ = text_of(dim, mx.float32, backend)
    x, _ = inputs(1, LONGEST, HIDDEN)
    made = run(model, mx.repeat(x, len(gaps), axis=0), chunks, np.array(gaps))
    for row, gap in enumerate(gaps):
        assert_close(made[row, gap:], expected_text(dim, mx.float32, gap), f"behind {gap}")


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("gaps", [None, (0, 5, 200)], ids=str)
def test_the_last_token_alone_is_the_plain_computations(dim, gaps, backend):
    """As in a prefill: from the last attention on, only what it depends on is computed."""
    model, _ = text_of(dim, mx.float32, backend)
    x, _ = inputs(1, LONGEST, HIDDEN)
    rows = gaps or (0,)
    cache, padding = Cache(model.config), None if gaps is None else np.array(gaps)
    for start, end in ((0, 250), (250, LONGEST)):
        part = mx.repeat(x, len(rows), axis=0)[:, start:end]
        made = model(part, Context.following(end - start, cache.offset, padding), cache, last_only=True)
        for row, gap in enumerate(rows):
            assert_close(made[row, 0], expected_text(dim, mx.float32, gap)[end - 1 - gap], (gap, end))


@pytest.mark.sampled(6)
@pytest.mark.backends("mlx")
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_prompts_in_16_bits_are_the_plain_computations(dim, dtype, chunks):
    """Of the same rounded weights and inputs. Padded and not."""
    model, _ = text_of(dim, dtype, "mlx")
    x, _ = inputs(1, LONGEST, HIDDEN, dtype=dtype)
    assert_close(run(model, x, chunks)[0], expected_text(dim, dtype))
    gaps = (0, 200)
    made = run(model, mx.repeat(x, 2, axis=0), chunks, np.array(gaps))
    for row, gap in enumerate(gaps):
        assert_close(made[row, gap:], expected_text(dim, dtype, gap), f"behind {gap}")


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("gaps", [None, (0, 5, 200)], ids=str)
def test_the_text_of_both_backends_agrees(dim, gaps):
    padding = None if gaps is None else np.array(gaps)
    x, _ = inputs(3, LONGEST, HIDDEN)
    ours, theirs = (
        run(text_of(dim, mx.float32, name)[0], x, CHUNKS["then single tokens"], padding) for name in ("numpy", "mlx")
    )
    for row, gap in enumerate(gaps or (0, 0, 0)):  # what padding gives is nobody's
        assert_close(ours[row, gap:], np.array(theirs[row, gap:]))


# The tower

VIEWS = {
    "one view": [(16, 16)],
    "views of one grid": [(16, 16)] * 3,
    "views of many grids": [(2, 2), (10, 18), (18, 10), (17, 17), (2, 2)],
    "a large view": [(32, 24)],
}


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("grids", VIEWS.values(), ids=VIEWS)
def test_views_are_the_plain_computations(dim, grids, backend):
    check_views(dim, grids, mx.float32, backend)


@pytest.mark.backends("mlx")
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dim", [64, 72])
def test_views_in_16_bits_are_the_plain_computations(dim, dtype):
    check_views(dim, VIEWS["views of many grids"], dtype, "mlx")


def check_views(dim: int, grids: list[tuple[int, int]], dtype: mx.Dtype, backend: str) -> None:
    encoder, config, weights = tower_of(dim, dtype, backend)
    counts = [height * width for height, width in grids]
    x, exact = inputs(sum(counts), 2 * dim, dtype=dtype)
    shape = (len(grids), counts[0], -1) if len(set(grids)) == 1 else (1, sum(counts), -1)
    made = encoder(x.reshape(shape), grids).reshape(sum(counts), -1)
    for end, count in zip(np.cumsum(counts), counts, strict=True):
        view = slice(int(end) - count, int(end))
        assert_close(made[view], tower_oracle(config, weights, exact[view]), f"{count} patches")


# Copies of models

FOLDERS = {"gen2": GOLDEN / "gen2", "gen25": GOLDEN / "gen25", "untied": GOLDEN / "untied", "demo": "demo"}
IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def numbers_of(model: Any) -> list[np.ndarray]:
    """Logits of a text, and image tokens of a picture."""
    grid = np.array([[4, 6]])
    pixels = np.random.default_rng(0).normal(size=(1, 24, 768)).astype(np.float32)
    made = [model(IDS).logits, *model.get_image_features(pixels, grid).pooler_output]
    return [np.array(array.astype(mx.float32)) for array in made]


def alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """But for another order of adding."""
    return all(np.abs(a - b).max() < 2e-5 * np.abs(b).max() for a, b in zip(one, other, strict=True))


def held_more(work: Callable[[], Any], size: int) -> Any:
    """The result of some work, which leaves at most so many bytes more with MLX, and what it rounds up."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    result = work()
    mx.synchronize()
    assert mx.get_active_memory() - before <= 1.02 * size + 150_000
    return result


def nbytes(model: nn.Module) -> int:
    return sum(array.nbytes for array in parameters(model).values())


@pytest.fixture(params=list(FOLDERS.values()), ids=list(FOLDERS))
def model(request) -> Any:
    return load(request.param)[0]


def test_a_deep_copy_is_the_same_model_and_holds_its_weights_once(model, backend):
    expected = numbers_of(model)
    twin = held_more(lambda: copy.deepcopy(model), nbytes(model))
    assert type(twin) is type(model) and twin.backend == backend and twin.config == model.config
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    assert alike(numbers_of(twin), expected)


def test_weights_of_a_deep_copy_are_its_own(model):
    """Replaced, cast or written into: the original's stay, and what the copy had before is not held as well."""
    expected, twin = numbers_of(model), copy.deepcopy(model)

    def replace() -> None:
        twin.update(tree_map(lambda array: array * 1.5, twin.parameters()))
        mx.eval(twin.parameters())

    held_more(replace, nbytes(model))
    plain = type(model)(model.config)  # in which nothing was ever fused
    plain.load_weights(list(parameters(twin).items()))
    changed = numbers_of(twin)
    assert alike(changed, numbers_of(plain)) and not alike(changed[:1], expected[:1]) and not alike(changed, expected)
    twin.model.language_model.embedding_norm.weight[:] = 0
    twin.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight[0] = 0
    assert not numbers_of(twin)[0].any()
    for ours, theirs in zip(numbers_of(model), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_of_the_original_are_not_the_copys(model):
    expected, twin = numbers_of(model), copy.deepcopy(model)
    model.model.language_model.embedding_norm.weight[:] = 0
    model.update(tree_map(lambda array: array * 0, model.parameters()))
    assert alike(numbers_of(twin), expected)


def test_a_deep_copy_answers_as_the_original():
    model, processor = load("demo")
    twin = copy.deepcopy(model)
    assert generate(twin, processor, "What is this?") == generate(model, processor, "What is this?")


def test_a_deep_copy_holds_nothing_of_the_original():
    size = nbytes(load("demo")[0])

    def work() -> Any:
        twin = copy.deepcopy(load("demo")[0])
        twin.update(tree_map(lambda array: array * 1.5, twin.parameters()))
        mx.eval(twin.parameters())
        return twin

    assert nbytes(held_more(work, size)) == size


@pytest.mark.backends("mlx")
def test_a_deep_copy_may_be_fused_again(model):
    expected, twin = numbers_of(model), copy.deepcopy(model)
    held_more(twin.fuse, nbytes(model))
    assert alike(numbers_of(twin), expected)
