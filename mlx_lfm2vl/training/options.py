"""The settings of a training, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import OptionError

DEFAULT_MODULES = ("language_model.model.layers.*",)


@dataclass(frozen=True)
class TrainingOptions:
    """How an adapter is trained.

    Attributes:
        rank: of the product beside each layer, r.
        alpha: its factor is alpha / r.
        dora: train the length of each row too (DoRA).
        dropout: share of a layer's inputs that are left out of the product, below 1.
        modules: shell patterns over module names as MLX programs have them; tower and projector only where a pattern
            begins with their name.
        projector: train the projector's own weights, all of them.
        iters: steps of the optimiser. None is three passes over the rows.
        batch_size: rows that run together.
        grad_accumulation_steps: batches of a step.
        grad_checkpoint: compute the layers again on the way back, for less memory.
        learning_rate: the highest. It rises over the first twentieth of the steps and falls to 0 as a cosine.
        weight_decay: of AdamW.
        max_grad_norm: the gradient's length is cut to it.
        keep_weight: how much a token of a row to keep counts beside one of a row to learn.
        steps_per_eval: steps between two validations, where there are rows for it.
        save_every: steps after which a run that is killed goes on.
        seed: of the order of rows, the first weights and dropout.

    Raises:
        OptionError: for a value outside its range.
    """

    rank: int = 8
    alpha: float = 16.0
    dora: bool = False
    dropout: float = 0.0
    modules: tuple[str, ...] = DEFAULT_MODULES
    projector: bool = False
    iters: int | None = None
    batch_size: int = 4
    grad_accumulation_steps: int = 1
    grad_checkpoint: bool = False
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    keep_weight: float = 1.0
    steps_per_eval: int = 50
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "grad_accumulation_steps", "steps_per_eval", "save_every"):
            self._whole(name, 1)
        self._whole("seed", 0, 2**31 - 1)
        if self.iters is not None:
            self._whole("iters", 1)
        for name in ("alpha", "learning_rate", "max_grad_norm", "keep_weight"):
            self._real(name, lambda value: value > 0, "a number above 0")
        self._real("weight_decay", lambda value: value >= 0, "a number of at least 0")
        self._real("dropout", lambda value: 0 <= value < 1, "a number from 0 to below 1")
        if self.dropout and self.grad_checkpoint:
            raise OptionError("dropout and grad_checkpoint exclude each other: computed again, it would drop others")
        if not isinstance(self.modules, tuple) or not all(isinstance(each, str) and each for each in self.modules):
            raise OptionError(f"modules is {self.modules!r}, expected a tuple of patterns")
        if not self.modules and not self.projector:
            raise OptionError("modules is empty and projector is false; nothing would be trained")

    def _whole(self, name: str, low: int, high: float = math.inf) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            most = "" if high == math.inf else f", at most {high}"
            raise OptionError(f"{name} is {value!r}, expected an integer of at least {low}{most}")

    def _real(self, name: str, good: Callable[[float], bool], what: str) -> None:
        value = getattr(self, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not good(value)
        ):
            raise OptionError(f"{name} is {value!r}, expected {what}")

    @property
    def scale(self) -> float:
        """The factor of a layer's product."""
        return self.alpha / self.rank

    def steps(self, rows: int) -> int:
        """Steps of the optimiser over so many rows."""
        return self.iters or max(1, math.ceil(3 * rows / (self.batch_size * self.grad_accumulation_steps)))

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**asdict(self), "modules": list(self.modules)}
