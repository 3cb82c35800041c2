"""A model that several ranks share: the tokens of one process, a part of its memory in each."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from launched import ended, start

from mlx_lfm2vl import OptionError, convert, load
from mlx_lfm2vl.weights.files import read_header, read_part

PROGRAM = Path(__file__).parent / "ranks_program.py"
SMALL = GOLDEN / "pictures" / "small.png"


def answers(folder: Path, ranks: int, model: object) -> list[dict[str, Any]]:
    processes = start(folder, ranks, [sys.executable, PROGRAM, model, SMALL])
    return [json.loads(out) if code == 0 else pytest.fail(err) for code, out, err in ended(processes)]


@pytest.mark.parametrize(("name", "ranks"), [("demo", 2), ("gen25", 2), ("gen25", 4), ("demo, 8 bits", 2)])
def test_ranks_give_the_tokens_of_one_process(tmp_path, name, ranks):
    """Greedy and sampled, about a picture; what does not divide by the ranks is whole in each."""
    model: object = GOLDEN / name if name.startswith("gen") else name
    if name == "demo, 8 bits":
        convert("demo", tmp_path / "model", quantize=True, q_bits=8, q_group_size=32)
        model = tmp_path / "model"
    (alone,), shared = answers(tmp_path, 1, model), answers(tmp_path, ranks, model)
    close = 0.2 if name.startswith("demo") else 1e-4  # the demo is of bfloat16
    for rank in shared:
        assert rank["tokens"] == alone["tokens"] and not rank["errors"]
        np.testing.assert_allclose(rank["logits"], alone["logits"], atol=close)
        assert rank["logits"] == shared[0]["logits"]
        if ranks == 2:
            assert rank["peak"] <= 0.6 * alone["peak"]


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0, -1]),
    st.sampled_from([mx.float32, mx.bfloat16, mx.float16, mx.uint32, mx.uint8]),
)
def test_a_part_of_a_tensor_is_read_by_rank(ranks, segments, shape, axis, dtype):
    sides = [side * (ranks * segments if place == axis % 2 else 1) for place, side in enumerate(shape)]
    whole = mx.arange(sides[0] * sides[1]).reshape(sides).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        mx.save_safetensors(f"{folder}/a.safetensors", {"before": mx.zeros((3,), mx.uint8), "x": whole})
        info = read_header(Path(folder) / "a.safetensors")["x"]
        parts = [read_part(info, axis, segments, rank, ranks) for rank in range(ranks)]
    cut = [mx.split(segment, ranks, axis) for segment in mx.split(whole, segments, axis)]
    for rank, part in enumerate(parts):
        expected = mx.concatenate([segment[rank] for segment in cut], axis)
        assert part.dtype == dtype and mx.array_equal(part, expected)


def test_what_ranks_cannot_share_is_refused(tmp_path):
    group = mx.distributed.init()
    with pytest.raises(OptionError, match="needs the backend mlx"):
        load(GOLDEN / "gen25", backend="numpy", group=group)
