"""Steps of a `Scheduler` for a caller that watches them."""

from __future__ import annotations

from collections.abc import Generator

from ..backends.memory import wired
from ..threads import cancellation
from .response import GenerationResponse
from .scheduler import Output, Scheduler
from .sequence import Sequence
from .watch import Progress, Stop, check_callable


def step(scheduler: Scheduler, stop: Stop | None) -> list[Output]:
    """One step. `stop` is asked before, and within a prompt's layers by a backend that computes when it is called; true
    cancels all rows."""

    def ask() -> None:
        if stop is not None and stop():
            scheduler.cancel_all()

    ask()
    with cancellation(ask):
        return scheduler.step()


@wired
def drive(
    scheduler: Scheduler, row: Sequence, stop: Stop | None = None, progress: Progress | None = None
) -> Generator[GenerationResponse, None, None]:
    """The responses of the only row of a scheduler. Raises what went wrong with it.

    Args:
        scheduler: which holds no other row.
        row: what `Scheduler.add` returned.
        stop: as in `step`.
        progress: told of the tokens of the prompt that are done, and of all.
    """
    check_callable("stop", stop)
    check_callable("progress", progress)
    before = 0
    while len(scheduler):
        outputs = step(scheduler, stop)
        if progress is not None and row.prefilled > before:
            progress(row.prefilled, len(row.ids))
        before = row.prefilled
        for _, item in outputs:
            if isinstance(item, Exception):
                raise item
            yield item
