"""The forms that weights can have: dtypes, MLX's modes and methods of quantisation, recipes of two widths.

Imports nothing, so that `--help` shows them without loading MLX. All other modules take them from here.
"""

from __future__ import annotations

DTYPES = ("float32", "float16", "bfloat16")  # of dense weights
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # bits, group sizes; the first group size is the default
    "affine": ((2, 3, 4, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
METHODS = ("rtn", "gptq")  # how levels are chosen: to the nearest one each, or by calibration
RECIPES = {  # bits of most modules, bits of those where rounding hurts most; which, says `conversion.plan`
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
    "mixed_4_8": (4, 8),
}
