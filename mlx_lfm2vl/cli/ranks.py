"""`batch` in rank 0 of `mlx.launch`: deals the rows by their cost, and takes the lines that the other ranks send.

to a rank      {"output", "settings"}            what is answered, before its rows are known
from a rank    {"check"}                         the check of its own input
               {"line": [number, text, failed]}  each line, those that an earlier run has left before all others
               {"ready"}                         those are sent
to a rank      {"numbers"}                       its rows
from a rank    {"end"}                           all of them are sent
to a rank      {"lost": rank}, {"stop"}, {"bye"} another one is lost; Ctrl-C; there is no more to do
"""

from __future__ import annotations

import heapq
import queue
from collections.abc import Callable
from typing import Any

from ..distributed.links import Came, Link
from ..errors import DistributedError, counted
from .in_order import InOrder

WAIT = 0.2  # seconds between two looks at what came, while nothing else is to do


class Ranks:
    """The other ranks, seen from rank 0, which alone calls it. `lost`: those that are gone."""

    def __init__(self, links: dict[int, Link], size: int, came: Came, check: str):
        """`check`: of the input, the same in all ranks."""
        self._links, self._came, self._check = links, came, check
        self.lost = [rank for rank in range(1, size) if rank not in links]
        self._busy: set[int] = set()

    def deal(
        self,
        order: InOrder,
        output: str,
        settings: str,
        costs: Callable[[list[int]], dict[int, int]],
        stop: Callable[[], bool],
    ) -> list[int]:
        """Deals the rows that are missing, and returns the numbers of those of rank 0; none where `stop` ended that.
        `output`: what stands behind the output's name. Raises `DistributedError` where a rank has another input."""
        self.tell({"output": output, "settings": settings})
        self._busy = {rank for rank in self._links if rank not in self.lost}
        if not self.wait(order, stop):
            return []
        cost = costs(order.missing)
        self.take(order)
        present = [rank for rank in self._links if rank not in self.lost]
        own, *others = dealt_by_cost(cost, 1 + len(present))
        for rank, numbers in zip(present, others, strict=True):
            if self._links[rank].send({"numbers": numbers}):
                self._busy.add(rank)
        return own

    def take(self, order: InOrder, wait: float = 0.0) -> None:
        """Writes the lines that have come; waits for the first, `wait` seconds at most."""
        try:
            while True:
                rank, said = self._came.get(timeout=wait) if wait else self._came.get_nowait()
                wait = 0.0
                if said is None:
                    self._lose(rank)
                elif "line" in said:
                    number, text, failed = said["line"]
                    order.put(number, text.encode(), failed)
                elif said.get("check", self._check) != self._check:
                    raise DistributedError(
                        f"rank {rank} has other rows or options than rank 0; the input must be the same everywhere"
                    )
                elif "check" not in said:
                    self._busy.discard(rank)
        except queue.Empty:
            pass

    def wait(self, order: InOrder, stop: Callable[[], bool]) -> bool:
        """Takes lines until every rank is ready, or done, or lost. False where `stop` ended that."""
        while self._busy:
            if stop():
                return False
            self.take(order, WAIT)
        return True

    def tell(self, message: dict[str, Any]) -> None:
        """Says something to all."""
        for rank, link in self._links.items():
            if rank not in self.lost:
                link.send(message)

    def check_complete(self, path: str, order: InOrder) -> None:
        """Raises `DistributedError` where rows are missing."""
        if missing := order.missing:
            lost = ", ".join(map(str, self.lost))
            raise DistributedError(
                f"{path}: {counted(len(missing), 'row', be=True)} missing, the first is {missing[0]}, as "
                f"{'ranks' if len(self.lost) > 1 else 'rank'} {lost} did not finish; the same command answers them"
            )

    def _lose(self, rank: int) -> None:
        self._busy.discard(rank)
        if rank not in self.lost:
            self.lost.append(rank)
            self.tell({"lost": rank})


def dealt_by_cost(costs: dict[int, int], ranks: int) -> list[list[int]]:
    """The numbers of each rank's rows, ascending: the dearest first, each to the rank that has least to do."""
    loads = [(0, rank) for rank in range(ranks)]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(costs, key=lambda number: (-costs[number], number)):
        load, rank = heapq.heappop(loads)
        dealt[rank].append(number)
        heapq.heappush(loads, (load + costs[number], rank))
    return [sorted(numbers) for numbers in dealt]
