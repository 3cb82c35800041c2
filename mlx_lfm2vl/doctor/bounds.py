"""Bounds on the distance of a right implementation from the reference's numbers, on any device, and why.

float32, and 8 and 4 bits of the random checkpoint, which they hold exactly: the largest difference, of the largest
value. Only the order of sums differs. On CPUs that costs 1e-6 to 5e-6. Metal takes fast exponentials and, for rotary
positions, fast sines beside it, whose errors grow with the position, so a GPU's bound is ten times as wide. TF32, which
rounds the factors of products to eleven bits, costs 2e-3 and is no float32. One wrong row of a matrix, rotary angles
that are a hundredth off, or quantised groups whose scale is two hundredths off cost 1e-2, padding that is seen 0.5.

bfloat16: the root mean square of the differences, over that of the reference's own bfloat16 model. Both round after
each operation and add within it in float32, so the ratio is 1, give or take the twentieth that two dozen rows leave to
chance. MLX's CPU versions of attention and LayerNorm round more often, which costs a quarter. The same holds of 4 bits
with bfloat16 activations, but that MLX's CPU kernel adds in bfloat16, so a CPU has no such row. The rotary base of
another model costs 3 times as much as rounding, padding that is seen 12 times.

8 and 4 bits of the demo model: as float32, but its weights are quantised on this machine, and some lie between two
levels. A device that divides in another order turns these, which costs 2.5e-3 and 2.8e-2. Kernels are right or wrong in
the random checkpoint's rows; of these the greedy answer must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Width:
    """The types in which a row holds a model: `dtype` of its dense weights and activations, `bits` of the quantised
    ones or None."""

    name: str
    dtype: Literal["float32", "bfloat16"]
    bits: int | None = None


FLOAT32, BFLOAT16 = Width("float32", "float32"), Width("bfloat16", "bfloat16")
BITS_8, BITS_4 = Width("8 bits", "float32", 8), Width("4 bits", "float32", 4)
BITS_4_BFLOAT16 = Width("4 bits bf16", "bfloat16", 4)

RELATIVE = {"cpu": 2e-5, "metal": 2e-4, "cuda": 2e-4}  # of the largest value
ROUNDING = {"cpu": 1.5, "metal": 1.3, "cuda": 1.3}  # of the reference's own error
TURNED_LEVELS = {BITS_8: 1e-2, BITS_4: 1e-1}  # of the largest value


def widths(model: str, device: str) -> tuple[Width, ...]:
    """The rows of a model, "random", "lfm3" or "demo", on a device of the type "metal", "cuda" or "cpu"."""
    more = (BITS_4_BFLOAT16,) if model != "demo" and device != "cpu" else ()
    return (FLOAT32, BFLOAT16, BITS_8, BITS_4, *more)


def bound(model: str, width: Width, device: str) -> float:
    """The largest distance that a row may have; see the module's docstring."""
    if width.dtype == "bfloat16":
        return ROUNDING[device]
    if model == "demo" and width.bits is not None:
        return TURNED_LEVELS[width]
    return RELATIVE[device]
