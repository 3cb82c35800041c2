"""Frames of video files, by PyAV. The only file that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from ..errors import ImageError, first_line
from .fetch import SourcePolicy
from .formats import check_size

INSTALL = "pip install av"
OPTIONS = {  # of FFmpeg: containers that hold their pictures themselves, so that no file opens another or an address
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf",
    "protocol_whitelist": "none",
}


class Probed(NamedTuple):
    """The number of frames of a file, and frames a second."""

    frames: int
    frame_rate: float


def _av(label: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{label}: video files need PyAV ({INSTALL}); {first_line(error)}") from None
    return av


def probe(file: BinaryIO, label: str, policy: SourcePolicy) -> Probed:
    """The numbers of a video file's first video stream; where it does not say the number of frames, its packets are
    counted. Raises `ImageError`."""
    av = _av(label)
    try:
        with av.open(file, options=OPTIONS) as container:
            if not container.streams.video:
                raise ImageError(f"{label}: has no pictures that move; give a video file")
            stream = container.streams.video[0]
            check_size(stream.codec_context.width, stream.codec_context.height, label, policy)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            count = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
            _check_all(count * stream.codec_context.width * stream.codec_context.height, label, policy)
    except ImageError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ImageError(f"{label}: is no video that can be read ({_reason(error)}); convert it to MP4") from None
    if count < 1 or rate <= 0:
        raise ImageError(f"{label}: says neither how many frames it has nor how fast they follow; convert it to MP4")
    return Probed(count, rate)


def frames(file: BinaryIO, label: str, wanted: Sequence[int], policy: SourcePolicy) -> Iterator[Image.Image]:
    """The frames of these numbers, in rising order, as RGB images, upright. A file that ends before the last of them
    gives its last frame in their place. Raises `ImageError`."""
    av = _av(label)
    rest, last, pixels = sorted(wanted), None, 0
    try:
        with av.open(file, options=OPTIONS) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                last, pixels = frame, pixels + frame.width * frame.height
                _check_all(pixels, label, policy)  # a file need not be as it says
                while rest and number == rest[0]:
                    rest.pop(0)
                    yield _upright(frame, label, policy)
                if not rest:
                    return
    except ImageError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ImageError(f"{label}: is damaged or truncated ({_reason(error)}); save or download it again") from None
    if last is None:
        raise ImageError(f"{label}: has no frame that can be read")
    for _ in rest:
        yield _upright(last, label, policy)


def _reason(error: Exception) -> str:
    """The words of FFmpeg's error, without its number and its name of the file."""
    return getattr(error, "strerror", None) or first_line(error)


def _check_all(pixels: int, label: str, policy: SourcePolicy) -> None:
    if pixels > policy.max_video_pixels:
        most = f"{int(policy.max_video_pixels):,}"
        raise ImageError(f"{label}: its frames have more than {most} pixels together; cut it, or make it smaller")


def _upright(frame: Any, label: str, policy: SourcePolicy) -> Image.Image:
    check_size(frame.width, frame.height, label, policy)
    image: Image.Image = frame.to_image()
    turn = round(getattr(frame, "rotation", 0) or 0) % 360  # degrees against the clock by which a player turns it
    return image.rotate(turn, expand=True) if turn else image
