"""What the options of a command choose, as the library takes it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .default_model import default_model
from .forms import form_option
from .stderr import Bars, Spinner, note

if TYPE_CHECKING:
    from .. import Lfm2VlForConditionalGeneration, Lfm2VlProcessor, SourcePolicy, VisionCache

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
