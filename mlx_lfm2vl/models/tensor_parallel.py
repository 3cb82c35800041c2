"""Tensor parallelism: a network of which each rank of a group holds and computes a part, with the same result in all.

Attention is cut by heads, feed-forwards and short convolutions by channels, embeddings and head by the vocabulary, each
by layers of `mlx.nn.layers.distributed` where there are some. What does not divide by the ranks stays whole. A
parameter that is cut is cut in the file, too: `shard` says where. A quantised layer with an adapter beside it
(`lora_a`, `lora_b`) is cut with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace, shard_linear

from .lfm2 import Lfm2Attention, Lfm2MLP, Lfm2ShortConv
from .lfm2_vl import Lfm2VlMultiModalProjector
from .lfm3 import Lfm3Attention, Lfm3MLP
from .lfm3_vision import Lfm3VlMultiModalProjector, Lfm3VlVisionAttention, Lfm3VlVisionShortConv
from .siglip2 import Siglip2Attention, Siglip2MLP

OUT, IN = "all-to-sharded", "sharded-to-all"  # cut by outputs, or by inputs, whose partial sums are added up
ATTENTION = {"q_proj": OUT, "k_proj": OUT, "v_proj": OUT, "gate_proj": OUT, "out_proj": IN, "o_proj": IN}
SWIGLU = {"w1": OUT, "w3": OUT, "w2": IN}
MLP = {"fc1": OUT, "fc2": IN}
PROJECTOR = {"linear_1": OUT, "linear_2": IN}
CONV = {"in_proj": OUT, "out_proj": IN}
LINEARS: dict[type[nn.Module], dict[str, str]] = {  # a module has those of its kind's linear layers that it has
    **dict.fromkeys((Lfm2Attention, Lfm3Attention, Siglip2Attention, Lfm3VlVisionAttention), ATTENTION),
    **dict.fromkeys((Lfm2MLP, Lfm3MLP), SWIGLU),
    **dict.fromkeys((Siglip2MLP,), MLP),
    **dict.fromkeys((Lfm2VlMultiModalProjector, Lfm3VlMultiModalProjector), PROJECTOR),
    **dict.fromkeys((Lfm2ShortConv, Lfm3VlVisionShortConv), CONV),
}
KERNELS: dict[type[nn.Module], str] = {Lfm2ShortConv: "conv", Lfm3VlVisionShortConv: "spatial_conv"}
SEGMENTS = {"in_proj": 3}  # outputs of three kinds behind each other
HEADS = ("num_heads", "num_kv_heads")


@dataclass(frozen=True)
class Cut:
    """Where a parameter is cut: along an axis, in each of so many segments that lie behind each other on it."""

    axis: int
    segments: int = 1

    def part(self, whole: mx.array, group: mx.distributed.Group) -> mx.array:
        """This rank's part."""
        segments = mx.split(whole, self.segments, self.axis)
        return mx.concatenate([mx.split(each, group.size(), self.axis)[group.rank()] for each in segments], self.axis)


