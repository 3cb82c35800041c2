"""The memory that a training takes, computed before it begins.

Weights as they are loaded; of each number that is trained the weight, its gradient and AdamW's two moments, in float32.
For the way back, of each token and layer: 12 hidden sizes and 5 feed-forward widths; with checkpointing one hidden
size, and the rest of one layer at a time. The scores of attention, in float32, twice: the way back writes them down.
Three times the logits of the answers' tokens, five times those of kept rows. A pass of the vision tower, which keeps
nothing while it is frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ..backends.memory import free_memory
from ..errors import OutOfMemoryError
from ..generation.options import number_type
from ..models.lfm2_vl import Lfm2VlForConditionalGeneration
from ..models.siglip2 import PATCHES_PER_PASS
from ..weights.names import parameters
from .examples import Example
from .options import TrainingOptions
from .prepare import trainable

TRAINED = 16  # bytes of a number that is trained
HIDDEN, FEED_FORWARD = 12, 5  # arrays of a layer that are kept, of each width


class RowSize(NamedTuple):
    """The tokens of a row, how many whole tokens' logits it takes at once, and the patches of its pictures."""

    tokens: int
    logits: int
    patches: int

    @classmethod
    def of(cls, example: Example) -> RowSize:
        answers = int((example.labels >= 0).sum())
        return cls(len(example.ids), (5 if example.kept else 3) * answers, example.patches)


def training_bytes(model: Lfm2VlForConditionalGeneration, options: TrainingOptions, rows: list[RowSize]) -> int:
    """About so much memory in all, for the largest batch that the rows may make."""
    text, vision = model.config.text_config, model.config.vision_config
    size = number_type(model).size
    weights = sum(array.nbytes for array in parameters(model).values())
    trained = trainable(model)
    together = min(options.batch_size, len(rows))
    longest = max(row.tokens for row in rows)
    tokens = together * longest
    layer = tokens * (HIDDEN * text.hidden_size + FEED_FORWARD * text.feed_forward_size) * size
    scores = 2 * tokens * longest * text.num_attention_heads * 4
    attentions = text.attention_layers
    if options.grad_checkpoint:
        kept = text.num_hidden_layers * tokens * text.hidden_size * size + layer + scores
    else:
        kept = text.num_hidden_layers * layer + attentions * scores
    logits = sum(sorted(row.logits for row in rows)[-together:])
    patches = max(row.patches for row in rows)
    one_pass = min(together * patches, PATCHES_PER_PASS)
    tower = one_pass * (4 * vision.hidden_size + vision.intermediate_size) * size
    if any(name.startswith("model.vision_tower.") for name in trained):
        tower = together * patches * (HIDDEN * vision.hidden_size + 3 * vision.intermediate_size) * size
        tower *= vision.num_hidden_layers
    numbers = sum(array.size for array in trained.values())
    return weights + TRAINED * numbers + kept + logits * text.vocab_size * mx.float32.size + tower


def check_training(needed: int) -> None:
    """Raises `OutOfMemoryError` if so many bytes will not fit beside what is loaded, with the way out."""
    free = free_memory()
    if free is not None and needed > free + mx.get_active_memory():
        raise OutOfMemoryError(
            f"the training takes about {needed / 1e9:.3g} GB, and {(free + mx.get_active_memory()) / 1e9:.3g} GB are "
            "there; use a smaller batch_size with grad_accumulation_steps, grad_checkpoint, fewer image tokens, or a "
            "quantised model"
        )
