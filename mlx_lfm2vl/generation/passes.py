"""The part of the model that runs between two looks at whether a request was cancelled.

On a GPU nothing waits for the device within a piece of work, so a cancel waits for the piece that was started. A piece
is a chunk of a prompt, or some views through some layers of the vision tower. Its size follows from the model's
arithmetic: two floating-point operations for each weight and token, four for each channel of a query and a key. It is
at most `PIECE_FLOPS`, which an M1 takes about 110 ms for, by calculation: its GPU is published with 2.6 TFLOP/s in
float32, of which three quarters, 2 TFLOP/s, are assumed. A faster GPU takes less.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import TextConfig, VisionConfig
from ..models.siglip2 import PATCHES_PER_PASS
from ..weights.fit import LONGEST_CHUNK

PIECE_FLOPS = 2.2e11
GRANULE = 32  # tokens: chunks are multiples of it


def token_flops(config: TextConfig, keys: int) -> float:
    """Operations of the backbone for a token that sees so many keys."""
    hidden, attention = config.hidden_size, config.attention_layers
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    convolutions = config.num_hidden_layers - attention
    weights = config.num_hidden_layers * 3 * hidden * config.feed_forward_size
    weights += convolutions * 4 * hidden * hidden
    weights += attention * 2 * hidden * config.head_dim * (heads + kv_heads)
    return 2.0 * weights + 4.0 * config.keys_kept(keys) * heads * config.head_dim


def layer_flops(config: VisionConfig, patches: int, keys: int) -> float:
    """Operations of a layer of the vision tower for patches that each see so many keys."""
    return patches * (2.0 * config.layer_weights + 4.0 * keys * config.hidden_size)


def prefill_chunk(config: TextConfig, rows: int, past: int) -> int:
    """Tokens of each of `rows` prompts that are run together, behind `past` others."""
    flops = rows * token_flops(config, past + LONGEST_CHUNK)
    return max(GRANULE, min(LONGEST_CHUNK, int(PIECE_FLOPS / flops) // GRANULE * GRANULE))


def patches_per_pass(config: VisionConfig, grids: Sequence[tuple[int, int]]) -> int:
    """Patches of views that go through the tower together. A view is never cut."""
    largest = max((height * width for height, width in grids), default=1)
    flops = config.num_hidden_layers * layer_flops(config, 1, largest)
    return max(1, min(PATCHES_PER_PASS, int(PIECE_FLOPS / flops)))


def layers_per_piece(config: VisionConfig, grids: Sequence[tuple[int, int]]) -> int:
    """Layers of the tower that are run together for the views of a pass."""
    counts = [height * width for height, width in grids]
    flops = sum(layer_flops(config, count, count) for count in counts)
    return max(1, min(config.num_hidden_layers, int(PIECE_FLOPS / flops)))
