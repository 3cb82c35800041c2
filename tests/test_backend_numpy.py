"""The backend numpy: its layers beside MLX's, its threads, and how work in it is cancelled."""

import copy
import os
import subprocess
import sys
import threading
import time
import warnings
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_unflatten
from threadpoolctl import threadpool_info, threadpool_limits

from mlx_lfm2vl.backends.cpu import accelerate, arrays, by_columns, kernels
from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.layers import Context
from mlx_lfm2vl.models.lfm2 import Lfm2Model
from mlx_lfm2vl.models.siglip2 import Siglip2EncoderLayer
from mlx_lfm2vl.threads import blas_on_one_thread, cancellation, check_cancelled, parallel_for
from mlx_lfm2vl.weights.names import parameters

pytestmark = pytest.mark.backends("numpy")
SMALL = {
    **{"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96},
    **{"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "vocab_size": 7},
}


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def linear(rows: int, width: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(width, rows, bias=bias)
    layer.weight = normal(rows, width, seed=1)
    if bias:
        layer.bias = normal(rows, seed=2)
    return layer


M = TypeVar("M", bound=nn.Module)


def accelerated(module: M) -> M:
    accelerate(twin := copy.deepcopy(module))
    return twin


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 48), (2, 2, 48), (7, 48), (0, 48), (1, 4, 2, 48)])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_are_mlxs_in_any_layout(shape, wide, bias):
    layer = linear(96, 48, bias)
    fast = accelerated(layer)
    if wide:
        fast.weight = by_columns({"language_model.weight": layer.weight})["language_model.weight"]
    strided = normal(48, shape[0], *shape[1:-1]).transpose(*range(1, len(shape)), 0)
    for rows in (normal(*shape), strided):
        np.testing.assert_allclose(np.array(fast(rows)), np.array(layer(rows)), rtol=1e-5, atol=1e-4)


def test_the_tied_head_and_norms_are_mlxs():
    embedding, norm = nn.Embedding(30, 16), nn.RMSNorm(16, eps=1e-5)
    norm.weight, embedding.weight = normal(16, seed=1), normal(30, 16, seed=2) * 0.25  # as it is initialised
    x = normal(2, 3, 4, 16) * 100
    for layer, call in ((embedding, "as_linear"), (norm, "__call__")):
        ours, theirs = (np.array(getattr(each, call)(x)) for each in (accelerated(layer), layer))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_other_dtypes_are_left_to_mlx():
    layer = linear(96, 48, True)
    layer.set_dtype(mx.bfloat16)
    x = normal(2, 3, 48).astype(mx.bfloat16)
    ours, theirs = (np.array(each(x).astype(mx.float32)) for each in (accelerated(layer), layer))
    np.testing.assert_array_equal(ours, theirs)


def test_layers_keep_their_parameters_and_may_be_quantised():
    model = Lfm2Model(Lfm2Config.from_dict(SMALL))
    before = {name: id(array) for name, array in parameters(model).items()}
    accelerate(model)
    assert {name: id(array) for name, array in parameters(model).items()} == before
    x = normal(1, 5, 64)
    wanted = np.array(model(x))
    nn.quantize(model, group_size=32, bits=8)
    np.testing.assert_allclose(np.array(model(x)), wanted, atol=0.1 * np.abs(wanted).max())


@pytest.mark.parametrize("part", ["head", "norm", "tower layer"])
def test_gradients_are_an_error_and_not_zero(part):
    losses = {
        "head": lambda model: model.embed_tokens.as_linear(normal(1, 5, 64)).sum(),
        "norm": lambda model: model(normal(1, 5, 64)).sum(),
        "tower layer": lambda layer: layer(normal(1, 4, 96), [(1, 4)]).sum(),
    }
    module = tower_layer() if part == "tower layer" else Lfm2Model(Lfm2Config.from_dict(SMALL))
    accelerate(module)
    with pytest.raises(TypeError, match="backend='mlx' to take gradients"):
        nn.value_and_grad(module, losses[part])(module)


def test_gradients_by_embeddings_are_an_error_and_not_zero():
    model = accelerated(Lfm2Model(Lfm2Config.from_dict(SMALL)))
    with pytest.raises(TypeError, match="backend='mlx' to take gradients"):
        mx.grad(lambda x: model(x).sum())(normal(1, 5, 64))


def tower_layer() -> Siglip2EncoderLayer:
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200, "num_hidden_layers": 1}
    layer = Siglip2EncoderLayer(Siglip2VisionConfig.from_dict({**sizes, "layer_norm_eps": 1e-3}))
    shapes = {name: array.shape for name, array in parameters(layer).items()}
    layer.update(tree_unflatten([(name, normal(*shape, seed=len(name)) / 8) for name, shape in shapes.items()]))
    return layer


