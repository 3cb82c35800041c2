"""Bits for each module by measurement: the most quality in a size, or the least size for a quality.

1. Each module is quantised alone to each width of `PROBES`; the KL divergence that this causes, over the last tokens of
   every question and answer, is its sensitivity. Between the probes it is interpolated in the logarithm, above them it
   falls with the square of the weight error, as that of small changes does.
2. Divergences of modules are taken to add up. From each uniform width that fits, bits are bought one module at a time
   where a byte saves most predicted divergence; the best of these, as measured over all of those positions, is chosen.

What is chosen, and the curve that is reported, are measured as a whole. Weights are rounded in place in the dense
model, which gives the numbers of the quantised one up to the last digits; memory: the model twice.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import OptionError
from ..processing.processor import Lfm2VlProcessor
from ..weights.load import open_model
from ..weights.names import from_module
from ..weights.quantize import LANGUAGE, Quantization, decode, encode, widths
from ..weights.save import write_json
from .calibration import Question, questions
from .plan import Plan
from .quantization_error import (
    Progress,
    Steps,
    check_memory,
    divergence,
    encoded,
    greedy,
    image_features,
    load_to_measure,
    log_probabilities,
)

WIDTHS = (3, 4, 5, 6, 8)  # bits that a search chooses from
PROBES = (3, 5)
TAIL = 64  # positions at least, at the end of a question and its answer, over which sensitivity is measured
CURVE = 6  # points of the curve that are measured, beside the uniform widths
FILE = "quantization_search.json"
Assignment = dict[str, int]  # module path: bits


@dataclass(frozen=True)
class Point:
    """A measured assignment: bytes of all weights, mean KL divergence in nats a token."""

    label: str
    size: int
    kl: float


@dataclass(frozen=True)
class SearchResult:
    """The chosen `plan`, its measured `point`, the measured curve with the uniform widths, and each module's divergence
    when it alone is quantised to each of `PROBES`, by MLX's names."""

    plan: Plan
    point: Point
    curve: tuple[Point, ...]
    sensitivities: dict[str, list[float]]

    def write(self, folder: Path) -> None:
        """Writes `quantization_search.json`."""
        data: dict[str, Any] = {"chosen": asdict(self.point), "curve": [asdict(point) for point in self.curve]}
        bits = {from_module(path, "mlx"): spec.bits for path, spec in self.plan.modules.items() if spec}
        write_json(
            folder / FILE, {**data, "probe_bits": list(PROBES), "sensitivities": self.sensitivities, "bits": bits}
        )


