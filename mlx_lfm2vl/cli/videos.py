"""Videos that users name on the command line, and how many of their frames are seen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import counted
from .chosen import picture_overrides
from .inputs import DEFAULT_PROMPT, STDIN, expand, shortened, source
from .stderr import note

if TYPE_CHECKING:
    from .. import Lfm2VlProcessor, SourcePolicy, Video

DEFAULT_VIDEO_PROMPT = "What happens in this video?"


def load_videos(names: Sequence[str], fps: float | None, policy: SourcePolicy) -> list[tuple[str, Video]]:
    """The videos of these names and patterns with what each is called. Raises `ImageError`."""
    from .. import ImageError, load_video

    loaded = []
    for name in expand(names):
        try:
            loaded.append((name, load_video(source(name, "video"), fps=fps, policy=policy)))
        except ImageError as error:
            if name != STDIN:
                raise
            raise ImageError(str(error).replace("video bytes", "- (stdin)", 1)) from None
    return loaded


def is_video(name: str) -> bool:
    """Whether a file or address is a video by its name's end."""
    from ..processing.not_pictures import VIDEO_SUFFIXES

    return name.partition("?")[0].lower().endswith(VIDEO_SUFFIXES)


def default_prompt(videos: Any, images: Any) -> str:
    """The prompt of a question without one."""
    return DEFAULT_VIDEO_PROMPT if videos and not images else DEFAULT_PROMPT


def check_picture_options(args: argparse.Namespace, processor: Lfm2VlProcessor) -> None:
    """Raises `OptionError` for an option of pictures where there are videos alone, and the model does not see their
    frames as pictures."""
    from .. import OptionError

    given = [] if processor.frames_as_pictures else [*picture_overrides(args)]
    if given:
        typed = {"do_image_splitting": "--tiling" if args.do_image_splitting else "--no-tiling"}
        option = typed.get(given[0], f"--{given[0].replace('_', '-')}")
        raise OptionError(f"{option} is for pictures, which videos of this model are not; leave it out")


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
