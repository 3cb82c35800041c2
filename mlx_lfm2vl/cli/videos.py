"""Videos that users name on the command line, and how many of their frames are seen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import counted
from .argument_types import real
from .inputs import DEFAULT_PROMPT, expand, shortened, source
from .options import note

if TYPE_CHECKING:
    from .. import Lfm2VlProcessor, SourcePolicy, Video

DEFAULT_VIDEO_PROMPT = "What happens in this video?"


def add_videos(parser: argparse.ArgumentParser, help: str) -> None:
    """--video and --fps."""
    parser.add_argument("--video", nargs="+", action="extend", default=[], metavar="VIDEO", help=help)
    add_fps(parser)


def add_fps(parser: argparse.ArgumentParser) -> None:
    """--fps."""
    parser.add_argument(
        "--fps",
        type=real(0, above=True),
        metavar="N",
        help="frames of a second that are seen of each video (default: as the model's processor says, mostly 2)",
    )


def load_videos(names: Sequence[str], fps: float | None, policy: SourcePolicy) -> list[tuple[str, Video]]:
    """The videos of these names and patterns with what each is called. Raises `ImageError`."""
    from .. import load_video

    return [(name, load_video(source(name), fps=fps, policy=policy)) for name in expand(names)]


def is_video(name: str) -> bool:
    """Whether a file or address is a video by its name's end."""
    from ..processing.not_pictures import VIDEO_SUFFIXES

    return name.partition("?")[0].lower().endswith(VIDEO_SUFFIXES)


def default_prompt(videos: Any, images: Any) -> str:
    """The prompt of a question without one."""
    return DEFAULT_VIDEO_PROMPT if videos and not images else DEFAULT_PROMPT


def as_objects(processor: Lfm2VlProcessor, videos: Sequence[tuple[str, Video]]) -> list[dict[str, Any]]:
    """The videos as --json has them: what each is called, the frames of it that are seen, their tokens."""
    return [
        {
            "source": shortened(name),
            "frames": len(video.indices(*processor.frame_sampling)),
            "tokens": processor.video_tokens(video),
        }
        for name, video in videos
    ]


def note_frames(processor: Lfm2VlProcessor, videos: Sequence[tuple[str, Video]]) -> None:
    """Says how many frames of each video are seen, where these are not all; and what the model takes, where that
    decides."""
    for name, video in videos:
        fps, least, most = processor.frame_sampling
        seen = len(video.indices(fps, least, most))
        if seen == video.count:
            continue
        bounded = seen != len(video.indices(fps, 1, video.count))
        limits = f"; the model takes {least} to {most}" if bounded else ""
        note(f"{shortened(name)}: {seen} of {counted(video.count, 'frame')} are seen{limits}")


def size(picture: Any) -> str:
    """The size of a picture, or the length of a video, as a person reads it."""
    from .. import Video

    if not isinstance(picture, Video):
        return f"{picture.width:.0f}x{picture.height:.0f}"
    last = picture.times([picture.count - 1])[0] + 1 / picture.frame_rate
    return f"{counted(picture.count, 'frame')}, {last:.1f} s"
