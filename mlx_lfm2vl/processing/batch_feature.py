"""The result of processors: arrays by name, readable as attributes too; and rows of ids as such arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError

RETURN_TENSORS = ("np", None)
SIDES = ("left", "right")


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


@dataclass(frozen=True)
class TextOptions:
    """The keywords of `Tokenizer.__call__` and `Lfm2VlProcessor.__call__`.

    `padding`: False, True or "longest", or "max_length" (to `max_length`); the length is rounded up to a multiple of
    `pad_to_multiple_of`. `padding_side`: "left" or "right"; None means the tokenizer's. `truncation` cuts to
    `max_length`. `add_special_tokens`: whether the tokenizer adds those that its file says. `use_image_special_tokens`:
    whether markers stand around pictures; None means as the checkpoint says. `return_tensors`: "np", or None for lists.
    Raises `OptionError` for another.
    """

    padding: bool | str = False
    padding_side: str | None = None
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = False
    use_image_special_tokens: bool | None = None
    return_tensors: str | None = "np"

    def __post_init__(self) -> None:
        check_return_tensors(self.return_tensors)

    def batch(
        self, rows: Sequence[list[int]], sides: tuple[str, str], pad_id: Callable[[], int], masks: Sequence[list[int]]
    ) -> BatchFeature:
        """ "input_ids" and "attention_mask" of the rows, and "assistant_masks" of masks that belong to them, if any.

        Args:
            rows: ids of each text.
            sides: "left" or "right", of padding where no keyword says so, and of truncation.
            pad_id: gives the id of padding; called where there is any.
            masks: a number for each id, or none at all.

        Raises:
            OptionError: for keywords that contradict each other, or rows that differ in length and must not.
        """
        if self.truncation:
            if self.max_length is None:
                raise OptionError("truncation=True needs max_length")
            cut = slice(self.max_length) if sides[1] == "right" else slice(-self.max_length, None)
            rows, masks = [row[cut] for row in rows], [mask[cut] for mask in masks]
        side = self.padding_side or sides[0]
        if side not in SIDES:
            raise OptionError(f"padding_side is {self.padding_side!r}, expected 'left' or 'right'")
        length = self._length(rows)
        gaps = [max(length - len(row), 0) for row in rows]
        if self.return_tensors == "np" and len({len(row) + gap for row, gap in zip(rows, gaps, strict=True)}) > 1:
            lengths = ", ".join(str(len(row)) for row in rows)
            raise OptionError(
                f"input_ids: the samples have different lengths ({lengths}); pass padding=True, or return_tensors=None "
                "for lists"
            )
        columns = [("input_ids", rows, pad_id() if any(gaps) else 0)]
        columns.append(("attention_mask", [[1] * len(row) for row in rows], 0))
        columns += [("assistant_masks", masks, 0)] if masks else []
        features = BatchFeature()
        for name, values, fill in columns:
            pairs = [(row, [fill] * gap) for row, gap in zip(values, gaps, strict=True)]
            padded = [pad + row if side == "left" else row + pad for row, pad in pairs]
            features[name] = np.array(padded, dtype=np.int64) if self.return_tensors == "np" else padded
        return features

    def _length(self, rows: Sequence[list[int]]) -> int:
        """The length that rows are padded to; longer ones stay as they are."""
        if self.padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise OptionError(
                f"padding is {self.padding!r}, expected True, False, 'longest', 'max_length' or 'do_not_pad'"
            )
        length = 0
        if self.padding == "max_length":
            if self.max_length is None:
                raise OptionError("padding='max_length' needs max_length")
            length = self.max_length
        elif self.padding in (True, "longest"):
            length = max(map(len, rows), default=0)
        multiple = self.pad_to_multiple_of
        if multiple is not None:
            if not isinstance(multiple, int) or multiple < 1:
                raise OptionError(f"pad_to_multiple_of is {multiple!r}, expected an integer of at least 1")
            length = -(-length // multiple) * multiple
        return length
