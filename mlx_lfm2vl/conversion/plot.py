"""Plots of what a quantisation costs. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

from .report import QuantizationReport
from .search import SearchResult

ERRORS_FILE = "quantization_error.png"
CURVE_FILE = "quantization_search.png"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def plot_errors(report: QuantizationReport, file: Path) -> Path:
    """The relative weight error of each kind of module over the layers, as a PNG."""
    lines: dict[str, list[tuple[int, float]]] = {}
    alone: list[tuple[str, float]] = []
    for module in report.modules:
        parts = module.name.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if place is None:
            alone.append((parts[-1], module.error))
        else:
            tower = "vision " if parts[0].startswith("vision") else ""
            lines.setdefault(tower + ".".join(parts[place + 1 :]), []).append((int(parts[place]), module.error))
    figure, axes = _figure(8, 4.5)
    from matplotlib.ticker import MaxNLocator  # type: ignore[import-not-found]

    for kind, points in sorted(lines.items()):
        points.sort()
        axes.plot([x for x, _ in points], [100 * y for _, y in points], marker="o", markersize=3, label=kind)
    for (name, error), style in zip(alone, itertools.cycle((":", "--", "-.")), strict=False):
        axes.axhline(100 * error, linestyle=style, color="grey", label=name)
    axes.set_xlabel("layer")
    axes.set_ylabel("relative weight error, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((x for points in lines.values() for x, _ in points), default=0)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylim(0, 115 * max((module.error for module in report.modules), default=0) or 1)
    if lines or alone:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=120, metadata={"Software": None})
    return file


def plot_search(result: SearchResult, file: Path) -> Path:
    """Size against divergence: uniform widths, the search's curve, and what was chosen, as a PNG."""
    figure, axes = _figure(6, 4)
    uniform = [point for point in result.curve if point.label.endswith("bits")]
    found = sorted((point for point in result.curve if point.label == "search"), key=lambda point: point.size)
    axes.plot([p.size / 1e9 for p in uniform], [p.kl for p in uniform], marker="s", label="the same bits everywhere")
    for point in uniform:
        axes.annotate(
            point.label,
            (point.size / 1e9, point.kl),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize="small",
        )
    axes.plot([p.size / 1e9 for p in found], [p.kl for p in found], marker="o", label="bits by measurement")
    axes.plot([result.point.size / 1e9], [result.point.kl], marker="*", markersize=12, linestyle="", label="chosen")
    axes.set_yscale("log", nonpositive="clip")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("weights, GB")
    axes.set_ylabel("mean KL divergence, nats a token")
    axes.legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    return file
