"""The `video_processor` of LFM3-VL's processor files. Defaults are those of transformers 5.23 (`Qwen3VLVideoProcessor`,
which LFM3-VL takes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import ConfigError
from .fields import Fields, choice, flag, integer, number
from .processor import MAX_PIXELS, OF_READING, RESAMPLE_FILTERS, PicturePolicy, deviation, mean, written

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
