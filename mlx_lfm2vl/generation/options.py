"""How to generate, as one frozen object."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from ..config import GenerationConfig
from ..errors import OptionError

MAX_TOKENS = 2**31  # more than any model has positions


@dataclass(frozen=True)
class GenerationOptions:
    """Length, sampling and end of one answer. None means: what the checkpoint recommends, else off (greedy).

    `max_tokens`: at most so many new tokens; None is to the end of the model's positions. `temperature`: 0 is greedy.
    `top_k`: sample among the k likeliest (0: off). `top_p`: among the likeliest that together reach this probability
    (1: off). `min_p`: among those at least this fraction as likely as the likeliest (0: off). `repetition_penalty`:
    divides positive and multiplies negative logits of tokens seen in prompt or answer (1: off; Keskar et al. 2019).
    `seed`: makes sampling repeatable. `stop`: texts at which the answer ends (a string or several, None is none), not
    part of it; one that is a special token counts as its id. `logprobs`: pieces carry the natural logarithm of the
    probability that the model itself gave each token, before penalty, temperature and filters.

    Filters work in the order of transformers: penalty, temperature, top-k, top-p, min-p. Raises `OptionError` naming
    the option and its range.
    """

    max_tokens: int | None = 512
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        self._number("max_tokens", 1, MAX_TOKENS, whole=True)
        self._number("temperature", 0, 100)
        self._number("top_p", 0, 1, above=True)
        self._number("min_p", 0, 1)
        self._number("top_k", 0, 2**31, whole=True)
        self._number("repetition_penalty", 0.01, 100)
        self._number("seed", 0, 2**64 - 1, whole=True)
        given: Any = () if self.stop is None else self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
        if not all(isinstance(text, str) and text for text in stop):
            raise OptionError(f"stop is {self.stop!r}, expected texts that are not empty")
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.logprobs, bool):
            raise OptionError(f"logprobs is {self.logprobs!r}, expected True or False")

    def _number(self, name: str, low: float, high: float, whole: bool = False, above: bool = False) -> None:
        """Checks a field and makes a plain number of it (NumPy has its own)."""
        value = getattr(self, name)
        if value is None:
            return
        number: float | None = None
        if not isinstance(value, bool):
            try:
                number = operator.index(value) if whole else float(value) if isinstance(value, Real) else None
            except (TypeError, OverflowError):
                number = None
        if number is None or not low <= number <= high or (above and number == low):  # NaN is in no range
            kind = "an integer" if whole else "a number"
            start = f"above {low:g}" if above else f"from {low:g}"
            raise OptionError(f"{name} is {value!r}, expected {kind} {start} to {high:g}")
        object.__setattr__(self, name, number)

    @property
    def token_limit(self) -> int:
        """The most new tokens; more than any model has positions for None."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @classmethod
    def of(cls, options: GenerationOptions | None, named: dict[str, Any]) -> GenerationOptions:
        """`options` with the fields that `named` holds, which are taken from it. Raises `OptionError`."""
        if options is not None and not isinstance(options, cls):
            raise OptionError(f"options is {type(options).__name__}, expected GenerationOptions")
        own = {field.name: named.pop(field.name) for field in fields(cls) if field.name in named}
        return replace(options or cls(), **own)

    def resolve(self, config: GenerationConfig) -> GenerationOptions:
        """Fills what was left open from a checkpoint's recommendation.

        A checkpoint that does not say do_sample: true is greedy. An explicit temperature here leaves its other
        recommendations in force.
        """
        off = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "repetition_penalty": 1.0}
        recommended = {name: getattr(config, name) for name in off if getattr(config, name) is not None}
        if not config.do_sample:
            recommended = {k: v for k, v in recommended.items() if k == "repetition_penalty"}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if config.do_sample and "temperature" not in recommended:
            recommended["temperature"] = 1.0
        return replace(self, **{**off, **recommended, **chosen})
