"""`mlx-lfm2vl convert`: a checkpoint into an MLX folder. Options are named as mlx-lm names them, where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..errors import OptionError
from ..weights.choices import DTYPES, METHODS, MODES, RECIPES
from .interrupt import terminable
from .options import add, real, whole
from .stderr import PROGRAM, Bars, note, print_stderr
from .upload import send

SUMMARY = "convert a model to MLX, quantised if asked"
DESCRIPTION = """\
Converts a Hugging Face or MLX folder or repository into an MLX folder, complete with tokenizer, template and processor
files.

  mlx-lfm2vl convert --hf-path LiquidAI/LFM2.5-VL-1.6B --mlx-path LFM2.5-VL-1.6B-8bit -q --q-bits 8
  mlx-lfm2vl convert --hf-path LiquidAI/LFM2.5-VL-450M --mlx-path LFM2.5-VL-450M-mixed -q --q-recipe mixed_4_8
"""
BITS, GROUP_SIZES = map(sorted, MODES["affine"])
QUANTISING = ("q_bits", "q_group_size", "q_mode", "q_recipe", "q_override", "q_vision", "q_method")
TAKEN = (  # by `convert`, under the same names
    *("quantize", "q_bits", "q_group_size", "q_mode", "q_recipe", "q_vision", "q_method", "target_size", "target_kl"),
    *("dtype", "dequantize", "revision", "overwrite", "calibration"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", required=True, metavar="MODEL", help="folder or hub repository to convert"
    )
    add(parser, "--mlx-path", "--revision")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="type of the dense weights (default: as the checkpoint has them)"
    )
    add(parser, "--overwrite", "--hf")
    add_quantisation(parser)
    group = parser.add_argument_group("repair", "of a converted folder that another program left incomplete or wrong")
    group.add_argument(
        "--repair", action="store_true", help="say what is wrong with an MLX folder and write it anew, put right"
    )
    group.add_argument(
        "--base", metavar="MODEL", help="original model, for missing files (default: Liquid AI's that the card names)"
    )
    group = parser.add_argument_group("upload", "of the finished folder, once it has loaded and answered a question")
    group.add_argument(
        "--upload-repo", metavar="OWNER/NAME", help="hub repository to upload to, made if it is not there"
    )
    add(group, "--private", "--commit-message")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with --repair: only say what would be done; with --upload-repo: convert and check, but send nothing",
    )
    group = parser.add_argument_group("measuring", "after quantising, both models answer questions about pictures")
    group.add_argument("--no-verify", action="store_true", help="do not measure what quantising costs")
    group.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="calibrate and measure on these pictures (and prompts.txt), or on the rows of a .jsonl file, instead of "
        "the bundled ones",
    )


def add_quantisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "quantisation", "vision tower and projector stay dense unless --q-vision is given"
    )
    group.add_argument("-q", "--quantize", action="store_true", help="quantise the language model")
    group.add_argument(
        "--q-bits",
        type=whole(1),
        choices=BITS,
        metavar="N",
        help=f"bits a weight: {_listed(BITS)} (default: 8 for models below a billion parameters, else 4)",
    )
    group.add_argument(
        "--q-group-size",
        type=whole(1),
        choices=GROUP_SIZES,
        metavar="N",
        help=f"weights that share a scale: {_listed(GROUP_SIZES)} (default: what the mode has, 64 for affine)",
    )
    group.add_argument("--q-mode", choices=tuple(MODES), help="how numbers are rounded (default: affine)")
    group.add_argument(
        "--q-recipe",
        "--quant-predicate",
        choices=tuple(RECIPES),
        help="instead of --q-bits: the first number of bits, the second for what rounding hurts most",
    )
    group.add_argument(
        "--q-override",
        action="append",
        default=[],
        type=_override,
        metavar="PATTERN=BITS",
        help="bits, 'dense' or a mode for the modules that match, as 'language_model.*.w2=8'; may be given again",
    )
    group.add_argument(
        "--q-method",
        choices=METHODS,
        help="how levels are chosen: rtn rounds each weight to the nearest one, gptq fits them to the answers to the "
        "calibration questions, which takes longer and loses less (default: rtn)",
    )
    group.add_argument("--q-vision", action="store_true", help="quantise vision tower and projector too")
    group.add_argument(
        "--target-size",
        type=real(0, above=True),
        metavar="GB",
        help="find the bits of each module by measurement, for the best model of at most so many 10^9 bytes",
    )
    group.add_argument(
        "--target-kl",
        type=real(0, above=True),
        metavar="X",
        help="the same, for the smallest model with at most this mean KL divergence, in nats a token",
    )
    group.add_argument("-d", "--dequantize", action="store_true", help="make a quantised model dense")


def _listed(values: Iterable[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"


def _override(text: str) -> tuple[str, str]:
    """An argparse type: the pattern and the value of an override."""
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=BITS")
    return pattern, value


def check_combinations(args: argparse.Namespace) -> None:
    """Raises `OptionError` for an option that says nothing beside the others."""
    if not args.quantize and args.target_size is None and args.target_kl is None:
        for name in QUANTISING:
            if (value := getattr(args, name)) not in (None, [], False):
                shown = "" if value is True else f" {value if isinstance(value, (int, str)) else '='.join(value[0])}"
                raise OptionError(f"--{name.replace('_', '-')}{shown} says how to quantise; add -q")
    if args.repair:
        for name in ("quantize", "target_size", "target_kl", "dequantize", "hf", "dtype", "no_verify", "calibration"):
            if getattr(args, name):
                raise OptionError(f"--repair keeps the weights as they are; leave --{name.replace('_', '-')} out")
    if args.hf and args.upload_repo:
        raise OptionError("--upload-repo publishes MLX folders; leave --hf out")
    for name, owners in {
        "base": ("repair",),
        "dry_run": ("repair", "upload_repo"),
        "private": ("upload_repo",),
        "commit_message": ("upload_repo",),
    }.items():
        if getattr(args, name) and not any(getattr(args, owner) for owner in owners):
            wanted = " or ".join(f"--{owner.replace('_', '-')}" for owner in owners)
            raise OptionError(f"--{name.replace('_', '-')} belongs to {wanted}")


def run_repair(args: argparse.Namespace) -> int:
    from ..conversion.repair import repair

    with Bars(plain=True) as bars:
        findings = repair(
            args.hf_path,
            args.mlx_path,
            base=args.base,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
            revision=args.revision,
            progress=bars,
            on_note=note,
        )
    for finding in findings:
        print(finding)
    if not findings:
        note("nothing to repair; nothing written")
        if args.upload_repo and not args.dry_run:
            way = f"{PROGRAM} upload {args.hf_path} {args.upload_repo}"
            raise OptionError(f"nothing was uploaded either; to publish it as it is: {way}")
    elif not args.dry_run:
        _finish(args.mlx_path, args)
    return 0


def run(args: argparse.Namespace) -> int:
    """Raises `Lfm2VlError` for whatever the user can put right."""
    from ..hub import check_new_name, check_writable

    check_combinations(args)
    if args.upload_repo is not None:
        (check_new_name if args.dry_run else check_writable)(args.upload_repo)  # rather than after the work
    with terminable():
        return run_repair(args) if args.repair else run_convert(args)


def run_convert(args: argparse.Namespace) -> int:
    from .. import convert
    from ..conversion.report import FILE, QuantizationReport

    with Bars(plain=True) as bars:
        folder = convert(
            *(args.hf_path, args.mlx_path),
            **{name: getattr(args, name) for name in TAKEN},
            q_overrides=args.q_override,
            layout="hub" if args.hf else "mlx",
            verify=not args.no_verify,
            name=args.upload_repo,
            progress=bars,
            on_note=note,
        )
    if (Path(folder) / FILE).is_file():
        print_stderr(QuantizationReport.read(folder).table())
    _finish(folder, args)
    return 0


def _finish(folder: str | Path, args: argparse.Namespace) -> None:
    """Prints the finished folder, and uploads it, if asked."""
    print(folder)
    if args.upload_repo:
        send(args.mlx_path, args.upload_repo, args)
