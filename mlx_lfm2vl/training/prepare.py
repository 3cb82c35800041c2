"""A loaded model to one in training: everything frozen but the adapter; and the adapter that it has learned."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..adapters.adapter import LINEAR, Adapter, LoRAWeights
from ..adapters.layers import DoRALinear, LoRALinear, dense_weight, shape_of
from ..errors import OptionError
from ..models.cache import LayerCache
from ..models.layers import Context
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..weights.names import from_module
from .options import TrainingOptions

PROJECTOR, VISION = "model.multi_modal_projector", ("vision_tower.", "multi_modal_projector.")


@functools.cache
def checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """The layers of a backbone, as ones that keep their input alone for the way back, and compute the rest again (Chen
    et al., 2016)."""

    def call(
        self: nn.Module,
        x: mx.array,
        context: Context,
        cache: LayerCache | None = None,
        query_context: Context | None = None,
        attentions: list[mx.array] | None = None,
    ) -> mx.array:
        plain = functools.partial(kind.__call__, self)
        if cache is not None or attentions is not None:
            return plain(x, context, cache, query_context, attentions)

        def run(parameters: dict[str, Any], x: mx.array) -> mx.array:
            self.update(parameters)
            return plain(x, context, None, query_context)

        made: mx.array = mx.checkpoint(run)(self.trainable_parameters(), x)
        return made

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call})


@dataclass(frozen=True)
class Untrained:
    """A model in training without what it learns, while a `with` block runs."""

    model: Lfm2VlForConditionalGeneration
    layers: list[tuple[str, nn.Module]]
    trained: list[tuple[str, nn.Module]]

    def __enter__(self) -> None:
        self.model.update_modules(tree_unflatten(self.layers))
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.update_modules(tree_unflatten(self.trained))
        self.model.train()


def prepare(model: Lfm2VlForConditionalGeneration, options: TrainingOptions) -> Untrained:
    """Freezes a model and puts LoRA or DoRA layers around the linear layers that the options name.

    Args:
        model: of the backend mlx, dense or quantised.
        options: what is trained. The first weights come of its seed.

    Returns:
        The model as it was.

    Raises:
        OptionError: a pattern matches no linear layer.
    """
    model.freeze()
    mx.random.seed(options.seed)
    kind = DoRALinear if options.dora else LoRALinear
    modules = dict(model.named_modules())
    placed: list[tuple[str, nn.Module]] = [
        (path, kind.around(modules[path], options.rank, options.scale, options.dropout))
        for path in chosen_modules(model, options.modules)
    ]
    if options.projector:
        if twice := next((path for path, _ in placed if path.startswith(PROJECTOR)), None):
            raise OptionError(f"projector trains {twice} whole, and modules names it too; leave one of them out")
        kinds = (*LINEAR, nn.LayerNorm)
        own = {path: module for path, module in modules.items() if path.startswith(f"{PROJECTOR}.")}
        placed += [(path, _dense(module)) for path, module in own.items() if isinstance(module, kinds)]
    model.update_modules(tree_unflatten(placed))
    for _, layer in placed:
        if isinstance(layer, LoRALinear):
            layer.unfreeze(recurse=False, keys=["lora_a", "lora_b", "m"])
        else:
            layer.unfreeze()
    if options.grad_checkpoint:
        for layer in model.model.language_model.layers:
            layer.__class__ = checkpointed(type(layer))
    model.train()
    mx.eval(model.parameters())
    return Untrained(model, [(path, modules[path]) for path, _ in placed], placed)


def chosen_modules(model: Lfm2VlForConditionalGeneration, patterns: tuple[str, ...]) -> list[str]:
    """Paths of the linear layers that patterns match, sorted. Raises `OptionError`."""
    names = {
        path: from_module(path, "mlx")
        for path, module in model.named_modules()
        if isinstance(module, LINEAR) and path != "lm_head"
    }
    chosen: set[str] = set()
    for pattern in patterns:
        vision = pattern.startswith(VISION)
        found = {path for path, name in names.items() if vision is name.startswith(VISION)}
        found = {path for path in found if fnmatchcase(names[path], pattern)}
        if not found:
            examples = ", ".join(sorted(set(names.values()))[:2])
            raise OptionError(f"modules {pattern!r} matches no linear layer; there are {examples} ...")
        chosen |= found
    return sorted(chosen)


def _dense(module: nn.Module) -> nn.Module:
    """A module of the projector in float32, in which small steps are not lost."""
    made: nn.Module
    if isinstance(module, nn.LayerNorm):
        made, parts = nn.LayerNorm(module.dims, eps=module.eps, bias="bias" in module), module.parameters()
    else:
        rows, width = shape_of(module)
        made = nn.Linear(width, rows, bias="bias" in module)
        parts = {"weight": dense_weight(module), **({"bias": module.bias} if "bias" in module else {})}
    made.update({name: array.astype(mx.float32) for name, array in parts.items()})
    return made


def trainable(model: nn.Module) -> dict[str, mx.array]:
    """The parameters that are trained, by name."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.trainable_parameters())))


def learned(model: Lfm2VlForConditionalGeneration, output: Path, base: str) -> Adapter:
    """The adapter of a model in training. `base`: the name of the model below it."""
    layers, inside = {}, []
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            layers[path] = LoRAWeights(module.lora_a, module.lora_b, module.scale, module.get("m"))
            inside.append(f"{path}.")
    saved = {name: array for name, array in trainable(model).items() if not name.startswith(tuple(inside))}
    return Adapter(output, (), layers, saved, base)
