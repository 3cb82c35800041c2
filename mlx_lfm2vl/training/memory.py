"""The memory that a training takes, computed before it begins.

Weights as they are loaded; of each number that is trained the weight, its gradient and AdamW's two moments, in float32.
For the way back, of each token and layer: 12 hidden sizes and 5 feed-forward widths; with checkpointing one hidden
size, and the rest of one layer at a time. The scores of attention, in float32, twice: the way back writes them down.
Three times the logits of the answers' tokens. A pass of the vision tower, which keeps nothing while it is frozen.
"""

from __future__ import annotations

import mlx.core as mx

from ..backends.memory import free_memory
from ..errors import OutOfMemoryError
from ..models.lfm2_vl import PATCHES_PER_PASS, Lfm2VlForConditionalGeneration
from ..weights.fit import number_type
from ..weights.names import parameters
from .examples import Example
from .options import TrainingOptions
from .prepare import trainable

TRAINED = 16  # bytes of a number that is trained
HIDDEN, FEED_FORWARD = 12, 5  # arrays of a layer that are kept, of each width


def training_bytes(model: Lfm2VlForConditionalGeneration, options: TrainingOptions, examples: list[Example]) -> int:
    """About so much memory in all. `examples`: the longest ones, as many as run together."""
    text, vision = model.config.text_config, model.config.vision_config
    size = number_type(model).size
    weights = sum(array.nbytes for array in parameters(model).values())
    trained = trainable(model)
    longest = max(len(example.ids) for example in examples)
    tokens = len(examples) * longest
    layer = tokens * (HIDDEN * text.hidden_size + FEED_FORWARD * text.feed_forward_size) * size
    scores = 2 * tokens * longest * text.num_attention_heads * 4
    attentions = text.attention_layers
    if options.grad_checkpoint:
        kept = text.num_hidden_layers * tokens * text.hidden_size * size + layer + scores
    else:
        kept = text.num_hidden_layers * layer + attentions * scores
    answers = sum(int((example.labels >= 0).sum()) for example in examples)
    patches = max(example.patches for example in examples)
    one_pass = min(len(examples) * patches, PATCHES_PER_PASS)
    tower = one_pass * (4 * vision.hidden_size + vision.intermediate_size) * size
    if any(name.startswith("model.vision_tower.") for name in trained):
        tower = len(examples) * patches * (HIDDEN * vision.hidden_size + 3 * vision.intermediate_size) * size
        tower *= vision.num_hidden_layers
    numbers = sum(array.size for array in trained.values())
    return weights + TRAINED * numbers + kept + 3 * answers * text.vocab_size * mx.float32.size + tower


def check_training(needed: int) -> None:
    """Raises `OutOfMemoryError` if so many bytes will not fit beside what is loaded, with the way out."""
    free = free_memory()
    if free is not None and needed > free + mx.get_active_memory():
        raise OutOfMemoryError(
            f"the training takes about {needed / 1e9:.3g} GB, and {(free + mx.get_active_memory()) / 1e9:.3g} GB are "
            "there; use a smaller batch_size with grad_accumulation_steps, grad_checkpoint, fewer image tokens, or a "
            "quantised model"
        )
