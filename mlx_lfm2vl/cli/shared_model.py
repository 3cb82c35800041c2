"""A command whose model all ranks of `mlx.launch` share: rank 0 runs it, the others compute with it."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable

from ..errors import DistributedError, OptionError
from .options import load_model


def run_shared(args: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Runs a command in rank 0, or alone; in another rank loads the model, and follows. Raises `Lfm2VlError`."""
    from ..distributed.group import launched_group

    args.group = launched_group()
    if args.group is None:
        return run(args)
    if args.command == "serve":
        _name_one_model(args)
    from ..distributed.links import Came, connect
    from ..generation.lockstep import Lead, follow

    came = Came()
    links = connect(args.group, came)
    if args.group.rank():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends all
        try:
            follow(*load_model(args), came)
        finally:
            links[0].close()
        return 0
    args.lead = Lead(links.values())
    try:
        if len(links) + 1 < args.group.size():
            raise DistributedError("not all ranks have come; start the command again")
        return run(args)
    finally:
        args.lead.close()


def _name_one_model(args: argparse.Namespace) -> None:
    """In a rank that follows, leaves what `load_model` asks for as other commands have it. Raises `OptionError`."""
    models = [*args.models, *args.model]
    if len(models) > 1:
        raise OptionError("ranks of mlx.launch serve one model; name one")
    if args.group.rank():
        args.model, args.revision, args.allow_private_urls = models[0] if models else None, None, False
