"""`mlx-lfm2vl completion`: Tab in a shell completes commands, options, models, files. The one user of argcomplete."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from .arguments import DEMO
from .options import Parser
from .stderr import PROGRAM

SHELLS = ("bash", "zsh", "fish")
SUMMARY = "set up Tab completion in a shell"
DESCRIPTION = f"""\
Prints what makes Tab complete commands, options, models and files. A line of the shell's own file runs it:

  eval "$({PROGRAM} completion bash)"    in ~/.bashrc
  eval "$({PROGRAM} completion zsh)"     in ~/.zshrc, behind compinit
  {PROGRAM} completion fish | source     in ~/.config/fish/config.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    import argcomplete

    print(argcomplete.shellcode([PROGRAM], shell=args.shell))
    return 0


def complete(parser: Parser) -> None:
    """Where a shell asks what may stand at the cursor, answers it and ends the process; else does nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    def models(prefix: str, **more: Any) -> list[str]:
        return [*DirectoriesCompleter()(prefix, **more), DEMO, *_cached()]

    def nothing(prefix: str, **more: Any) -> list[str]:
        return []

    offered: dict[Any, Callable[..., Any]] = {  # by what the help calls a value
        **dict.fromkeys(("MODEL", "A", "B"), models),
        **dict.fromkeys(("PICTURE", "INPUT", "FILE", "FILE|TEXT"), FilesCompleter()),
        "FOLDER": DirectoriesCompleter(),
        "OWNER/NAME": lambda prefix, **_: _cached(),
    }

    def give(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    give(command)
            elif action.choices is None:
                action.completer = offered.get(action.metavar, nothing)  # type: ignore[attr-defined]

    give(parser)
    argcomplete.autocomplete(parser)


def _cached() -> list[str]:
    """The names of the models in the hub's cache."""
    from ..hub import cached_models

    return [model.name for model in cached_models()[0]]
