"""Pictures that are too large, become so, or are programs, as `load_array` and the image processor refuse them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from containers import SIDE, encoded, png, png_chunk
from PIL import Image

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.errors import ImageError, OptionError
from mlx_lfm2vl.processing.load_image import flatten, load_image

from .pictures import AGAIN, PNG, reading
from .row import Gives, Refused, Row


def png_header(side: int) -> bytes:
    return png(side, side, 8, 2, bytes(100))


def bmp_header(side: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 60, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def blp(jpeg: bytes, side: int) -> bytes:
    """A BLP1 picture around a JPEG: magic, compression, alpha, sizes, two more numbers, places and lengths of 16
    levels, the length of a common head."""
    head = b"BLP1" + struct.pack("<iIIIii", 0, 0, side, side, 0, 0)
    start = len(head) + 16 * 8 + 4
    places = struct.pack("<16I", start, *[0] * 15) + struct.pack("<16I", len(jpeg), *[0] * 15)
    return head + places + struct.pack("<I", 0) + jpeg


def nested(depth: int) -> list:
    lists: list = []
    for _ in range(depth):
        lists = [lists]
    return lists


def jpeg_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose scans hold nothing but "no more" for all blocks, in a few bytes each."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    blocks = ((side + 7) // 8) ** 2
    runs = -(-blocks // 32767)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    empty = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    one_code = bytes([1] + [0] * 15)
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + b"\1" * 64)
        + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
        + segment(0xC4, b"\x00" + one_code + b"\0")
        + segment(0xC4, b"\x10" + one_code + b"\xe0")
        + segment(0xDA, bytes([1, 1, 0, 0, 0, 0]))
        + bytes(-(-blocks // 8))
        + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + empty) * scans
        + b"\xff\xd9"
    )


def icon_of(data: bytes, side: int) -> bytes:
    """An icon whose directory says `side`, whatever the PNG in it says."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(data), 22) + data


LARGE_PNG = encoded(Image.new("L", (1200, 1000)), "PNG")
TEXT_BOMB = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
ROWS = [
    Row(
        "bomb: more pixels than allowed",
        reading(png_header(12_300)),
        Refused(
            ImageError,
            "picture bytes",
            "12300x12300 is more than 150,000,000 pixels",
            "allow more (max_pixels of SourcePolicy)",
        ),
        seconds=30,
    ),
    Row(
        "bomb: more pixels than Pillow allows",
        reading(png_header(30_000)),
        Refused(
            ImageError, "picture bytes", "more pixels than Pillow decodes", "allow more (max_pixels of SourcePolicy)"
        ),
        seconds=30,
    ),
    Row(
        "bomb: two billion pixels a side",
        reading(png_header(2**31 - 1)),
        Refused(
            ImageError, "picture bytes", "more pixels than Pillow decodes", "allow more (max_pixels of SourcePolicy)"
        ),
        seconds=30,
    ),
    Row(
        "bomb: GIF of 65535x65535",
        reading(
            b"GIF89a"
            + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
            + b","
            + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
            + b"\2\2L\1\0;"
        ),
        Refused(
            ImageError, "picture bytes", "more pixels than Pillow decodes", "allow more (max_pixels of SourcePolicy)"
        ),
        seconds=30,
    ),
    Row(
        "bomb: BMP of 13000x13000",
        reading(bmp_header(13_000)),
        Refused(
            ImageError,
            "picture bytes",
            "13000x13000 is more than 150,000,000 pixels",
            "allow more (max_pixels of SourcePolicy)",
        ),
        seconds=30,
    ),
    Row(
        "bomb: an icon that says 16 and holds 1200",
        reading(icon_of(LARGE_PNG, 16), max_pixels=1_000_000),
        Refused(ImageError, "picture bytes", "1200x1000 is more than 1,000,000 pixels", "make it smaller"),
    ),
    Row(
        "bomb: a JPEG of a thousand scans",
        reading(jpeg_scans(64, 1000)),
        Refused(ImageError, "picture bytes", "has more than 200 scans", "save it anew"),
        seconds=30,
    ),
    Row(
        "bomb: a BLP of a JPEG of a thousand scans",
        reading(blp(jpeg_scans(64, 1000), 64)),
        Refused(ImageError, "picture bytes", "has more than 200 scans", "save it anew"),
    ),
    Row(
        "a program: an EPS that was opened before",
        lambda _: load_image(Image.open(io.BytesIO(encoded(Image.new("RGB", (4, 4)), "EPS")))),
        Refused(ImageError, "PIL image RGB", "EPS is a program, which is not run here", "convert it to PNG"),
    ),
    Row(
        "a list of lists without end",
        lambda _: flatten(nested(5000)),
        Refused(ImageError, "pictures are nested", "in more than 32 lists", "give a list of pictures"),
    ),
    Row("a JPEG of many scans that end", reading(jpeg_scans(64, 100)), Gives(np.full((64, 64, 3), 128, np.uint8))),
    Row(
        "bomb: a hundred megabytes of PNG text",
        reading(png(SIDE, SIDE, 8, 2, bytes(SIDE * (3 * SIDE + 1)), TEXT_BOMB)),
        Refused(ImageError, "picture bytes", "damaged", AGAIN),
    ),
    Row(
        "more pixels than the caller allows",
        reading(PNG, max_pixels=255),
        Refused(ImageError, "picture bytes", "16x16 is more than 255 pixels", "make it smaller"),
    ),
    Row(
        "a limit that is none",
        lambda _: SourcePolicy(max_pixels=0),
        Refused(OptionError, "max_pixels", "is 0, expected a number above 0"),
    ),
]
