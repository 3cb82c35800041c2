"""Drafts that pay by the clock: steps with drafts are timed beside steps without."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

SHARE = 0.01  # of the time so far that drafts may cost more than they save
KEPT, NEEDED = 9, 3  # times of steps without drafts that are looked at: at most, and before the first draft
SAVED = 4.0  # steps' time that drafts may use up of what they have saved


class Pace:
    """The time that drafts may still cost: a hundredth of all, and a part of what they have saved. A step with a draft
    costs its time less that of as many steps without as it gave tokens to each row.

    Used up, no draft is allowed until enough time has passed. So drafts cost `SHARE` of the time at most, and one step.
    """

    def __init__(self) -> None:
        self._plain: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))  # seconds, by rows
        self._left = 0.0  # seconds

    def pays(self, rows: int) -> bool:
        """Whether a batch of so many rows may draft."""
        return len(self._plain[rows]) >= NEEDED and self._left > 0

    def plain(self, rows: int, seconds: float) -> None:
        """Takes note of a step without drafts."""
        self._plain[rows].append(seconds)
        self._take(rows, SHARE * min(seconds, median(self._plain[rows])))  # a step may have waited for other work

    def drafted(self, rows: int, seconds: float, tokens: float) -> None:
        """Takes note of a step with drafts. `tokens`: those that a row got, on average."""
        usual = median(self._plain[rows]) if self._plain[rows] else seconds
        self._take(rows, (1 + SHARE) * tokens * usual - seconds)

    def _take(self, rows: int, seconds: float) -> None:
        self._left += seconds
        if self._plain[rows]:
            self._left = min(self._left, SAVED * median(self._plain[rows]))
