"""Numbers of a picture's image tokens as a map over the picture: out of tiles and thumbnail into its own coordinates.

The image tokens of a picture stand in the order of its views: tiles row by row, then the thumbnail (geometry.py). The
pixel unshuffle of the projector makes one token of `downsample_factor` x `downsample_factor` neighbouring patches, so
a view's tokens are a grid, row by row, whose cells tile the view. A map's cells are those of the tiles, or of the only
view. The thumbnail's cells are larger; each gives its number to the cells below it in the shares of its area that they
cover, so that the sum over a map is the sum over the picture's tokens.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..processing.geometry import ViewPlan


def picture_map(values: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """Numbers of a picture's image tokens (..., tokens) as a map (..., rows, columns), float32, of the same sum."""
    if not plan.tiled:
        return values.reshape(*values.shape[:-1], *_whole(plan)).astype(np.float32)
    rows, columns, side = plan.rows, plan.cols, math.isqrt(plan.tokens_per_tile)
    count = rows * columns * side**2
    tiles = values[..., :count].reshape(*values.shape[:-1], rows, columns, side, side)
    made = np.moveaxis(tiles, -2, -3).reshape(*values.shape[:-1], rows * side, columns * side).astype(np.float32)
    if plan.thumbnail:
        high, wide = _whole(plan)
        thumbnail = values[..., count:].reshape(*values.shape[:-1], high, wide).astype(np.float32)
        made += _shares(high, rows * side) @ thumbnail @ _shares(wide, columns * side).T
    return made


def mass_in(attention: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The sum of maps (..., rows, columns) within a box (left, top, right, bottom) in shares of the picture's width and
    height, a cell by the share of its area that lies there."""
    left, top, right, bottom = box
    rows, columns = attention.shape[-2:]
    high, wide = _covered(rows, top, bottom), _covered(columns, left, right)
    inside: np.ndarray = np.einsum("...rc,r,c->...", attention, high, wide)
    return inside


def _whole(plan: ViewPlan) -> tuple[int, int]:
    """(rows, columns) of the tokens of the only view, or of the thumbnail, which have the shape of its pixels."""
    rows = math.isqrt(plan.tokens_for_image * plan.height // plan.width)
    return rows, plan.tokens_for_image // rows


def _shares(source: int, target: int) -> np.ndarray:
    """(target, source): the share of each of `source` equal parts of a line that lies in each of `target` equal ones.
    Columns sum to 1."""
    edges = np.arange(target + 1) / target
    return np.stack([_covered(source, low, high) for low, high in itertools.pairwise(edges)]).astype(np.float32)


def _covered(parts: int, low: float, high: float) -> np.ndarray:
    """(parts,): the share of each of equal parts of 0..1 that lies between `low` and `high`."""
    edges = np.arange(parts + 1)
    return np.clip(np.minimum(edges[1:], high * parts) - np.maximum(edges[:-1], low * parts), 0, 1)
