"""transformers' `GenerationConfig`: what it knows, its defaults, and what of it is offered.

`settings` merges the keywords of a call, a given configuration, the model's own and the defaults, in that order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from .. import config
from ..config import read_json
from ..config.files import without, writing
from ..errors import ConfigError, OptionError
from ..hub import resolve
from ..processing.arrays import is_array, to_numpy
from .loading import hub_options
from .sharing import SharedFile

# Settings that `generate` obeys, with transformers' defaults.
DEFAULTS: dict[str, Any] = {
    "max_length": None,  # 20 new tokens without max_new_tokens
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "do_sample": False,
    "use_cache": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "num_return_sequences": 1,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_BEAMS = "leave it at 1, or take several answers by do_sample=True and num_return_sequences"
_ASSISTED = "leave it out; the answer is the same"
# Settings that are not offered: the values that change nothing, and the way out.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "assistant_early_exit": ((None,), _ASSISTED),
    "constraints": ((None,), "use prefix_allowed_tokens_fn"),
    "dola_layers": ((None,), "leave it out"),
    "encoder_no_repeat_ngram_size": ((None, 0), "use no_repeat_ngram_size"),
    "encoder_repetition_penalty": ((None, 1, 1.0), "use repetition_penalty"),
    "force_words_ids": ((None,), "use prefix_allowed_tokens_fn"),
    "guidance_scale": ((None, 1, 1.0), "leave it at 1"),
    "num_beam_groups": ((None, 1), _BEAMS),
    "num_beams": ((None, 1), _BEAMS),
    "output_attentions": ((None, False), "call the model itself with output_attentions=True"),
    "output_hidden_states": ((None, False), "call the model itself with output_hidden_states=True"),
    "penalty_alpha": ((None, 0, 0.0), "use do_sample=True"),
    "prompt_lookup_num_tokens": ((None,), _ASSISTED),
    "speculation_type": ((None,), _ASSISTED),
    "token_healing": ((None, False), "leave it out"),
    "top_h": ((None,), "use top_p or min_p"),
    "use_mtp": ((None, False), _ASSISTED),
    "watermarking_config": ((None,), "give a function as logits_processor"),
}
# Speed, beams or assistants only: nothing here depends on them.
_NO_EFFECT = (
    *("assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "cache_config"),
    *("cache_implementation", "compile_config", "continuous_batching_config", "decoder_start_token_id"),
    *("disable_compile", "diversity_penalty", "early_stopping", "is_assistant", "length_penalty", "low_memory"),
    *("max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("prefill_chunk_size", "target_lookbehind"),
)
_COUNTS = (  # of tokens, or of answers
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_return_sequences"),
)
_NUMBERS = ("max_time", "typical_p", "epsilon_cutoff", "eta_cutoff")
_CHECKED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
KNOWN = (*DEFAULTS, *_ONLY, *_NO_EFFECT)
_META = ("_from_model_config", "transformers_version", "_commit_hash")


class GenerationConfig(SharedFile):
    """Settings of `generate` as attributes; None is what the model's own, or else transformers' default, says."""

    if TYPE_CHECKING:  # every name of KNOWN

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(self, **settings: Any):
        """Keywords as transformers has them. Others become attributes, too, as those of its files do."""
        for name in KNOWN:
            object.__setattr__(self, name, None)
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens."""
        return token_ids("eos_token_id", self.eos_token_id) or ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "generation_config.json") -> Self:
        """Raises `ConfigError` for a value that makes no sense."""
        config.GenerationConfig.from_dict(data, where)
        return cls(**without(dict(data), _META))

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], **options: Any) -> Self:
        """generation_config.json of a folder or a hub repository, `options` in place of its values. Raises `HubError`,
        `ConfigError`."""
        place, hub, settings = hub_options(path_or_repo, options)
        file = (
            resolve(place, patterns=("*.json",), enough=("generation_config.json",), **hub) / "generation_config.json"
        )
        made = cls.from_dict(read_json(file), str(file))
        made.update(**settings)
        return made

    def update(self, **settings: Any) -> dict[str, Any]:
        """Sets what there is; returns what there is not."""
        unused = {name: value for name, value in settings.items() if not hasattr(self, name)}
        for name, value in settings.items():
            if name not in unused:
                setattr(self, name, value)
        return unused

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not None, as generation_config.json has them."""
        return {name: plain(value) for name, value in sorted(vars(self).items()) if value is not None}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes generation_config.json. Raises `OutputError`."""
        with writing(folder) as target:
            (target / "generation_config.json").write_text(self.to_json_string(), encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string().rstrip()}"


