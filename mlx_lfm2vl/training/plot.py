"""The loss of a training as a picture. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "loss.png"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_loss(log: Sequence[dict[str, Any]], file: Path) -> Path:
    """The loss of each step, and of the validations, as a PNG."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([entry["step"] for entry in log], [entry["loss"] for entry in log], linewidth=1, label="training")
    valid = [entry for entry in log if "valid_loss" in entry]
    if valid:
        steps, losses = [entry["step"] for entry in valid], [entry["valid_loss"] for entry in valid]
        axes.plot(steps, losses, marker="o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    return file
