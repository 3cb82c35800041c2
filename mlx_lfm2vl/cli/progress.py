"""Progress bars on stderr, where someone can see them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

UNITS = {"weights": "B"}  # others count samples


class Bars:
    """A bar for each stage that the library reports (`bars(stage, done, total)`), with the time left.

    Nothing is drawn where stderr is no terminal. Closes the bars at the end of its `with` block.
    """

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        if stage not in self._bars:
            unit = UNITS.get(stage, "")
            self._bars[stage] = tqdm(
                total=total, desc=stage, unit=unit or "it", unit_scale=bool(unit), disable=None, dynamic_ncols=True
            )
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
