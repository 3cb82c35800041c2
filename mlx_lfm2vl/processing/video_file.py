"""Frames of video files, by PyAV. The only file that imports it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from PIL import Image

from ..errors import ImageError, first_line
from .fetch import SourcePolicy
from .formats import check_size

INSTALL = "pip install av"
OPTIONS = {  # of FFmpeg: containers that hold their pictures themselves, so that no file opens another or an address
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf",
    "protocol_whitelist": "none",
}


@contextlib.contextmanager
def _opened(file: BinaryIO, label: str, reads_as: str, way: str) -> Iterator[Any]:
    """The container in a file. FFmpeg's errors are told as `ImageError`: what the file reads as, and the way out."""
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{label}: video files need PyAV ({INSTALL}); {first_line(error)}") from None
    try:
        with av.open(file, options=OPTIONS) as container:
            yield container
    except ImageError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)  # without its number and name of the file
        raise ImageError(f"{label}: {reads_as} ({reason}); {way}") from None


def probe(file: BinaryIO, label: str, policy: SourcePolicy) -> tuple[int, float]:
    """The number of frames of a video file's first video stream, and frames a second; where it does not say the number
    of frames, its packets are counted. Raises `ImageError`."""
    with _opened(file, label, "is no video that can be read", "convert it to MP4") as container:
        if not container.streams.video:
            raise ImageError(f"{label}: has no pictures that move; give a video file")
        stream = container.streams.video[0]
        check_size(stream.codec_context.width, stream.codec_context.height, label, policy)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        count = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
        _check_all(count * stream.codec_context.width * stream.codec_context.height, label, policy)
    if count < 1 or rate <= 0:
        raise ImageError(f"{label}: says neither how many frames it has nor how fast they follow; convert it to MP4")
    return count, rate


def frames(file: BinaryIO, label: str, wanted: Sequence[int], policy: SourcePolicy) -> Iterator[Image.Image]:
    """The frames of these numbers, in rising order, as RGB images, upright. A file that ends before the last of them
    gives its last frame in their place. Raises `ImageError`."""
    rest, last, pixels = sorted(wanted), None, 0
    with _opened(file, label, "is damaged or truncated", "save or download it again") as container:
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
    if last is None:
        raise ImageError(f"{label}: has no frame that can be read")
    for _ in rest:
        yield _upright(last, label, policy)


def _check_all(pixels: int, label: str, policy: SourcePolicy) -> None:
    if pixels > policy.max_video_pixels:
        most = f"{int(policy.max_video_pixels):,}"
        raise ImageError(f"{label}: its frames have more than {most} pixels together; cut it, or make it smaller")


def _upright(frame: Any, label: str, policy: SourcePolicy) -> Image.Image:
    check_size(frame.width, frame.height, label, policy)
    image: Image.Image = frame.to_image()
    turn = round(getattr(frame, "rotation", 0) or 0) % 360  # degrees against the clock by which a player turns it
    return image.rotate(turn, expand=True) if turn else image