def shard(model: nn.Module, group: mx.distributed.Group) -> dict[str, Cut]:
    """Makes a model that is not read yet this rank's part of it. Returns the cuts of its parameters, by name."""
    cuts: dict[str, Cut] = {}
    for path, module in model.named_modules():
        if (kinds := LINEARS.get(type(module))) is not None:
            linears = {name: sharding for name, sharding in kinds.items() if name in module}
            if not _divides(module, linears, group.size()):
                continue
            for name, sharding in linears.items():
                cuts |= _shard_linear(module, name, f"{path}.{name}", sharding, group)
            for name in HEADS:
                if hasattr(module, name):
                    setattr(module, name, getattr(module, name) // group.size())
            if (kernel := KERNELS.get(type(module))) is not None:
                cuts |= _cuts(f"{path}.{kernel}", module[kernel], OUT)
                shard_inplace(module[kernel], lambda *_: 0, group=group)
        elif (
            path.endswith(("embed_tokens", "lm_head"))
            and type(module) in BY_VOCABULARY
            and module.weight.shape[0] % group.size() == 0
        ):
            cuts |= _cuts(path, module, OUT)
            shard_inplace(module, lambda *_: 0, group=group)
            module.__class__ = BY_VOCABULARY[type(module)]
            module.group = group
    return cuts


def _shard_linear(
    module: nn.Module, name: str, path: str, sharding: str, group: mx.distributed.Group
) -> dict[str, Cut]:
    """Cuts a linear layer of a module; the cuts of its parameters."""
    layer, segments = module[name], SEGMENTS.get(name, 1)
    if "lora_a" not in layer:
        module[name] = shard_linear(layer, sharding, segments=segments, group=group)
        return _cuts(path, layer, sharding, segments)
    cuts = _cuts(f"{path}.linear", layer.linear, sharding, segments)
    layer.linear = shard_linear(layer.linear, sharding, segments=segments, group=group)
    own = {"lora_a": Cut(0)}
    if sharding == IN:
        layer.group = group
    else:
        own = {"lora_b": Cut(1, segments)} | ({"gain": Cut(0, segments)} if "gain" in layer else {})
    for part, cut in own.items():
        layer[part] = cut.part(layer[part], group)
        cuts[f"{path}.{part}"] = cut
    return cuts


def _divides(module: nn.Module, linears: dict[str, str], ranks: int) -> bool:
    """Whether all parameters of a block divide by the ranks, groups of quantised ones and heads too."""
    sizes = [getattr(module, name) for name in HEADS if hasattr(module, name)]
    for name, sharding in linears.items():
        layer = module[name].get("linear", module[name])  # within an adapter
        for parameter in ("weight", "scales"):
            if parameter in layer:
                shape = layer[parameter].shape
                sizes.append(shape[-1] if sharding == IN else shape[0] // SEGMENTS.get(name, 1))
    return all(size % ranks == 0 for size in sizes)


def _cuts(path: str, module: nn.Module, sharding: str, segments: int = 1) -> dict[str, Cut]:
    cut = Cut(0 if sharding == OUT else -1, segments)
    return {f"{path}.{name}": cut for name in module if sharding == OUT or name != "bias"}


class _ByVocabulary(nn.Module):
    """What is cut by the vocabulary, dense or quantised."""

    group: mx.distributed.Group

    def _gather(self, x: mx.array) -> mx.array:
        """(..., vocabulary / ranks) of each rank -> (..., vocabulary)."""
        parts = mx.moveaxis(mx.distributed.all_gather(x[None], group=self.group), 0, -2)
        return parts.reshape(*x.shape[:-1], -1)


class _Embedding(_ByVocabulary):
    def __call__(self, ids: mx.array) -> mx.array:
        """(...) -> (..., hidden): of each token from the rank that has it, zeros from the others."""
        count = self.weight.shape[0]
        local = ids.astype(mx.int32) - self.group.rank() * count
        own = (local >= 0) & (local < count)
        rows: Any = super().__call__(mx.where(own, local, 0))  # type: ignore[misc]
        return mx.distributed.all_sum(mx.where(own[..., None], rows, mx.zeros_like(rows)), group=self.group)

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., hidden) -> (..., vocabulary)."""
        return self._gather(super().as_linear(x))  # type: ignore[misc]


class _Head(_ByVocabulary):
    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden) -> (..., vocabulary)."""
        return self._gather(super().__call__(x))  # type: ignore[misc]


BY_VOCABULARY: dict[type[nn.Module], type[_ByVocabulary]] = {
    kind: type(f"Sharded{kind.__name__}", (part, kind), {})
    for part, kinds in ((_Embedding, (nn.Embedding, nn.QuantizedEmbedding)), (_Head, (nn.Linear, nn.QuantizedLinear)))
    for kind in kinds
}
