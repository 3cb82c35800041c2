"""Typed reading of JSON objects: a value that makes no sense becomes a `ConfigError` with its place, name and value.

A configuration is a dataclass whose fields are declared by `integer`, `number` and so on: default, spellings and bounds
stand there once. `Fields.declared` reads them from a file; `check_declared` checks those of an object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, field, fields
from functools import partial
from typing import Any, TypeVar

from ..errors import ConfigError
from .files import shown

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "silu", "relu")  # names of transformers' `ACT2FN`
MAX_NUMBER = 1e30  # beyond it float32, in which the model computes, overflows soon
MAX_SIZE = 2**24  # no dimension of a real checkpoint comes near; guards against absurd allocations

Part = TypeVar("Part")


def part_of(field: str) -> Callable[[type[Part]], type[Part]]:
    """A decorator of the frozen dataclass that a configuration has in this field: the error of an assignment says how
    another configuration is made."""

    def refusing(cls: type[Part]) -> type[Part]:
        def refuse(self: Part, name: str, value: Any) -> None:
            made = f"dataclasses.replace(config, {field}=dataclasses.replace(config.{field}, {name}=...))"
            raise FrozenInstanceError(
                f"{name} cannot be set, as configurations are immutable; make another by {made}, and give it to "
                "from_pretrained(..., config=...)"
            )

        cls.__setattr__ = refuse  # type: ignore[method-assign,assignment]
        return cls

    return refusing


def freeze_lists(config: Any) -> None:
    """Makes tuples of the lists in a frozen dataclass, so that it can be hashed. For its `__post_init__`."""
    for each in fields(config):
        if isinstance(value := getattr(config, each.name), list):
            object.__setattr__(config, each.name, tuple(value))


class Fields:
    """Typed reading of one JSON object; `where` names it in messages."""

    def __init__(self, data: Mapping[str, Any], where: str):
        self.data, self.where = data, where

    def get(self, *names: str, default: Any = None) -> tuple[str, Any]:
        """The first of `names` that is present and not null, with its name."""
        for name in names:
            if self.data.get(name) is not None:
                return name, self.data[name]
        return names[0], default

    def refuse(self, name: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name} is {shown(value)}, expected {wanted}")

    def integer(self, *names: str, default: int, low: int = 1, high: int = MAX_SIZE) -> int:
        name, value = self.get(*names, default=default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, *names: str, default: float, low: float = 0.0, above: bool = True) -> float:
        name, value = self.get(*names, default=default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
        if not good or value < low or (above and value == low):
            raise self.refuse(
                name, value, f"a number {'above' if above else 'of at least'} {low:g} and below {MAX_NUMBER:g}"
            )
        return float(value)

    def optional(self, name: str, *, default: None, high: float, low: float = 0.0) -> float | None:
        """A number up to `high` that may be absent."""
        if self.data.get(name) is None:
            return default
        value = self.number(name, default=high, low=low, above=False)
        if value > high:
            raise self.refuse(name, value, f"a number up to {high:g}")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        name, value = self.get(*names, default=default)
        if not isinstance(value, bool):
            raise self.refuse(name, value, "true or false")
        return value

    def choice(self, *names: str, default: Any, options: tuple[Any, ...]) -> Any:
        name, value = self.get(*names, default=default)
        if isinstance(value, bool) or value not in options:
            raise self.refuse(name, value, "one of " + ", ".join(map(repr, options)))
        return value

    def word(self, *names: str) -> str | None:
        """A text that may be absent."""
        name, value = self.get(*names)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, value, "a text")
        return value

    def section(self, name: str) -> dict[str, Any]:
        value = self.data.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(name, value, "an object")
        return dict(value)

    def triple(self, name: str, *, default: Any, low: float) -> tuple[float, float, float]:
        """Three numbers, one for each colour."""
        value = self.data.get(name, default)
        good = isinstance(value, (list, tuple)) and len(value) == 3
        if not good or not all(isinstance(x, (int, float)) and low < x < MAX_NUMBER for x in value):
            listed = list(value) if isinstance(value, tuple) else value
            raise self.refuse(name, listed, f"three numbers above {low:g} and below {MAX_NUMBER:g}")
        return float(value[0]), float(value[1]), float(value[2])

    def token_id(self, name: str, *, default: int | None = None) -> int | None:
        """A token id, or null."""
        value = self.data.get(name, default)
        return None if value is None else self.integer(name, default=value, low=0)

    def token_ids(self, name: str, *, default: int | None = None) -> tuple[int, ...] | None:
        """A token id, a list of them, or null."""
        value = self.data.get(name, default)
        if value is None:
            return None
        ids = value if isinstance(value, (list, tuple)) else [value]
        if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= MAX_SIZE for i in ids):
            raise self.refuse(name, value, "a token id or a list of token ids")
        return tuple(ids)

    def declared(self, kind: Any) -> dict[str, Any]:
        """The values of the fields of a dataclass that are declared by `integer`, `number` and so on."""
        values = {}
        for each in fields(kind):
            if read := each.metadata.get("read"):
                values[each.name] = read(self, *(each.metadata["names"] or (each.name,)), default=each.default)
        return values

    def check_heads(self, config: Any) -> None:
        """Raises `ConfigError` for numbers of attention heads that do not fit each other."""
        heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if heads % groups:
            raise self.refuse("num_key_value_heads", groups, f"a divisor of {heads} heads")
        if width % 2:
            raise self.refuse("head_dim", width, "an even number (rotary embeddings turn pairs)")
        if heads * width > MAX_SIZE:
            raise self.refuse("head_dim", width, f"at most {MAX_SIZE} with all {heads} heads together")


def declare(read: Callable[..., Any], default: Any, *names: str, **bounds: Any) -> Any:
    """A field of a dataclass that `Fields.declared` reads by `read`, under the first of `names` that is there; without
    any, under its own."""
    return field(default=default, metadata={"read": partial(read, **bounds), "names": names})


integer, number = partial(declare, Fields.integer), partial(declare, Fields.number)
optional = partial(declare, Fields.optional, None)
flag, choice = partial(declare, Fields.flag), partial(declare, Fields.choice)
token_id, token_ids = partial(declare, Fields.token_id), partial(declare, Fields.token_ids)


def check_declared(config: Any, where: str) -> Fields:
    """Checks the declared fields of a dataclass, in its `__post_init__`, and returns what reads all. Raises
    `ConfigError`."""
    read = Fields({each.name: getattr(config, each.name) for each in fields(config)}, where)
    read.declared(config)
    return read


def one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    """Token ids as files have them: a single one by itself."""
    return ids[0] if len(ids) == 1 else list(ids)


class WholeModel:
    """What the configurations of whole models have in common."""

    text_config: Any
    quantization: Mapping[str, Any] | None
    dtype: str | None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the text configuration names; empty if it names none."""
        eos = self.text_config.eos_token_id
        return (eos,) if isinstance(eos, int) else tuple(eos or ())

    def make_section(self, name: str, kind: Any) -> None:
        """Makes a configuration of the kind of a field that was given as a mapping or None. Raises `ConfigError`."""
        if not isinstance(given := getattr(self, name), kind):
            section = Fields({name: given}, "config").section(name)
            object.__setattr__(self, name, kind.from_dict(section))

    @staticmethod
    def quantization_in(read: Fields) -> dict[str, Any] | None:
        """MLX's record of what is quantised; `quantization_config` may be another program's, where it says so."""
        method = read.section("quantization_config")
        return read.section("quantization") or ({} if "quant_method" in method else method) or None

    def with_weights(self, data: dict[str, Any], spelled: Callable[[str], str] = str) -> dict[str, Any]:
        """The data of a config.json, with what it says of the weights. `spelled`: a module's name in the files, of that
        in `quantization`."""
        if self.dtype:
            data["dtype"] = self.dtype
        if record := {spelled(name): value for name, value in (self.quantization or {}).items()}:
            data["quantization"] = data["quantization_config"] = record
        return data