def plain(value: Any) -> Any:
    """Arrays as lists and numbers; the rest as it is."""
    return to_numpy(value).tolist() if is_array(value) else value


def as_dict(given: Any) -> dict[str, Any]:
    """The settings of a configuration of this package's or transformers', or of a mapping. Raises `OptionError`."""
    if isinstance(given, config.GenerationConfig):
        data = {name: value for name, value in vars(given).items() if value is not None}
        ends = data.pop("eos_token_ids")
        return {**data, **({"eos_token_id": list(ends)} if ends else {})}
    if isinstance(given, Mapping):
        return dict(given)
    if not hasattr(given, "to_dict"):
        raise OptionError(f"generation_config is {type(given).__name__}, expected a GenerationConfig")
    return dict(given.to_dict())


def settings(model_config: Any, given: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """All of `DEFAULTS`, each from the first place that has it: `keywords`, from which settings are taken and in which
    None is None, not the default; the configuration `given` with the call; the model's. Raises `OptionError` for what
    is not offered, with the way out."""
    chosen = dict(DEFAULTS)
    sources = [as_dict(model_config), {} if given is None else as_dict(given)]
    for source in sources:
        for name, value in source.items():
            if value is not None and name in chosen:
                chosen[name] = value
    own = {name: keywords.pop(name) for name in KNOWN if name in keywords}
    chosen.update({name: value for name, value in own.items() if name in chosen})
    for source in (*sources, own):
        for name, (allowed, way_out) in _ONLY.items():
            if name in source and plain(source[name]) not in allowed:
                raise OptionError(f"{name} is {source[name]!r}, which is not offered; {way_out}")
    for name in ("do_sample", "use_cache", "return_dict_in_generate", "output_scores", "output_logits"):
        if chosen[name] is not None and not isinstance(plain(chosen[name]), (bool, int)):
            raise OptionError(f"{name} is {chosen[name]!r}, expected True or False")
    for name in _COUNTS:
        chosen[name] = None if chosen[name] is None else count(name, chosen[name])
    for name in _NUMBERS:
        chosen[name] = None if chosen[name] is None else number(name, chosen[name])
    checked = {name: plain(chosen[name]) for name in _CHECKED}
    try:
        config.GenerationConfig.from_dict(checked, "generate")
    except ConfigError as error:
        raise OptionError(str(error)) from None
    return chosen


def count(name: str, value: Any, most: float = math.inf) -> int:
    """An integer from 0 to `most`, also of NumPy, torch or MLX. Raises `OptionError`."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        to = "" if most == math.inf else f" to {most}"
        raise OptionError(f"{name} is {value!r}, expected a whole number from 0{to}")
    return value


def number(name: str, value: Any) -> float:
    """A number that is not NaN, also of NumPy, torch or MLX. Raises `OptionError`."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise OptionError(f"{name} is {value!r}, expected a number")
    return float(value)


def token_ids(name: str, value: Any, vocabulary: int | None = None) -> tuple[int, ...] | None:
    """A token id or several, in a list or an array of any kind. None if there is none. Raises `OptionError`, also for
    an id outside of a `vocabulary` of so many tokens."""
    value = plain(value)
    if value is None:
        return None
    ids = value if isinstance(value, (list, tuple)) else [value]
    ids = [plain(each) for each in ids]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise OptionError(f"{name} is {value!r}, expected a token id or a list of them")
    for id in ids:
        if vocabulary is not None and not 0 <= id < vocabulary:
            raise OptionError(f"{name} holds {id}; the model's vocabulary has ids 0 to {vocabulary - 1}")
    return tuple(ids)
