"""The parameters of transformers' models: names, counts, dtype, device; and changes of the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backends.thread_state import computing
from ..errors import InputError, OptionError
from ..weights.finite import check_finite
from ..weights.load import DTYPES
from ..weights.names import is_conv_kernel, parameters, turned
from ..weights.quantize import parameter_count
from . import tensors
from .not_offered import MODEL, NotOffered, way_out

INITIAL_SCALE = 0.02  # of new embeddings, where they are random


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


class ModelMethods(nn.Module):
    """For a model with a `language_model`, or with a `model` that has one."""

    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_ids"
    config: Any
    backend: str

    @property
    def lm_head(self) -> OutputEmbeddings:
        """As `get_output_embeddings`."""
        if (head := self.get_output_embeddings()) is None:
            raise AttributeError(way_out(self, "lm_head", MODEL))
        return head

    def __delattr__(self, name: str) -> None:
        if name != "lm_head" or name in self:  # MLX deletes an attribute that is no item before it sets the item
            super().__delattr__(name)

    @property
    def device(self) -> tensors.Device:
        """Where it computes, as torch spells it: "mps", "cuda" or "cpu"."""
        return tensors.current_device()

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype that the layers compute in."""
        return self.get_decoder().embedding_norm.weight.dtype  # type: ignore[no-any-return]

    def configured(self, others: Mapping[str, Any]) -> Self:
        """Itself, with a configuration that says `others`, and its dtype, as transformers' does of loaded weights."""
        self._set_config(self.config.changed(**others, dtype=str(self.dtype).removeprefix("mlx.core.")))
        return self

    @property
    def name_or_path(self) -> str:
        """The name by which it was loaded."""
        return str(self.config.name_or_path)

    @property
    def base_model(self) -> Any:
        return getattr(self, "model", self)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters are; packed ones count as what they stand for."""
        return parameter_count(self, (nn.Embedding, nn.QuantizedEmbedding) if exclude_embeddings else ())

    @computing
    def state_dict(self) -> dict[str, mx.array]:
        """The parameters by name, as transformers names and turns them; a head that is tied has its name too."""
        state = dict(self.named_parameters())
        if "model" in self and "lm_head" not in self:
            table = "model.language_model.embed_tokens."
            head = {f"lm_head.{name[len(table) :]}": array for name, array in state.items() if name.startswith(table)}
            state |= head
        mx.eval(state)  # for any thread
        return state

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, mx.array]]:
        """The parameters with their names, as transformers names and turns them. (`parameters` is MLX's, nested.)"""
        for name, array in parameters(self).items():
            own = turned(array) if is_conv_kernel(name) else array
            yield f"{prefix}.{name}" if prefix else name, own

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """The bytes of the parameters."""
        return sum(array.nbytes for array in parameters(self).values())

    def can_generate(self) -> bool:
        """Whether it has `generate`."""
        return hasattr(self, "generate")

    def get_decoder(self) -> Any:
        """The language model, MLX's module."""
        return self.base_model.language_model

    def get_input_embeddings(self) -> InputEmbeddings:
        """The table of embeddings; a call with ids (B, L) gives (B, L, hidden)."""
        return InputEmbeddings(self.get_decoder().embed_tokens)

    def set_input_embeddings(self, table: Embeddings | nn.Module) -> None:
        """Puts another table in its place."""
        self.get_decoder().embed_tokens = table.module if isinstance(table, Embeddings) else table

    def get_output_embeddings(self) -> OutputEmbeddings | None:
        """The head, of its own or tied to the table of embeddings; None for a model without one. Also `lm_head`."""
        if "model" not in self:
            return None
        tied = "lm_head" not in self
        return OutputEmbeddings(self.get_decoder().embed_tokens if tied else self["lm_head"])

    def tie_weights(self) -> None:
        """Nothing: a head that is tied has no weights of its own."""

    @computing
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> InputEmbeddings:
        """Makes room for more tokens, or takes the last ones away, in table and head.

        Args:
            new_num_tokens: None is as many as there are.
            pad_to_multiple_of: rounds up to a multiple.
            mean_resizing: new tokens get the mean of the others; else small random numbers.

        Returns:
            The table.

        Raises:
            OptionError: for a quantised table, or a number that leaves out the image token.
        """
        table = self.get_input_embeddings()
        if not isinstance(table.module, nn.Embedding):
            raise OptionError("a quantised table of embeddings cannot be resized; load a dense checkpoint")
        old = table.num_embeddings
        size = old if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if isinstance(size, bool) or not isinstance(size, int) or size <= self.config.image_token_id:
            raise OptionError(
                f"new_num_tokens is {size!r}, expected more than image_token_id {self.config.image_token_id}"
            )
        if size != old:
            head = self.get_output_embeddings() or table
            for module in [table.module] if head.module is table.module else [table.module, head.module]:
                module.weight = _resized(module.weight, size, mean_resizing)
            self._set_config(self.config.changed(text_config=replace(self.config.text_config, vocab_size=size)))
        return table

    @computing
    def to(self, *arguments: Any, **named: Any) -> Self:
        """Casts the model to a dtype; a device is checked and changes nothing, as memory is unified. On the backend
        numpy it casts to float32 alone. Raises `OptionError`, and `NotFiniteError` for numbers beyond the range of
        float16."""
        _, name = tensors.device_and_dtype(arguments, named)
        if name is None:
            return self
        if name not in DTYPES:
            raise OptionError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}")
        if DTYPES[name] != self.dtype:
            if getattr(self, "backend", None) == "numpy" and name != "float32":
                raise OptionError(f"the backend numpy computes in float32; load the model with dtype={name!r}")
            if name == "float16":
                for each, array in parameters(self).items():
                    if mx.issubdtype(array.dtype, mx.floating):
                        check_finite(each, array.astype(mx.float16), "use bfloat16 or float32")
            self.set_dtype(DTYPES[name])
            self._set_config(self.config.changed(dtype=name))
        return self

    def half(self) -> Self:
        """In float16; see `to`."""
        return self.to("float16")

    def bfloat16(self) -> Self:
        """In bfloat16; see `to`."""
        return self.to("bfloat16")

    def float(self) -> Self:
        """In float32; see `to`."""
        return self.to("float32")

    def cpu(self) -> Self:
        """Itself: memory is unified. As `to("cpu")`, `cuda` and `to("mps")`, it chooses no device."""
        return self

    def cuda(self, device: Any = None) -> Self:
        """Itself; see `cpu`."""
        return self

    def _set_config(self, config: Any) -> None:
        self.config = self.base_model.config = config
        self.get_decoder().config = config.text_config


for _name in MODEL:
    setattr(ModelMethods, _name, NotOffered(_name, MODEL))


def _resized(weight: mx.array, size: int, mean: bool) -> mx.array:
    """(old, hidden) -> (size, hidden): cut, or with new rows."""
    old, hidden = weight.shape
    if size <= old:
        return mx.contiguous(weight[:size])
    new = mx.random.normal((size - old, hidden), scale=INITIAL_SCALE)
    if mean:
        new = mx.broadcast_to(weight.astype(mx.float32).mean(axis=0), new.shape)
    return mx.concatenate([weight, new.astype(weight.dtype)])
