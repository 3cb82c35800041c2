"""The demo's learning rate over a training, and when the training is over: a plateau until the held-out rates stand,
then a fall to nothing."""

from __future__ import annotations

import dataclasses
import statistics

LOOK = 4  # evaluations whose mean is compared with that of as many before them
GAIN = 0.005  # below this gain the rates stand: about the chance error of a mean of nine rates of 200 pictures each
WARM_UP = 100  # steps


@dataclasses.dataclass
class Schedule:
    """Decides from what was seen so far; all of it is in `state`, so that a resumed training goes on alike.

    ``hours``: the longest that plateau and fall may take together. The fall takes as long as the plateau took, and
    begins after half of the hours at the latest.
    """

    hours: float
    means: list[float] = dataclasses.field(default_factory=list)  # of the held-out rates of all tasks
    fell: float | None = None  # seconds of training after which the fall began

    def share(self, spent: float, since: int) -> float:
        """Of the full learning rate, after ``spent`` seconds of training, ``since`` steps after a phase began."""
        if self.fell is None and spent >= self.hours * 1800:
            self.fell = self.hours * 1800
        length = 0.0 if self.fell is None else self._end() - self.fell  # none where the rates stand at the end
        left = 1.0 if self.fell is None else 1 - (spent - self.fell) / length if length > 0 else 0.0
        return min(1.0, (since + 1) / WARM_UP) * min(1.0, max(0.0, left))

    def saw(self, rates: dict[str, float], spent: float) -> bool:
        """Takes an evaluation's rates of all tasks; True if by it the rates stand, and the fall begins."""
        self.means.append(statistics.fmean(rates.values()))
        if self.fell is not None or len(self.means) < 2 * LOOK:
            return False
        gain = statistics.fmean(self.means[-LOOK:]) - statistics.fmean(self.means[-2 * LOOK : -LOOK])
        if gain < GAIN:
            self.fell = spent
        return self.fell is not None

    def over(self, spent: float) -> bool:
        """True when the rate has fallen to nothing."""
        return spent >= self._end()

    def _end(self) -> float:
        longest = self.hours * 3600
        return longest if self.fell is None else min(2 * self.fell, longest)

    def state(self) -> dict:
        """What `Schedule(hours, **state)` takes to go on."""
        return {"means": self.means, "fell": self.fell}