@pytest.mark.parametrize("patches", [4, 96, 300, 1100])
@pytest.mark.parametrize("views", [1, 3])
def test_a_layer_of_the_tower_is_mlxs(views, patches):
    layer = tower_layer()
    fast = accelerated(layer)
    x, groups = normal(views, patches, 96, seed=1), [(views, patches)]
    np.testing.assert_allclose(np.array(fast(x, groups)), np.array(layer(x, groups)), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.array(x), np.array(normal(views, patches, 96, seed=1)), "its input is not changed")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("taps", [2, 3, 5])
def test_layers_of_the_backbone_are_mlxs(taps, bias):
    """A prompt, then single tokens: outputs and what is remembered. Biased convolutions are left to MLX."""
    kinds = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}
    config = Lfm2Config.from_dict({**SMALL, **kinds, "conv_L_cache": taps, "conv_bias": bias, "norm_eps": 1e-3})
    model = Lfm2Model(config)
    x = normal(2, 130, 64)

    def results(model: Lfm2Model, last_only: bool) -> list[np.ndarray]:
        cache, found = Cache(config), []
        for start, end in ((0, 120), (120, 121), (121, 122), (122, 130)):
            found.append(np.array(model(x[:, start:end], cache=cache, last_only=last_only)))
        return [*found, *(np.array(array) for array in cache.arrays)]

    for last_only in (False, True):
        wanted, got = results(model, last_only), results(accelerated(model), last_only)
        assert len(got) == len(wanted) > 4
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.array(x), np.array(normal(2, 130, 64)), "its input is not changed")


@pytest.mark.parametrize("padding", [None, (0, 3), (5, 0)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 4)])
@pytest.mark.parametrize("kinds", [["full_attention", "full_attention"], ["conv", "full_attention"]])
def test_padded_prompts_and_single_tokens_are_mlxs(padding, heads, kv_heads, kinds):
    """Rows whose prompts differ in length stand at positions of their own and do not see their padding."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "layer_types": kinds}
    config = Lfm2Config.from_dict({**SMALL, **sizes})
    model, x = Lfm2Model(config), normal(2, 300, 64)
    gaps = None if padding is None else np.array(padding)

    def results(model: Lfm2Model) -> list[np.ndarray]:
        cache, found = Cache(config), []
        for start, end in ((0, 250), *((at, at + 1) for at in range(250, 260))):  # the buffers grow once
            part = x[:, start:end]
            found.append(np.array(model(part, Context.following(end - start, cache.offset, gaps), cache))[:, -1])
        return [*found, *(np.array(array) for array in cache.arrays)]

    for ours, theirs in zip(results(accelerated(model)), results(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_openblas_keeps_to_one_thread_while_work_is_shared():
    with threadpool_limits(2, "blas"):
        seen, names = [], set()

        def work(start: int, end: int) -> None:
            seen.append((start, end, blas_threads()))
            names.add(threading.current_thread().name)
            with blas_on_one_thread:
                pass
            assert set(blas_threads()) == {1}, "nor where a part of it asks for the same"

        parallel_for(work, 7)
        assert sorted((start, end) for start, end, _ in seen) == [(0, 3), (3, 7)] and len(names) == 2
        assert all(set(numbers) == {1} for *_, numbers in seen)
        parallel_for(work, 7, minimum=4)
        assert seen[-1][:2] == (0, 7), "too little for two"
        assert set(blas_threads()) == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another BLAS")
def test_openblas_waits_only_briefly_at_full_speed():
    """In a process that does nothing else, it would for a tenth of a second."""
    code = """
import time, mlx_lfm2vl, numpy as np
matrix = np.ones((1024, 1024), np.float32)
matrix @ matrix
before = time.process_time()
time.sleep(0.2)
print(time.process_time() - before)
"""
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    variables.pop("OPENBLAS_THREAD_TIMEOUT", None)  # which this process, its parent, has set
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.04


def test_what_fails_in_a_thread_is_told_when_all_have_ended():
    ended = []

    def work(start: int, end: int) -> None:
        if start:
            raise MemoryError("no more")
        time.sleep(0.05)
        ended.append(end)

    with threadpool_limits(2, "blas"):
        with pytest.raises(MemoryError, match="no more"):
            parallel_for(work, 2)
        assert ended == [1] and set(blas_threads()) == {2}


def test_a_cancel_ends_shared_work_in_all_threads():
    """Asked in the thread that began it alone, as it may be anybody's function."""
    done, asked = [], []

    def question() -> None:
        asked.append(threading.get_ident())
        if len(asked) == 20:
            raise KeyError("enough")

    def work(start: int, end: int) -> None:
        for unit in range(start, end):
            check_cancelled()
            time.sleep(0.001)
            done.append(unit)

    with threadpool_limits(2, "blas"):
        with cancellation(question), pytest.raises(KeyError, match="enough"):
            parallel_for(work, 10_000)
        assert done and len(done) < 1000 and set(asked) == {threading.get_ident()}
        parallel_for(work, 4)
        assert len(asked) == 20, "no longer asked"


def test_cancel_check_is_not_reentrant():
    asked = []

    def question() -> None:
        asked.append(1)
        check_cancelled()
        parallel_for(lambda *_: check_cancelled(), 4)

    with cancellation(question):
        check_cancelled()
        assert asked == [1]
        check_cancelled()
    assert asked == [1, 1]


