"""The dictionary that processors return: arrays by name, readable as attributes too."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OptionError

RETURN_TENSORS = ("np", None)


class BatchFeature(dict[str, Any]):
    """Named arrays of a batch; `features.input_ids` is `features["input_ids"]`. Ready for `model(**features)`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}; it has {', '.join(self) or 'nothing'}"
            ) from None


def check_return_tensors(return_tensors: Any) -> None:
    """Raises `OptionError` for anything but "np" and None."""
    if return_tensors not in RETURN_TENSORS:
        raise OptionError(
            f"return_tensors is {return_tensors!r}; this package returns NumPy arrays ('np', which the models take) or "
            "plain lists (None)"
        )


def as_array(rows: list[list[int]], name: str) -> np.ndarray:
    """Rows of equal length as an int64 array (rows, length). Raises `OptionError` if they are ragged."""
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise OptionError(
            f"{name}: the samples have different lengths ({lengths}); pass padding=True, or return_tensors=None for "
            "lists"
        )
    return np.array(rows, dtype=np.int64)
