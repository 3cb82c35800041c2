"""Pictures to image tokens, view by view, with a memory of what was encoded before.

A view is known by its pixels (after resizing and normalising, so that all settings of the processor are in them) and
its grid; two grids of the same pixels are two views.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.lfm2_vl import Array, Lfm2VlForConditionalGeneration
from ..models.siglip2 import pack_views, split_views, vision_passes
from . import vision_store
from .bound_cache import BoundCache
from .finite import check_vision
from .passes import layers_per_piece, patches_per_pass
from .vision_store import VisionStore
from .watch import Pieces

DEFAULT_BYTES = 256 * 2**20


class VisionCache(BoundCache[bytes, mx.array, VisionStore]):
    """Image tokens of views seen lately, for one model; the oldest go first. Safe to use from any thread.

    Args:
        limit: bytes of memory at most.
        folder: where they are kept for the next process, too, for the same files of a model; None keeps nothing.
        folder_limit: bytes of files at most.

    Raises:
        OptionError
    """

    NAME = "vision_cache"

    def __init__(
        self,
        limit: int = DEFAULT_BYTES,
        *,
        folder: str | os.PathLike[str] | None = None,
        folder_limit: int = vision_store.DEFAULT_BYTES,
    ):
        super().__init__(limit, folder, folder_limit, VisionStore)

    def __contains__(self, key: bytes) -> bool:
        """Whether a view is in memory, or in the folder."""
        with self.lock:
            return key in self._entries or (self._store is not None and key in self._store)

    def get(self, key: bytes, count: int) -> mx.array | None:
        """The tokens (count, hidden) of a view, or None."""
        with self.lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            elif self._store is not None and (kept := self._store.read(key, count)) is not None:
                self._keep(key, kept)
                return kept
            return self._entries.get(key)

    def put(self, key: bytes, tokens: mx.array) -> None:
        """Keeps the tokens of a view if they fit at all."""
        with self.lock:
            if key in self._entries:
                return
            mx.eval(tokens)
            if self._store is not None:
                self._store.write(key, tokens)
            self._keep(key, tokens)

    def _keep(self, key: bytes, tokens: mx.array) -> None:
        if tokens.nbytes > self.limit:
            return
        self._entries[key] = tokens
        self.nbytes += tokens.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes


def view_key(pixels: np.ndarray, grid: tuple[int, int]) -> bytes:
    """Identity of a view: of its true patches (patches, channels*patch*patch) and its grid (h, w)."""
    digest = hashlib.blake2b(repr((grid, pixels.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels[: grid[0] * grid[1]]).data)
    return digest.digest()


def encode_views_in_pieces(
    model: Lfm2VlForConditionalGeneration,
    pixel_values: Array,
    spatial_shapes: Array,
    vision_cache: VisionCache | None = None,
    keys: Sequence[bytes] | None = None,
) -> Pieces[mx.array]:
    """Image tokens of all views in order, (tokens, hidden), evaluated; some views through some layers at a time.

    `keys`: the views' `view_key`s, if they are known already; equal views are then encoded once. Raises
    `InputError` and `NotFiniteError`.
    """
    shapes = np.array(spatial_shapes)
    if shapes.ndim != 2 or shapes.shape[1] != 2 or len(shapes) != len(pixel_values) or not len(shapes):
        raise InputError(f"spatial_shapes has shape {shapes.shape}, expected ({len(pixel_values)}, 2)")
    grids = [(int(h), int(w)) for h, w in shapes]
    if keys is None and vision_cache is not None:
        pixels = pixel_values if isinstance(pixel_values, np.ndarray) else np.array(pixel_values.astype(mx.float32))
        keys = [view_key(view, grid) for view, grid in zip(pixels, grids, strict=True)]
    names: Sequence[object] = keys if keys is not None else range(len(grids))
    tokens: dict[object, mx.array] = {}
    if vision_cache is not None and keys is not None:
        counts = [height * width // model.config.downsample_factor**2 for height, width in grids]
        found = {key: vision_cache.get(key, count) for key, count in zip(keys, counts, strict=True)}
        tokens = {key: known for key, known in found.items() if known is not None}
    firsts = {name: index for index, name in reversed(list(enumerate(names))) if name not in tokens}
    missing = sorted(firsts.values())
    room = patches_per_pass(model.config.vision_config, [grids[index] for index in missing])
    for part in vision_passes([grids[index] for index in missing], room):
        views = [missing[index] for index in part]
        whole = views == list(range(len(grids)))
        chosen = (
            pixel_values if whole else pixel_values[mx.array(views) if isinstance(pixel_values, mx.array) else views]
        )
        made = yield from _encode_pass(model, chosen, shapes[views])
        finite = mx.stack([mx.isfinite(array).all() for array in made]).all()
        mx.eval(made, finite)
        if not finite.item():
            check_vision(model, chosen, shapes[views])
        for index, array in zip(views, made, strict=True):
            tokens[names[index]] = array
            if vision_cache is not None and keys is not None:
                # a view of its pass would keep all of the pass
                vision_cache.put(keys[index], array * 1 if len(views) > 1 else array)
        yield 0
    done = [tokens[name] for name in names]
    return done[0] if len(done) == 1 else mx.concatenate(done)


def _encode_pass(
    model: Lfm2VlForConditionalGeneration, pixel_values: Array, spatial_shapes: np.ndarray
) -> Pieces[list[mx.array]]:
    """The image tokens of each view, not evaluated; as `get_image_features`, some layers at a time."""
    body = model.model
    pixels, grids = body.check_views(pixel_values, spatial_shapes)
    tower = body.vision_tower
    depth, step = model.config.vision_config.num_hidden_layers, layers_per_piece(model.config.vision_config, grids)
    hidden = tower.embeddings(pack_views(pixels, grids), grids)
    for first in range(0, depth, step):
        hidden = tower.encoder(hidden, grids, slice(first, first + step))
        if first + step < depth:
            mx.eval(hidden)
            yield 0
    return split_views(body.multi_modal_projector(tower.post_layernorm(hidden), grids), grids)
