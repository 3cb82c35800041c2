"""Pictures to padded patches, with the numbers of the reference's `Lfm2VlImageProcessor`.

A picture becomes one view, or tiles and a thumbnail (geometry.py). Each view is resized in 8 bits with antialiasing
(resize.py), normalised to float32 and cut into patches of `encoder_patch_size` squared pixels, row by row; a patch is
flattened as (y, x, channel). Views are padded with zeros to `max_num_patches`. Floats of an input array are rounded to
8 bits first, which the reference does not do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from ..config import ImageProcessorConfig, ProcessorConfig
from ..config.files import writing
from ..errors import ConfigError, ImageError, OptionError
from ..hub import resolve
from ..threads import parallel_for
from . import geometry
from .batch_feature import BatchFeature, check_return_tensors
from .geometry import ViewPlan
from .load_image import DEFAULT_POLICY, SourcePolicy, load_image
from .pages import flatten, with_pages
from .resize import resize_rows

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class Lfm2VlImageProcessor:
    """Turns pictures into what the vision tower takes.

    `config` or keyword overrides of `ImageProcessorConfig`'s fields set the policy; its fields read as attributes
    (`processor.tile_size`) and can be set. `source_policy` says where pictures may come from. Not changed by calls, so
    it is safe to share between threads.
    """

    model_input_names: ClassVar[list[str]] = list(IMAGE_INPUTS)

    def __init__(
        self,
        config: ImageProcessorConfig | None = None,
        *,
        source_policy: SourcePolicy = DEFAULT_POLICY,
        **overrides: Any,
    ):
        """Raises `OptionError` for an unknown override or a bad value."""
        if not isinstance(source_policy, SourcePolicy):
            raise OptionError(f"source_policy is {type(source_policy).__name__}, expected a SourcePolicy")
        self.source_policy = source_policy
        self.config = config or ImageProcessorConfig()
        self.config = self.configured(**overrides)

    def __getattr__(self, name: str) -> Any:
        if name != "config" and (name == "max_num_patches" or name in ImageProcessorConfig.__dataclass_fields__):
            return getattr(self.config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field of the policy for the calls that follow. Raises `OptionError` for a bad value."""
        if name in ImageProcessorConfig.__dataclass_fields__:
            if value is None:
                raise OptionError(f"image processor: {name} is None, expected a value")
            name, value = "config", self.configured(**{name: value})
        elif name not in ("config", "source_policy"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        object.__setattr__(self, name, value)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """From a folder or hub repository. Raises `HubError`, `ConfigError`, `OptionError`."""
        folder = resolve(
            path_or_repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            patterns=("*.json",),
            enough=("preprocessor_config.json", "processor_config.json"),
        )
        return cls(ProcessorConfig.from_folder(folder).image, **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json into `folder`, which is created if need be. Raises `OutputError`."""
        data = ProcessorConfig(image=self.config).to_dict()["image_processor"]
        with writing(folder) as target:
            (target / "preprocessor_config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

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
        thumbnail = None
        if config.use_thumbnail and rows * columns != 1:
            plan = geometry.plan(picture.height, picture.width, config)
            thumbnail = thumbnail_size or (plan.height, plan.width)
        return _cut(picture, (rows, columns), thumbnail, config), columns, rows

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

    def configured(self, **overrides: Any) -> ImageProcessorConfig:
        """The policy with the overrides of one call. Raises `OptionError`."""
        try:
            return self.config.with_overrides(**overrides) if overrides else self.config
        except ConfigError as error:
            raise OptionError(str(error)) from None

    def encode(self, images: Any, **overrides: Any) -> tuple[BatchFeature, list[ViewPlan]]:
        """The arrays of `__call__` and each picture's plan, from which the text is expanded. A PDF document is given as
        its pages."""
        config, pictures = self.configured(**overrides), flatten(images)
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
        counts = shapes.prod(axis=1)
        length = config.max_num_patches if config.do_pad else int(counts.max())
        if not config.do_pad and int(counts.min()) != length:
            raise OptionError("do_pad=False needs views of equally many patches; process such pictures one at a time")
        pixels = np.zeros((len(shapes), length, config.encoder_patch_size**2 * 3), dtype=np.float32)
        _write_patches([view for views, _ in made for view in views], config, pixels)
        mask = (np.arange(length) < counts[:, None]).astype(np.int32)
        return BatchFeature(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes), plans

    def _views(self, source: Any, config: ImageProcessorConfig) -> tuple[list[np.ndarray], ViewPlan]:
        """The resized views (height, width, 3) of a picture, whose own pixels are given back when they are made."""
        picture = load_image(source, self.source_policy, config)
        plan = geometry.plan(picture.height, picture.width, config)
        grid = (plan.rows, plan.cols) if plan.tiled else None
        whole = (plan.height, plan.width) if not plan.tiled or plan.thumbnail else None
        return _cut(picture, grid, whole, config), plan


def _cut(
    picture: Image.Image, grid: tuple[int, int] | None, whole: tuple[int, int] | None, config: ImageProcessorConfig
) -> list[np.ndarray]:
    """Views of the RGB picture: the tiles of a grid (rows, columns), row by row, then all of it at a size (height,
    width)."""
    width, height = picture.size
    sizes = [] if whole is None else [whole]
    if grid is not None:
        sizes.insert(0, (grid[0] * config.tile_size, grid[1] * config.tile_size))

    def take(top: int, bottom: int) -> list[np.ndarray]:
        bands = picture.crop((0, top, width, bottom)).split()  # which Pillow hands over faster than its pixels
        return [np.asarray(band) for band in bands]

    views = resize_rows(take, (height, width, 3), sizes, config.resample)
    if grid is not None:
        rows, columns = grid
        views[:1] = [tile for row in np.split(views[0], rows) for tile in np.split(row, columns, axis=1)]
    return views


def _write_patches(views: Sequence[np.ndarray], config: ImageProcessorConfig, out: np.ndarray) -> None:
    """Writes `views` (height, width, 3) uint8, normalised, into the first rows of each of `out` (views, patches,
    patch**2 * 3), with the arithmetic of the reference: float32, rescale fused into mean and deviation."""
    side, factor = config.encoder_patch_size, np.float32(config.rescale_factor if config.do_rescale else 1)
    fused = np.float32(1.0 / config.rescale_factor) if config.do_rescale else np.float32(1)
    mean, deviation = (
        np.tile(np.array(each, np.float32) * fused, side**2) for each in (config.image_mean, config.image_std)
    )

    def write(start: int, end: int) -> None:
        for view, patches in zip(views[start:end], out[start:end], strict=True):
            rows, columns = view.shape[0] // side, view.shape[1] // side
            cut = view.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
            target = patches[: rows * columns]
            if config.do_normalize:
                np.subtract(cut.reshape(target.shape), mean, out=target)
                np.divide(target, deviation, out=target)
            else:
                np.multiply(cut.reshape(target.shape), factor, out=target)

    if len(views) > 1:
        parallel_for(write, len(views))
    else:
        write(0, len(views))
