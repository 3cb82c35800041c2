"""Processors of LFM3-VL: a picture is one view, and its patches lie in the order of the blocks that become one token.

The chat template writes the tokens around pictures; of an image token the processor makes as many as the picture has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..config import Lfm3VlImageProcessorConfig, Lfm3VlProcessorConfig
from ..errors import OptionError
from .batch_feature import BatchFeature, check_return_tensors
from .image_processor import ImageProcessor, write_patches
from .pages import with_pages
from .processor import Lfm2VlProcessor
from .prompt import ImageMarkup

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"  # the reference's, where the tokenizer names none


class Lfm3VlImageProcessor(ImageProcessor):
    """Turns pictures into what the vision encoder takes, with the numbers of the reference's `Qwen2VLImageProcessor`.
    A patch is flattened as (channel, frame, y, x); a picture is so many equal frames."""

    config_class = Lfm3VlImageProcessorConfig
    files_class = Lfm3VlProcessorConfig
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_grid_thw"]

    def __call__(self, images: Any, *, return_tensors: str | None = "np", **overrides: Any) -> BatchFeature:
        """Patches of all pictures, one after the other, "pixel_values" (patches, numbers of a patch) float32, and their
        grids, "image_grid_thw" (pictures, 3) int64: 1, rows, columns. `images` as in `encode`. Raises `ImageError`,
        `OptionError`."""
        check_return_tensors(return_tensors)
        return self.model_inputs(self.encode(with_pages(images, self.source_policy), **overrides)[0])

    def model_inputs(self, arrays: BatchFeature) -> BatchFeature:
        """The arrays of `encode` as `__call__` returns them."""
        if not arrays:
            return arrays
        shapes = arrays["spatial_shapes"]
        rows = [view[: height * width] for view, (height, width) in zip(arrays["pixel_values"], shapes, strict=True)]
        grids = np.concatenate([np.ones((len(shapes), 1), np.int64), shapes], axis=1)
        return BatchFeature(pixel_values=np.concatenate(rows), image_grid_thw=grids)

    def _arrays(self, views: Sequence[np.ndarray], shapes: np.ndarray, config: Lfm3VlImageProcessorConfig) -> Any:
        """Padded to the largest view."""
        side, merge, frames = config.patch_size, config.merge_size, config.temporal_patch_size
        pixels = np.zeros((len(shapes), int(shapes.prod(axis=1).max()), 3 * frames * side**2), dtype=np.float32)

        def patches(view: np.ndarray) -> np.ndarray:
            rows, columns = view.shape[0] // config.cell, view.shape[1] // config.cell
            blocks = view.reshape(rows, merge, side, columns, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
            shape = (*blocks.shape[:5], frames, side, side)
            return np.broadcast_to(blocks[:, :, :, :, :, None], shape).reshape(-1, 3, frames, side, side)

        write_patches(views, patches, np.repeat(np.arange(3), frames * side**2), config, pixels)
        return BatchFeature(pixel_values=pixels, spatial_shapes=shapes)


class Lfm3VlProcessor(Lfm2VlProcessor):
    """A checkpoint's `PromptEncoder`, called as the reference's `Lfm3VlProcessor` is."""

    image_processor_class = Lfm3VlImageProcessor

    @property
    def image_token(self) -> str:
        """The token that stands for a picture."""
        return self.tokenizer.special_tokens_map.get("image_token", IMAGE_TOKEN)

    def markup(self, use_image_special_tokens: bool | None = None) -> ImageMarkup:
        """The tokens that stand for pictures in this checkpoint's texts. Raises `OptionError`."""
        if use_image_special_tokens or self.use_image_special_tokens:
            raise OptionError("use_image_special_tokens is True; here the chat template writes them, leave it out")
        return ImageMarkup(self.image_token, markers=False)

    @property
    def video_token(self) -> str:
        """The token that stands for a video."""
        return self.tokenizer.special_tokens_map.get("video_token", VIDEO_TOKEN)

    @property
    def video_token_id(self) -> int:
        """Raises `TokenizerError` if the tokenizer does not know the video token."""
        return self.tokenizer.id_of(self.video_token, "video_token")

    def shared_numbers(self) -> dict[str, int]:
        """The numbers that the model's configuration states too. Raises `TokenizerError` for a missing token."""
        return super().shared_numbers() | {
            "temporal patch size": self.image_processor.config.temporal_patch_size,
            "video token's id": self.video_token_id,
        }

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json."""
        return Lfm3VlProcessorConfig(self.image_processor.config).to_dict()
