"""preprocessor_config.json and processor_config.json: the picture policy, every published variant in one spelling.

Defaults are those of transformers 5.23 (`Lfm2VlImageProcessor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .fields import MAX_NUMBER, Fields
from .files import read_json

FILES = ("preprocessor_config.json", "processor_config.json", "config.json")
SPLITTING_IS_MEANT = "do_image_splitting_is_meant"
OF_READING = ("color_management", "exif")  # neither read from a checkpoint nor written to one
MAX_PIXELS = 2**27  # of one picture after resizing, 1.6 GB as float32; the published policies make 2.6 million
T = TypeVar("T")
RESAMPLE_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which the checkpoints use


def check_normalisation(read: Fields, config: Any) -> None:
    """Checks the fields that every family has: how pictures are read, resampled and normalised; makes mean and
    deviation tuples. Raises `ConfigError`."""
    for name in ("do_rescale", "do_normalize", *OF_READING):
        read.flag(name, default=True)
    read.number("rescale_factor", default=1 / 255)
    read.choice("resample", default=2, options=tuple(RESAMPLE_FILTERS))
    for name, low in (("image_mean", -MAX_NUMBER), ("image_std", 0.0)):
        value = getattr(config, name)
        good = isinstance(value, (list, tuple)) and len(value) == 3
        if not good or not all(isinstance(x, (int, float)) and low < x < MAX_NUMBER for x in value):
            listed = list(value) if isinstance(value, tuple) else value
            raise read.refuse(name, listed, f"three numbers above {low:g} and below {MAX_NUMBER:g}")
        object.__setattr__(config, name, tuple(float(x) for x in value))


def read_files(folder: Path, from_dicts: Callable[..., T]) -> T:
    """The result of `from_dicts` for whichever of `FILES` the folder has. Raises `ConfigError`."""
    data = {name: read_json(folder / name) if (folder / name).is_file() else None for name in FILES}
    try:
        return from_dicts(*data.values())
    except ConfigError as error:
        names = [name for name in FILES[:2] if data[name]] or [FILES[2]]
        raise ConfigError(f"{folder}/{', '.join(names)}: {error}") from None


@dataclass(frozen=True)
class ImageProcessorConfig:
    """The picture policy of a checkpoint. Sizes in pixels, budgets in image tokens (after pixel unshuffle).

    `max_num_patches` is derived, never read: some published files hold a stale 256. `do_resize` is not a field:
    pictures are always resized. Two fields are the caller's, not the checkpoint's: `color_management` (colours of an
    embedded ICC profile become sRGB; transformers ignores the profile) and `exif` (pictures are turned upright).
    Raises `ConfigError` for values that contradict each other.
    """

    downsample_factor: int = 2
    do_image_splitting: bool = True
    min_tiles: int = 2
    max_tiles: int = 10
    use_thumbnail: bool = True
    min_image_tokens: int = 64
    max_image_tokens: int = 256
    encoder_patch_size: int = 16
    tile_size: int = 512
    max_pixels_tolerance: float = 2.0
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    do_pad: bool = True
    color_management: bool = True
    exif: bool = True

    def __post_init__(self) -> None:
        read = Fields({f.name: getattr(self, f.name) for f in fields(self)}, "image processor")
        for name in ("downsample_factor", "encoder_patch_size"):
            read.integer(name, default=1, high=1024)
        for name in ("min_tiles", "max_tiles"):
            read.integer(name, default=1, high=256)
        for name in ("min_image_tokens", "max_image_tokens", "tile_size"):
            read.integer(name, default=1, high=2**20)
        for name in ("do_image_splitting", "use_thumbnail", "do_pad"):
            read.flag(name, default=True)
        read.number("max_pixels_tolerance", default=2.0)
        check_normalisation(read, self)
        if self.do_image_splitting and self.min_tiles > self.max_tiles:
            raise read.refuse("min_tiles", self.min_tiles, f"at most max_tiles {self.max_tiles}")
        if self.min_image_tokens > self.max_image_tokens:
            raise read.refuse(
                "min_image_tokens", self.min_image_tokens, f"at most max_image_tokens {self.max_image_tokens}"
            )
        side = self.downsample_factor * self.encoder_patch_size  # pixels of an image token
        for name, count, pixels in (
            ("max_image_tokens", self.max_image_tokens, side**2),
            ("tile_size", self.max_tiles if self.do_image_splitting else 1, self.tile_size**2),
        ):
            if count * pixels > MAX_PIXELS:
                raise read.refuse(name, getattr(self, name), f"at most {MAX_PIXELS:,} pixels of a resized picture")
        if self.tile_size % (self.encoder_patch_size * self.downsample_factor):
            raise read.refuse(
                "tile_size", self.tile_size, f"a multiple of {self.encoder_patch_size * self.downsample_factor}"
            )

    @cached_property
    def max_num_patches(self) -> int:
        """Patches that a view is padded to: the larger of the single-view budget and a tile."""
        tile = (self.tile_size // self.encoder_patch_size) ** 2 if self.do_image_splitting else 0
        return max(self.max_image_tokens * self.downsample_factor**2, tile)

    @property
    def coarsest(self) -> dict[str, Any]:
        """The overrides by which a picture is as few tokens as can be."""
        least = self.min_image_tokens
        return {"max_image_tokens": least, "min_image_tokens": least, "do_image_splitting": False}

    @property
    def finest(self) -> dict[str, Any]:
        """The overrides by which a picture is seen as finely as the checkpoint sees any."""
        return {"do_image_splitting": True}

    @classmethod
    def options(cls) -> frozenset[str]:
        """The names that `with_overrides` takes."""
        return frozenset(cls.__dataclass_fields__)

    def with_overrides(self, **overrides: Any) -> ImageProcessorConfig:
        """A copy with fields replaced. A budget set beyond the other one takes that along: `max_image_tokens=32` alone
        means at most 32, whatever the checkpoint's least is. Raises `ConfigError` naming an unknown field or a bad
        value."""
        known = self.options()
        for name in overrides:
            if name not in known:
                raise ConfigError(f"image processor: no option {name!r}; there are {', '.join(sorted(known))}")
        chosen = {name: value for name, value in overrides.items() if value is not None}
        least, most = chosen.get("min_image_tokens"), chosen.get("max_image_tokens")
        if isinstance(most, int) and least is None and most >= 1:
            chosen["min_image_tokens"] = min(self.min_image_tokens, most)
        elif isinstance(least, int) and most is None:
            chosen["max_image_tokens"] = max(self.max_image_tokens, least)
        return replace(self, **chosen)


@dataclass(frozen=True)
class ProcessorConfig:
    """Picture policy and text markup of a checkpoint, with notes on what its files said and was not obeyed."""

    image: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    use_image_special_tokens: bool = True
    notes: tuple[str, ...] = ()
    is_stated: bool = True  # whether any file says how pictures are cut

    @classmethod
    def from_dicts(
        cls,
        preprocessor: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
    ) -> ProcessorConfig:
        """Merges preprocessor_config.json and processor_config.json (which wins; nested `image_processor` or flat); for
        folders that have neither, takes the tiling keys that config.json carries. Raises `ConfigError`.

        Obeyed as they stand: filters, budgets, tile limits, thumbnail. Not obeyed: `do_resize`, `max_num_patches`,
        `input_data_format`, and `do_image_splitting: false` (with the `use_thumbnail: false` that comes with it), which
        converters left in published folders although the models are made for tiling; a note says so, and whoever means
        it passes `do_image_splitting=False`. What this package wrote itself is meant (see `to_dict`).
        """
        known = {f.name for f in fields(ImageProcessorConfig)} - set(OF_READING)
        merged: dict[str, Any] = {}
        special: Any = None
        meant = False
        layers = [source for source in (preprocessor, processor) if source] or [model or {}]
        for source in layers:
            nested = source.get("image_processor")
            for part in (source, nested if isinstance(nested, Mapping) else {}):
                merged.update({key: part[key] for key in known if part.get(key) is not None})
                meant = meant or part.get(SPLITTING_IS_MEANT) is True
                if part.get("use_image_special_tokens") is not None:
                    special = part["use_image_special_tokens"]
        notes = []
        stated = bool(merged)
        if not stated:
            notes.append("no processor file says how pictures are cut; the defaults of LFM2-VL are used (tiles of 512)")
        if merged.get("do_image_splitting") is False and not meant:
            del merged["do_image_splitting"]
            thumbnail = merged.pop("use_thumbnail", None)
            if thumbnail is True:
                merged["use_thumbnail"] = True
            notes.append(
                "the processor file switches tiling off (do_image_splitting: false), as converters did by mistake in "
                "published folders; tiling stays on. Pass do_image_splitting=False (--no-tiling) if it is meant"
            )
        if isinstance(merged.get("image_mean"), list):
            merged["image_mean"] = tuple(merged["image_mean"])
        if isinstance(merged.get("image_std"), list):
            merged["image_std"] = tuple(merged["image_std"])
        special = Fields({"use_image_special_tokens": special}, "processor").flag(
            "use_image_special_tokens", default=True
        )
        return cls(
            image=ImageProcessorConfig(**merged), use_image_special_tokens=special, notes=tuple(notes), is_stated=stated
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ProcessorConfig:
        """Reads whichever of the processor files the folder has. Raises `ConfigError`."""
        return read_files(folder, cls.from_dicts)

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json as transformers 5 writes it; a key of our own says where tiling off is meant."""
        image = asdict(self.image)
        image.update(
            image_mean=list(self.image.image_mean),
            image_std=list(self.image.image_std),
            do_resize=True,
            max_num_patches=self.image.max_num_patches,
            size={"height": self.image.tile_size, "width": self.image.tile_size},
            image_processor_type="Lfm2VlImageProcessor",
        )
        if not self.image.do_image_splitting:
            image[SPLITTING_IS_MEANT] = True
        for name in OF_READING:
            del image[name]
        return {
            "image_processor": image,
            "processor_class": "Lfm2VlProcessor",
            "use_image_special_tokens": self.use_image_special_tokens,
        }
