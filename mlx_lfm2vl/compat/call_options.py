"""Keywords of transformers' processors, sorted into those that mean something here and those that do not.

`normalised` takes any spelling and gives keywords of `processing`. What has no effect in transformers either, or none
that shows in the result, is accepted. What would change the result and is not offered is one `OptionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError
from ..processing.arrays import is_array
from ..processing.load_image import flatten
from . import tensors

GROUPS = ("common_kwargs", "images_kwargs", "text_kwargs")
_NO_EFFECT = (  # in transformers either, or on speed only
    "do_resize",
    "default_to_square",
    "disable_grouping",
    "stride",
    "verbose",
    "clean_up_tokenization_spaces",
    "do_sample_frames",
)
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {  # the values that change nothing, and the way out
    "audio": ((None,), "these models hear nothing"),
    "audio_kwargs": ((None, {}), "these models hear nothing"),
    "crop_size": ((None,), "crop the pictures before"),
    "data_format": ((None, "channels_first", "channels_last"), ""),
    "do_center_crop": ((None, False), "crop the pictures before"),
    "do_convert_rgb": ((None, True), "pictures become RGB; convert them before"),
    "input_data_format": ((None, "channels_first", "channels_last"), ""),
    "is_split_into_words": ((None, False), "join the words"),
    "pad_size": ((None,), "views are padded to max_num_patches"),
    "return_attention_mask": ((None, True), "leave the mask out of the call"),
    "return_length": ((None, False), "take the length of input_ids"),
    "return_metadata": ((None, False), "a video of `load_video` tells its frames and their rate"),
    "return_offsets_mapping": ((None, False), "use tokenizer.encode_batch, which has offsets"),
    "return_overflowing_tokens": ((None, False), "leave out what does not fit"),
    "return_special_tokens_mask": ((None, False), "compare input_ids with tokenizer.all_special_ids"),
    "return_text_replacement_offsets": ((None, False), "the output's image_spans say where pictures are"),
    "return_token_type_ids": ((None, False), "LFM2 has no token types"),
    "text_pair": ((None,), "join the texts"),
    "text_pair_target": ((None,), "join the texts"),
    "text_target": ((None,), "join the texts"),
    "video_fps": ((None,), "put videos into the messages"),
    "videos": ((None,), "put videos into the messages"),
    "videos_kwargs": ((None, {}), "put videos into the messages"),
}
_RGB = "do_convert_rgb"
_TRUNCATION = {"longest_first": True, "only_first": True, "do_not_truncate": False, None: False}


def without_rgb(options: Mapping[str, Any], images: Callable[[], Any]) -> dict[str, Any]:
    """The keywords without `do_convert_rgb=False` where it changes nothing: all pictures are images of PIL or arrays
    that are RGB. Elsewhere `normalised` refuses it. `images` gives the pictures, and is called where it matters."""
    nested = options.get("images_kwargs")
    inner = dict(nested) if isinstance(nested, Mapping) else {}
    if False not in (options.get(_RGB), inner.get(_RGB)):
        return dict(options)
    pictures = images()
    if not all(map(_is_rgb, [] if pictures is None else flatten(pictures))):
        return dict(options)
    kept = {name: value for name, value in options.items() if name != _RGB}
    inner.pop(_RGB, None)
    return kept | ({"images_kwargs": inner} if isinstance(nested, Mapping) else {})


def _is_rgb(picture: Any) -> bool:
    if is_array(picture):
        return len(picture.shape) == 3 and 3 in (picture.shape[0], picture.shape[-1])
    return getattr(picture, "mode", None) == "RGB" and "transparency" not in picture.info


def normalised(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `processing.Lfm2VlProcessor.__call__`, and "return_tensors" and "return_mm_token_type_ids" where they
    are given. Raises `OptionError` for what is given twice or not offered; unknown names stay."""
    out = {name: value for name, value in options.items() if name not in GROUPS}
    for group in GROUPS:
        members = options.get(group) or {}
        if not isinstance(members, Mapping):
            raise OptionError(f"{group} is {type(members).__name__}, expected a mapping of options")
        for name, value in members.items():
            if name in options:
                raise OptionError(f"{name} is given twice: by itself and in {group}")
            out[name] = value
    for name in _NO_EFFECT:
        out.pop(name, None)
    for name, (allowed, way_out) in _ONLY.items():
        if name in out and (value := out.pop(name)) not in allowed:
            raise OptionError(f"{name} is {value!r}, which is not offered" + (f"; {way_out}" if way_out else ""))
    if (device := out.pop("device", None)) is not None:
        tensors.check_device(device)
    truncation = out.get("truncation")
    if isinstance(truncation, str) or ("truncation" in out and truncation is None):
        if truncation not in _TRUNCATION:
            raise OptionError(f"truncation is {truncation!r}, expected True or False")
        out["truncation"] = _TRUNCATION[truncation]
    for name in ("padding", "truncation", "add_special_tokens", "pad_to_multiple_of", "padding_side", "max_length"):
        if name in out:
            value = getattr(out[name], "value", out[name])  # transformers' enums
            out[name] = False if name == "padding" and value is None else value
    if "resample" in out and out["resample"] is not None:
        out["resample"] = int(out["resample"])
    if "add_special_tokens" in out and out["add_special_tokens"] is None:
        del out["add_special_tokens"]
    return out
