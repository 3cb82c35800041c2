"""preprocessor_config.json and processor_config.json: the picture policy, every published variant in one spelling.

Defaults are those of transformers 5.23 (`Lfm2VlImageProcessor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .fields import MAX_NUMBER, Fields, check_declared, choice, declare, flag, integer, number
from .files import read_json

FILES = ("preprocessor_config.json", "processor_config.json", "config.json")
SPLITTING_IS_MEANT = "do_image_splitting_is_meant"
OF_READING = ("color_management", "exif")  # neither read from a checkpoint nor written to one
MAX_PIXELS = 2**27  # of one picture after resizing, 1.6 GB as float32; the published policies make 2.6 million
T = TypeVar("T")
RESAMPLE_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which the checkpoints use
mean, deviation = partial(declare, Fields.triple, low=-MAX_NUMBER), partial(declare, Fields.triple, low=0.0)


class PicturePolicy:
    """What the policies for pictures and videos of every family have in common."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def checked(self, where: str) -> Fields:
        """Checks the declared fields of the dataclass that this is, and makes mean and deviation tuples of floats.
        Returns what reads the fields. Raises `ConfigError`."""
        read = check_declared(self, where)
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        return read

    def check_order(self, read: Fields, *pairs: tuple[str, str]) -> None:
        """Raises `ConfigError` for a least that is above the most."""
        for least, most in pairs:
            if getattr(self, least) > getattr(self, most):
                raise read.refuse(least, getattr(self, least), f"at most {most} {getattr(self, most)}")

    @classmethod
    def options(cls) -> frozenset[str]:
        """The names that `with_overrides` takes."""
        return frozenset(cls.__dataclass_fields__)  # type: ignore[attr-defined]

    def chosen(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides that are not None. Raises `ConfigError` naming an unknown one."""
        for name in overrides:
            if name not in self.options():
                raise ConfigError(f"image processor: no option {name!r}; there are {', '.join(sorted(self.options()))}")
        return {name: value for name, value in overrides.items() if value is not None}

    def take_along(self, chosen: dict[str, Any], least: str, most: str) -> None:
        """Moves one of two bounds to the other where that alone is chosen, beyond it: `max_image_tokens=32` alone means
        at most 32, whatever the checkpoint's least is."""
        low, high = chosen.get(least), chosen.get(most)
        if isinstance(high, int) and low is None and high >= 1:
            chosen[least] = min(getattr(self, least), high)
        elif isinstance(low, int) and high is None:
            chosen[most] = max(getattr(self, most), low)


def read_files(folder: Path, from_dicts: Callable[..., T]) -> T:
    """The result of `from_dicts` for whichever of `FILES` the folder has. Raises `ConfigError`."""
    data = {name: read_json(folder / name) if (folder / name).is_file() else None for name in FILES}
    try:
        return from_dicts(*data.values())
    except ConfigError as error:
        names = [name for name in FILES[:2] if data[name]] or [FILES[2]]
        raise ConfigError(f"{folder}/{', '.join(names)}: {error}") from None


def written(policy: Any) -> dict[str, Any]:
    """The fields of a policy, as JSON has them, without those of the caller's."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(policy).items()}
    return {name: value for name, value in plain.items() if name not in OF_READING}


@dataclass(frozen=True)
class ImageProcessorConfig(PicturePolicy):
    """The picture policy of a checkpoint. Sizes in pixels, budgets in image tokens (after pixel unshuffle).

    `max_num_patches` is derived, never read: some published files hold a stale 256. `do_resize` is not a field:
    pictures are always resized. Two fields are the caller's, not the checkpoint's: `color_management` (colours of an
    embedded ICC profile become sRGB; transformers ignores the profile) and `exif` (pictures are turned upright).
    Raises `ConfigError` for values that contradict each other.
    """

    downsample_factor: int = integer(2, high=1024)
    do_image_splitting: bool = flag(True)
    min_tiles: int = integer(2, high=256)
    max_tiles: int = integer(10, high=256)
    use_thumbnail: bool = flag(True)
    min_image_tokens: int = integer(64, high=2**20)
    max_image_tokens: int = integer(256, high=2**20)
    encoder_patch_size: int = integer(16, high=1024)
    tile_size: int = integer(512, high=2**20)
    max_pixels_tolerance: float = number(2.0)
    resample: int = choice(2, options=tuple(RESAMPLE_FILTERS))
    do_rescale: bool = flag(True)
    rescale_factor: float = number(1 / 255)
    do_normalize: bool = flag(True)
    image_mean: tuple[float, float, float] = mean((0.5, 0.5, 0.5))
    image_std: tuple[float, float, float] = deviation((0.5, 0.5, 0.5))
    do_pad: bool = flag(True)
    color_management: bool = flag(True)
    exif: bool = flag(True)

    def __post_init__(self) -> None:
        read = self.checked("image processor")
        if self.do_image_splitting:
            self.check_order(read, ("min_tiles", "max_tiles"))
        self.check_order(read, ("min_image_tokens", "max_image_tokens"))
        side = self.downsample_factor * self.encoder_patch_size  # pixels of an image token
        for name, count, pixels in (
            ("max_image_tokens", self.max_image_tokens, side**2),
            ("tile_size", self.max_tiles if self.do_image_splitting else 1, self.tile_size**2),
        ):
            if count * pixels > MAX_PIXELS:
                raise read.refuse(name, getattr(self, name), f"at most {MAX_PIXELS:,} pixels of a resized picture")
        if self.tile_size % side:
            raise read.refuse("tile_size", self.tile_size, f"a multiple of {side}")

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

    def with_overrides(self, **overrides: Any) -> ImageProcessorConfig:
        """A copy with fields replaced. A budget set beyond the other one takes that along. Raises `ConfigError` naming
        an unknown field or a bad value."""
        chosen = self.chosen(overrides)
        self.take_along(chosen, "min_image_tokens", "max_image_tokens")
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
        sources = [source for source in (preprocessor, processor) if source] or [model or {}]
        parts = [part for each in sources for part in (each, each.get("image_processor")) if isinstance(part, Mapping)]
        said = {name: value for part in parts for name, value in part.items() if value is not None}
        known = {each.name for each in fields(ImageProcessorConfig)} - set(OF_READING)
        merged = {name: value for name, value in said.items() if name in known}
        meant = any(part.get(SPLITTING_IS_MEANT) is True for part in parts)
        notes = []
        stated = bool(merged)
        if not stated:
            notes.append("no processor file says how pictures are cut; the defaults of LFM2-VL are used (tiles of 512)")
        if merged.get("do_image_splitting") is False and not meant:
            del merged["do_image_splitting"]
            if merged.get("use_thumbnail") is not True:
                merged.pop("use_thumbnail", None)
            notes.append(
                "the processor file switches tiling off (do_image_splitting: false), as converters did by mistake in "
                "published folders; tiling stays on. Pass do_image_splitting=False (--no-tiling) if it is meant"
            )
        special = Fields(said, "processor").flag("use_image_special_tokens", default=True)
        return cls(ImageProcessorConfig(**merged), special, tuple(notes), stated)

    @classmethod
    def from_folder(cls, folder: Path) -> ProcessorConfig:
        """Reads whichever of the processor files the folder has. Raises `ConfigError`."""
        return read_files(folder, cls.from_dicts)

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json as transformers 5 writes it; a key of our own says where tiling off is meant."""
        image = written(self.image)
        image.update(
            do_resize=True,
            max_num_patches=self.image.max_num_patches,
            size={"height": self.image.tile_size, "width": self.image.tile_size},
            image_processor_type="Lfm2VlImageProcessor",
        )
        if not self.image.do_image_splitting:
            image[SPLITTING_IS_MEANT] = True
        return {
            "image_processor": image,
            "processor_class": "Lfm2VlProcessor",
            "use_image_special_tokens": self.use_image_special_tokens,
        }
