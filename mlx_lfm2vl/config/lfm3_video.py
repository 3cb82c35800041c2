"""The `video_processor` of LFM3-VL's processor files. Defaults are those of transformers 5.23 (`Qwen3VLVideoProcessor`,
which LFM3-VL takes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import ConfigError
from .fields import Fields
from .processor import MAX_PIXELS, check_normalisation

SIZE = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}  # the reference's names in `size`
MAX_FRAMES = 4096


@dataclass(frozen=True)
class Lfm3VlVideoProcessorConfig:
    """The video policy of an LFM3-VL checkpoint. `min_pixels` and `max_pixels` bound the area of all sampled frames
    together, as they are resized; with `cap_pixels_per_frame` a frame has at most `max_video_tokens` tokens. `fps`
    frames of a second are sampled, `min_frames` to `max_frames` in all. Raises `ConfigError`.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 128 * 32 * 32
    max_pixels: int = 768 * 32 * 32
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768
    resample: int = 3
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        read = Fields({f.name: getattr(self, f.name) for f in fields(self)}, "video processor")
        for name, high in (("patch_size", 1024), ("temporal_patch_size", 64), ("merge_size", 64)):
            read.integer(name, default=1, high=high)
        for name in ("min_pixels", "max_pixels"):
            read.integer(name, default=1, high=MAX_PIXELS)
        for name in ("min_frames", "max_frames"):
            read.integer(name, default=1, high=MAX_FRAMES)
        read.integer("max_video_tokens", default=768)
        read.number("fps", default=2.0)
        read.flag("cap_pixels_per_frame", default=False)
        check_normalisation(read, self)
        for least, most in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            if getattr(self, least) > getattr(self, most):
                raise read.refuse(least, getattr(self, least), f"at most {most} {getattr(self, most)}")

    @property
    def cell(self) -> int:
        """Pixels of a side of what becomes one token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lfm3VlVideoProcessorConfig:
        """Raises `ConfigError` for a value that makes no sense."""
        size = Fields(data, "video processor").section("size")
        known = {f.name for f in fields(cls)}
        values = {pixels: size[name] for name, pixels in SIZE.items() if size.get(name) is not None}
        values |= {name: data[name] for name in known if data.get(name) is not None}
        return cls(**values)

    def with_overrides(self, **overrides: Any) -> Lfm3VlVideoProcessorConfig:
        """A copy with fields replaced, and `size` as the reference has it: {"shortest_edge", "longest_edge"}, both
        areas. A least that is beyond the most becomes the most. Raises `ConfigError` naming an unknown field or a bad
        value."""
        chosen = with_areas(overrides, "video processor")
        if unknown := next((name for name in chosen if name not in self.__dataclass_fields__), None):
            raise ConfigError(f"video processor: no option {unknown!r}; there are size, {', '.join(asdict(self))}")
        for least, most in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            low, high = (chosen.get(name, getattr(self, name)) for name in (least, most))
            if isinstance(low, int) and isinstance(high, int) and low > high >= 1:
                chosen[least] = high
        return replace(self, **chosen)

    def to_dict(self) -> dict[str, Any]:
        """In the reference's spelling."""
        data = asdict(self)
        data.update(
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            do_convert_rgb=True,
            do_resize=True,
            do_sample_frames=True,
            size={name: data.pop(pixels) for name, pixels in SIZE.items()},
            video_processor_type="Qwen3VLVideoProcessor",
        )
        return data


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
