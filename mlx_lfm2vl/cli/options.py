"""The parser, the types of options, and the options that several commands have.

Nothing here imports the library's heavy parts, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import did_you_mean
from .arguments import MODEL_VARIABLE
from .stderr import print_error


def nonempty(given: str) -> str:
    """A text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("is empty; leave it out, or write a text")
    return given


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an integer of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a whole number {bounds}")
        return value

    return parse


def real(low: float, high: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """The type of a number from `low` (exclusive with `above`) to `high`. NaN and infinity are refused."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        good = (value > low if above else value >= low) and value <= (sys.float_info.max if high is None else high)
        if not good:
            bounds = f"above {low:g}" if above else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(
                f"{text[:50]!r} is not a number {bounds}{'' if high is None else f' and at most {high:g}'}"
            )
        return value

    return parse


def bias(text: str) -> tuple[int, float]:
    """The id of a token and a number, as in "42=-5"."""
    token, equals, number = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is no ID=BIAS, such as 42=-5")
    return whole(0)(token), real(-100, 100)(number)


Options = argparse._ActionsContainer  # a parser, or a group of one
SHARED: dict[str, dict[str, Any]] = {  # options that mean the same in several commands
    "--adapter": {"metavar": "FOLDER", "help": "LoRA or DoRA adapter of PEFT or mlx-lm for the model"},
    "--coco": {"metavar": "FILE", "help": "write the boxes as a JSON file of COCO's"},
    "--commit-message": {"metavar": "TEXT", "help": "message of the upload's commit"},
    "--control-tokens": {
        "action": "store_true",
        "help": "tokens such as <|im_end|> in prompts steer the model; without this they are text like any other",
    },
    "--csv": {"metavar": "FILE", "help": "write a table with a row a box"},
    "--draw": {
        "metavar": "FILE",
        "help": "write the picture with the results drawn over it; of several pictures FILE-1, FILE-2 and so on",
    },
    "--hf": {
        "action": "store_true",
        "help": "write the names and shapes of the makers' repositories, which transformers loads (dense models only)",
    },
    "--image": {"nargs": "+", "action": "extend", "metavar": "PICTURE"},
    "--json": {"action": "store_true", "help": "print one JSON object instead of the table"},
    "--max-tokens -m": {"type": whole(1), "metavar": "N"},
    "--mlx-path": {"default": "mlx_model", "metavar": "FOLDER", "help": "folder to write (default: mlx_model)"},
    "--overwrite": {"action": "store_true", "help": "replace the folder if it is there"},
    "--kv-bits": {
        "type": int,
        "choices": (8, 4),
        "help": "quantise keys and values, for long prompts and answers in less memory; answers may change a little",
    },
    "--batch-size": {
        "type": whole(1),
        "default": 8,
        "metavar": "N",
        "help": "rows answered together, 1 or more (default: 8)",
    },
    "--fps": {
        "type": real(0, above=True),
        "metavar": "N",
        "help": "frames per second to sample of each video (default: as the model's processor says, mostly 2)",
    },
    "--private": {"action": "store_true", "help": "make a new repository private"},
    "--recipe": {"metavar": "NAME", "help": "ask the model as this row of the recipes says (default: by the model)"},
    "--revision": {"metavar": "REV", "help": "branch, tag or commit of the hub repository (default: main)"},
    "--system --system-prompt": {"metavar": "TEXT", "help": "system prompt (default: none)"},
    "--vision-cache": {
        "metavar": "FOLDER",
        "help": "keep encoded pictures in this folder, at most 2 GiB of them: the next run does not encode them again",
    },
}


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
    return message.removeprefix("image processor: ")


def add(parser: Options, *names: str, **changes: Any) -> None:
    """Adds options of `SHARED`, with what a command says otherwise."""
    for name in names:
        parser.add_argument(*name.split(), **{**SHARED[name], **changes})


def add_model(parser: Options) -> None:
    """The model, and what belongs to it, for commands that run one."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="folder, hub repository such as LiquidAI/LFM2.5-VL-450M, or 'demo', the small bundled model "
        f"(default: what {MODEL_VARIABLE} or the configuration file names, else demo)",
    )
    add(parser, "--adapter", "--revision")


def add_prompt(parser: Options, default: str) -> None:
    """--prompt or --prompt-file, and --system."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--prompt", "-p", metavar="TEXT", help=f"what to ask; - is stdin (default: {default})")
    group.add_argument("--prompt-file", metavar="FILE", help="ask what stands in this file; - is stdin")
    add(parser, "--system --system-prompt")


def add_videos(parser: Options, help: str) -> None:
    """--video and --fps."""
    parser.add_argument("--video", nargs="+", action="extend", default=[], metavar="VIDEO", help=help)
    add(parser, "--fps")


def add_form(parser: Options) -> None:
    """--json-schema, --json-object, --regex, --choice, --grammar, of which one can be given."""
    group = parser.add_argument_group("form of the answer", "what the model may say; one of these")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--json-schema", metavar="FILE|TEXT", help="JSON that is valid under this JSON schema")
    one.add_argument("--json-object", action="store_true", help="any JSON object")
    one.add_argument("--regex", metavar="PATTERN", help="what this regular expression matches as a whole")
    one.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; give it again for each")
    one.add_argument(
        "--grammar", metavar="FILE|TEXT", help="what this grammar derives, in Lark or in llama.cpp's EBNF (GBNF)"
    )


def add_sampling(parser: Options, max_tokens: int | None = 512, *, form: bool = True) -> None:
    """Length, sampling, seed and form, as `GenerationOptions` names them. None for `max_tokens`: it depends."""
    if form:
        add_form(parser)
    longest = f"longest answer in tokens, 1 or more (default: {max_tokens or '512, or what suits the task'})"
    add(parser, "--max-tokens -m", default=max_tokens, help=longest)
    group = parser.add_argument_group(
        "sampling",
        "without these, what the model's generation_config.json or its makers recommend, else the likeliest token "
        "(greedy)",
    )
    group.add_argument(
        *("--temp", "--temperature"),
        dest="temperature",
        type=real(0, 100),
        metavar="T",
        help="temperature, 0 to 100; 0 is greedy",
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


def add_decoding(parser: Options) -> None:
    """Drafts, and the bits of keys and values."""
    add_drafts(parser)
    add(parser, "--kv-bits")


def add_drafts(parser: Options) -> None:
    """--draft and --draft-model."""
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument(
        "--draft",
        choices=("ngram", "auto"),
        help="propose tokens and check several in one run of the model: what followed the last ones before, in prompt, "
        "answer and earlier answers; for answers that copy or repeat, which stay the same; auto: only while it "
        "saves time",
    )
    drafts.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="let a DSpark drafter of the model propose them, or a smaller model of the same tokens: folder, hub "
        "repository or 'demo'",
    )


def add_pictures(parser: Options) -> None:
    """The picture policy, and what may be fetched."""
    add_picture_policy(parser).add_argument(
        "--allow-private-urls",
        action="store_true",
        help="fetch pictures from this machine and its network too; without it only from public addresses",
    )


def add_picture_policy(parser: Options) -> argparse._ArgumentGroup:
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
        dest="do_image_splitting",
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
