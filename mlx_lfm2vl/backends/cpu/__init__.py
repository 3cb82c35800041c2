"""The backend numpy: layers of the models, computed by NumPy where MLX's device is a CPU.

In go a loaded model and its float32 weights; the same model comes out, whose layers are subclasses with the same
parameters. NumPy's wheels bring an OpenBLAS, which multiplies a single row faster than MLX, whose every product is an
`sgemm` (measured in docs/performance.md), and its exponentials are vectorised. Results differ from MLX's by rounding.
It is for inference: gradients, `mx.compile` and `mx.vmap` through it are errors.
"""

from .layers import accelerate
from .weights import by_columns, dequantize

__all__ = ["accelerate", "by_columns", "dequantize"]
