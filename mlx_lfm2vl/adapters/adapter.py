"""An adapter in memory, and the ways in which it goes into a model.

A dense layer's weight becomes the merged one, so that it computes as fast as without. A quantised layer stays what it
is and gets the adapter beside it (`LoRALinear`): merged, it would have to be rounded again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import WeightsError
from ..model_folder import ADAPTER_CONFIG
from ..weights.files import key_of
from ..weights.names import parameters
from .layers import LoRALinear, delta, dense_weight, norms, shape_of

LINEAR = (nn.Linear, nn.QuantizedLinear)


@dataclass(frozen=True)
class LoRAWeights:
    """The change of one linear layer: `a` (in, r), `b` (r, out), their product's `scale`, and of a DoRA adapter the
    length of each row, `magnitude` (out,)."""

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer."""
        return self.b.shape[1], self.a.shape[0]

    def gain(self, weight: mx.array) -> mx.array | None:
        """The factor (out,) of each row of a DoRA adapter over a weight (out, in)."""
        if self.magnitude is None:
            return None
        return self.magnitude / norms(weight.astype(mx.float32) + delta(self.a, self.b, self.scale))

    def merged(self, weight: mx.array) -> mx.array:
        """The weight with the change in it, (out, in) in its own type, not yet evaluated."""
        made, gain = weight.astype(mx.float32) + delta(self.a, self.b, self.scale), self.gain(weight)
        return (made if gain is None else gain[:, None] * made).astype(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """An adapter as a folder has it.

    Attributes:
        folder: where it is.
        files: the files it was read from.
        layers: the changes of linear layers, by the layers' paths in the whole model.
        saved: whole parameters that stand in place of the model's, by their names (PEFT's `modules_to_save`).
        base: the model that it was trained on, as the folder names it.
    """

    folder: Path
    files: tuple[Path, ...]
    layers: dict[str, LoRAWeights]
    saved: dict[str, mx.array] = field(default_factory=dict)
    base: str | None = None

    @property
    def key(self) -> str:
        """The key that tells it from other adapters, by names, sizes and times of its files."""
        return key_of(self.folder, self.files, ADAPTER_CONFIG)

    def apply(self, model: nn.Module, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        """Puts the adapter into a model that has no values yet, and into the tensors that it will get.

        Args:
            model: a whole model. Quantised layers of it that the adapter changes become `LoRALinear`.
            tensors: the model's parameters by name, not evaluated.

        Returns:
            The tensors of the changed model, not evaluated.

        Raises:
            WeightsError: for an adapter of another model, by the first name or shape that does not fit.
        """
        modules = self.check(model)
        out = dict(tensors)
        placed: list[tuple[str, nn.Module]] = []
        for name, array in self.saved.items():
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and isinstance(module := modules[path], nn.QuantizedLinear):
                rows, width = shape_of(module)
                placed.append((path, nn.Linear(width, rows, bias="bias" in module)))
                for part in ("scales", "biases"):
                    out.pop(f"{path}.{part}", None)
            dtype = out[name].dtype if mx.issubdtype(out[name].dtype, mx.floating) else None
            out[name] = array if dtype is None else array.astype(dtype)
        for path, weights in self.layers.items():
            module = modules[path]
            if not isinstance(module, nn.QuantizedLinear):
                out[f"{path}.weight"] = weights.merged(out[f"{path}.weight"])
                continue
            own = {leaf: out.pop(f"{path}.{leaf}") for leaf in parameters(module)}
            module.update(own)
            wrapped = LoRALinear(module, weights.a, weights.b, weights.scale, weights.gain(dense_weight(module)))
            placed.append((path, wrapped))
            out |= {f"{path}.{name}": array for name, array in parameters(wrapped).items()}
        if placed:
            model.update_modules(tree_unflatten(placed))
        return out

    def check(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules of a whole model by path. Raises `WeightsError`, as `apply`."""
        modules = dict(model.named_modules())
        for path, weights in self.layers.items():
            if not isinstance(modules.get(path), LINEAR):
                raise self._of_another(f"has a change of {path}, {_no_layer(path, modules)}")
            if (shape := shape_of(modules[path])) != weights.shape:
                raise self._of_another(
                    f"has a change of {path} for a weight of {list(weights.shape)}, the model's has {list(shape)}"
                )
        for name, array in self.saved.items():
            path, _, leaf = name.rpartition(".")
            module = modules.get(path)
            own = None if module is None or isinstance(module, nn.QuantizedEmbedding) else module.get(leaf)
            if not isinstance(own, mx.array):
                raise self._of_another(f"holds {name}, {_no_layer(path, modules)}")
            quantised = leaf == "weight" and isinstance(module, nn.QuantizedLinear)
            wanted = [*shape_of(module)] if quantised and module is not None else [*own.shape]
            if wanted != [*array.shape]:
                raise self._of_another(f"holds {name} of {[*array.shape]}, the model's has {wanted}")
        return modules

    def _of_another(self, what: str) -> WeightsError:
        of = f" ({self.base})" if self.base else ""
        return WeightsError(f"{self.folder}: {what}; the adapter is of another model{of}, load it with that one")


def _no_layer(path: str, modules: Iterable[str]) -> str:
    return "which is no linear layer" if path in set(modules) else "which the model does not have"
