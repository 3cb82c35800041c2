"""The parts that commands share: the parser, the options that several commands have, and how they become library
arguments.

Nothing here imports the library's heavy parts, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import did_you_mean, one_line
from .argument_types import bias, nonempty, real, whole
from .default_model import MODEL_VARIABLE, default_model
from .forms import add_form, form_option
from .progress import Bars, Spinner, above_progress

if TYPE_CHECKING:
    from .. import Lfm2VlForConditionalGeneration, Lfm2VlProcessor, SourcePolicy

PROGRAM = "mlx-lfm2vl"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, as all errors of the program are. No abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(self._words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        wrong = [word for word in self._words if word.startswith("--") and word.partition("=")[0] not in known]
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean([choice[1]], re.findall(r"[\w.-]+", choice[2]))
        elif "unrecognized" in message or "required" in message:  # a misspelt option may be the one that is missing
            message += did_you_mean(wrong, known)
        print_error(f"{message} (see `{self.prog} --help`)")
        raise SystemExit(2)


def print_stderr(text: str) -> None:
    """Writes to stderr. That nobody reads there, or a full disk, stops nothing."""
    try:
        with above_progress():
            print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def wrapped(line: str) -> str:
    """A line for stderr: where that is a terminal, in rows that end between words, else as it is."""
    if not sys.stderr.isatty():
        return line
    columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    text, used = "", 0
    for word in line.split(" "):
        width = sum(map(_cells, word))
        if used and used + 1 + width > columns >= 2 + width:  # a longer word is broken wherever it begins
            text, used = f"{text}\n  {word}", 2 + width
        else:
            blank = " " if text else ""
            text, used = text + blank + word, (used + len(blank) + width) % columns
    return text


def _cells(character: str) -> int:
    """The columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def print_error(message: str) -> None:
    """Writes the program's error line to stderr."""
    print_stderr(wrapped(f"{PROGRAM}: error: {one_line(message)}"))


def note(message: str) -> None:
    """Writes a line to stderr that the user should know of but that stops nothing."""
    print_stderr(wrapped(f"{PROGRAM}: {one_line(message)}"))


def as_typed(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of the library about its arguments, which are called as the command's options are."""
    for action in parser._actions:
        name, words = action.dest, [word for word in action.option_strings if word.startswith("--")]
        typed = words[0] if words else action.metavar
        if isinstance(typed, str):
            places = (
                rf"(?<![\w/\\.-]){name}(?![\w/\\-]|\.\w)"
                if words and "_" in name
                else rf"^{name}(?= is )|\b{name}=(?=[ ,])"
            )
            message = re.sub(places, typed, message)
    return message.removeprefix("image processor: ").replace("do_image_splitting", "--tiling")


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and --revision, for commands that run a model."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="folder, hub repository such as LiquidAI/LFM2.5-VL-450M, or 'demo', the small bundled model "
        f"(default: what {MODEL_VARIABLE} or the configuration file names, else demo)",
    )
    add_adapter(parser)
    add_revision(parser)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """--adapter, for commands that run a model."""
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA or DoRA adapter of PEFT or mlx-lm for the model")


def chosen_model(args: argparse.Namespace) -> str:
    """The model of --model, or the default one. Raises `OptionError`."""
    return default_model()[0] if args.model is None else args.model


def load_model(args: argparse.Namespace) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """Loads what `add_model` and `add_pictures` chose, with remarks on stderr that the user should know."""
    from .. import load

    name = args.model
    if name is None:
        name, remark = default_model()
        note(f"no --model given: {remark}")
    with Spinner("loading the model") as spinner, Bars() as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage == "download":
                spinner.show("")
                bars(stage, done, total)
            elif stage == "weights":
                bars.close()
                spinner.show(f"loading the model, {100 * done // total} %")

        model, processor = load(
            name,
            adapter=args.adapter,
            revision=args.revision,
            source_policy=source_policy(args),
            progress=tell,
            kv_bits=args.kv_bits if "kv_bits" in args else None,
            group=getattr(args, "group", None),
            **picture_overrides(args),
        )
    model.lead = getattr(args, "lead", None)
    for line in processor.notes:
        if args.tiling is None or "do_image_splitting" not in line:  # who chose need not be told
            note(line)
    return model, processor


