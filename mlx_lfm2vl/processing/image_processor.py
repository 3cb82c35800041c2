"""Pictures to padded patches, with the numbers of the reference's `Lfm2VlImageProcessor`.

Pictures are read, resized in 8 bits with antialiasing (resize.py) to the views of their plan (geometry.py), normalised
to float32 and cut into patches; `ImageProcessor` is what is the same in all families. Floats of an input array are
rounded to 8 bits first, which the reference does not do.

In `Lfm2VlImageProcessor` a picture becomes one view, or tiles and a thumbnail. Each view is cut into patches of
`encoder_patch_size` squared pixels, row by row; a patch is flattened as (y, x, channel). Views are padded with zeros to
`max_num_patches`.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..config import ImageConfig, ImageProcessorConfig, Lfm3VlVideoProcessorConfig, ProcessorConfig, ProcessorFiles
from ..config.files import writing
from ..errors import ConfigError, ImageError, OptionError
from ..hub import resolve
from ..threads import parallel_for
from . import geometry
from .batch_feature import BatchFeature, check_return_tensors
from .load_image import DEFAULT_POLICY, SourcePolicy, flatten, load_image, with_pages
from .resize import resize
from .view_plan import ViewPlan


class ImageProcessor(ABC):
    """Turns pictures into what a vision tower takes.

    `config` or keyword overrides of its fields set the policy; its fields read as attributes (`processor.tile_size`)
    and can be set. `source_policy` says where pictures may come from. Not changed by calls, so it is safe to share
    between threads.
    """

    model_input_names: ClassVar[list[str]]
    config: Any  # an ImageConfig of the family
    config_class: ClassVar[type[ImageConfig]] = ImageProcessorConfig
    files_class: ClassVar[type[ProcessorFiles]] = ProcessorConfig  # of the family

    def __init__(
        self,
        config: ImageConfig | None = None,
        *,
        source_policy: SourcePolicy = DEFAULT_POLICY,
        **overrides: Any,
    ):
        """Raises `OptionError` for an unknown override or a bad value."""
        if not isinstance(source_policy, SourcePolicy):
            raise OptionError(f"source_policy is {type(source_policy).__name__}, expected a SourcePolicy")
        self.source_policy = source_policy
        self.config = config or self.config_class()
        if overrides:
            self.config = self.configured(**overrides)

    def __getattr__(self, name: str) -> Any:
        if name != "config" and (
            name in self.config_class.__dataclass_fields__
            or isinstance(getattr(self.config_class, name, None), (property, cached_property))
        ):
            return getattr(self.config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field of the policy for the calls that follow. Raises `OptionError` for a bad value."""
        if name in self.config_class.options():
            if value is None:
                raise OptionError(f"image processor: {name} is None, expected a value")
            name, value = "config", self.configured(**{name: value})
        elif name not in ("config", "source_policy"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        object.__setattr__(self, name, value)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], hub: Mapping[str, Any] | None = None, /, **overrides: Any
    ) -> Self:
        """From a folder or hub repository; `hub` has keywords of `resolve`. Raises `HubError`, `ConfigError`,
        `OptionError`."""
        files = ("preprocessor_config.json", "processor_config.json")
        folder = resolve(path_or_repo, patterns=("*.json",), enough=files, **(hub or {}))
        return cls(cls.files_class.from_folder(folder).image, **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json into `folder`, which is created if need be. Raises `OutputError`."""
        data = self.files_class(image=self.config).to_dict()["image_processor"]
        with writing(folder) as target:
            (target / "preprocessor_config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def plan(self, height: int, width: int, **overrides: Any) -> ViewPlan:
        """The views of a picture of that size. Raises `ImageError`, `OptionError`."""
        return geometry.plan(height, width, self.configured(**overrides))

    def configured(self, **overrides: Any) -> Any:
        """The policy with the overrides of one call. Raises `OptionError`."""
        try:
            return self.config.with_overrides(**overrides)
        except ConfigError as error:
            raise OptionError(str(error)) from None

    def encode(self, images: Any, **overrides: Any) -> tuple[BatchFeature, list[ViewPlan]]:
        """The padded patches of all views of all pictures, in order, and each picture's plan, from which the text is
        expanded. "pixel_values" (views, patches, numbers of a patch) float32 and "spatial_shapes" (views, 2) int64, the
        patch grid of each view as (rows, columns). `images`: one picture or a (nested) list of whatever `load_image`
        reads; a PDF document is given as its pages. Raises `ImageError`, `OptionError`."""
        config, pictures = self.configured(**overrides) if overrides else self.config, flatten(images)
        if not config.do_rescale:  # which says of pictures of floats that they are in 0..1 already, as all are here
            floats = [isinstance(picture, np.ndarray) and picture.dtype.kind == "f" for picture in pictures]
            if any(floats) and not all(floats):
                raise OptionError("do_rescale=False needs pictures that are all floats in 0..1, or none; convert some")
            if any(floats):
                config = config.with_overrides(do_rescale=True, rescale_factor=1 / 255)
        if not pictures:
            raise ImageError("there is no picture to process")
        made = [self._views(picture, config) for picture in pictures]
        plans = [plan for _, plan in made]
        shapes = np.array([shape for plan in plans for shape in plan.spatial_shapes], dtype=np.int64)
        return self._arrays([view for views, _ in made for view in views], shapes, config), plans

    def _views(self, source: Any, config: ImageConfig) -> tuple[list[np.ndarray], ViewPlan]:
        """The resized views (height, width, 3) of a picture, whose own pixels are given back when they are made."""
        picture = load_image(source, self.source_policy, config)
        plan = geometry.plan(picture.height, picture.width, config)
        return cut(picture, plan, config), plan

    def __call__(self, images: Any, *, return_tensors: str | None = "np", **overrides: Any) -> BatchFeature:
        """The arrays of `model_inputs`, of all pictures in order. `images` as in `encode`, PDF documents too. Raises
        `ImageError`, `OptionError`."""
        check_return_tensors(return_tensors)
        return self.model_inputs(*self.encode(with_pages(images, self.source_policy), **overrides))

    def model_inputs(self, arrays: BatchFeature, plans: Sequence[ViewPlan]) -> BatchFeature:
        """The arrays of `encode` as the family's model takes it."""
        return arrays

    @abstractmethod
    def _arrays(self, views: Sequence[np.ndarray], shapes: np.ndarray, config: Any) -> BatchFeature:
        """The arrays of `encode`, of views (height, width, 3) uint8 with these patch grids."""


class Lfm2VlImageProcessor(ImageProcessor):
    """Turns pictures into what the vision tower takes; its policy is an `ImageProcessorConfig`."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

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
        patches = []
        for view in views:
            rows, columns = view.shape[0] // side, view.shape[1] // side
            patches.append(view.reshape(rows, side, columns, side, 3).swapaxes(1, 2))
        write_patches(patches, np.tile(np.arange(3), side**2), config, pixels)
        mask = (np.arange(length) < counts[:, None]).astype(np.int32)
        return BatchFeature(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes)


def cut(picture: Image.Image, plan: ViewPlan, config: ImageConfig | Lfm3VlVideoProcessorConfig) -> list[np.ndarray]:
    """Views of the RGB picture: its tiles, row by row, then all of it, as the plan says."""
    sizes = [] if plan.tiled and not plan.thumbnail else [(plan.height, plan.width)]
    if plan.tiled:
        sizes.insert(0, (plan.rows * plan.tile_size, plan.cols * plan.tile_size))

    views = resize(picture, sizes, config.resample)
    if plan.tiled:
        rows, columns = plan.rows, plan.cols
        views[:1] = [tile for row in np.split(views[0], rows) for tile in np.split(row, columns, axis=1)]
    return views


def write_patches(
    patches: Sequence[np.ndarray],
    channels: np.ndarray,
    config: ImageConfig | Lfm3VlVideoProcessorConfig,
    out: Sequence[np.ndarray] | np.ndarray,
) -> None:
    """Writes views, normalised, into the first rows of each of `out`, with the arithmetic of the reference: float32,
    rescale fused into mean and deviation.

    Args:
        patches: of each view, uint8, in whatever order in memory; flattened they are (patches, width).
        channels: the colour of each number of a patch, (width,).
        config: the policy.
        out: (most patches, width) float32 of each view.
    """
    factor = np.float32(config.rescale_factor if config.do_rescale else 1)
    fused = np.float32(1.0 / config.rescale_factor) if config.do_rescale else np.float32(1)
    mean, deviation = ((np.array(each, np.float32) * fused)[channels] for each in (config.image_mean, config.image_std))

    def write(start: int, end: int) -> None:
        for view, target in zip(patches[start:end], out[start:end], strict=True):
            numbers = view.reshape(-1, len(channels))
            target = target[: len(numbers)]
            if config.do_normalize:
                np.subtract(numbers, mean, out=target)
                np.divide(target, deviation, out=target)
            else:
                np.multiply(numbers, factor, out=target)

    if len(patches) > 1:
        parallel_for(write, len(patches))
    else:
        write(0, len(patches))
