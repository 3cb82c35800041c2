"""`batch` in ranks of `mlx.launch`: rank 0 deals the rows by their cost and takes the lines that the others send.

Where rank 0 is lost, another rank answers the rest of its rows, too, and keeps them beside the output for the next run.

to a rank      {"output", "settings"}            what is answered, before its rows are known
from a rank    {"check"}                         the check of its own input
               {"line": [number, text, failed]}  each line, those that an earlier run has left before all others
               {"ready"}                         those are sent
to a rank      {"numbers"}                       its rows
from a rank    {"end"}                           all of them are sent
to a rank      {"lost": rank}, {"stop"}, {"bye"} another one is lost; Ctrl-C; there is no more to do
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .. import Completion
from ..distributed.links import Came, Link
from ..errors import DistributedError, OptionError, counted
from .interrupt import RankInterrupt
from .output import KEPT, InOrder, Output, line_of
from .row_answers import RowAnswers
from .rows import Row, Rows

WAIT = 0.2  # seconds between two looks at what came, while nothing else is to do


def arrived(came: Came, wait: float = 0.0) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The messages that have come; waits for the first, `wait` seconds at most."""
    with contextlib.suppress(queue.Empty):
        yield came.get(timeout=wait) if wait else came.get_nowait()
        while True:
            yield came.get_nowait()


class Ranks:
    """The other ranks, seen from rank 0, which alone calls it. `alone`: there are none. `lost`: those that are gone."""

    def __init__(self, links: dict[int, Link], size: int, came: Came, check: str):
        """`check`: of the input, the same in all ranks."""
        self._links, self._came, self._check = links, came, check
        self.alone = size == 1
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
        if self.alone:
            return order.missing
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
        for rank, said in arrived(self._came, wait):
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
        """Raises `DistributedError` where rows are missing as a rank is lost, `OptionError` where the input has lost
        them."""
        if missing := order.missing:
            known = f"{path}: {counted(len(missing), 'row', be=True)} missing, the first is {missing[0]}, as"
            if not self.lost:
                raise OptionError(f"{known} the input has become shorter meanwhile")
            ranks = f"{'ranks' if len(self.lost) > 1 else 'rank'} {', '.join(map(str, self.lost))}"
            raise DistributedError(f"{known} {ranks} did not finish; the same command answers them")

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


class Dealer:
    """Rank 0, seen from another one, which asks `stop` between its steps and works within `interrupt`'s block."""

    def __init__(self, link: Link, came: Came, rank: int):
        self.link, self._came, self.rank = link, came, rank
        self.interrupt = RankInterrupt(self._is_lost)
        self._said: list[dict[str, Any]] = []
        self._others_lost = self._stopped = False

    def receive(self) -> dict[str, Any] | None:
        """The next message of rank 0, None where it is lost or the work shall end."""
        while not self._said and not self.link.lost.is_set() and not self.stop():
            self._look(WAIT)
        self._look()
        return self._said.pop(0) if self._said else None

    def stop(self) -> bool:
        """Whether rank 0's user or a signal ends the work."""
        self._look()
        return self._stopped or self.interrupt()

    def _is_lost(self) -> bool:
        """Whether any rank is."""
        self._look()
        return self._others_lost or self.link.lost.is_set()

    def _look(self, wait: float = 0.0) -> None:
        for _, said in arrived(self._came, wait):
            if said is not None:
                self._others_lost |= "lost" in said
                self._stopped |= "stop" in said
                if not said.keys() & {"lost", "stop"}:
                    self._said.append(said)


def answer_dealt(args: argparse.Namespace, rows: Rows, dealer: Dealer, check: str) -> int:
    """Answers what is dealt until there is no more. Raises `DistributedError` where rank 0 is lost."""
    with dealer.interrupt:
        answers = RowAnswers(args, rows)
        while (opening := dealer.receive()) is not None and "output" in opening:
            path, settings = f"{args.output}{opening['output']}{KEPT}{dealer.rank}", opening["settings"]
            dealer.link.send({"check": check})
            sent = _send_kept(path, rows, dealer, settings)
            dealer.link.send({"ready": True})
            if (dealt := dealer.receive()) is None:
                break
            if sent is not None:
                sent.remove()
            kept = _answer(answers(dealt["numbers"], dealer.stop), dealer, path, settings)
            if kept and not dealer.stop():
                raise DistributedError(
                    f"rank 0 is lost; {counted(kept, 'row', be=True)} kept in {path}; the same command goes on"
                )
            dealer.link.send({"end": True})
        if dealer.stop():
            return 130
        if opening is None or "bye" not in opening:
            raise DistributedError("rank 0 is lost; the same command goes on from what is there")
    return 0


def _send_kept(path: str, rows: Rows, dealer: Dealer, settings: str) -> Output | None:
    """Sends what an earlier run has kept here."""
    if not os.path.exists(path):
        return None
    kept = Output.left(path, False, settings, lambda: rows)
    for number in kept.lines:
        dealer.link.send(_line(number, *kept.taken(number)))
    return kept


def _answer(answered: Iterable[tuple[Row, Completion | None]], dealer: Dealer, path: str, settings: str) -> int:
    """Sends the lines of rows as they are answered; returns how many are kept at `path`, as rank 0 is lost."""
    count = 0
    with contextlib.ExitStack() as stack:
        kept: Output | None = None
        for row, answer in answered:
            line, failed = line_of(settings, row, answer)
            if kept is None and dealer.link.send(_line(row.number, line, failed)):
                continue
            if kept is None:
                kept = stack.enter_context(Output(path, True, settings))
                kept.begin()
            kept.append(row.number, line, failed)
            count += 1
    return count


def _line(number: int, line: bytes, failed: bool) -> dict[str, Any]:
    return {"line": [number, line.decode(), failed]}
