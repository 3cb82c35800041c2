"""Rows to arrays: ids, labels of the answers alone, patches; and several of them to a batch.

Prompt and answer are tokenised apart, as they are when a model answers: what it is trained on is what it will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import Lfm2VlError, PromptError
from ..generation.options import positions_left
from ..generation.request import rendered
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.logits import IGNORED_LABEL
from ..processing.control_tokens import unmarked
from ..processing.processor import Lfm2VlProcessor
from ..processing.prompt import pictures_of, with_page_items
from .rows import TrainingRow


@dataclass(frozen=True, eq=False)
class Example:
    """A row as arrays: `ids` (n,), `labels` (n,) with -100 but at answers, `pixel_values` (views, patches, width) and
    `spatial_shapes` (views, 2) of its pictures; `kept` as in `TrainingRow`."""

    ids: np.ndarray
    labels: np.ndarray
    pixel_values: np.ndarray
    spatial_shapes: np.ndarray
    kept: bool = False

    @property
    def patches(self) -> int:
        """The patches of all its views."""
        return int(self.spatial_shapes.prod(axis=1).sum())


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Examples side by side, padded on the right. `input_ids`, `attention_mask` and `labels` are (B, L); the views of
    all pictures lie one after another, and the tower runs them without padding. `image_features` are their image
    tokens, (tokens, hidden) each, where these are known already. `kept` (B,) bool are rows to answer as before; None
    without any."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray
    pixel_values: np.ndarray | None = None
    spatial_shapes: np.ndarray | None = None
    image_features: Sequence[mx.array] | None = None
    kept: np.ndarray | None = None

    @property
    def predicting(self) -> np.ndarray:
        """(B, L) bool: the positions whose next token is an answer's."""
        mask = np.zeros(self.labels.shape, bool)
        mask[:, :-1] = self.labels[:, 1:] != IGNORED_LABEL
        return mask

    @property
    def targets(self) -> np.ndarray:
        """(n,) ids of the answers' tokens, in the order of `predicting`."""
        labels: np.ndarray = self.labels[:, 1:]
        return labels[labels != IGNORED_LABEL]

    @property
    def kept_targets(self) -> np.ndarray:
        """(n,) bool: which of `targets` are of rows to answer as before."""
        kept = np.zeros(len(self.labels), bool) if self.kept is None else self.kept
        return kept[np.nonzero(self.predicting)[0]]


def encode_row(
    model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, row: TrainingRow, **image_overrides: Any
) -> Example:
    """The arrays of a row. Raises the library's typed errors, which name the row."""
    try:
        return _encode(model, processor, row, image_overrides)
    except Lfm2VlError as error:
        raise type(error)(f"{row.where}: {error}") from None


def _encode(
    model: Lfm2VlForConditionalGeneration, processor: Lfm2VlProcessor, row: TrainingRow, overrides: dict[str, Any]
) -> Example:
    policy, tokenizer = processor.image_processor.source_policy, processor.tokenizer
    ((messages,), _) = with_page_items([row.messages], None, policy)
    ids: list[int] = []
    labels: list[int] = []
    pixels: list[np.ndarray] = []
    shapes: list[np.ndarray] = []
    known, begun = "", 0  # the text so far, and the first message that is not in it
    end = unmarked(str(tokenizer.eos_token))
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(processor, messages[:number], None, False)
        whole = rendered(processor, messages[: number + 1], None, False)
        if not before.startswith(known) or not whole.startswith(before):
            raise PromptError("the chat template changes earlier turns; give each answer a row of its own")
        (pictures,) = pictures_of([messages[begun:number]], None, policy)
        asked = processor.encode_text(before[len(known) :], pictures, marked=True, **overrides)
        ended = end.search(whole, len(before))
        if ended is None:
            raise PromptError(f"the chat template does not end an answer with {tokenizer.eos_token}")
        answer = tokenizer.encode_marked(whole[len(before) : ended.end()])
        ids += [*asked.ids.tolist(), *answer]
        labels += [*[IGNORED_LABEL] * len(asked.ids), *answer]
        if pictures:
            pixels.append(asked.images["pixel_values"])
            shapes.append(asked.images["spatial_shapes"])
        known, begun = whole[: ended.end()], number + 1
    positions_left(model, len(ids) - 1, bool(pixels))
    return Example(
        np.array(ids, np.int64),
        np.array(labels, np.int64),
        _stacked(pixels) if pixels else np.zeros((0, 0, model.config.vision_config.patch_width), np.float32),
        np.concatenate(shapes) if shapes else np.zeros((0, 2), np.int64),
        row.kept,
    )


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Views (views, patches, width) of several arrays in one, patches padded with zeros."""
    most = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, most - part.shape[1]), (0, 0))) for part in parts])


def collate(examples: Sequence[Example], pad: int, image_features: Sequence[mx.array] | None = None) -> TrainingBatch:
    """The examples as a batch, in their order. `pad`: the id at places that nothing sees. `image_features` in place of
    the examples' patches."""
    length = max(len(example.ids) for example in examples)
    shape = (len(examples), length)
    ids, mask, labels = np.full(shape, pad), np.zeros(shape, np.int64), np.full(shape, IGNORED_LABEL)
    for row, example in enumerate(examples):
        count = len(example.ids)
        ids[row, :count], mask[row, :count], labels[row, :count] = example.ids, 1, example.labels
    shown = [example for example in examples if len(example.spatial_shapes)]
    kept = np.array([example.kept for example in examples])
    batch = TrainingBatch(ids, mask, labels, kept=kept if kept.any() else None)
    if image_features is not None:
        return replace(batch, image_features=image_features or None)
    if not shown:
        return batch
    return replace(
        batch,
        pixel_values=_stacked([example.pixel_values for example in shown]),
        spatial_shapes=np.concatenate([example.spatial_shapes for example in shown]),
    )
