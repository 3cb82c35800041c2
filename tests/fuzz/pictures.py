"""Picture files of every container, as `load_image` reads them from strangers."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib

import numpy as np
from containers import heic, samples

from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.load_image import SourcePolicy, load_image

from .entrance import Entrance

POLICY = SourcePolicy(allow_urls=False, allow_paths=False, max_pixels=1_000_000)


@functools.cache
def seeds() -> dict[str, bytes]:
    try:
        more = heic()
    except ImportError:
        more = {}
    return {name: sample.data for name, sample in {**samples(), **more}.items()}


def run(data: bytes) -> np.ndarray:
    """A right picture: RGB with 8 bits, of no more pixels than allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = np.array(load_image(data, POLICY))
        except ImageError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 400 and text.isprintable(), text
            raise
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert 0 < picture.shape[0] * picture.shape[1] <= POLICY.max_pixels
    return picture


def repair(data: bytes) -> bytes:
    """With the checksums of PNG's chunks put right, so that what is in them is reached."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        length = min(length, len(data) - at - 12)
        body = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(made + data[at:])


ENTRANCE = Entrance("pictures", seeds, run, (ImageError,), repair)
