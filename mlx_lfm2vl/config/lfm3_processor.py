"""preprocessor_config.json, processor_config.json and video_preprocessor_config.json of LFM3-VL: the policies for
pictures and videos.

Defaults are those of transformers 5.23 (`Qwen2VLImageProcessor` and `Qwen3VLVideoProcessor`, which LFM3-VL takes), but
the patch size, which is the network's (`Lfm3VlVisionConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .fields import Fields, choice, flag, integer, number
from .files import read_json
from .processor import (
    MAX_PIXELS,
    OF_READING,
    RESAMPLE_FILTERS,
    ImageProcessorConfig,
    PicturePolicy,
    ProcessorConfig,
    deviation,
    mean,
    read_files,
    written,
)

VIDEO_FILE = "video_preprocessor_config.json"
SHARED = ("patch_size", "temporal_patch_size", "merge_size")  # by pictures and videos: one network takes both
TOKEN_BUDGETS = {"min_image_tokens": "min_pixels", "max_image_tokens": "max_pixels"}
SIZE = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}  # the reference's names in `size`
MAX_FRAMES = 4096
BOUNDS = ("min_pixels", "max_pixels"), ("min_frames", "max_frames")


@dataclass(frozen=True)
class Lfm3VlVideoProcessorConfig(PicturePolicy):
    """The video policy of an LFM3-VL checkpoint. `min_pixels` and `max_pixels` bound the area of all sampled frames
    together, as they are resized; with `cap_pixels_per_frame` a frame has at most `max_video_tokens` tokens. `fps`
    frames of a second are sampled, `min_frames` to `max_frames` in all. Raises `ConfigError`.
    """

    patch_size: int = integer(16, high=1024)
    temporal_patch_size: int = integer(2, high=64)
    merge_size: int = integer(2, high=64)
    min_pixels: int = integer(128 * 32 * 32, high=MAX_PIXELS)
    max_pixels: int = integer(768 * 32 * 32, high=MAX_PIXELS)
    fps: float = number(2.0)
    min_frames: int = integer(4, high=MAX_FRAMES)
    max_frames: int = integer(768, high=MAX_FRAMES)
    cap_pixels_per_frame: bool = flag(False)
    max_video_tokens: int = integer(768)
    resample: int = choice(3, options=tuple(RESAMPLE_FILTERS))
    do_rescale: bool = flag(True)
    rescale_factor: float = number(1 / 255)
    do_normalize: bool = flag(True)
    image_mean: tuple[float, float, float] = mean((0.5, 0.5, 0.5))
    image_std: tuple[float, float, float] = deviation((0.5, 0.5, 0.5))

    def __post_init__(self) -> None:
        self.check_order(self.checked("video processor"), *BOUNDS)

    @property
    def cell(self) -> int:
        """Pixels of a side of what becomes one token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lfm3VlVideoProcessorConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        return cls(**stated(data, cls, "video processor"))

    def with_overrides(self, **overrides: Any) -> Lfm3VlVideoProcessorConfig:
        """A copy with fields replaced, and `size` as the reference has it: {"shortest_edge", "longest_edge"}, both
        areas. A least that is beyond the most becomes the most. Raises `ConfigError` naming an unknown field or a bad
        value."""
        chosen = with_areas(overrides, "video processor")
        if unknown := next((name for name in chosen if name not in self.__dataclass_fields__), None):
            raise ConfigError(f"video processor: no option {unknown!r}; there are size, {', '.join(asdict(self))}")
        for least, most in BOUNDS:
            low, high = (chosen.get(name, getattr(self, name)) for name in (least, most))
            if isinstance(low, int) and isinstance(high, int) and low > high >= 1:
                chosen[least] = high
        return replace(self, **chosen)

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling."""
        data = written(self)
        data.update(
            do_convert_rgb=True,
            do_resize=True,
            do_sample_frames=True,
            size={name: data.pop(pixels) for name, pixels in SIZE.items()},
            video_processor_type="Qwen3VLVideoProcessor",
        )
        return data


def stated(data: Mapping[str, Any], kind: type[Any], of: str) -> dict[str, Any]:
    """The fields of a policy that a processor's file says, its areas as `size` has them. Raises `ConfigError`."""
    size = Fields(data, of).section("size")
    areas = {pixels: size[name] for name, pixels in SIZE.items() if size.get(name) is not None}
    known = {each.name for each in fields(kind)} - {*OF_READING, "video"}
    return areas | {name: data[name] for name in known if data.get(name) is not None}


