"""The named tokens of a model, from every place where tokenizer_config.json and its kin keep them.

A token stands under its name at the top level, or in `extra_special_tokens` or `model_specific_special_tokens` where
those are objects; it is a string, or an object with its "content".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import shown
from ..errors import TokenizerError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
IMAGE_TOKENS = {  # of the family, for files that do not name them
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
}
_NESTED = ("extra_special_tokens", "model_specific_special_tokens")


def named_tokens(config: Mapping[str, Any], where: str, pad_token: str | None = None) -> dict[str, str]:
    """Names to tokens. `pad_token` is what tokenizer.json pads with, if it says. Raises `TokenizerError`."""
    found: dict[str, str] = {} if pad_token is None else {"pad_token": pad_token}
    nested = (config.get(key) for key in _NESTED)
    for place in (config, *nested):
        for name, value in place.items() if isinstance(place, Mapping) else ():
            token = _text(value)
            if token is not None and (place is not config or name.endswith("_token")):
                found[name] = token
            elif name in NAMED_TOKENS and value is not None:
                raise TokenizerError(f"{where}: {name} is {shown(value)}, expected a token")
    return found


def restated(config: Mapping[str, Any], changed: Mapping[str, str | None]) -> dict[str, Any]:
    """The configuration with other tokens (or options) of these names; None takes a name out, wherever it stands."""
    out = {name: value for name, value in config.items() if name not in changed}
    for key in _NESTED:
        if isinstance(named := out.get(key), Mapping):
            out[key] = {name: value for name, value in named.items() if name not in changed}
    return out | {name: value for name, value in changed.items() if value is not None}


def image_tokens(config: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str]:
    """The tokens for pictures by the names of `IMAGE_TOKENS`, in the spelling of the files or the family's."""
    thumbnail = named.get("image_thumbnail") or _text(config.get("image_thumbnail"))
    known = IMAGE_TOKENS | ({"image_thumbnail_token": thumbnail} if thumbnail else {})
    return {name: named.get(name) or token for name, token in known.items()}


def special_tokens(config: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """All tokens that the configuration calls special: the named ones, and those that it lists without a name."""
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    texts = map(_text, listed) if isinstance(listed, list) else ()
    return list(dict.fromkeys([*named.values(), *(text for text in texts if text is not None)]))


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
