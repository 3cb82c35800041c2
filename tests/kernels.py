"""Counts what a GPU would run for a computation, from its graph; nothing is evaluated.

Kernels: each function of `mx.fast` is one; so is each node that computes or copies. Views are none: reshapes (of what
lies in one piece, which cannot be told here), transpositions, slices, splits, broadcasts. FLOPs: two for each multiply
and add of attention and of the products that `mx.addmm` makes, which are all of the vision tower's and projector's.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx

VIEWS = {
    *("Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "Broadcast"),
    *("AsStrided", "Depends"),
}


class Count:
    """`kernels` by name, and `flops`."""

    def __init__(self, compute: Callable[[], Iterable[mx.array]]):
        self.kernels: Counter[str] = Counter()
        self.flops = 0
        with (
            patch.object(mx.fast, "rms_norm", self._fast("rms_norm")),
            patch.object(mx.fast, "layer_norm", self._fast("layer_norm")),
            patch.object(mx.fast, "rope", self._fast("rope")),
            patch.object(mx, "addmm", self._product(mx.addmm)),
            patch.object(mx.fast, "scaled_dot_product_attention", self._attention),
        ):
            outputs = list(compute())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.dot"
            mx.export_to_dot(str(file), *outputs)
            nodes = Counter(re.findall(r'label ?="([A-Za-z0-9_]+)"', file.read_text()))
        self.kernels += Counter({name: n for name, n in nodes.items() if name not in VIEWS})

    @property
    def total(self) -> int:
        return sum(self.kernels.values())

    def _fast(self, name: str) -> Callable[..., mx.array]:
        def stand_in(x: mx.array, *others: Any, **named: Any) -> mx.array:
            self.kernels[f"fast.{name}"] += 1
            return self._after(x, [*others, *named.values()])

        return stand_in

    def _attention(self, queries: mx.array, keys: mx.array, values: mx.array, **named: Any) -> mx.array:
        self.kernels["fast.attention"] += 1
        self.flops += 4 * prod(queries.shape) * keys.shape[2]
        return self._after(queries, [keys, values, *named.values()])

    def _product(self, addmm: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def counted(c: mx.array, a: mx.array, b: mx.array) -> mx.array:
            self.flops += 2 * prod(a.shape) * b.shape[-1]
            return addmm(c, a, b)

        return counted

    @staticmethod
    def _after(x: mx.array, inputs: list[Any]) -> mx.array:
        """`x`, as a node that needs all the inputs: their part of the graph is counted too."""
        arrays = [array for array in inputs if isinstance(array, mx.array)]
        return mx.depends([x], arrays)[0] if arrays else x
