"""Configurations with transformers' extra keywords, methods and defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, FrozenInstanceError, replace
from typing import Any, ClassVar, Self

from .. import config
from ..config import read_json
from ..config.fields import one_or_list
from ..config.files import CODE, QUANTISATION, is_place, without, writing
from ..errors import ConfigError, OptionError
from ..hub import resolve
from .loading import hub_options
from .not_offered import CONFIG, way_out
from .sharing import SharedFile

_SPELLED = (  # of a file, which say what fields do, or nothing of the model
    *("architectures", "image_token_index", "model_type", "tie_embedding", "torch_dtype"),
    *("transformers_version", *CODE, *QUANTISATION),
)
_OF_CALLS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True, "use_cache": True}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of the text configuration
OF_CALLS = tuple(_OF_CALLS)


class ConfigMethods(SharedFile):
    """The extra keywords, methods and defaults, for a configuration of `mlx_lfm2vl.config`, which `base` is.

    Immutable: another configuration is another object. Keywords that are no fields become attributes, as there.
    `output_attentions`, `output_hidden_states` and `return_dict` are the defaults of the model's calls.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    base: ClassVar[Any]
    text_config: Any
    image_token_id: int
    eos_token_ids: Any
    dtype: str | None
    tokens: ClassVar[dict[str, int]] = {}  # transformers', where a file is silent
    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool
    use_cache: bool

    def __init__(self, vision_config: Any = None, text_config: Any = None, **named: Any):
        """Raises `ConfigError` for a value that makes no sense."""
        own = {name: named.pop(name) for name in self.base.__dataclass_fields__ if name in named}
        if (tied := named.pop("tie_embedding", None)) is not None:
            own["tie_word_embeddings"] = tied
        if (index := named.pop("image_token_index", None)) is not None:
            own["image_token_id"] = index
        if (dtype := named.pop("torch_dtype", own.get("dtype"))) is not None:
            own["dtype"] = str(dtype).rpartition(".")[2]
        self.base.__init__(self, vision_config=vision_config, text_config=text_config, **own)
        text = self.text_config
        tokens: dict[str, Any] = {name: value for name, value in self.tokens.items() if getattr(text, name) is None}
        if len(self.eos_token_ids) == 1:
            tokens["eos_token_id"] = self.eos_token_ids[0]
        object.__setattr__(self, "text_config", replace(text, **tokens))
        for name, value in {**_OF_CALLS, **named}.items():
            if not hasattr(type(self), name) or name in OF_CALLS:
                object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        said = f"{name} cannot be set, as configurations are immutable"
        if name in self.base.__dataclass_fields__:
            made = f"{type(self).__name__}.from_pretrained(..., {name}=...) or dataclasses.replace(config, {name}=...)"
            raise FrozenInstanceError(f"{said}; make another by {made}")
        if name in TOKENS:
            made = f"text_config=dataclasses.replace(config.text_config, {name}=...)"
            raise FrozenInstanceError(f"{said}; make another by dataclasses.replace(config, {made})")
        if isinstance(getattr(type(self), name, None), property):
            raise FrozenInstanceError(f"{said}; it follows from the fields")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(way_out(self, name, CONFIG))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, self.base):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.base.__dataclass_fields__)

    def __hash__(self) -> int:
        return int(self.base.__hash__(self))

    @property
    def bos_token_id(self) -> int | None:
        return self.text_config.bos_token_id

    @property
    def eos_token_id(self) -> int | list[int]:
        return one_or_list(self.eos_token_ids)

    @property
    def pad_token_id(self) -> int | None:
        return self.text_config.pad_token_id

    @property
    def architectures(self) -> list[str]:
        """The class of transformers that such a model is of."""
        return list(self.base.to_dict(self)["architectures"])

    @property
    def is_encoder_decoder(self) -> bool:
        return False

    @property
    def torch_dtype(self) -> str | None:
        return self.dtype

    @property
    def name_or_path(self) -> str:
        """The name by which it was loaded; empty for one that was made."""
        return str(vars(self).get("_name_or_path", ""))

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets attributes that are no fields. Raises `ConfigError` for a field: another configuration is another
        object."""
        for name, value in config_dict.items():
            if name in self.base.__dataclass_fields__:
                raise ConfigError(f"config: {name} cannot be set; make another by {type(self).__name__}.from_dict")
            setattr(self, name, value)

    @classmethod
    def of(cls, known: Any) -> Self:
        """The same configuration as an object of this class."""
        if isinstance(known, cls):
            return known
        return cls(**{name: getattr(known, name) for name in cls.base.__dataclass_fields__})

    @property
    def others(self) -> dict[str, Any]:
        """Its entries beside the fields."""
        return {name: value for name, value in vars(self).items() if name not in self.base.__dataclass_fields__}

    def changed(self, **values: Any) -> Self:
        """The same with other values. (`dataclasses.replace` keeps fields alone.)"""
        return type(self)(**{**vars(self), **values})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json", **changed: Any) -> Self:
        """The configuration in a config.json of any published generation. Raises `ConfigError`."""
        known, names = cls.base.from_dict(data, where), cls.base.__dataclass_fields__
        others = {name: value for name, value in data.items() if name not in (*_SPELLED, *names)}
        others = {name: value for name, value in others.items() if not hasattr(cls, name) and not is_place(name, value)}
        return cls(**{**others, **{name: getattr(known, name) for name in names}, **changed})

    def to_dict(self) -> dict[str, Any]:
        """config.json, with what it says beside its fields."""
        others = {name: value for name, value in self.others.items() if value != _OF_CALLS.get(name)}
        return {**without(others), **self.base.to_dict(self)}

    to_diff_dict = to_dict

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], **options: Any) -> Self:  # type: ignore[override]
        """From a folder, a hub repository or "demo"; `options` as those of `AutoProcessor.from_pretrained`, or fields
        in place of the file's. Raises `HubError`, `ConfigError`."""
        place, hub, changed = hub_options(path_or_repo, options)
        if changed.pop("return_unused_kwargs", False):
            raise OptionError("return_unused_kwargs is not offered; leave it out")
        file = resolve(place, patterns=("*.json",), **hub) / "config.json"
        return cls.from_dict(read_json(file), str(file), **changed, _name_or_path=os.fspath(path_or_repo))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The backbone's part."""
        return self.text_config

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes config.json. Raises `OutputError`."""
        with writing(folder) as target:
            (target / "config.json").write_text(self.to_json_string(), encoding="utf-8")


class Lfm2VlConfig(ConfigMethods, config.Lfm2VlConfig):  # type: ignore[misc]
    """LFM2-VL's config.json, as transformers has it; see `mlx_lfm2vl.config.Lfm2VlConfig`."""

    base = config.Lfm2VlConfig
    tokens: ClassVar[dict[str, int]] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class CausalLMConfig(ConfigMethods, config.CausalLMConfig):  # type: ignore[misc]
    """config.json of a text model; see `mlx_lfm2vl.config.CausalLMConfig`."""

    base = config.CausalLMConfig
