"""`Video`: frames in time, of a file, an animation, a list of pictures or an array, and which of them a model sees.

Video files are read by PyAV, animations (GIF, WebP, PNG) by Pillow. Nothing is decoded before frames are asked for, and
then one after the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageSequence

from ..errors import ImageError, ImageWarning, OptionError
from . import video_file
from .arrays import is_array, to_numpy
from .fetch import DEFAULT_POLICY, SourcePolicy
from .formats import check_size, decode
from .load_image import DEFAULT_CONFIG, load_image
from .not_pictures import AS_PICTURE, is_still
from .open_file import LabelledBytes, is_remote, opened

USUAL_RATE = 24.0  # frames a second of frames that say none, as in the reference
USUAL_DURATION = 100  # milliseconds of an animation's frame that says none
MAX_FRAMES = 100_000  # of a list or an animation
MOST_PIXELS = 2**32  # of all frames of an animation, all of which are decoded for their durations
MOST_PICTURES = 2**29  # pixels of frames that are seen as pictures, which are in memory together
PICTURES = (2.0, 4, 32)  # of a video as pictures: frames of a second, least and most in all


@dataclass(frozen=True, eq=False)
class Video:
    """A video that `load_video` made.

    Attributes:
        label: what it is called in messages.
        count: frames.
        frame_rate: frames a second.
        fps: frames of a second that are sampled; None is what the model's processor says.
        num_frames: frames that are sampled in all, in place of `fps`.
        numbers: of the frames, in the video that they were taken out of; None where they are all of it.
        size: (height, width) of the video whose frames were resized to what a model sees; None is that of the frames.
        read: the frames of these numbers, in rising order, as RGB images. Raises `ImageError`.
    """

    label: str
    count: int
    frame_rate: float
    fps: float | None = None
    num_frames: int | None = None
    numbers: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    read: Callable[[Sequence[int]], Iterator[Image.Image]] = field(repr=False, default=lambda wanted: iter(()))

    def indices(self, fps: float, min_frames: int, max_frames: int) -> list[int]:
        """The numbers of the frames that are sampled, evenly over all; by the video's own `fps` or `num_frames`, else
        by these (the reference's `sample_frames`)."""
        count = self.num_frames
        if count is None:
            count = min(max(int(self.count / self.frame_rate * (self.fps or fps)), min_frames), max_frames)
        count = min(count, self.count)
        return [int(number) for number in np.linspace(0, self.count - 1, count).round()]

    def times(self, indices: Sequence[int]) -> list[float]:
        """The moments of frames, in seconds."""
        return [number / self.frame_rate for number in self.numbers_of(indices)]

    def numbers_of(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The `numbers` of frames."""
        return tuple(self.numbers[index] if self.numbers else index for index in indices)


def held(label: str, frames: Sequence[Any], frame_rate: float, numbers: Sequence[int], size: Any = None) -> Video:
    """A video of frames that are in memory, RGB images or arrays (height, width, 3) of uint8, all of which are seen."""

    def read(wanted: Sequence[int]) -> Iterator[Image.Image]:
        images = (frames[number] for number in wanted)
        return (each if isinstance(each, Image.Image) else Image.fromarray(each) for each in images)

    return Video(label, len(frames), frame_rate, None, len(frames), tuple(numbers), size, read)


def frames_as_pictures(video: Video) -> list[Image.Image]:
    """The frames of a video that a model without tokens for videos sees. Raises `ImageError`."""
    frames: list[Image.Image] = []
    pixels = 0
    for frame in video.read(video.indices(*PICTURES)):
        pixels += frame.width * frame.height
        if pixels > MOST_PICTURES:
            of = f"its frames of {frame.width}x{frame.height} have more than {MOST_PICTURES:,} pixels together"
            raise ImageError(f"{video.label}: {of}; give fewer (num_frames), or make them smaller")
        frames.append(frame)
    return frames


def load_video(
    video: Any,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    frame_rate: float | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
) -> Video:
    """A video of whatever holds or names one.

    Args:
        video: a `Video`; a path, URL, `data:` URI, open file or bytes of a video file or an animation; a list of
            pictures, each as `load_image` reads them; an array (frames, height, width, 3) or (frames, 3, height,
            width) of uint8 or floats in 0..1.
        fps: frames of a second that a model sees; None is what its processor says.
        num_frames: frames that a model sees in all, in place of `fps`.
        frame_rate: frames a second of a list or an array; 24, with an `ImageWarning`, where it is not given.
        policy: what may be reached, and how large frames may be.

    Raises:
        ImageError: it cannot be read, or may not.
        OptionError: for a number that is none.
    """
    for name, value in (("fps", fps), ("frame_rate", frame_rate)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise OptionError(f"{name} is {value!r}, expected frames a second, a number above 0")
    if num_frames is not None and (isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1):
        raise OptionError(f"num_frames is {num_frames!r}, expected an integer of at least 1")
    if fps is not None and num_frames is not None:
        raise OptionError("fps and num_frames exclude each other; give one")
    made = video if isinstance(video, Video) else _opened(video, frame_rate, policy)
    if made.count < 1:
        raise ImageError(f"{made.label}: has no frames")
    return made if fps is None and num_frames is None else replace(made, fps=fps, num_frames=num_frames)


def _opened(video: Any, frame_rate: float | None, policy: SourcePolicy) -> Video:
    if is_array(video):
        array = to_numpy(video)
        label = f"array {array.shape} {array.dtype}"
        if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
            raise ImageError(f"{label}: expected (frames, height, width, 3) or (frames, 3, height, width)")
        return _of_frames(array, label, frame_rate, policy)
    if isinstance(video, (list, tuple)):
        _check_count(len(video), "the list of frames")
        return _of_frames(list(video), "the list of frames", frame_rate, policy)
    with opened(video, policy, "video") as file:
        label = file.label
        if file.is_pdf():
            raise ImageError(f"{label}: is a PDF document, not a video; give it as a picture{AS_PICTURE}")
        start = file.file.read(16)
        file.file.seek(0)
        source = LabelledBytes(label, file.file.read()) if is_remote(video) or hasattr(video, "read") else video
        file.file.seek(0)
        if is_still(start):
            raise ImageError(f"{label}: is a picture, not a video; give it as one{AS_PICTURE}")
        animated = start.startswith((b"GIF8", b"\x89PNG")) or start[8:12] == b"WEBP"
        return (_animation if animated else _file)(file.file, label, source, policy)


def _file(file: BinaryIO, label: str, source: Any, policy: SourcePolicy) -> Video:
    count, rate = video_file.probe(file, label, policy)

    def read(wanted: Sequence[int]) -> Iterator[Image.Image]:
        with opened(source, policy, "video") as again:
            yield from video_file.frames(again.file, label, wanted, policy)

    return Video(label, count, rate, read=read)


def _animation(file: BinaryIO, label: str, source: Any, policy: SourcePolicy) -> Video:
    try:
        with Image.open(file) as image:
            check_size(image.width, image.height, label, policy)
            count = int(getattr(image, "n_frames", 1))
            _check_count(count, label)
            if count * image.width * image.height > MOST_PIXELS:
                raise ImageError(f"{label}: its {count} frames have more than {MOST_PIXELS:,} pixels together; cut it")
            durations = []
            for frame in ImageSequence.Iterator(image):
                frame.load()  # before it, WebP does not say
                durations.append(frame.info.get("duration") or USUAL_DURATION)
    except ImageError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise ImageError(f"{label}: is no animation that can be read ({error})") from None

    def read(wanted: Sequence[int]) -> Iterator[Image.Image]:
        with opened(source, policy, "video") as again, Image.open(again.file) as image:
            for number in wanted:
                image.seek(number)
                yield decode(image.copy(), label, policy, DEFAULT_CONFIG)

    return Video(label, count, 1000 * count / sum(durations), read=read)


def _of_frames(frames: Any, label: str, frame_rate: float | None, policy: SourcePolicy) -> Video:
    def read(wanted: Sequence[int]) -> Iterator[Image.Image]:
        return (load_image(frames[number], policy) for number in wanted)

    if frame_rate is None:
        said = f"{label}: frame_rate is not given; {USUAL_RATE:g} frames a second are assumed"
        warnings.warn(said, ImageWarning, stacklevel=4)
    return Video(label, len(frames), frame_rate or USUAL_RATE, read=read)


def _check_count(count: int, label: str) -> None:
    if count > MAX_FRAMES:
        raise ImageError(f"{label}: has {count} frames, of which {MAX_FRAMES} are taken; cut it")
