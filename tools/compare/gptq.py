"""Prints the table of docs/converting.md about calibrated quantisation, of a demo model.

    python -m tools.compare.gptq                     # the bundled demo
    python -m tools.compare.gptq --model FOLDER      # another one that was trained on the demo's tasks

Contract: calibrated and searched on pictures of the split `validate` of tools/demo/tasks.py, measured on pictures of
the split `test`. All seeds are fixed. KL divergence in nats a token of the dense model's greedy answers; ratios are to
plain rounding to the same bits everywhere, with their 95 % interval over questions drawn anew (1000 times). Every row
of a width has at most the size of that width everywhere. Takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_lfm2vl import demo
from mlx_lfm2vl.conversion.calibration import Question, questions
from mlx_lfm2vl.conversion.layerwise import quantize_layerwise
from mlx_lfm2vl.conversion.search import Assignment, Bench, Sizes
from mlx_lfm2vl.weights.quantize import Quantization, decode

from ..demo import tasks_more  # noqa: F401  # registers its tasks
from .search import TASKS, draw, interval


def calibrated(model: Path, sizes: Sizes, assignment: Assignment, asked: list[Question]) -> Mapping[str, mx.array]:
    """The weights of GPTQ, dense, by path."""
    specs: dict[str, Quantization] = {path: sizes.specs[bits] for path, bits in assignment.items()}
    parts = quantize_layerwise(model, specs, asked, mx.float32)
    return {path: decode(parts[path], spec, mx.float32) for path, spec in specs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="folder, or demo (default)")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--each", type=int, default=5, help="pictures a task to calibrate and search on")
    parser.add_argument("--held", type=int, default=12, help="pictures a task that are measured on")
    parser.add_argument("--no-search", action="store_true", help="the same bits everywhere only")
    args = parser.parse_args()
    model = demo.path() if args.model == "demo" else Path(args.model)
    with tempfile.TemporaryDirectory() as scratch:
        held = draw(Path(scratch) / "held", "test", args.held)
        own = draw(Path(scratch) / "own", "validate", args.each)
        sizes = Sizes(model, args.group)
        bench = Bench(model, sizes, held)
        everywhere = {bits: dict.fromkeys(bench.sizes.paths, bits) for bits in args.bits}
        plain = {bits: bench.divergences(bench.rounded(assignment)) for bits, assignment in everywhere.items()}
        tokens = sum(map(len, plain[args.bits[0]]))
        print(
            f"\n{len(TASKS) * args.each} questions to calibrate on; {tokens} tokens of {len(TASKS) * args.held} others"
        )
        print("\n| bits | weights, MB | method | KL divergence, mean, nats | ratio |\n| --- | --- | --- | --- | --- |")

        def row(bits: int, method: str, size: int, found: list[np.ndarray]) -> None:
            mean, base = (float(np.concatenate(rows).mean()) for rows in (found, plain[bits]))
            low, high = interval(found, plain[bits])
            ratio = f"{mean / base:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {bits} | {size / 1e6:.2f} | {method} | {mean:.2g} | {ratio} |", flush=True)

        asked = questions(own)
        for bits, assignment in everywhere.items():
            row(bits, "rtn", sizes.size(assignment), plain[bits])
            weights = calibrated(model, sizes, assignment, asked)
            row(bits, "gptq", sizes.size(assignment), bench.divergences(weights))
        if args.no_search:
            return
        search = Bench(model, sizes, own)
        search.probe()
        for bits, assignment in everywhere.items():
            chosen, point = search.fit(sizes.size(assignment))
            row(bits, "rtn, by measurement", point.size, bench.divergences(bench.rounded(chosen)))
            weights = calibrated(model, sizes, chosen, asked)
            row(bits, "gptq, by measurement", point.size, bench.divergences(weights))


if __name__ == "__main__":
    main()
