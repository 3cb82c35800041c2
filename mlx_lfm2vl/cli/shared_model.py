"""A command whose model all ranks of `mlx.launch` share: rank 0 runs it, the others compute with it.

A rank that waits for a lost one within MLX cannot be told: after `GRACE` seconds its process ends as it is.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ..errors import DistributedError, Lfm2VlError, OptionError
from .arguments import load_model
from .interrupt import GRACE
from .joining import joined_group, refuse_stdin
from .stderr import print_error

if TYPE_CHECKING:
    from ..distributed.links import Came, Link

ENDED = "rank 0 has ended"  # by an error that it has told
LOST = "is lost, and its part of the model; start the command again"
LOOK = 0.2  # seconds between two looks at the links


def run_shared(args: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Runs a command in rank 0, or alone; in another rank loads the model, and follows. Raises `Lfm2VlError`."""
    args.group = joined_group()
    if args.group is None:
        return run(args)
    if args.command == "serve":
        _name_one_model(args)
    refuse_stdin(args)
    from ..distributed.links import Came, connect

    came = Came()
    links = connect(args.group, came)
    signal.signal(signal.SIGTERM, partial(_terminated, links.values(), came))
    try:
        return _follow(args, links[0], came) if args.group.rank() else _lead(args, run, links, came)
    except DistributedError as error:
        sys.stdout.flush()
        _end(str(error))


def _lead(
    args: argparse.Namespace, run: Callable[[argparse.Namespace], int], links: dict[int, Link], came: Came
) -> int:
    from ..generation.lockstep import Lead

    args.lead = lead = Lead(links.values(), came)

    def over() -> str:
        """A lost rank is an error where a step waits for it; a server waits for all."""
        lost = _lost(links.values()) if args.command == "serve" or lead.since is not None else ""
        return lead.failure or lost

    try:
        if len(links) + 1 < args.group.size():
            raise DistributedError("not all ranks have come; start the command again")
        with _watched(over):
            return run(args)
    except Exception as error:
        if isinstance(error, DistributedError) or not isinstance(error, (Lfm2VlError, OSError)):  # which end this alone
            lead.fail(error)
        raise
    finally:
        lead.close()


def _follow(args: argparse.Namespace, link: Link, came: Came) -> int:
    from ..generation.lockstep import Follower, text_of

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends all
    args.verbose = False  # it alone tells
    try:
        with _watched(lambda: ENDED if _is_over(came) else _lost([link])):
            Follower(*load_model(args), link, came).run()
    except Exception as error:
        link.send({"wrong": None, "error": text_of(error)})
        raise
    finally:
        link.close()
    return 0


@contextmanager
def _watched(over: Callable[[], str]) -> Iterator[None]:
    """Ends the process if the block goes on for `GRACE` seconds while `over` gives an error, as no step can end."""
    done = threading.Event()

    def watch() -> None:
        since = None
        while not done.wait(LOOK):
            error = over()
            since = (since or time.monotonic()) if error else None
            if since is not None and time.monotonic() > since + GRACE:
                _end(error)

    threading.Thread(target=watch, name="mlx-lfm2vl lost ranks", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _lost(links: Collection[Link]) -> str:
    """The error of a rank that is lost, empty where none is."""
    return next((f"rank {link.rank} {LOST}" for link in links if link.lost.is_set()), "")


def _is_over(came: Came) -> bool:
    """Whether rank 0 has said its last word, which this rank has not come to, as it waits within MLX."""
    heard = came.queue.copy()  # its lock may be held by what a signal's handler has interrupted
    return any(said is not None and "bye" in said for _, said in heard)


def _terminated(links: Collection[Link], came: Came, number: int, frame: FrameType | None) -> None:
    """Ends the process as SIGTERM does; with a line, where `mlx.launch` has sent it as another rank has failed."""
    if _is_over(came):
        os._exit(2)
    end = time.monotonic() + 5 * LOOK
    while not _lost(links) and time.monotonic() < end:
        time.sleep(LOOK / 4)
    if lost := _lost(links):
        _end(lost)
    os._exit(128 + number)


def _end(error: str) -> NoReturn:
    """Ends the process with an error: MLX would wait for a rank that is gone."""
    print_error(error)
    os._exit(2)


def _name_one_model(args: argparse.Namespace) -> None:
    """In a rank that follows, leaves what `load_model` asks for as other commands have it. Raises `OptionError`."""
    models = [*args.models, *args.model]
    if len(models) > 1:
        raise OptionError("ranks of mlx.launch serve one model; name one")
    if args.group.rank():
        args.model, args.revision, args.allow_private_urls = models[0] if models else None, None, False
