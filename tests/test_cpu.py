"""What the CPU back end computes in its own way, against MLX's and float64."""

import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.model import cpu

pytestmark = pytest.mark.usefixtures("on_cpu")


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_it_applies_to_float32_on_a_cpu_only():
    assert cpu.applies(mx.zeros((1,)))
    assert not cpu.applies(mx.zeros((1,), mx.bfloat16)) and not cpu.applies(mx.zeros((1,), mx.float16))


def test_exp_is_right_to_the_last_bits_over_its_whole_range():
    x = np.linspace(-86, 86, 1_000_001, dtype=np.float32)
    wanted = np.exp(x.astype(np.float64))
    assert np.abs(np.array(cpu.exp(mx.array(x))) / wanted - 1).max() < 1.25e-7
    assert cpu.exp(mx.zeros((1,))).item() == 1


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


def openblas_is_installed() -> bool:
    program = "import ctypes; ctypes.CDLL('libopenblas.so.0')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac's BLAS is its own")
def test_openblas_is_bound_where_there_is_one_and_said_where_not_or_too_late():
    program = (
        "import mlx_lfm2vl.backend as b, ctypes; print(b.blas(), hasattr(ctypes.CDLL(None), 'openblas_get_config'))"
    )

    def said(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    if openblas_is_installed():
        assert said(program) in ("libopenblasp.so.0 True", "libopenblas.so.0 True")
    else:
        assert said(program).startswith("MLX's own BLAS, which is slow; install OpenBLAS")
    assert said(f"import mlx.core\n{program}").startswith("the BLAS that MLX was imported with")
