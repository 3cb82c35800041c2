"""What the CPU back end computes in its own way, against MLX's and float64."""

import os
import subprocess
import sys
import threading
import time
import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten
from threadpoolctl import threadpool_info, threadpool_limits

from mlx_lfm2vl.config import Lfm2Config, Siglip2VisionConfig
from mlx_lfm2vl.generation.decode import _context
from mlx_lfm2vl.model import cpu
from mlx_lfm2vl.model.cache import Cache
from mlx_lfm2vl.model.lfm2 import Lfm2Model
from mlx_lfm2vl.model.vision import Siglip2EncoderLayer
from mlx_lfm2vl.threads import ask, asking, cores, together

pytestmark = pytest.mark.usefixtures("on_cpu")


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_it_applies_to_float32_on_a_cpu_only():
    assert cpu.applies(mx.zeros((1,)), mx.zeros((2, 2)))
    assert not cpu.applies(mx.zeros((1,)), mx.zeros((1,), mx.bfloat16))
    assert not cpu.applies(mx.zeros((1,), mx.bfloat16)) and not cpu.applies(mx.zeros((1,), mx.float16))


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 48), (2, 2, 48), (7, 48), (0, 48), (1, 4, 2, 48)])
@pytest.mark.parametrize("wide", [False, True])
def test_products_are_mlx_s_whatever_the_layout(shape, wide):
    x, weight, bias = normal(*shape), normal(96, 48, seed=1), normal(96, seed=2)
    layout = cpu.by_columns(weight) if wide else weight
    for rows in (x, normal(48, shape[0], *shape[1:-1]).transpose(*range(1, len(shape)), 0)):  # as it lies, and strided
        wanted = np.array(rows) @ np.array(weight).T
        np.testing.assert_allclose(np.array(cpu.product(rows, layout)), wanted, rtol=1e-5, atol=1e-5)
        residual = normal(*wanted.shape, seed=3)
        for added in (bias, residual):
            made = cpu.add_product(added, rows, layout)
            np.testing.assert_allclose(np.array(made), wanted + np.array(added), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        np.array(residual), np.array(normal(*wanted.shape, seed=3)), "its input is not changed"
    )


def test_rms_norm_is_mlx_s():
    x, weight = normal(2, 3, 4, 16) * 100, normal(16, seed=1)
    np.testing.assert_allclose(
        np.array(cpu.rms_norm(x, weight, 1e-5)), np.array(mx.fast.rms_norm(x, weight, 1e-5)), rtol=1e-6, atol=1e-6
    )


