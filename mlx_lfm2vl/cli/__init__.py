"""The command line; a command is a module, see `COMMANDS` and docs/architecture.md.

In: the process's arguments. Out: the answer on stdout, everything else on stderr, an exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__, backends
from ..errors import (
    AnswerError,
    AnswerWarning,
    ImageWarning,
    KeptFileWarning,
    Lfm2VlError,
    OptionError,
    OutputError,
    PromptError,
)
from . import (
    batch,
    bench,
    chat,
    completion,
    convert,
    describe,
    detect,
    doctor,
    evaluate,
    explain,
    extract,
    fuse,
    generate,
    lora,
    models,
    point,
    read,
    serve,
    upload,
    verify,
)
from .inputs import reads_stdin
from .interrupt import defer_sigint
from .options import Parser, as_typed
from .shared_model import run_shared
from .stderr import PROGRAM, note, print_error

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)  # of a stdout that takes no more
COMMANDS = {
    **{"generate": generate, "chat": chat, "batch": batch, "explain": explain, "serve": serve},
    **{"detect": detect, "point": point, "read": read, "extract": extract, "describe": describe},
    **{"convert": convert, "lora": lora, "fuse": fuse, "verify": verify, "upload": upload, "models": models},
    **{"evaluate": evaluate, "bench": bench, "doctor": doctor, "completion": completion},
}

_NOTED = (ImageWarning, AnswerWarning, KeptFileWarning)
ANSWERING = ("generate", "chat", "verify", "explain", "detect", "point", "read", "extract", "describe")  # on stdout
SHARED = ("generate", "chat", "serve", "detect", "point", "read", "extract", "describe")  # by ranks
LISTING = ("models", "completion")  # commands that compute nothing
MEASURING = ("bench", "evaluate", "convert", "verify", "doctor")  # whose numbers are to be those of float32


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with `argv` (default: the process's arguments) and returns its exit code. Raises
    `KeyboardInterrupt`."""
    closed = _open_closed_streams()
    parser = build_parser()
    completion.complete(parser)
    args = parser.parse_args(argv)
    if args.command == "help":
        parser.parse_args([*filter(None, [args.topic]), "--help"])
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream put in place by a caller may not be reconfigurable
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # terminals that lack a character
    if "stdin" in closed and (args.command == "chat" or reads_stdin(args)):
        print_error("stdin is closed, so nothing can be read from it")
        return 2
    if "stdout" in closed and args.command in ANSWERING:
        print_error("stdout is closed, so the answer cannot be printed")
        return 2
    if args.command in MEASURING:
        os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 as TF32 has 10 bits; MLX reads it when it multiplies
    _quiet_hub()
    try:
        if args.command not in LISTING:
            _check_temporary_folder()
        with defer_sigint():
            backends.require()
            importlib.import_module("numpy")
        with _warnings_as_notes(args.parser):
            run = COMMANDS[args.command].run
            code = run_shared(args, run) if args.command in SHARED else run(args)
        sys.stdout.flush()  # here a full disk can still be told
        return code
    except Lfm2VlError as error:
        about_arguments = isinstance(error, (OptionError, PromptError, AnswerError))
        print_error(as_typed(str(error), args.parser) if about_arguments else str(error))
        return 2
    except BrokenPipeError:
        # Python would fail once more when it flushes stdout at exit.
        _silence_stdout()
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _silence_stdout()
        print_error(f"stdout cannot be written ({os.strerror(error.errno)})")
        return 2


def _check_temporary_folder() -> None:
    """Raises `OutputError` where the environment's temporary folder is none: MLX compiles there for a CPU, and fails
    with an error of C++. Metal needs none."""
    names = [name for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if os.environ.get(name)]  # as C++ asks for them
    if names and sys.platform != "darwin" and not _takes_files(os.environ[names[0]]):
        raise OutputError(
            f"{names[0]} is {os.environ[names[0]]}, which is no folder that can be written; set it to one, or unset it"
        )


def _takes_files(folder: str) -> bool:
    """Whether a folder can be made there: of /proc and /sys the permissions say so, too."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix="mlx-lfm2vl-", dir=folder))
    except OSError:
        return False
    return True


def _quiet_hub() -> None:
    """Lets huggingface_hub say nothing by itself, and draw bars only for a person. It reads this when it is
    imported."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _open_closed_streams() -> list[str]:
    """Puts /dev/null in place of the standard streams that are closed, so that no file that is opened later takes their
    numbers and gets what is meant for them, and returns their names."""
    closed = []
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        closed.append(name)
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    return closed


@contextlib.contextmanager
def _warnings_as_notes(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Shows what the library says of pictures and answers that are read in part, and of files of caches, as lines of
    the program, each time."""
    with warnings.catch_warnings():
        for kind in _NOTED:
            warnings.simplefilter("always", kind)
        show = warnings.showwarning

        def noted(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            if issubclass(category, _NOTED):
                note(as_typed(str(message), parser) if issubclass(category, AnswerWarning) else str(message))
            else:
                show(message, category, *more, **named)

        warnings.showwarning = noted
        yield


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> Parser:
    """The parser of the whole program."""
    parser = Parser(
        prog=PROGRAM,
        description="Liquid AI's vision-language models in MLX: LFM2-VL and those after it.",
        epilog=f"`{PROGRAM} help COMMAND` lists a command's options.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    topic = commands.add_parser("help", help="list a command's options")
    topic.add_argument("topic", nargs="?", choices=("help", *COMMANDS), metavar="COMMAND", help="without one: all")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.DESCRIPTION)
        command.set_defaults(parser=command, group=None, lead=None, kv_bits=None, verbose=False)
        module.add_arguments(command)
    return parser
