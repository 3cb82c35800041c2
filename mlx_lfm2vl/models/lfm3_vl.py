"""LFM3-VL: its own vision encoder, projector and backbone, put together as LFM2-VL is.

A picture is one view. A video is a view for each pair of frames; its tokens stand in place of video tokens. Calls take
views as the image processor makes them, one after the other with their grids (frames, rows, columns), or padded with
`spatial_shapes`, as those of LFM2-VL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .lfm2_vl import Array, Lfm2VlForConditionalGeneration, Lfm2VlModel
from .lfm3 import Lfm3Model
from .lfm3_vision import Lfm3VlMultiModalProjector, Lfm3VlVisionModel
from .outputs import ImageFeatures

VIEW_ARGUMENTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "spatial_shapes")
Views = list[tuple[mx.array, tuple[int, int]]]  # the patches (h*w, width) of each, and (h, w)


class Lfm3VlModel(Lfm2VlModel):
    """Vision encoder, projector and backbone, without the head."""

    vision_class = Lfm3VlVisionModel
    projector_class = Lfm3VlMultiModalProjector
    text_class = Lfm3Model
    view_arguments = VIEW_ARGUMENTS

    def get_image_features(
        self, pixel_values: Array, image_grid_thw: Array, pixel_attention_mask: Array | None = None
    ) -> ImageFeatures:
        """Image tokens of every picture.

        Args:
            pixel_values: patches one after the other, (patches, width), or padded, (views, patches, width).
            image_grid_thw: (pictures, 3), the frames, rows and columns of each; of padded views (views, 2).
            pixel_attention_mask: not needed; the grids say what is real.

        Raises:
            InputError: for grids that do not fit the arrays or the merge size.
        """
        if np.ndim(pixel_values) != 2:
            return super().get_image_features(pixel_values, image_grid_thw)
        views = self._views(pixel_values, image_grid_thw, "image_grid_thw")
        made = super().get_image_features(*_padded([view for each in views for view in each]))
        ends = np.cumsum([len(each) for each in views]).tolist()
        tokens = [
            mx.concatenate(made.pooler_output[end - len(each) : end]) for each, end in zip(views, ends, strict=True)
        ]
        return ImageFeatures(mx.concatenate([*made.last_hidden_state]), tokens)

    def get_video_features(self, pixel_values_videos: Array, video_grid_thw: Array) -> ImageFeatures:
        """Video tokens of every video; arguments and errors as those of `get_image_features`."""
        return self.get_image_features(pixel_values_videos, video_grid_thw)

    def views_of(self, arrays: dict[str, Any], input_ids: Array | None = None) -> tuple[Any, Any]:
        """As `Lfm2VlModel.views_of`. `input_ids` (B, L) say in what order pictures and videos stand."""
        pixels, grids, frames, times, shapes = (arrays.pop(name, None) for name in VIEW_ARGUMENTS)
        if shapes is not None:
            return pixels, shapes
        pictures = [] if pixels is None else self._views(pixels, grids, "image_grid_thw")
        videos = [] if frames is None else self._views(frames, times, "video_grid_thw")
        if not pictures and not videos:
            return None, None
        if pictures and videos:
            if input_ids is None:
                raise InputError("pictures and videos together need input_ids, which say their order")
            ordered = list(self._in_order(np.array(input_ids), pictures, videos))
        else:
            ordered = [view for each in pictures or videos for view in each]
        return _padded(ordered)

    def _in_order(self, ids: np.ndarray, pictures: list[Views], videos: list[Views]) -> Iterator[Any]:
        """The views in the order of the tokens that stand for them."""
        tokens, at = ids[np.isin(ids, self.config.placeholders)], 0
        kinds = {
            token: iter([view for each in every for view in each])
            for token, every in zip(self.config.placeholders, (pictures, videos), strict=True)
        }
        while at < len(tokens):
            view = next(kinds[int(tokens[at])], None)
            if view is None:
                raise InputError("the text has more image or video tokens than the pictures and videos make")
            at += view[1][0] * view[1][1] // self.config.downsample_factor**2
            yield view
        if any(next(rest, None) is not None for rest in kinds.values()):
            raise InputError("the pictures and videos make more tokens than stand for them in the text")

    def _views(self, patches: Array, grids: Array | None, name: str) -> list[Views]:
        """The views of each picture or video."""
        width, pixels, shapes = self.config.vision_config.patch_width, mx.array(patches), np.array(grids)
        if grids is None or shapes.ndim != 2 or shapes.shape[1] != 3 or shapes.min(initial=1) < 1:
            raise InputError(f"{name} has shape {shapes.shape}, expected (n, 3) of frames, rows and columns")
        if pixels.ndim != 2 or pixels.shape[1] != width or pixels.shape[0] != shapes.prod(axis=1).sum():
            total = int(shapes.prod(axis=1).sum())
            raise InputError(f"the patches have shape {tuple(pixels.shape)}, expected ({total}, {width}) by {name}")
        made: list[Views] = []
        end = 0
        for frames, height, width in shapes.tolist():
            made.append([])
            for _ in range(frames):
                end += height * width
                made[-1].append((pixels[end - height * width : end], (height, width)))
        return made

    def __call__(self, input_ids: Array | None = None, **arguments: Any) -> Any:  # type: ignore[override]
        """As `Lfm2VlModel.__call__`; pictures and videos as "pixel_values", "image_grid_thw", "pixel_values_videos" and
        "video_grid_thw", as the processor makes them."""
        pixels, shapes = self.views_of(arguments, input_ids)
        return super().__call__(input_ids, pixel_values=pixels, spatial_shapes=shapes, **arguments)


class Lfm3VlForConditionalGeneration(Lfm2VlForConditionalGeneration):
    """The model with its language-modelling head, tied to the embeddings or of its own."""

    model_class = Lfm3VlModel

    def get_video_features(self, pixel_values_videos: Array, video_grid_thw: Array) -> ImageFeatures:
        """As `Lfm3VlModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw)  # type: ignore[attr-defined]

    def __call__(self, input_ids: Array | None = None, **arguments: Any) -> Any:  # type: ignore[override]
        """As `Lfm2VlForConditionalGeneration.__call__`; pictures and videos as in `Lfm3VlModel.__call__`."""
        pixels, shapes = self.model.views_of(arguments, input_ids)
        return super().__call__(input_ids, pixel_values=pixels, spatial_shapes=shapes, **arguments)


def _padded(views: Views) -> tuple[mx.array, np.ndarray]:
    """The views as (views, most patches, width), and their grids (views, 2)."""
    most = max(len(patches) for patches, _ in views)
    rows = [mx.pad(patches, [(0, most - len(patches)), (0, 0)]) for patches, _ in views]
    return mx.stack(rows), np.array([grid for _, grid in views])
