"""The memory that an engine and its process hold."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..backends.memory import free_memory
from ..generation.prompt_cache import PromptCache
from ..generation.vision_cache import VisionCache


@dataclass(frozen=True)
class MemoryUse:
    """Bytes. `active`, `cache` (kept for reuse) and `peak` are MLX's in the whole process; `vision_cache` and
    `prompt_cache` are parts of `active`; `free` is what may still be taken, None where that is not known."""

    active: int
    cache: int
    peak: int
    vision_cache: int
    prompt_cache: int
    free: int | None


def memory_use(vision_cache: VisionCache, prompt_cache: PromptCache) -> MemoryUse:
    """The memory that is held now."""
    return MemoryUse(
        mx.get_active_memory(),
        mx.get_cache_memory(),
        mx.get_peak_memory(),
        vision_cache.nbytes,
        prompt_cache.nbytes,
        free_memory(),
    )
