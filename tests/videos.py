"""Videos of tests: files that are written, and the golden clip."""

import base64
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN

CLIP = GOLDEN / "videos" / "clip.png"  # 24 frames of 160x96, 8 a second


def clip_uri() -> str:
    """The golden clip as a data URI."""
    return "data:image/png;base64," + base64.b64encode(CLIP.read_bytes()).decode()


def write_video(path: Path, frames: Iterable[np.ndarray], rate: int, codec: str = "mpeg4") -> Path:
    """A video file of frames (height, width, 3) uint8."""
    av = pytest.importorskip("av")
    rest = iter(frames)
    first = next(rest)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in itertools.chain([first], rest):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def rising(count: int = 8, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that grow lighter."""
    return [np.full((height, width, 3), 240 * n // count, np.uint8) for n in range(count)]