def test_what_is_computed_here_has_mlx_s_gradients(monkeypatch):
    """Of a layer of each kind, through products, norms, convolution, activations and attention."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    kinds = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "vocab_size": 7}
    model = Lfm2Model(Lfm2Config.from_dict({**sizes, **kinds}))
    x = normal(2, 150, 32)

    def gradients() -> dict[str, np.ndarray]:
        loss = lambda model: (model(x) ** 3).sum()  # noqa: E731
        return {name: np.array(of) for name, of in tree_flatten(nn.value_and_grad(model, loss)(model)[1])}

    ours = gradients()
    monkeypatch.setattr(cpu, "is_default", lambda: False)
    theirs = gradients()
    assert ours.keys() == theirs.keys() and len(ours) > 15
    for name, wanted in theirs.items():
        np.testing.assert_allclose(ours[name], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max(), err_msg=name)


def test_activations_have_mlx_s_gradients_too():
    x = normal(2, 1, 24)
    for ours, theirs in (
        (lambda x: cpu.gelu_tanh(x).sum(), lambda x: nn.gelu_approx(x).sum()),
        (lambda x: cpu.silu(x).sum(), lambda x: nn.silu(x).sum()),
    ):
        np.testing.assert_allclose(np.array(mx.grad(ours)(x)), np.array(mx.grad(theirs)(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patches", [4, 96, 300, 1100])
@pytest.mark.parametrize("views", [1, 3])
def test_a_layer_of_the_tower_as_a_whole_is_that_of_its_parts(views, patches):
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200, "num_hidden_layers": 1}
    config = Siglip2VisionConfig.from_dict({**sizes, "layer_norm_eps": 1e-3})
    layer = Siglip2EncoderLayer(config)
    shapes = {name: array.shape for name, array in tree_flatten(layer.parameters())}
    layer.update(tree_unflatten([(name, normal(*shape, seed=len(name)) / 8) for name, shape in shapes.items()]))
    x = normal(views, patches, 96, seed=1)
    groups = [(views, patches)]
    wanted = np.array(layer(x, groups))
    with cpu.no_gradients():
        np.testing.assert_allclose(np.array(layer(x, groups)), wanted, rtol=1e-4, atol=1e-4)
        layer.mlp.fc1 = nn.QuantizedLinear.from_linear(nn.Linear(96, 200, bias=True), group_size=32)
        assert layer(x, groups).shape == x.shape, "a layer of another kind goes its own way"
    np.testing.assert_array_equal(np.array(x), np.array(normal(views, patches, 96, seed=1)), "its input is not changed")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("taps", [2, 3, 5])
def test_layers_of_the_backbone_as_a_whole_are_those_of_their_parts(taps, bias):
    """A prompt, then single tokens: outputs and what is remembered. Biases go the way of the parts."""
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96}
    kinds = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "vocab_size": 7}
    config = Lfm2Config.from_dict({**sizes, **kinds, "conv_L_cache": taps, "conv_bias": bias, "norm_eps": 1e-3})
    model = Lfm2Model(config)
    x = normal(2, 130, 64)

    def made(last_only: bool) -> list[np.ndarray]:
        cache, found = Cache(config), []
        for start, end in ((0, 120), (120, 121), (121, 122), (122, 130)):
            found.append(np.array(model(x[:, start:end], cache=cache, last_only=last_only)))
        return [*found, *(np.array(array) for array in cache.arrays)]

    for last_only in (False, True):
        wanted = made(last_only)
        with cpu.no_gradients():
            got = made(last_only)
        assert len(got) == len(wanted) > 4
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.array(x), np.array(normal(2, 130, 64)), "its input is not changed")


@pytest.mark.parametrize("padding", [None, (0, 3), (5, 0)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 4)])
def test_the_attention_of_single_tokens_is_that_of_its_parts(padding, heads, kv_heads):
    """Rows whose prompts differ in length stand at positions of their own and do not see their padding."""
    sizes = {"hidden_size": 64, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": 96}
    kinds = {"layer_types": ["full_attention", "full_attention"], "num_hidden_layers": 2, "vocab_size": 7}
    config = Lfm2Config.from_dict({**sizes, **kinds})
    model, x = Lfm2Model(config), normal(2, 300, 64)
    gaps = None if padding is None else np.array(padding)

    def made() -> list[np.ndarray]:
        cache, found = Cache(config), []
        for start, end in ((0, 250), *((at, at + 1) for at in range(250, 260))):  # the buffers grow once
            part = x[:, start:end]
            found.append(np.array(model(part, _context(gaps, cache, end - start), cache))[:, -1])
        return [*found, *(np.array(array) for array in cache.arrays)]

    wanted = made()
    with cpu.no_gradients():
        got = made()
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_openblas_keeps_to_one_thread_while_work_is_shared_and_has_its_own_again_afterwards():
    with threadpool_limits(2, "blas"):
        seen, names = [], set()

        def work(start: int, end: int) -> None:
            seen.append((start, end, blas_threads()))
            names.add(threading.current_thread().name)
            with cores:
                pass
            assert set(blas_threads()) == {1}, "nor where a part of it asks for the same"

        together(work, 7)
        assert sorted((start, end) for start, end, _ in seen) == [(0, 3), (3, 7)] and len(names) == 2
        assert all(set(numbers) == {1} for *_, numbers in seen)
        together(work, 7, least=4)
        assert seen[-1][:2] == (0, 7), "too little for two"
        assert set(blas_threads()) == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another BLAS")
def test_openblas_does_not_wait_long_at_full_speed_for_its_next_product():
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
            together(work, 2)
        assert ended == [1] and set(blas_threads()) == {2}


def test_a_question_breaks_shared_work_off_in_all_threads():
    """Asked in the thread that began it alone, as it may be anybody's function."""
    done, asked = [], []

    def question() -> None:
        asked.append(threading.get_ident())
        if len(asked) == 20:
            raise KeyError("enough")

    def work(start: int, end: int) -> None:
        for unit in range(start, end):
            ask()
            time.sleep(0.001)
            done.append(unit)

    with threadpool_limits(2, "blas"):
        with asking(question), pytest.raises(KeyError, match="enough"):
            together(work, 10_000)
        assert done and len(done) < 1000 and set(asked) == {threading.get_ident()}
        together(work, 4)
        assert len(asked) == 20, "no longer asked"


