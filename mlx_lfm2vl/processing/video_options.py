"""The options of videos in a processor's call, in transformers' spelling: which they are, what is known of each, how
their frames are sampled and resized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..config import Lfm3VlVideoProcessorConfig
from ..config.lfm3_processor import SHARED
from ..errors import OptionError
from .arrays import is_array, to_numpy
from .fetch import SourcePolicy
from .load_image import Picture
from .not_pictures import names_video_file
from .processor import check_names
from .video import Video, load_video

SAMPLING = ("fps", "num_frames", "do_sample_frames", "video_metadata")
POLICY = ("size", *(each.name for each in fields(Lfm3VlVideoProcessorConfig) if each.name not in (*SAMPLING, *SHARED)))
OWN = ("min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens")  # of these, what pictures have not
WITHOUT_EFFECT = ("do_resize", "do_convert_rgb", "default_to_square", "device", "input_data_format", "return_tensors")
METADATA = "return_metadata"  # which the call refuses, wherever it stands


@dataclass(frozen=True)
class VideoOptions:
    """How the frames of a call's videos are sampled, as in `load_video`; without `do_sample_frames` all are seen.
    `metadata`: of each video, in their order."""

    fps: float | None = None
    num_frames: int | None = None
    do_sample_frames: bool = True
    metadata: list[Any] = field(default_factory=list)

    @classmethod
    def take(cls, *groups: dict[str, Any]) -> VideoOptions:
        """Takes them from the options of a call, where they stand by themselves or in "videos_kwargs"; what is for
        pictures, too, stays. The policy becomes the override "video" of the last group. Raises `OptionError`."""
        given: dict[str, Any] = {}
        for options in groups:
            nested = options.pop("videos_kwargs", None) or {}
            if not isinstance(nested, Mapping):
                raise OptionError(f"videos_kwargs is {type(nested).__name__}, expected a mapping of options")
            check_names(nested, (*SAMPLING, *POLICY, *WITHOUT_EFFECT, METADATA))
            options |= {METADATA: nested[METADATA]} if METADATA in nested else {}
            given |= {name: value for name, value in {**options, **nested}.items() if value is not None}
            for name in (*SAMPLING, *OWN):
                options.pop(name, None)
        if policy := {name: given[name] for name in POLICY if name in given}:
            groups[-1]["video"] = policy
        metadata = given.get("video_metadata", ())
        entries = metadata if isinstance(metadata, (list, tuple)) else [metadata]
        return cls(
            given.get("fps"),
            given.get("num_frames"),
            given.get("do_sample_frames", True) is not False,
            [said for each in entries for said in (each if isinstance(each, (list, tuple)) else [each])],
        )

    def check_count(self, videos: int) -> None:
        """Raises `OptionError` where there is metadata, but not of so many videos."""
        if self.metadata and len(self.metadata) != videos:
            raise OptionError(f"video_metadata has {len(self.metadata)} entries for {videos} videos")

    def rate(self, number: int) -> float | None:
        """The frames a second of a video that its metadata says. Raises `OptionError`."""
        return self._known(number).get("fps")

    def opened(self, video: Any, number: int, policy: SourcePolicy) -> Video:
        """A video with what is said of it. Raises `ImageError`, `OptionError`."""
        chosen = {"fps": self.fps, "num_frames": self.num_frames}
        made = load_video(video, frame_rate=self.rate(number), policy=policy, **chosen)  # type: ignore[arg-type]
        if self.do_sample_frames:
            return made
        numbers = self._known(number).get("frames_indices")
        if numbers is not None and len(numbers) != made.count:
            raise OptionError(f"frames_indices has {len(numbers)} numbers for {made.count} frames")
        return replace(made, fps=None, num_frames=made.count, numbers=None if numbers is None else tuple(numbers))

    def _known(self, number: int) -> dict[str, Any]:
        """The entries of a video's metadata that say something."""
        said = self.metadata[number] if number < len(self.metadata) else {}
        if not isinstance(said, Mapping | None):
            of = "expected a mapping with 'fps' for each video"
            raise OptionError(f"video_metadata holds {type(said).__name__}, {of}")
        return {name: value for name, value in (said or {}).items() if value is not None}


def listed(videos: Any) -> list[Any]:
    """The videos of a list of them, of lists of them or of an array (videos, frames, height, width, 3); or one that is
    none of these. A list of pictures is one video."""
    if is_array(videos) and videos.ndim == 5:
        return list(to_numpy(videos))
    if not isinstance(videos, (list, tuple)) or (videos and all(map(_is_frame, videos))):
        return [videos]
    return [video for each in videos for video in (listed(each) if _holds_videos(each) else [each])]


def _is_frame(value: Any) -> bool:
    return isinstance(value, Picture) or (is_array(value) and value.ndim == 3)


def _holds_videos(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(
            isinstance(each, (list, tuple, Video)) or (is_array(each) and each.ndim > 3) or names_video_file(each)
            for each in value
        )
    return is_array(value) and value.ndim == 5