def search(
    folder: Path,
    *,
    target_size: float | None = None,
    target_kl: float | None = None,
    group_size: int | None = None,
    calibration: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Exactly one target: `target_size` in 10^9 bytes of weights, or `target_kl` in nats a token on the calibration
    questions. Raises `OptionError` for a target that no assignment reaches, and what loading and generating raise."""
    if (target_size is None) == (target_kl is None):
        raise OptionError("give one of target_size and target_kl")
    for name, value in (("target_size", target_size), ("target_kl", target_kl)):
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(f"{name} is {value}, expected a number above 0")
    sizes = Sizes(folder, group_size)
    if target_size is None:
        steps = max(1, len(sizes.paths)).bit_length() + 1
    else:
        everywhere = [sizes.size(dict.fromkeys(sizes.paths, bits)) for bits in WIDTHS]
        if everywhere[0] > target_size * 1e9:
            least = f"{WIDTHS[0]} bits everywhere take {everywhere[0] / 1e9:.4g} GB"
            raise OptionError(f"target_size {target_size:g} GB cannot be reached: {least}")
        steps = 1 + sum(size <= target_size * 1e9 for size in everywhere)
    way = "free memory, or choose a width (--q-bits)"
    dtype = check_memory(open_model(folder)[1], way, search=True)
    bench = Bench(folder, sizes, calibration, dtype)
    bench.expect(len(PROBES) * len(sizes.paths) + len(WIDTHS) + CURVE + steps, progress)
    return bench.choose(None if target_size is None else target_size * 1e9, target_kl)


class Sizes:
    """The bytes that the language model's modules take in each of `WIDTHS`, from the weights' headers alone. `paths`:
    those that can be quantised; `unsupported`: those whose rows the groups do not divide. Raises `OptionError`."""

    def __init__(self, folder: Path, group_size: int | None = None):
        self.specs = {bits: Quantization.checked(bits, group_size) for bits in WIDTHS}
        group = self.specs[WIDTHS[0]].group_size
        model: nn.Module
        model, stored = open_model(folder)
        if stored.config.quantization:
            raise OptionError(f"{folder}: is quantised already; search from the dense original")
        rows = {path: width for path, width in widths(model).items() if path.startswith(LANGUAGE)}
        self.unsupported = [path for path, width in rows.items() if width % group]
        self.paths = [path for path, width in rows.items() if not width % group]
        if not self.paths:
            raise OptionError("no module would be quantised; choose a smaller q_group_size")
        self._infos = {path: stored.infos[f"{path}.weight"] for path in self.paths}
        self._rest = sum(i.nbytes for i in stored.infos.values()) - sum(i.nbytes for i in self._infos.values())

    def size(self, assignment: Mapping[str, int]) -> int:
        """Bytes of all weights with these widths; modules that are not named are dense."""
        total = self._rest
        for path, info in self._infos.items():
            if path not in assignment:
                total += info.nbytes
                continue
            spec = self.specs[assignment[path]]
            total += math.prod(info.shape) * spec.bits // 8 + 2 * info.nbytes // spec.group_size  # and their scales
        return total


class Bench:
    """The dense model with its answers, in which weights are rounded and the divergence is measured."""

    def __init__(self, folder: Path, sizes: Sizes, calibration: Path | None, dtype: mx.Dtype | None = mx.float32):
        self.sizes = sizes
        self._model, processor = load_to_measure(folder, dtype)
        self._modules: dict[str, Any] = dict(self._model.named_modules())
        self._weights = {path: self._modules[path].weight for path in sizes.paths}
        self._samples = [self._sample(processor, question) for question in questions(calibration)]
        self._predictions: dict[str, list[float]] = {}
        self._steps = Steps("searching", 0, 1, None)

    def expect(self, measurements: int, progress: Progress | None) -> None:
        """Tells `progress` of each question of so many measurements."""
        self._steps = Steps("searching", measurements * len(self._samples), 1, progress)

    def _sample(self, processor: Lfm2VlProcessor, question: Question) -> dict[str, Any]:
        inputs = encoded(processor, question)
        answer = greedy(self._model, inputs)
        images = image_features(self._model, inputs)
        if images is not None:
            mx.eval(images)
        place = ({"input_ids": inputs["input_ids"]}, answer, images, TAIL)
        return {"place": place, "answer": answer, "dense": log_probabilities(self._model, *place)}

    def divergence(self, assignment: Mapping[str, int]) -> float:
        """Mean KL divergence of the answers with these widths, in nats a token."""
        return _mean(self.divergences(self.rounded(assignment)))

    def divergences(self, weights: Mapping[str, mx.array]) -> list[np.ndarray]:
        """The KL divergence at every token of each question's answer, in nats, with these weights (out, in) in place of
        the modules' own."""
        found = self.measure(weights)
        return [row[-len(sample["answer"]) :] for row, sample in zip(found, self._samples, strict=True)]

    def measure(self, weights: Mapping[str, mx.array]) -> list[np.ndarray]:
        """The same at the last `TAIL` positions, or all of the answer's, of each question."""
        for path, weight in weights.items():
            self._modules[path].weight = weight
        mx.eval([self._modules[path].weight for path in weights])
        found = []
        try:
            for sample in self._samples:
                found.append(divergence(sample["dense"], log_probabilities(self._model, *sample["place"])))
                self._steps.next()
        finally:
            for path in weights:
                self._modules[path].weight = self._weights[path]
        return found

    def rounded(self, assignment: Mapping[str, int]) -> dict[str, mx.array]:
        """The weights of modules in these widths, dense; not yet evaluated."""
        made = {}
        for path, bits in assignment.items():
            weight, spec = self._weights[path], self.sizes.specs[bits]
            made[path] = decode(encode(weight, spec), spec, weight.dtype)
        return made

    def _squared_error(self, path: str, bits: int) -> float:
        change = (self.rounded({path: bits})[path] - self._weights[path]).astype(mx.float32)
        return float(np.array((change * change).sum()))

    def choose(self, target_bytes: float | None, target_kl: float | None) -> SearchResult:
        """See `search`."""
        alone = self.probe()
        uniform = [self._point(f"{bits} bits", dict.fromkeys(self.sizes.paths, bits)) for bits in WIDTHS]
        if target_kl is not None and uniform[-1].kl > target_kl:
            raise OptionError(
                f"target_kl {target_kl:g} cannot be reached: {WIDTHS[-1]} bits everywhere leave {uniform[-1].kl:.2g}"
            )
        steps = list(greedy_upgrades(dict.fromkeys(self.sizes.paths, WIDTHS[0]), self._predictions, self.sizes.size))
        if target_bytes is not None:
            chosen, point = self.fit(target_bytes)
        else:
            found = {len(steps) - 1: uniform[-1]}  # the last has the highest width everywhere, which is enough

            def is_enough(index: int) -> bool:
                found[index] = self._point("chosen", steps[index])
                return target_kl is None or found[index].kl <= target_kl

            at = bisect.bisect_left(range(len(steps) - 1), True, key=is_enough)
            chosen, point = steps[at], found[at]
        spread = [steps[round(index)] for index in np.linspace(0, len(steps) - 1, CURVE)]
        point = replace(point, label="chosen")
        return SearchResult(
            plan=self._plan(chosen),
            point=point,
            curve=(*uniform, *(self._point("search", step) for step in spread), point),
            sensitivities={from_module(path, "mlx"): value for path, value in alone.items()},
        )

    def probe(self) -> dict[str, list[float]]:
        """Each module's divergence when it alone is quantised to each of `PROBES`; `fit` goes by them."""
        alone = {
            path: [_mean(self.measure(self.rounded({path: bits}))) for bits in PROBES] for path in self.sizes.paths
        }
        self._predictions = {path: self._predicted(path, alone[path]) for path in self.sizes.paths}
        return alone

    def fit(self, target_bytes: float) -> tuple[Assignment, Point]:
        """The best widths of at most so many bytes, which the least width everywhere must fit into, and what they cost.

        Compared over all measured positions: the answers alone may be too few tokens to choose by.
        """
        candidates: list[Assignment] = []
        for bits in WIDTHS:
            start = dict.fromkeys(self.sizes.paths, bits)
            if self.sizes.size(start) <= target_bytes:
                *_, last = greedy_upgrades(start, self._predictions, self.sizes.size, limit=target_bytes)
                candidates.append(last)
        best = min(candidates, key=lambda candidate: _mean(self.measure(self.rounded(candidate))))
        return best, self._point("chosen", best)

    def _predicted(self, path: str, probes: list[float]) -> list[float]:
        """A module's divergence at each of `WIDTHS`, from those at `PROBES`."""
        low, high = (max(value, 1e-12) for value in probes)
        widest = self._squared_error(path, PROBES[1])
        out = []
        for bits in WIDTHS:
            if bits <= PROBES[1]:
                share = (bits - PROBES[0]) / (PROBES[1] - PROBES[0])
                out.append(low ** (1 - share) * high**share)
            else:
                out.append(high * self._squared_error(path, bits) / max(widest, 1e-30))
        return out

    def _point(self, label: str, assignment: Mapping[str, int]) -> Point:
        return Point(label, self.sizes.size(assignment), self.divergence(assignment))

    def _plan(self, assignment: Assignment) -> Plan:
        counts = list(assignment.values())
        base = max(WIDTHS, key=lambda bits: (counts.count(bits), bits))
        modules: dict[str, Quantization | None] = {path: self.sizes.specs[bits] for path, bits in assignment.items()}
        return Plan(self.sizes.specs[base], {**modules, **dict.fromkeys(self.sizes.unsupported)})


def greedy_upgrades(
    start: Assignment,
    predicted: Mapping[str, Sequence[float]],
    size: Callable[[Assignment], int],
    limit: float | None = None,
) -> Any:
    """Yields `start` and then assignments with one module widened at a time, where a byte saves most predicted
    divergence; only such as fit into `limit` bytes. `predicted`: a module's divergence at each of `WIDTHS`."""
    state, total = dict(start), size(start)
    yield dict(state)
    cost = {path: [size({**start, path: bits}) - total for bits in WIDTHS] for path in start}
    while True:
        best: tuple[float, str, int, int] | None = None
        for path, bits in state.items():
            at = WIDTHS.index(bits)
            for to in range(at + 1, len(WIDTHS)):
                extra = cost[path][to] - cost[path][at]
                saved = predicted[path][at] - predicted[path][to]
                fits = limit is None or total + extra <= limit
                if fits and (best is None or saved / extra > best[0]):
                    best = (saved / extra, path, to, extra)
        if best is None:
            return
        state[best[1]], total = WIDTHS[best[2]], total + best[3]
        yield dict(state)


def _mean(rows: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(rows).mean())
