"""The clock that says whether drafts pay: steps with drafts are timed beside steps without."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from statistics import median

SHARE = 0.02  # of the time so far that drafts may cost more than they save
KEPT, NEEDED = 9, 3  # times that are looked at: at most, and of steps without drafts before the first draft
SAVED = 4.0  # steps without drafts: as much of the time that drafts have saved may be lost again
LONE = 8.0  # steps without drafts: a slow step with drafts counts as no more, until a second one is as slow


class Pace:
    """The time that drafts may still cost: a fiftieth of all, and a part of what they have saved.

    A step with drafts costs its time less that of as many steps without as it gave tokens to each row. While nothing is
    left, none is asked for; each step without adds its share. So drafts cost `SHARE` of the time at most, and one step.
    A step that waited for other work is known by the others: of steps without drafts the median counts, and of those
    with drafts a lone slow one counts as `LONE` steps at most.

    Args:
        clock: gives seconds, as `time.perf_counter`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        times = partial(deque[float], maxlen=KEPT)
        self._clock, self._begun = clock, 0.0
        self._plain: defaultdict[int, deque[float]] = defaultdict(times)  # seconds, by rows
        self._drafted: defaultdict[int, deque[float]] = defaultdict(times)
        self._left = 0.0  # seconds

    def pays(self, rows: int) -> bool:
        """Whether a batch of so many rows may draft."""
        return len(self._plain[rows]) >= NEEDED and self._left > 0

    @property
    def lost(self) -> bool:
        """Whether drafts have cost more than they may."""
        return self._left < 0

    def begin(self) -> None:
        """Begins to time a step."""
        self._begun = self._clock()

    def plain(self, rows: int) -> None:
        """Takes note of a step without drafts."""
        seconds = self._clock() - self._begun
        self._plain[rows].append(seconds)
        self._take(rows, SHARE * min(seconds, median(self._plain[rows])))

    def drafted(self, rows: int, tokens: float) -> None:
        """Takes note of a step with drafts. `tokens`: those that a row got, on average."""
        if not self._plain[rows]:  # nothing to compare with
            return
        seconds, usual, times = self._clock() - self._begun, median(self._plain[rows]), self._drafted[rows]
        times.append(seconds)
        slow = max([LONE * usual, *sorted(times)[-2:-1]])  # the slowest but one
        self._take(rows, (1 + SHARE) * tokens * usual - min(seconds, slow))

    def _take(self, rows: int, seconds: float) -> None:
        self._left = min(self._left + seconds, SAVED * median(self._plain[rows]))
