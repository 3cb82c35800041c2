"""The outer form of JPEG files, which Pillow does not tell of: how many scans one has, and whether it ends."""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import random
import re
from typing import Any, BinaryIO

from PIL import Image

FORMATS = ("JPEG", "MPO", "BLP", "FPX", "MIC")  # JPEG files, and containers of them
MAX_SCANS = 200  # usual are about ten; each goes over all pixels, however few bytes it has
END = b"\xff\xd9"

_SCAN = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffed nor a restart


def _filler(seed: int) -> bytes:
    """Bits that a decoder would take for a picture's if it waited for more, also at any of the eight restarts."""
    draw = random.Random(seed)
    some = [bytes(draw.randrange(255) for _ in range(length)) for length in [64] + [16] * 8]
    return some[0] + b"".join(bytes([0xFF, 0xD0 + number]) + bits for number, bits in enumerate(some[1:]))


def scans(file: BinaryIO, image: Image.Image) -> tuple[int, bool]:
    """The number of scans that the first JPEG picture in a file has, and whether it ends with its marker; of containers
    that hold several, the most scans that any may have. `image`: of one of `FORMATS`, or a TIFF that holds JPEG."""
    inside = image.format not in FORMATS[:2]
    file.seek(0)
    try:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # no file of the system's
        data = file.read()
    if inside:
        starts = [found.start() for found in re.finditer(rb"\xff\xd8\xff", data)]
        cuts = itertools.pairwise([*starts, len(data)])
        return max((sum(1 for _ in _SCAN.finditer(data, start, end)) for start, end in cuts), default=0), True
    count, at = 0, 2
    while marker := _MARKER.search(data, at):
        kind = data[marker.start() + 1]
        if kind == END[1]:
            return count, True
        count += kind == 0xDA
        at = marker.end() + (int.from_bytes(data[marker.end() : marker.end() + 2], "big") if kind > 1 else 0)
    return count, False


def ended(file: BinaryIO) -> Image.Image | None:
    """The JPEG picture of a file that lacks its last marker, if nothing else is missing. Then what stands before a
    marker that is put there matters not."""
    file.seek(0)
    data = file.read().rstrip(END[:1])  # half a marker, or half of a byte that is written as two
    seen: set[bytes] = set()
    for seed in range(6):
        try:
            pixels = Image.open(io.BytesIO(data + _filler(seed) + END)).tobytes()
        except (OSError, SyntaxError):
            return None
        seen.add(hashlib.sha256(pixels).digest())
        if len(seen) > 1:
            return None
    return Image.open(io.BytesIO(data + END))


def with_end(image: Image.Image) -> Image.Image:
    """A JPEG picture that a caller has opened and not read yet, as it is with its last marker, if that alone is
    missing; else the picture itself."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return image
    try:
        at = file.tell()
        found = None if scans(file, image)[1] else ended(file)
        file.seek(at)
    except (OSError, ValueError):  # closed meanwhile, which reading its pixels tells
        return image
    if found is None or (found.mode, found.size) != (image.mode, image.size):  # a draft is smaller
        return image
    found.info = image.info  # what the caller has changed in it holds
    return found