def add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the hub repository (default: main)")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The picture policy, and what may be fetched."""
    add_picture_policy(parser).add_argument(
        "--allow-private-urls",
        action="store_true",
        help="fetch pictures from this machine and its network too; without it only from public addresses",
    )


def add_picture_policy(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The picture policy; what is not given stays as the checkpoint has it."""
    group = parser.add_argument_group("pictures", "without these, the checkpoint's own policy applies")
    group.add_argument(
        "--max-image-tokens",
        type=whole(1),
        metavar="N",
        help="tokens that a picture or a thumbnail may take, 1 or more; a picture of more than about twice as many is "
        "cut into tiles unless --no-tiling is given",
    )
    group.add_argument(
        "--min-image-tokens", type=whole(1), metavar="N", help="tokens that a small picture is enlarged to, 1 or more"
    )
    group.add_argument(
        "--tiling",
        action=argparse.BooleanOptionalAction,
        help="cut large pictures into tiles, or never: fewer tokens, less detail",
    )
    group.add_argument(
        "--color-management",
        action=argparse.BooleanOptionalAction,
        help="convert colours of an embedded ICC profile to sRGB (default), or take them as they are, as transformers "
        "does",
    )
    return group


def source_policy(args: argparse.Namespace) -> SourcePolicy:
    """The policy on where pictures may come from."""
    from ..processing.fetch import SourcePolicy

    return SourcePolicy(allow_private_addresses=args.allow_private_urls)


def picture_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the image processor that were given on the command line."""
    given = {
        "max_image_tokens": args.max_image_tokens,
        "min_image_tokens": args.min_image_tokens,
        "do_image_splitting": args.tiling,
        "color_management": args.color_management,
    }
    return {name: value for name, value in given.items() if value is not None}


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int | None = 512, *, form: bool = True) -> None:
    """Length, sampling, seed and form, as `GenerationOptions` names them. None for `max_tokens`: it depends."""
    if form:
        add_form(parser)
    parser.add_argument(
        "--max-tokens",
        "-m",
        type=whole(1),
        default=max_tokens,
        metavar="N",
        help=f"longest answer in tokens, 1 or more (default: {max_tokens or '512, or what suits the task'})",
    )
    group = parser.add_argument_group(
        "sampling",
        "without these, what the model's generation_config.json or its makers recommend, else the likeliest token "
        "(greedy)",
    )
    group.add_argument(
        "--temp", "--temperature", type=real(0, 100), metavar="T", help="temperature, 0 to 100; 0 is greedy"
    )
    group.add_argument("--top-p", type=real(0, 1), metavar="P", help="nucleus, 0 to 1; 1 is off, 0 is greedy")
    group.add_argument(
        "--min-p", type=real(0, 1), metavar="P", help="least share of the top probability, 0 to 1; 0 is off"
    )
    group.add_argument("--top-k", type=whole(0), metavar="K", help="choose among the K likeliest, 0 or more; 0 is off")
    group.add_argument(
        "--repetition-penalty", type=real(0.01, 100), metavar="R", help="0.01 to 100; 1 is off, more repeats less"
    )
    for name in ("frequency", "presence"):
        group.add_argument(
            f"--{name}-penalty",
            type=real(-2, 2),
            default=0.0,
            metavar="P",
            help="-2 to 2: what a token's logit loses "
            + ("each time that the answer has it" if name == "frequency" else "once the answer has it"),
        )
    group.add_argument(
        "--logit-bias",
        action="append",
        type=bias,
        default=[],
        metavar="ID=BIAS",
        help="added to the logit of a token, -100 to 100; may be given again",
    )
    group.add_argument("--seed", type=whole(0, 2**63 - 1), metavar="N", help="makes sampling repeatable, 0 or more")
    parser.add_argument(
        "--stop",
        action="append",
        type=nonempty,
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be given again",
    )


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `GenerationOptions`."""
    return {
        "max_tokens": args.max_tokens,
        "temperature": args.temp,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "top_k": args.top_k,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "stop": tuple(args.stop),
        "frequency_penalty": args.frequency_penalty,
        "presence_penalty": args.presence_penalty,
        "logit_bias": dict(args.logit_bias),
        "response_format": form_option(args) if "json_object" in args else None,
    }
