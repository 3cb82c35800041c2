"""`batch` in the other ranks of `mlx.launch`: answers the rows that rank 0 deals, and sends their lines.

Where rank 0 is lost the rest is answered, too, and kept beside the output for the next run.
"""

from __future__ import annotations

import argparse
import os
import queue
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from .. import Completion
from ..distributed.links import Came, Link
from ..errors import DistributedError, counted
from .answers import Output, line_of
from .in_order import KEPT
from .rank_interrupt import RankInterrupt
from .ranks import WAIT
from .row_answers import RowAnswers
from .rows import Row, Rows


class Dealer:
    """Rank 0, seen from another one."""

    def __init__(self, link: Link, came: Came, rank: int):
        self.link, self._came, self.rank = link, came, rank
        self._said: list[dict[str, Any]] = []
        self._others_lost = self.stopped = False

    def receive(self, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The next message of rank 0, None where it is lost or `stop` is true."""
        while not self._said and not self.link.lost.is_set() and not stop():
            self._look(WAIT)
        self._look()
        return self._said.pop(0) if self._said else None

    def lost(self) -> bool:
        """Whether a rank is lost."""
        self._look()
        return self._others_lost or self.link.lost.is_set()

    def _look(self, wait: float = 0.0) -> None:
        try:
            while True:
                _, said = self._came.get(timeout=wait) if wait else self._came.get_nowait()
                wait = 0.0
                if said is None:
                    continue
                self._others_lost |= "lost" in said
                self.stopped |= "stop" in said
                if not said.keys() & {"lost", "stop"}:
                    self._said.append(said)
        except queue.Empty:
            pass

    def asked_to_stop(self) -> bool:
        """Whether rank 0 was stopped by its user."""
        self._look()
        return self.stopped


def answer_dealt(args: argparse.Namespace, rows: Rows, dealer: Dealer, check: str) -> int:
    """Answers what is dealt until there is no more. Raises `DistributedError` where rank 0 is lost."""
    with RankInterrupt(dealer.lost) as interrupt:
        answers = RowAnswers(args, rows)

        def stop() -> bool:
            return dealer.asked_to_stop() or interrupt()

        while (opening := dealer.receive(stop)) is not None and "output" in opening:
            path, settings = f"{args.output}{opening['output']}{KEPT}{dealer.rank}", opening["settings"]
            dealer.link.send({"check": check})
            sent = _send_kept(path, rows, dealer, settings)
            dealer.link.send({"ready": True})
            if (dealt := dealer.receive(stop)) is None:
                break
            if sent is not None:
                sent.remove()
            kept = _answer(answers(dealt["numbers"], stop), dealer, path, settings)
            if kept and not stop():
                raise DistributedError(
                    f"rank 0 is lost; {counted(kept, 'row', be=True)} kept in {path}; the same command goes on"
                )
            dealer.link.send({"end": True})
        if stop():
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
    with ExitStack() as stack:
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