def test_what_a_question_computes_is_not_asked_about():
    asked = []

    def question() -> None:
        asked.append(1)
        ask()
        together(lambda *_: ask(), 4)

    with asking(question):
        ask()
        assert asked == [1]
        ask()
    assert asked == [1, 1]


def test_long_layers_ask_within_them():
    """In 4,096 patches, or 1,024 tokens, a layer of the real shapes takes longer than a token."""
    rng = np.random.default_rng(0)

    def given(shapes: dict[str, tuple[int, ...]]) -> dict[str, mx.array]:
        return {name: mx.array(rng.standard_normal(shape).astype(np.float32) / 8) for name, shape in shapes.items()}

    tower = {f"layer_norm{n}.{kind}": (64,) for n in (1, 2) for kind in ("weight", "bias")}
    for name, shape in {
        **{f"self_attn.{kind}_proj": (64, 64) for kind in ("q", "k", "v", "out")},
        "mlp.fc1": (128, 64),
        "mlp.fc2": (64, 128),
    }.items():
        tower |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    text = {"operator_norm.weight": (64,), "ffn_norm.weight": (64,), "conv.conv.weight": (64, 3, 1)}
    text |= {"conv.in_proj.weight": (192, 64), "conv.out_proj.weight": (64, 64)}
    text |= {
        "feed_forward.w1.weight": (128, 64),
        "feed_forward.w3.weight": (128, 64),
        "feed_forward.w2.weight": (64, 128),
    }
    parameters = given(tower), given(text)
    x, past = given({"x": (4, 1024, 64), "past": (1, 1, 64)}).values()
    asked: list[int] = []
    with asking(lambda: asked.append(1)):
        cpu.encoder_layer(x, [(4, 1024)], 2, (1e-6, 1e-6), parameters[0])
        vision = len(asked)
        cpu.conv_layer(x[:1], [past, past], 1e-6, parameters[1])
    assert vision >= 10 and len(asked) - vision >= 10


def test_compiling_through_it_is_refused_and_not_wrong():
    with pytest.raises(ValueError, match="compile"):
        mx.compile(lambda x: cpu.silu(x))(mx.ones((3,)))


def test_numbers_beyond_floats_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu.gelu_tanh(mx.array([-1e30, 1e30, -200.0])).tolist() == [0, pytest.approx(1e30), 0]
        assert np.isnan(cpu.silu(mx.array([float("nan")])).item())


@pytest.mark.parametrize(("ours", "theirs"), [(cpu.gelu_tanh, nn.gelu_approx), (cpu.silu, nn.silu)])
def test_activations_are_mlx_s_everywhere(ours, theirs):
    x = np.concatenate([np.linspace(-30, 30, 30_001), [-1e10, -100, -88, -0.0, 0, 88, 100, 1e10]])
    wanted, got = theirs(mx.array(x.astype(np.float32))), ours(mx.array(x.astype(np.float32)))
    np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=3e-6, atol=3e-7)


def test_swiglu_is_silu_times_up_whatever_the_number_of_blocks():
    for shape in ((1, 1, 7), (3, 50, 4608), (1, 1, 70_000), (0, 8)):
        gate, up = normal(*shape), normal(*shape, seed=1)
        wanted = np.array(nn.silu(gate) * up)
        np.testing.assert_allclose(np.array(cpu.swiglu(gate, up)), wanted, rtol=2e-6, atol=1e-6)


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
    got = cpu.attention(queries, keys, values, scale=0.25, mask=mask)
    np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=1e-4, atol=3e-6)


def test_scores_of_any_size_have_a_softmax():
    queries, keys, values = normal(1, 2, 300, 16) * 1e3, normal(1, 2, 300, 16) * 1e3, normal(1, 2, 300, 16)
    wanted = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    np.testing.assert_allclose(np.array(cpu.attention(queries, keys, values, scale=1.0)), np.array(wanted), atol=1e-2)


def test_a_matrix_by_columns_is_the_same_matrix():
    wide = normal(64, 16)
    turned = cpu.by_columns(wide)
    np.testing.assert_array_equal(np.array(turned), np.array(wide))
    assert cpu.by_columns(wide.T).shape == (16, 64)
