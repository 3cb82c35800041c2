"""The loss of a training as a picture. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = "loss.png"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_loss(log: Sequence[dict[str, Any]], file: Path) -> Path:
    """The loss of each step, its mean over the last twentieth of the steps, and that of the validations, as a PNG."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]
    from matplotlib.ticker import MaxNLocator  # type: ignore[import-not-found]

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    numbers, losses = [entry["step"] for entry in log], np.array([entry["loss"] for entry in log])
    width = max(1, len(log) // 20)
    pale = 0.3 if width > 1 else 1.0
    axes.plot(numbers, losses, linewidth=1, alpha=pale, color="tab:blue", label="training, each step")
    if width > 1:
        means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        axes.plot(numbers[width - 1 :], means, color="tab:blue", label=f"training, mean of {width} steps")
    valid = [entry for entry in log if "valid_loss" in entry]
    if valid:
        steps, values = [entry["step"] for entry in valid], [entry["valid_loss"] for entry in valid]
        axes.plot(steps, values, marker="o", color="tab:orange", label="validation")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    return file