def test_long_layers_are_cancelled_within():
    """In 4,096 patches, or 1,024 tokens, a layer of the real shapes takes longer than a token."""
    rng = np.random.default_rng(0)

    def given(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}

    tower: dict[str, tuple[int, ...]] = {f"layer_norm{n}.{kind}": (64,) for n in (1, 2) for kind in ("weight", "bias")}
    for name, shape in {
        **{f"self_attn.{kind}_proj": (64, 64) for kind in ("q", "k", "v", "out")},
        "mlp.fc1": (128, 64),
        "mlp.fc2": (64, 128),
    }.items():
        tower |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    text: dict[str, tuple[int, ...]] = {
        "operator_norm.weight": (64,),
        "ffn_norm.weight": (64,),
        "conv.conv.weight": (64, 3, 1),
    }
    text |= {"conv.conv.weight": (64, 3, 1), "conv.in_proj.weight": (192, 64), "conv.out_proj.weight": (64, 64)}
    text |= {
        "feed_forward.w1.weight": (128, 64),
        "feed_forward.w3.weight": (128, 64),
        "feed_forward.w2.weight": (64, 128),
    }
    parameters = given(tower), given(text)
    x, past = given({"x": (4, 1024, 64), "past": (1, 1, 64)}).values()
    asked: list[int] = []
    with cancellation(lambda: asked.append(1)):
        kernels.encoder_layer(x, [(4, 1024)], 2, (1e-6, 1e-6), parameters[0])
        vision = len(asked)
        kernels.conv_layer(x[:1], (past, past), 1e-6, parameters[1])
    assert vision >= 10 and len(asked) - vision >= 10


def test_compiling_through_it_is_refused_and_not_wrong():
    layer = accelerated(linear(96, 48, False))
    with pytest.raises(ValueError, match="compile"):
        mx.compile(lambda x: layer(x))(mx.ones((3, 48)))


def test_numbers_beyond_floats_warn_of_nothing():
    layer = accelerated(linear(96, 48, False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isfinite(np.array(layer(mx.full((1, 48), 3e38)))).all()


@pytest.mark.parametrize(("ours", "theirs"), [(arrays.gelu_tanh_into, nn.gelu_approx), (arrays.silu_into, nn.silu)])
def test_activations_are_mlxs_everywhere(ours, theirs):
    x = np.concatenate([np.linspace(-30, 30, 30_001), [-1e10, -100, -88, -0.0, 0, 88, 100, 1e10]]).astype(np.float32)
    made = np.empty_like(x)
    with np.errstate(all="ignore"):
        ours(x, made)
    np.testing.assert_allclose(made, np.array(theirs(mx.array(x))), rtol=3e-6, atol=3e-7)


def test_swiglu_is_silu_times_up_for_any_number_of_blocks():
    for shape in ((1, 1, 7), (3, 50, 4608), (1, 1, 70_000), (0, 8)):
        gate, up = np.array(normal(*shape)), np.array(normal(*shape, seed=1))
        wanted = np.array(nn.silu(mx.array(gate)) * mx.array(up))
        arrays.in_blocks(arrays.swiglu_into, gate, gate, up)
        np.testing.assert_allclose(gate, wanted, rtol=2e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    length=st.integers(1, 600),
    past=st.integers(0, 300),
    kind=st.sampled_from(["all", "causal", "mask", "one mask"]),
)
def test_attention_is_mlx_s(batch, kv_heads, group, length, past, kind):
    total = length + past
    queries = normal(batch, kv_heads * group, length, 16)
    keys, values = normal(batch, kv_heads, total, 16, seed=1), normal(batch, kv_heads, total, 16, seed=2)
    mask: mx.array | str | None = None if kind == "all" else "causal"
    if kind in ("mask", "one mask"):
        rows = batch if kind == "mask" else 1
        seen = np.random.default_rng(3).random((rows, 1, length, total)) > 0.5
        seen[..., 0] = True
        mask = mx.array(seen)
    wanted = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.25, mask=mask)
    known = np.array(mask) if isinstance(mask, mx.array) else mask
    got = arrays.attention(np.array(queries), np.array(keys), np.array(values), 0.25, known).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-4, atol=3e-6)


def test_scores_of_any_size_have_a_softmax():
    queries, keys, values = normal(1, 2, 300, 16) * 1e3, normal(1, 2, 300, 16) * 1e3, normal(1, 2, 300, 16)
    wanted = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    got = arrays.attention(np.array(queries), np.array(keys), np.array(values), 1.0).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(got, np.array(wanted), atol=1e-2)


def test_a_matrix_by_columns_is_the_same_matrix():
    wide = normal(64, 16)
    turned = by_columns({"layers.0.weight": wide, "vision_tower.weight": wide, "small": wide.T})
    np.testing.assert_array_equal(np.array(turned["layers.0.weight"]), np.array(wide))
    assert turned["vision_tower.weight"] is wide and turned["small"].shape == (16, 64)
