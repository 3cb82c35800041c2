"""Prints the tables of docs/converting.md about recipes and bits by measurement, of a demo model.

    python -m tools.compare.search                     # the bundled demo
    python -m tools.compare.search --model FOLDER      # another one that was trained on the demo's tasks

Contract: what is printed is measured on questions that nothing was fitted to. The search is given pictures of the split
`validate` of tools/demo/tasks.py, or the eight bundled questions; measured is on pictures of the split `test`. All
seeds are fixed, so that two runs on one machine print the same. KL divergence in nats a token of the dense model's
greedy answers; `ratio` is that of the search over that of the same bits everywhere, with its 95 % interval over
questions drawn anew from the held-out ones (1000 times). Takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import mlx.nn as nn
import numpy as np

import tools.demo.tasks_more  # noqa: F401  # registers its tasks
from mlx_lfm2vl import demo
from mlx_lfm2vl.conversion.plan import QuantizationOptions, make_plan
from mlx_lfm2vl.conversion.search import Assignment, Bench, Sizes
from mlx_lfm2vl.weights.load import open_model
from mlx_lfm2vl.weights.quantize import parameter_count, widths

from ..demo import tasks

TASKS = ("describe", "ask", "count", "read", "digit", "point")  # of one picture each
FIRST = 20_000_000  # seed of the first sample


def draw(folder: Path, split: str, each: int) -> Path:
    """A folder as `--calibration` takes it: `each` pictures of every task with their first questions."""
    folder.mkdir(parents=True)
    lines = []
    for task in TASKS:
        for number in range(each):
            sample = tasks.make(task, split, FIRST + number)
            name = f"{task}-{number}.png"
            sample.images[0].save(folder / name)
            lines.append(f"{name}\t{sample.turns[0][0]}")
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    return folder


def recipes(model: Path, held: Path) -> None:
    """What two of the recipes cost."""
    print("\n| recipe, groups of | weights, MB | KL divergence, mean, nats |\n| --- | --- | --- |")
    module: nn.Module = open_model(model)[0]
    for group in (32, 64):
        bench = Bench(model, Sizes(model, group), held)
        for recipe in ("mixed_3_6", "mixed_4_8"):
            options = QuantizationOptions(group_size=group, recipe=recipe)
            plan = make_plan(widths(module), parameter_count(module), options)
            bits = {path: spec.bits for path, spec in plan.modules.items() if spec is not None}
            print(
                f"| `{recipe}`, {group} | {bench.sizes.size(bits) / 1e6:.2f} | {bench.divergence(bits):.2g} |",
                flush=True,
            )


def interval(one: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, float]:
    """95 % of the ratios of mean divergences over questions drawn with replacement."""
    rng = np.random.default_rng(0)
    sums = np.array([[row.sum() for row in rows] for rows in (one, other)])
    drawn = rng.integers(0, len(one), (1000, len(one)))
    low, high = np.quantile(sums[0][drawn].sum(axis=1) / sums[1][drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def searches(model: Path, group: int, calibrations: dict[str, Path | None], held: Path) -> None:
    """The search at the sizes of the same bits everywhere, measured on the questions it used and on others."""
    bench = Bench(model, Sizes(model, group), held)
    everywhere: dict[int, Assignment] = {bits: dict.fromkeys(bench.sizes.paths, bits) for bits in (3, 4, 5, 6)}
    uniform = {bits: bench.divergences(bench.rounded(assignment)) for bits, assignment in everywhere.items()}
    count, tokens = len(uniform[4]), sum(map(len, uniform[4]))
    print(f"\nGroups of {group}; measured on {count} held-out questions, {tokens} tokens of answers\n")
    print("| at the size of | weights, MB | everywhere | searched on | its questions | held out | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, folder in calibrations.items():
        began = time.perf_counter()
        own = Bench(model, Sizes(model, group), folder)
        own.probe()
        for bits, assignment in everywhere.items():
            size = bench.sizes.size(assignment)
            chosen, point = own.fit(size)
            found = bench.divergences(bench.rounded(chosen))
            means = [float(np.concatenate(rows).mean()) for rows in (uniform[bits], found)]
            low, high = interval(found, uniform[bits])
            fitted = f"{point.kl:.2g} / {own.divergence(assignment):.2g}"
            print(
                f"| {bits} bits | {point.size / 1e6:.2f} / {size / 1e6:.2f} | {means[0]:.2g} | {name} | {fitted} | "
                f"{means[1]:.2g} | {means[1] / means[0]:.2f} ({low:.2f} to {high:.2f}) |",
                flush=True,
            )
        print(f"<!-- {name}: {time.perf_counter() - began:.0f} s -->", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="folder, or demo (default)")
    parser.add_argument("--group", type=int, nargs="+", default=[32])
    parser.add_argument("--each", type=int, default=4, help="pictures a task that the search is given")
    parser.add_argument("--held", type=int, default=8, help="pictures a task that are measured on")
    parser.add_argument("--no-recipes", action="store_true")
    args = parser.parse_args()
    model = demo.path() if args.model == "demo" else Path(args.model)
    with tempfile.TemporaryDirectory() as scratch:
        held = draw(Path(scratch) / "held", "test", args.held)
        own = draw(Path(scratch) / "own", "validate", args.each)
        if not args.no_recipes:
            recipes(model, held)
        for group in args.group:
            searches(model, group, {"eight bundled": None, f"{len(TASKS) * args.each} drawn": own}, held)


if __name__ == "__main__":
    main()
