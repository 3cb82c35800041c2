"""The findings of a diagnosis: JSON, and Markdown of at most 80 columns to paste."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from ..benchmark.report import aligned, wrapped
from ..errors import counted
from .system import System

STAGES = ("image", "prompt", "steps", "batch")  # of the table, where a row has them
HEADINGS = ("model", "weights", *STAGES, "bound", "result")
OF_LARGEST, OF_ROUNDING = "largest value", "reference's own error"  # units of distances
LEGEND = (
    "Distances from transformers' numbers: the largest difference, of the largest value; with an x, the root mean "
    "square, of what bfloat16 costs transformers. image: tokens of pictures; prompt: logits of a pass over a prompt; "
    "steps: of single tokens behind it; batch: of two prompts, one padded. The answers of demo are compared, too. MLX "
    "computes what does not say numpy."
)


@dataclass(frozen=True)
class Row:
    """One model in one width.

    Args:
        model: "random", "lfm3" (the random checkpoint of LFM3-VL) or "demo".
        weights: the width, such as "bfloat16" or "4 bits".
        backend: what computed it, "mlx" or "numpy".
        distances: from the reference's numbers, by stage.
        bound: the largest distance that a right implementation has.
        unit: what distances are measured in, `OF_LARGEST` or `OF_ROUNDING`.
        answer: whether the greedy answer is the reference's; None where none was made.
        failure: the error that ended the row, None if it ended well.
        seconds: how long it took.
    """

    model: str
    weights: str
    backend: str
    distances: dict[str, float]
    bound: float
    unit: str
    answer: bool | None = None
    failure: str | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """As in "random, 4 bits (mlx)"."""
        return f"{self.model}, {self.weights} ({self.backend})"

    @property
    def faults(self) -> tuple[str, ...]:
        """The rows that are out of bounds, one phrase each."""
        if self.failure is not None:
            return (self.failure,)
        far = {stage: value for stage, value in self.distances.items() if not value <= self.bound}
        found = [f"{stage} {self.shown(value)}" for stage, value in far.items()]
        return (*found, *(("another answer",) if self.answer is False else ()))

    @property
    def ok(self) -> bool:
        return not self.faults

    def shown(self, value: float) -> str:
        """A distance as text: "2.8e-6" or "1.17x"."""
        return f"{value:.2f}x" if self.unit == OF_ROUNDING else re.sub(r"(e[+-])0", r"\1", f"{value:.1e}")

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`; a distance that is not finite is None."""
        finite = {stage: value if math.isfinite(value) else None for stage, value in self.distances.items()}
        return {**asdict(self), "distances": finite, "ok": self.ok}


@dataclass(frozen=True)
class Report:
    """The machine, and a row for each model and width that was run."""

    system: System
    rows: tuple[Row, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every row is within its bound."""
        return all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        rows = [row.to_dict() for row in self.rows]
        return {"ok": self.ok, "system": asdict(self.system), "rows": rows, "seconds": self.seconds}

    def table(self) -> str:
        """Markdown that can be read as it is."""
        lines = [line for fact in self.system.facts() for line in wrapped(f"- {fact}", "  ")]
        lines += ["", *aligned([HEADINGS, *map(_cells, self.rows)]), "", *wrapped(LEGEND), ""]
        bad = [row for row in self.rows if not row.ok]
        for row in bad:
            found = f"- out of bounds: {row.name}: {', '.join(row.faults)}; bound {row.shown(row.bound)}"
            lines += wrapped(found, "  ")
        rows = counted(len(self.rows), "row")
        verdict = f"{len(bad)} of {rows} out of" if bad else f"{'All ' if len(self.rows) > 1 else ''}{rows} within"
        lines.append(f"{verdict} bounds; {self.seconds:.1f} s.")
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    stages = (row.shown(row.distances[stage]) if stage in row.distances else "" for stage in STAGES)
    result = "ok" if row.ok else "failed" if row.failure is not None else "OUT"
    by = "" if row.backend == "mlx" else f" {row.backend}"
    return (row.model, row.weights + by, *stages, row.shown(row.bound), result)
