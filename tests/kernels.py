"""Counts what a GPU would run for a computation, from its graph.

A kernel is a node of the graph that computes or copies, and so:

- each function of `mx.fast`, which is a graph of many nodes on a CPU and one kernel on a GPU;
- each `Compiled...` node, whatever number of elementwise functions `mx.compile` put into it;
- each reduction (`Max`, `Sum`, `ArgReduce` ...), scan (`CumSum`), gather, scatter, product, copy (`Contiguous`) and
  `RandomBits`, the generator of random numbers;
- a sort or partition as often as Metal starts one: once for up to `BLOCK` values a row, else for the blocks, twice for
  each doubling (`Sort.merge`), and to copy the result.

Views are none: reshapes (of what lies in one piece, which cannot be told here), transpositions, slices, splits,
broadcasts. Constants are none. What Metal does with one node in two starts counts once: a reduction of one long row,
and a scatter or slice update whose input it must copy.

FLOPs: two for each multiply and add of attention and of the products that `mx.addmm` makes, which are all of the vision
tower's and projector's.

Counted are the graph of what the computation returns and of what it hands to `mx.async_eval`, which is evaluated then,
with wrong numbers in place of what `mx.fast` computes. A compiled function must be traced while it is counted for its
sorts to be seen; one that was traced before counts each as one.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from math import ceil, log2, prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten

VIEWS = {
    *("Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "Broadcast"),
    *("AsStrided", "Depends"),
}
SORTS = ("sort", "argsort", "partition", "argpartition", "topk")
BLOCK = 2048  # values of at most 32 bits that Metal sorts in one kernel


class Count:
    """`kernels` by name, and `flops`."""

    def __init__(self, compute: Callable[[], Iterable[mx.array]]):
        self.kernels: Counter[str] = Counter()
        self.flops = 0
        evaluate = mx.async_eval

        def dispatched(*arrays: Any) -> None:
            self._add(dict(tree_flatten(list(arrays))).values())
            evaluate(*arrays)

        with ExitStack() as patches:
            for name in ("rms_norm", "layer_norm", "rope"):
                patches.enter_context(patch.object(mx.fast, name, self._fast(name)))
            patches.enter_context(patch.object(mx.fast, "scaled_dot_product_attention", self._attention))
            patches.enter_context(patch.object(mx, "addmm", self._product(mx.addmm)))
            patches.enter_context(patch.object(mx, "async_eval", dispatched))
            for name in SORTS:
                patches.enter_context(patch.object(mx, name, self._sort(getattr(mx, name))))
            outputs = list(compute())
        self._add(outputs)

    @property
    def total(self) -> int:
        return sum(self.kernels.values())

    def _add(self, outputs: Iterable[mx.array]) -> None:
        """Adds what is not evaluated yet of the outputs' graph."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.dot"
            mx.export_to_dot(str(file), *outputs)
            nodes = Counter(re.findall(r'label ?="([A-Za-z0-9_]+)"', file.read_text()))
        self.kernels += Counter({name: n for name, n in nodes.items() if name not in VIEWS})

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

    def _sort(self, sort: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def counted(x: mx.array, *numbers: int, axis: int = -1, **named: Any) -> mx.array:
            blocks = ceil(x.shape[axis] / BLOCK)
            if blocks > 1:
                self.kernels["Sort.merge"] += 2 * ceil(log2(blocks)) + 1
            return sort(x, *numbers, axis=axis, **named)

        return counted

    @staticmethod
    def _after(x: mx.array, inputs: list[Any]) -> mx.array:
        """`x`, as a node that needs all the inputs: their part of the graph is counted too."""
        arrays = [array for array in inputs if isinstance(array, mx.array)]
        return mx.depends([x], arrays)[0] if arrays else x
