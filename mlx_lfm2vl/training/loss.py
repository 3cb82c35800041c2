"""The loss of a batch: cross-entropy of the answers' tokens, in float32."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.outputs import ImageFeatures
from .examples import TrainingBatch

Gradients = dict[str, Any]  # a tree, as the model's trainable parameters


def loss_sum(model: Lfm2VlForConditionalGeneration, batch: TrainingBatch) -> mx.array:
    """The sum over the answers' tokens: a mean would weigh the tokens of short batches more than those of long ones.
    Only positions that predict one get logits."""
    output: Any = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        spatial_shapes=batch.spatial_shapes,
        image_outputs=None if batch.image_features is None else ImageFeatures([], [*batch.image_features]),
        use_cache=False,
        logits_to_keep=batch.predicting,
    )
    return nn.losses.cross_entropy(output.logits.astype(mx.float32), mx.array(batch.targets), reduction="sum")


def gradients(model: Lfm2VlForConditionalGeneration, batches: list[TrainingBatch]) -> tuple[mx.array, Gradients]:
    """The mean loss of all answers' tokens of some batches, and its gradients: those of one batch of all their rows."""
    compute = nn.value_and_grad(model, lambda batch: loss_sum(model, batch))
    total: mx.array | None = None
    summed: Gradients = {}
    for batch in batches:
        loss, grads = compute(batch)
        summed = grads if total is None else tree_map(mx.add, summed, grads)
        total = loss if total is None else total + loss
        mx.eval(total, summed)
    assert total is not None
    count = sum(len(batch.targets) for batch in batches)
    return total / count, tree_map(lambda grad: grad / count, summed)
