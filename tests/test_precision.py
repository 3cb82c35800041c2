"""What bfloat16 costs here, against what it costs the reference: both are measured from the reference's float32 logits.

The weights are float32 in the files, so that both sides round them, too. The reference's numbers are of its usual
attention (sdpa) on a CPU; see `logits_bfloat16` in tools/golden/stages.py.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, case_ids, logits_of

from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model

# Of the reference's own error, over all rows of a checkpoint's cases. Another order of adding moves the first two by a
# hundredth, the largest of 400 rows by a quarter.
BOUNDS: dict[str, tuple[Callable[[np.ndarray], float], float]] = {
    "root mean square": (lambda error: float(np.sqrt(np.mean(error**2))), 1.05),
    "mean of the rows' largest": (lambda error: float(np.abs(error).max(axis=1).mean()), 1.05),
    "largest": (lambda error: float(np.abs(error).max()), 1.5),
}


def lifted(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The function in float32, its result in the type of its first argument."""

    def wide(value: Any) -> Any:
        return value.astype(mx.float32) if isinstance(value, mx.array) and value.dtype == mx.bfloat16 else value

    return lambda x, *args, **named: function(
        wide(x), *map(wide, args), **{name: wide(value) for name, value in named.items()}
    ).astype(x.dtype)


@pytest.fixture
def like_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and LayerNorm add in float32 on a CPU, too, as Metal's kernels do; MLX's CPU versions round on the
    way."""
    if mx.default_device() == mx.Device(mx.cpu):
        for name in ("scaled_dot_product_attention", "layer_norm"):
            monkeypatch.setattr(mx.fast, name, lifted(getattr(mx.fast, name)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("checkpoint", ["gen2", "gen25"])
def test_bfloat16_costs_no_more_than_it_costs_the_reference(checkpoint, golden, like_metal):
    model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / checkpoint, dtype="bfloat16")
    ours, theirs = [], []
    for case_id in case_ids(checkpoint):
        case = golden(case_id)
        logits = logits_of(model, **case.inputs, use_cache=False)
        assert logits.dtype == mx.bfloat16
        exact = case.arrays["logits"]
        ours.append(np.array(logits.astype(mx.float32))[tuple(case.arrays["token_rows"].T)] - exact)
        theirs.append(case.arrays["logits_bfloat16"] - exact)
    for name, (measure, bound) in BOUNDS.items():
        ratio = measure(np.concatenate(ours)) / measure(np.concatenate(theirs))
        assert ratio <= bound, f"{name}: {ratio:.3f} of the reference's own error"
