"""Pictures to padded patches, with the numbers of the reference's `Lfm2VlImageProcessor`.

A picture becomes one view, or tiles and a thumbnail (geometry.py). Each view is cut into patches of
`encoder_patch_size` squared pixels, row by row; a patch is flattened as (y, x, channel). Views are padded with zeros to
`max_num_patches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..config import ImageProcessorConfig
from ..errors import OptionError
from . import geometry
from .batch_feature import BatchFeature, check_return_tensors
from .image_processor import ImageProcessor, cut, write_patches
from .load_image import load_image, with_pages

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class Lfm2VlImageProcessor(ImageProcessor):
    """Turns pictures into what the vision tower takes; its policy is an `ImageProcessorConfig`."""

    model_input_names: ClassVar[list[str]] = list(IMAGE_INPUTS)

    def smart_resize(
        self,
        height: int,
        width: int,
        downsample_factor: int | None = None,
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        encoder_patch_size: int | None = None,
    ) -> tuple[int, int]:
        """(width, height) of a picture as a single view; see `geometry.smart_resize`. None means this processor's."""
        config = self.config
        return geometry.smart_resize(
            height,
            width,
            downsample_factor or config.downsample_factor,
            min_image_tokens or config.min_image_tokens,
            max_image_tokens or config.max_image_tokens,
            encoder_patch_size or config.encoder_patch_size,
        )

    def crop_image_to_patches(
        self,
        image: Any,
        min_tiles: int | None = None,
        max_tiles: int | None = None,
        tile_size: int | None = None,
        use_thumbnail: bool | None = None,
        thumbnail_size: tuple[int, int] | None = None,
        resample: int | None = None,
    ) -> tuple[list[np.ndarray], int, int]:
        """Splits one picture of any size into tiles: ([tiles row by row, then the thumbnail], columns, rows), the views
        as uint8 (height, width, 3). `thumbnail_size` is (height, width); None of the arguments means this processor's.
        """
        config = self.configured(
            min_tiles=min_tiles,
            max_tiles=max_tiles,
            tile_size=tile_size,
            use_thumbnail=use_thumbnail,
            resample=resample,
        )
        picture = load_image(image, self.source_policy, config)
        columns, rows = geometry.grid_layout(
            picture.height, picture.width, config.min_tiles, config.max_tiles, config.tile_size
        )
        plan = geometry.plan(picture.height, picture.width, config)
        thumbnail = config.use_thumbnail and rows * columns != 1
        high, wide = (thumbnail and thumbnail_size) or (plan.height, plan.width)
        plan = replace(plan, rows=rows, cols=columns, tiled=True, height=high, width=wide, thumbnail=thumbnail)
        return cut(picture, plan, config), columns, rows

    def __call__(
        self,
        images: Any,
        *,
        return_row_col_info: bool = False,
        return_tensors: str | None = "np",
        **overrides: Any,
    ) -> BatchFeature:
        """Patches of all views of all pictures, in order.

        `images`: one picture or a (nested) list of whatever `load_image` reads. Keyword overrides of the policy
        hold for this call. Returns "pixel_values" (views, max_num_patches, patch_size**2 * 3) float32,
        "pixel_attention_mask" (views, max_num_patches) int32, "spatial_shapes" (views, 2) int64, the patch grid of each
        view as (rows, columns); with `return_row_col_info` also "image_rows", "image_cols" (pictures,) and
        "image_sizes" (pictures, 2), height and width of the resized picture. With `do_pad=False` all views must have as
        many patches.
        Raises `ImageError`, `OptionError`.
        """
        check_return_tensors(return_tensors)
        features, plans = self.encode(with_pages(images, self.source_policy), **overrides)
        if return_row_col_info:
            info = {
                "image_rows": [plan.rows for plan in plans],
                "image_cols": [plan.cols for plan in plans],
                "image_sizes": [[plan.height, plan.width] for plan in plans],
            }
            features.update({k: np.array(v, dtype=np.int64) for k, v in info.items()} if return_tensors else info)
        return features

    def _arrays(self, views: Sequence[np.ndarray], shapes: np.ndarray, config: ImageProcessorConfig) -> BatchFeature:
        """Padded to `max_num_patches`, and "pixel_attention_mask"."""
        counts, side = shapes.prod(axis=1), config.encoder_patch_size
        length = config.max_num_patches if config.do_pad else int(counts.max())
        if not config.do_pad and int(counts.min()) != length:
            raise OptionError("do_pad=False needs views of equally many patches; process such pictures one at a time")
        pixels = np.zeros((len(shapes), length, side**2 * 3), dtype=np.float32)

        def patches(view: np.ndarray) -> np.ndarray:
            rows, columns = view.shape[0] // side, view.shape[1] // side
            cut = view.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
            return cut.reshape(rows * columns, side, side, 3)

        write_patches(views, patches, np.tile(np.arange(3), side**2), config, pixels)
        mask = (np.arange(length) < counts[:, None]).astype(np.int32)
        return BatchFeature(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes)
