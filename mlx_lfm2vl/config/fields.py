"""Typed reading of JSON objects: a value that makes no sense becomes a `ConfigError` with its place, name and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
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
    for field in fields(config):
        if isinstance(value := getattr(config, field.name), list):
            object.__setattr__(config, field.name, tuple(value))


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

    def token_id(self, name: str) -> int | None:
        return None if self.data.get(name) is None else self.integer(name, default=0, low=0)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty if absent."""
        value = self.data.get(name)
        if value is None:
            return ()
        ids = value if isinstance(value, (list, tuple)) else [value]
        if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= MAX_SIZE for i in ids):
            raise self.refuse(name, value, "a token id or a list of token ids")
        return tuple(ids)
