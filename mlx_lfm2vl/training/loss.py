"""The loss of a batch, of each answers' token and in float32: cross-entropy; of rows to answer as before the divergence
from what the untrained model says there (Li and Hoiem, Learning without Forgetting, 2016)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.outputs import ImageFeatures
from .examples import TrainingBatch
from .prepare import Untrained

Gradients = dict[str, Any]  # a tree, as the model's trainable parameters


def answer_logits(model: Lfm2VlForConditionalGeneration, batch: TrainingBatch) -> mx.array:
    """(n, vocabulary) float32: logits of the positions that predict an answer's token, in the order of `targets`."""
    output: Any = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        spatial_shapes=batch.spatial_shapes,
        image_outputs=None if batch.image_features is None else ImageFeatures([], [*batch.image_features]),
        use_cache=False,
        logits_to_keep=batch.predicting,
    )
    logits: mx.array = output.logits.astype(mx.float32)
    return logits


def loss_sum(
    model: Lfm2VlForConditionalGeneration,
    batch: TrainingBatch,
    untrained_logits: mx.array | None = None,
    keep_weight: float = 1.0,
) -> mx.array:
    """The sum over the answers' tokens: a mean would weigh the tokens of short batches more than those of long ones.

    Args:
        model: in training.
        batch: its rows.
        untrained_logits: (n, vocabulary) float32, those of the model before the training, where rows are kept.
        keep_weight: how much the divergence counts beside cross-entropy.
    """
    logits = answer_logits(model, batch)
    losses = nn.losses.cross_entropy(logits, mx.array(batch.targets))
    if untrained_logits is None:
        return losses.sum()
    before, after = (each - mx.logsumexp(each, axis=-1, keepdims=True) for each in (untrained_logits, logits))
    divergence = (mx.exp(before) * (before - after)).sum(axis=-1)
    return mx.where(mx.array(batch.kept_targets), keep_weight * divergence, losses).sum()


def gradients(
    model: Lfm2VlForConditionalGeneration,
    batches: list[TrainingBatch],
    untrained: Untrained | None = None,
    keep_weight: float = 1.0,
) -> tuple[mx.array, Gradients]:
    """The mean loss of all answers' tokens of some batches, and its gradients: those of one batch of all their rows.
    `untrained` (of `prepare`) is needed where rows are kept, whose loss counts `keep_weight` times."""
    compute = nn.value_and_grad(model, lambda batch, before: loss_sum(model, batch, before, keep_weight))
    total: mx.array | None = None
    summed: Gradients = {}
    for batch in batches:
        before: mx.array | None = None
        if batch.kept is not None:
            assert untrained is not None
            with untrained:
                before = answer_logits(model, batch)
                mx.eval(before)
        loss, grads = compute(batch, before)
        summed = grads if total is None else tree_map(mx.add, summed, grads)
        total = loss if total is None else total + loss
        mx.eval(total, summed)
    assert total is not None
    count = sum(len(batch.targets) for batch in batches)
    return total / count, tree_map(lambda grad: grad / count, summed)
