"""Arguments of the library from the options of a command, and from what a row of `batch` says for itself."""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PromptError, did_you_mean, first_line
from .stderr import Bars, Spinner, note

if TYPE_CHECKING:
    from .. import Lfm2VlForConditionalGeneration, Lfm2VlProcessor, SourcePolicy, VisionCache

DEMO = "demo"
MODEL_VARIABLE = "MLX_LFM2VL_MODEL"
KEY = "model"  # the only one of the configuration file
FIELDS = ("response_format", "json_schema", "json_object", "regex", "choice", "grammar")  # of a row
SAMPLING = (  # of `GenerationOptions`; a row of `batch` may have them for itself
    *("max_tokens", "temperature", "top_p", "min_p", "top_k", "repetition_penalty", "seed", "stop"),
    *("frequency_penalty", "presence_penalty", "logit_bias"),
)
PICTURES = ("max_image_tokens", "min_image_tokens", "do_image_splitting", "color_management")
SHARING = "ranks of mlx.launch that share a model"


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `GenerationOptions`."""
    given = {name: getattr(args, name) for name in SAMPLING}
    form = form_option(args) if "json_object" in args else None
    return {**given, "stop": tuple(args.stop), "logit_bias": dict(args.logit_bias), "response_format": form}


def picture_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the image processor that were given on the command line."""
    return {name: getattr(args, name) for name in PICTURES if getattr(args, name) is not None}


def source_policy(args: argparse.Namespace) -> SourcePolicy:
    """The policy on where pictures may come from."""
    from ..processing.fetch import SourcePolicy

    return SourcePolicy(allow_private_addresses=args.allow_private_urls)


def default_model() -> tuple[str, str]:
    """The model of commands that are given none, and a note on where it comes from: the environment, the configuration
    file, or the bundled one. Raises `OptionError` for a file that is wrong."""
    if name := os.environ.get(MODEL_VARIABLE):
        return name, f"using {name}, which {MODEL_VARIABLE} names"
    if name := _configured(file := config_file()):
        return name, f"using {name}, which {file} names"
    return DEMO, "using the bundled demo model, which only knows simple drawings"


def config_file() -> Path:
    """Where the configuration file is, or would be, on macOS too."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    absolute = os.path.isabs(folder)  # others are to be ignored (XDG Base Directory Specification)
    return Path(folder if absolute else os.path.expanduser("~/.config")) / "mlx-lfm2vl" / "config.toml"


def _configured(file: Path) -> str | None:
    """The model that the file names, None if there is no file or no model in it."""
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OptionError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OptionError(f"{file}: line {line} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:  # tomllib's, which name the line
        raise OptionError(f'{file}: is no TOML: {first_line(error)}; write {KEY} = "owner/name"') from None
    for key in settings:
        if key != KEY:
            way = did_you_mean([key], [KEY]) or f"; only {KEY} is one"
            raise OptionError(f"{file}: line {_line(text, key)}: {key} is no setting{way}")
    name = settings.get(KEY)
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise OptionError(f'{file}: line {_line(text, KEY)}: {KEY} is {name!r}; write {KEY} = "owner/name"')
    return name


def _line(text: str, key: str) -> int:
    """The number of the line where a key or a table of this name stands, as far as it is written plainly."""
    found = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(key)}\b", text, re.M)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def name_model(args: argparse.Namespace, option: str = "--model") -> None:
    """Fills in the default model where none is given, and says so. Raises `OptionError`."""
    if args.model is None:
        args.model, remark = default_model()
        note(f"no {option} given: {remark}")


def load_model(args: argparse.Namespace) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """Loads what `add_model` and `add_pictures` chose, with remarks on stderr that the user should know."""
    from .. import load

    name_model(args)
    with Spinner("loading the model") as spinner, Bars() as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage == "download":
                spinner.show("")
                bars(stage, done, total)
            elif stage == "weights":
                bars.close()
                spinner.show(f"loading the model, {100 * done // total} %")

        model, processor = load(
            args.model,
            adapter=args.adapter,
            revision=args.revision,
            source_policy=source_policy(args),
            progress=tell,
            kv_bits=args.kv_bits,
            group=args.group,
            **picture_overrides(args),
        )
    model.lead = args.lead
    for line in processor.notes:
        if args.do_image_splitting is None or "do_image_splitting" not in line:  # who chose need not be told
            note(line)
    if args.verbose and model.load_note:
        note(model.load_note)
    if args.verbose and model.backend == "numpy":
        note("computing on the CPU by NumPy (backend numpy; MLX_LFM2VL_BACKEND=mlx has MLX compute)")
    return model, processor


def form_option(args: argparse.Namespace) -> dict[str, Any] | None:
    """`response_format` of `GenerationOptions` as the command line says it, files read. Raises `ConstraintError`."""
    given = {name: getattr(args, name) for name in FIELDS[1:] if getattr(args, name) not in (None, False)}
    return form_of(given, Path()) if given else None


def row_form(row: Mapping[str, Any], folder: Path) -> Any:
    """The form that a row of `batch` asks for, or None. Files are beside the input, in `folder`. Raises
    `PromptError`, `ConstraintError`."""
    given = {name: row[name] for name in FIELDS if row.get(name) not in (None, False)}
    if len(given) > 1:
        first, second, *_ = given
        raise PromptError(f'has both "{first}" and "{second}"; give one of them')
    return form_of(given, folder) if given else None


def form_of(given: dict[str, Any], folder: Path) -> Any:
    """`response_format` of `GenerationOptions` as one of `FIELDS` says it; files are in `folder`. Raises `PromptError`,
    `ConstraintError`."""
    from ..constraints.response_format import is_json

    [(name, value)] = given.items()
    if name == "response_format":
        return value
    if name == "json_object":
        if value is not True:
            raise PromptError('"json_object" is true or left out')
        return {"type": name}
    if name in ("json_schema", "grammar") and isinstance(value, str):
        value = _text(value, is_json(value) if name == "json_schema" else ":" in value, folder)
    return {"type": name, name: {"schema": value} if name == "json_schema" else value}


def _text(given: str, is_text: bool, folder: Path) -> str:
    """The text itself, or that of the file which has this name."""
    from ..constraints.response_format import read_text

    if not given.strip():
        raise PromptError("the form of the answer is empty; name a file, or write it")
    return given if is_text else read_text(folder / os.path.expanduser(given))


def chosen_draft(args: argparse.Namespace) -> Any:
    """The draft that --draft or --draft-model names, loaded; None for none. Raises `Lfm2VlError`."""
    from .. import load_draft

    if args.group is not None and args.draft == "auto":
        raise OptionError("--draft auto goes by the clock, which ranks that share a model do not have; use ngram")
    if args.draft_model is None:
        return args.draft
    if args.group is not None:
        raise OptionError(f"--draft-model: {SHARING} take none; leave it out")
    with Spinner("loading the draft model"):
        return load_draft(args.draft_model)


def vision_cache_folder(args: argparse.Namespace) -> str | None:
    """The folder of --vision-cache. Raises `OptionError` where ranks share the model."""
    if args.vision_cache is not None and args.group is not None:
        raise OptionError(f"--vision-cache: {SHARING} keep no folders; leave it out")
    folder: str | None = args.vision_cache
    return folder


def chosen_vision_cache(args: argparse.Namespace) -> VisionCache | None:
    """A cache of pictures in the folder of --vision-cache. Raises `OptionError`."""
    from .. import VisionCache

    folder = vision_cache_folder(args)
    return None if folder is None else VisionCache(folder=folder)
