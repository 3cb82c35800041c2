"""The result of compat's processors: arrays by name that `to` casts and moves, as transformers' `BatchFeature` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ..errors import OptionError
from ..processing.processor import ProcessorOutput
from . import tensors


class BatchFeature(ProcessorOutput):
    """Arrays by name, also readable as attributes. Ready for `model(**features)` and `model.generate(**features)`."""

    @property
    def data(self) -> dict[str, Any]:
        """Itself."""
        return self

    @classmethod
    def of(cls, data: Mapping[str, Any], return_tensors: str | None) -> Self:
        """The entries of `data` as arrays. With None rows of ids stay lists, and pictures NumPy arrays."""
        made = cls(data)
        for name in ("plans", "image_spans"):
            if hasattr(data, name) and name not in data:
                setattr(made, name, getattr(data, name))
        return made if return_tensors is None else made.convert_to_tensors(return_tensors)

    def convert_to_tensors(self, tensor_type: Any = None, skip_tensor_conversion: Any = None) -> Self:
        """Makes arrays of all entries, in place. Raises `OptionError` for rows of different lengths."""
        kind = tensors.check_return_tensors(tensor_type)
        if kind is not None:
            for name, value in self.items():
                if name in (skip_tensor_conversion or ()):
                    continue
                if isinstance(value, list) and len({len(row) for row in value if isinstance(row, list)}) > 1:
                    lengths = ", ".join(str(len(row)) for row in value)
                    raise OptionError(
                        f"{name}: the samples have different lengths ({lengths}); pass padding=True, or "
                        "return_tensors=None for lists"
                    )
                self[name] = tensors.tensor(value, kind)
        return self

    def to(self, *arguments: Any, **named: Any) -> Self:
        """Casts and moves all arrays, in place.

        Args:
            arguments: a device, a dtype, or both in that order. A device is a name, or one of torch's or MLX's. MLX's
                memory is one, so only tensors of torch move. A dtype is a name, or one of torch's, NumPy's or MLX's. It
                is for floating-point arrays.
            named: `device`, `dtype` (or `torch_dtype`), `non_blocking`.

        Raises:
            OptionError: for what is neither.
        """
        device, dtype = tensors.device_and_dtype(arguments, named)
        for name, value in self.items():
            if device is not None:
                value = tensors.move(value, device)
            self[name] = value if dtype is None else tensors.cast(value, dtype)
        return self
