"""A plot of a report. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import OptionError, OutputError
from .report import PARTS, Report

FORMATS = (".png", ".pdf", ".svg")


def check_file(file: Path) -> None:
    """Raises what would go wrong at the end, before measuring: `OptionError` without matplotlib or for a format that it
    may not write, `OutputError` for a folder that is not there."""
    if file.suffix.lower() not in FORMATS:
        raise OptionError(f"{file}: a plot is written as {', '.join(name[1:] for name in FORMATS)}, by the file's name")
    if not file.parent.is_dir():
        raise OutputError(f"{file.parent}: no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib (pip install matplotlib)")


def plot(report: Report, file: Path) -> None:
    """Plots where the time to the first token goes for each picture, and the pictures a second of each batch size.
    Raises `OutputError` and what `check_file` raises."""
    check_file(file)
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(9, 4), layout="constrained")
    grid = figure.add_gridspec(1, 2 if report.batches else 1, width_ratios=[3, 2] if report.batches else None)
    times = figure.add_subplot(grid[0])
    left = [0.0] * len(report.answers)
    names = [answer.picture for answer in report.answers]
    for part in PARTS:
        widths = [answer.parts[part] for answer in report.answers]
        times.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, end, answer in zip(names, left, report.answers, strict=True):
        times.annotate(f" {answer.tokens_per_second:.1f} tokens/s", (end, name), va="center", fontsize="small")
    times.invert_yaxis()
    times.margins(x=0.4)  # room for the labels
    times.set_xlabel("seconds to the first token; then tokens/s")
    if report.answers:
        times.legend(fontsize="small", ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    if report.batches:
        batches = figure.add_subplot(grid[1])
        sizes = [batch.size for batch in report.batches]
        speeds = [batch.pictures_per_second for batch in report.batches]
        batches.plot(sizes, speeds, marker="o")
        batches.set_xticks(sizes)
        batches.set_xlabel("pictures at once")
        batches.set_ylabel("pictures/s")
        batches.set_ylim(0, 1.1 * max(speeds) or 1)  # room above the largest
    machine = report.machine
    figure.suptitle(f"{report.model} on {machine.name} ({machine.device_type}, {machine.backend})", fontsize="medium")
    try:
        figure.savefig(file, dpi=120, metadata={"Software": None} if file.suffix.lower() == ".png" else None)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror or error})") from None