def with_areas(options: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The options with the reference's `size` as the fields of areas that it stands for. Raises `ConfigError` naming
    the processor they are `of`."""
    chosen = dict(options)
    read = Fields({"size": chosen.pop("size", None)}, of)
    size = read.section("size")
    for name in size:
        if name not in SIZE:
            raise read.refuse("size", size, "an object of shortest_edge and longest_edge")
        chosen.setdefault(SIZE[name], size[name])
    return chosen


@dataclass(frozen=True)
class Lfm3VlImageProcessorConfig(PicturePolicy):
    """The picture policy of an LFM3-VL checkpoint. `min_pixels` and `max_pixels` bound the area of a resized picture;
    `merge_size` x `merge_size` patches become one token. `color_management` and `exif` as in `ImageProcessorConfig`.
    `video` is the policy for videos.
    Raises `ConfigError` for values that contradict each other.
    """

    patch_size: int = integer(16, high=1024)
    temporal_patch_size: int = integer(2, high=64)
    merge_size: int = integer(2, high=64)
    min_pixels: int = integer(56 * 56, high=MAX_PIXELS)
    max_pixels: int = integer(28 * 28 * 1280, high=MAX_PIXELS)
    resample: int = choice(3, options=tuple(RESAMPLE_FILTERS))
    do_rescale: bool = flag(True)
    rescale_factor: float = number(1 / 255)
    do_normalize: bool = flag(True)
    image_mean: tuple[float, float, float] = mean((0.48145466, 0.4578275, 0.40821073))
    image_std: tuple[float, float, float] = deviation((0.26862954, 0.26130258, 0.27577711))
    color_management: bool = flag(True)
    exif: bool = flag(True)
    video: Lfm3VlVideoProcessorConfig = field(default_factory=Lfm3VlVideoProcessorConfig)

    def __post_init__(self) -> None:
        read = self.checked("image processor")
        self.check_order(read, ("min_pixels", "max_pixels"))
        if not isinstance(self.video, Lfm3VlVideoProcessorConfig):
            raise read.refuse("video", self.video, "a Lfm3VlVideoProcessorConfig")
        for name in SHARED:
            if getattr(self.video, name) != getattr(self, name):
                raise Fields({}, "video processor").refuse(
                    name, getattr(self.video, name), f"the image processor's {getattr(self, name)}"
                )

    @property
    def cell(self) -> int:
        """Pixels of a side of what becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def encoder_patch_size(self) -> int:
        """As `ImageProcessorConfig` calls it."""
        return self.patch_size

    @property
    def downsample_factor(self) -> int:
        """As `ImageProcessorConfig` calls it."""
        return self.merge_size

    @property
    def min_image_tokens(self) -> int:
        """The fewest tokens of a picture."""
        return -(-self.min_pixels // self.cell**2)

    @property
    def max_image_tokens(self) -> int:
        """The most tokens of a picture."""
        return self.max_pixels // self.cell**2

    @property
    def coarsest(self) -> dict[str, Any]:
        """The overrides by which a picture is as few tokens as can be."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.min_pixels}

    @property
    def finest(self) -> dict[str, Any]:
        """The overrides by which a picture is seen as finely as the checkpoint sees any: none."""
        return {}

    @classmethod
    def options(cls) -> frozenset[str]:
        """The names that `with_overrides` takes."""
        return super().options() | {*TOKEN_BUDGETS, "size", "do_image_splitting"}

    def with_overrides(self, **overrides: Any) -> Lfm3VlImageProcessorConfig:
        """A copy with fields replaced; budgets may be given in tokens, too (`max_image_tokens`), or as the reference's
        `size` {"shortest_edge", "longest_edge"}, both of them areas in pixels. One that is set beyond
        the other takes that along. `video` is a policy, or a mapping of fields of the present one to replace. Raises
        `ConfigError` naming an unknown field or a bad value."""
        read = Fields(overrides, "image processor")
        chosen = with_areas(self.chosen(overrides), "image processor")
        if isinstance(chosen.get("video"), Mapping):
            chosen["video"] = self.video.with_overrides(**chosen["video"])
        if chosen.pop("do_image_splitting", False) is not False:
            raise read.refuse("do_image_splitting", overrides["do_image_splitting"], "False: pictures are not cut here")
        shared = {name: chosen[name] for name in SHARED if name in chosen}
        if shared:
            chosen.setdefault("video", replace(self.video, **shared))
        sides = {name: chosen[name] for name in (*shared, "video") if name in chosen}
        cell = replace(self, **sides).cell
        for name, pixels in TOKEN_BUDGETS.items():
            if name in chosen:
                chosen[pixels] = read.integer(name, default=1, high=max(1, MAX_PIXELS // cell**2)) * cell**2
                del chosen[name]
        self.take_along(chosen, "min_pixels", "max_pixels")
        return replace(self, **chosen)


@dataclass(frozen=True)
class Lfm3VlProcessorConfig:
    """The picture policy of an LFM3-VL checkpoint, with notes on what its files do not say."""

    image: Lfm3VlImageProcessorConfig = field(default_factory=Lfm3VlImageProcessorConfig)
    notes: tuple[str, ...] = ()
    is_stated: bool = True  # whether any file says how pictures are resized

    @property
    def use_image_special_tokens(self) -> bool:
        """False: the chat template writes the tokens around pictures, the processor none."""
        return False

    @classmethod
    def from_dicts(
        cls,
        preprocessor: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
    ) -> Lfm3VlProcessorConfig:
        """Merges preprocessor_config.json and processor_config.json (which wins; nested `image_processor` or flat). The
        policy of videos is the latter's `video_processor`, else `video`, that of video_preprocessor_config.json, else
        the former. config.json says nothing of it. Raises `ConfigError`."""
        files = [Fields(source or {}, "processor") for source in (preprocessor, processor)]
        nested = [file.section("video_processor") for file in reversed(files)]
        videos = next((dict(each) for each in (*nested, video, preprocessor) if each), {})
        merged: dict[str, Any] = {}
        for part in (part for file in files for part in (file.data, file.section("image_processor"))):
            merged.update(stated(part, Lfm3VlImageProcessorConfig, "image processor"))
        videos = {name: merged[name] for name in SHARED if name in merged} | videos
        note = "no processor file says how pictures are resized; the defaults of transformers are used"
        image = Lfm3VlImageProcessorConfig(**merged, video=Lfm3VlVideoProcessorConfig.from_dict(videos))
        return cls(image, () if merged else (note,), bool(merged))

    @classmethod
    def from_folder(cls, folder: Path) -> Lfm3VlProcessorConfig:
        """Reads whichever of the processor files the folder has. Raises `ConfigError`."""
        file = folder / VIDEO_FILE
        return read_files(folder, partial(cls.from_dicts, video=read_json(file) if file.is_file() else None))

    def to_dict(self) -> dict[str, Any]:
        """processor_config.json as transformers 5 writes it."""
        image = written(self.image)
        del image["video"]
        size = {name: image.pop(pixels) for name, pixels in SIZE.items()}
        image.update(do_convert_rgb=True, do_resize=True, size=size, image_processor_type="Qwen2VLImageProcessor")
        video = self.image.video.to_dict()
        return {"image_processor": image, "processor_class": "Lfm3VlProcessor", "video_processor": video}


ImageConfig = ImageProcessorConfig | Lfm3VlImageProcessorConfig
ProcessorFiles = ProcessorConfig | Lfm3VlProcessorConfig  # what the processor files of a family hold
