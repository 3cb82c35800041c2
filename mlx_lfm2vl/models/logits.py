"""The positions of a call that get logits, and the loss of all of them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import InputError

IGNORED_LABEL = -100


def keep_positions(hidden: mx.array, logits_to_keep: int | mx.array | np.ndarray) -> mx.array:
    """The hidden states that get logits: see `Lfm2VlForConditionalGeneration.__call__`."""
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep is {logits_to_keep}, expected 0 (all) or a positive count")
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    positions = np.array(logits_to_keep)
    length = hidden.shape[1]
    if positions.dtype != bool and positions.size and not -length <= positions.min() <= positions.max() < length:
        raise InputError(f"logits_to_keep asks for a position outside the {length} that there are")
    if positions.ndim == 1 and positions.dtype != bool:
        return hidden[:, mx.array(positions)]
    if positions.ndim == 2 and positions.dtype == bool and positions.shape == hidden.shape[:2]:
        return hidden.reshape(-1, hidden.shape[-1])[mx.array(np.flatnonzero(positions))]
    if positions.ndim == 2 and positions.shape[0] == hidden.shape[0]:
        return mx.take_along_axis(hidden, mx.array(positions)[..., None], axis=1)
    raise InputError(f"logits_to_keep has shape {positions.shape}, expected a count, (n,) or (batch, n)")


def next_token_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Mean cross-entropy of logits (B, L, V) at t against labels (B, L) at t + 1, labels of -100 left out (if all
    are, it is NaN, as in the reference)."""
    if labels.shape != logits.shape[:2]:
        raise InputError(f"labels has shape {tuple(labels.shape)}, the logits {tuple(logits.shape[:2])}")
    values, vocabulary = np.array(labels), logits.shape[-1]
    wrong = values[(values != IGNORED_LABEL) & ((values < 0) | (values >= vocabulary))]
    if wrong.size:
        raise InputError(f"labels holds {wrong[0]}, expected ids 0 to {vocabulary - 1}, or {IGNORED_LABEL} to ignore")
    logits, labels = logits[:, :-1].astype(mx.float32), labels[:, 1:]
    counted = labels != IGNORED_LABEL
    losses = nn.losses.cross_entropy(logits, mx.where(counted, labels, 0))
    return (losses * counted).sum() / counted.sum()
