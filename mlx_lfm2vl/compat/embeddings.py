"""The table of embeddings and the head of a model, called with arrays of every kind."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backends.thread_state import computing
from ..errors import InputError
from . import tensors


class Embeddings:
    """A module of a model that has its `weight` (vocabulary, hidden); all attributes are those of MLX's `module`."""

    module: nn.Module

    def __init__(self, module: nn.Module):
        object.__setattr__(self, "module", module)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "module"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.module, name, tensors.to_mlx(value))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.module is self.module  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), id(self.module)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_embeddings}, {self.embedding_dim})"

    @property
    def num_embeddings(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.module.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Numbers of an embedding."""
        if isinstance(self.module, (nn.QuantizedEmbedding, nn.QuantizedLinear)):
            return int(self.module.scales.shape[-1] * self.module.group_size)
        return int(self.module.weight.shape[-1])


class InputEmbeddings(Embeddings):
    """A model's table of embeddings: ids (...) to embeddings (..., hidden)."""

    @computing
    def __call__(self, input: Any) -> Any:
        """Embeddings of the kind of `input`, torch's or MLX's. Raises `InputError` for an id that has none."""
        ids = np.array(tensors.to_mlx(input))
        if not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"ids are {ids.dtype}, expected whole numbers")
        if (wrong := ids[(ids < 0) | (ids >= self.num_embeddings)]).size:
            raise InputError(f"ids hold {wrong[0]}; the model's vocabulary has ids 0 to {self.num_embeddings - 1}")
        return tensors.as_kind_of(input, self.module(mx.array(ids.astype(np.int32))))


class OutputEmbeddings(Embeddings):
    """A model's head, of its own or tied to the table of embeddings: hidden states (..., hidden) to logits
    (..., vocabulary)."""

    @computing
    def __call__(self, input: Any) -> Any:
        """Logits of the kind of `input`, torch's or MLX's."""
        tied = isinstance(self.module, (nn.Embedding, nn.QuantizedEmbedding))
        call = self.module.as_linear if tied else self.module
        return tensors.as_kind_of(input, call(mx.array(tensors.to_mlx(input))))
