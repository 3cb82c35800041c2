"""Pictures that a decoder reads wrongly by itself: what a person sees, or one clear line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from conftest import load_array
from containers import GREY, NOISE, WIDE, encoded, grey, samples, wide_grey
from PIL import Image, TiffImagePlugin

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.load_image import load_image

from .bench import Bench
from .row import Gives, Near, Refused, Row

FRACTIONS = (GREY / 255).astype(np.float32)
PNG = encoded(Image.fromarray(NOISE), "PNG")


def reading(data: bytes, **policy: Any) -> Callable[[Bench], np.ndarray]:
    return lambda _: load_array(data, SourcePolicy(**policy))


def floats(name: str, values: np.ndarray, right: np.ndarray | Refused) -> Row:
    data = encoded(Image.fromarray(values.astype(np.float32)), "TIFF")
    return Row(f"float TIFF {name}", reading(data), right if isinstance(right, Refused) else Near(grey(right), 1))


def with_pixel(values: np.ndarray, value: float) -> np.ndarray:
    """The same with another first value, of more than a hundred."""
    changed = values.copy()
    changed[0, 0] = value
    return changed


def seen(value: int) -> np.ndarray:
    return with_pixel(GREY, value)


def with_lights(share: float, value: float, of: np.ndarray = FRACTIONS, scale: float = 255) -> tuple[Any, Any]:
    """The same with its brightest part far above 1, and what is seen of it."""
    lit = of.copy()
    lit[np.unravel_index(np.argsort(of, axis=None)[of.size - int(share * of.size) :], of.shape)] = value
    return lit, np.rint(np.clip(lit * scale, 0, 255)).astype(np.uint8)


RAMP = np.linspace(0, 1, GREY.size, dtype=np.float32).reshape(GREY.shape)
NIGHT, STARS = with_lights(0.08, 200.5, of=RAMP * 0, scale=1)  # of 0..255, though most is in 0..1
UNKNOWN = Refused(ImageError, "picture bytes", "0 to 1000 in mode F have no known scale", "scale them to 0..1")


FLOATS = [
    floats("with 3 % of lights of 20", *with_lights(0.03, 20)),
    floats("with 3 % of lights of 400", *with_lights(0.03, 400)),
    floats("with 10 % of lights of 50", *with_lights(0.1, 50)),
    floats("of a night with 8 % of stars", NIGHT, STARS),
    floats("of a ramp to 20", RAMP * 20, np.rint(RAMP * 20).astype(np.uint8)),
    floats("of a ramp to 255", RAMP * 255, np.rint(RAMP * 255).astype(np.uint8)),
    floats("of a ramp to 1000", RAMP * 1000, UNKNOWN),
    floats(
        "with NaN",
        with_pixel(FRACTIONS, np.nan),
        Refused(ImageError, "picture bytes", "1 of its values is NaN", "nan_to_num"),
    ),
    floats("of fractions", FRACTIONS, GREY),
    floats("just above 1", with_pixel(FRACTIONS, 1.0001), seen(255)),
    floats("a little below 0", with_pixel(FRACTIONS, -0.02), seen(0)),
    floats("overshooting as filters do", with_pixel(with_pixel(FRACTIONS, -0.1), 1.3), seen(255)),
    floats("with lights of 5", FRACTIONS * 5, np.clip(np.rint(GREY.astype(float) * 5), 0, 255).astype(np.uint8)),
    floats("with one light of 900", with_pixel(FRACTIONS, 900), seen(255)),
    floats("of 255 levels, overshooting", with_pixel(GREY.astype(float), 260.5), seen(255)),
    floats("of 255 levels, a little below 0", with_pixel(GREY.astype(float), -7.5), seen(0)),
    floats("of 65535 levels", GREY * 257.0, GREY),
    floats("of 65535 levels, overshooting", with_pixel(GREY * 257.0, 70000.0), seen(255)),
    floats("of nothing but 0 and 1", (GREY > 99).astype(float), (GREY > 99).astype(np.uint8) * 255),
    floats(
        "far below 0",
        FRACTIONS * 2 - 1,
        Refused(ImageError, "picture bytes", "in mode F have no known scale", "convert to 8 bits"),
    ),
    floats(
        "with infinity",
        with_pixel(FRACTIONS, np.inf),
        Refused(ImageError, "picture bytes", "in mode F have no known scale", "convert to 8 bits"),
    ),
]


def tiff(image: Image.Image, **tags: Any) -> bytes:
    """A TIFF with other values of tags."""
    fields = TiffImagePlugin.ImageFileDirectory_v2()
    names = {"photometric": 262, "orientation": 274}
    for name, value in tags.items():
        fields[names[name]] = value
    return encoded(image, "TIFF", tiffinfo=fields)


def white_is_zero(image: Image.Image, **tags: Any) -> bytes:
    data = bytearray(tiff(image, **tags))
    at = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # PhotometricInterpretation, one short: 1
    data[at + 8] = 0
    return bytes(data)


def twelve_bits(values: np.ndarray) -> bytes:
    """A TIFF of 12 bits a pixel, two of them in three bytes."""
    first, second = values[:, ::2].astype(np.uint32), values[:, 1::2].astype(np.uint32)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    height, width = values.shape
    start = 8
    entries = [(256, 4, width), (257, 4, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, start)]
    entries += [(277, 3, 1), (278, 4, height), (279, 4, len(packed))]
    table = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    head = b"II*\0" + (start + len(packed)).to_bytes(4, "little")
    return head + packed + len(entries).to_bytes(2, "little") + table + bytes(4)


TWELVE = (GREY.astype(np.uint32) * 4095 // 255).astype(np.uint16)
TIFFS = [
    Row("min-is-white TIFF of 8 bits", reading(white_is_zero(Image.fromarray(GREY))), Gives(grey(255 - GREY))),
    Row("min-is-white TIFF of 16 bits", reading(white_is_zero(Image.fromarray(WIDE))), Gives(255 - wide_grey(WIDE))),
    Row(
        "min-is-white TIFF of floats",
        reading(white_is_zero(Image.fromarray(FRACTIONS))),
        Gives(grey(255 - GREY)),
    ),
    Row(
        "min-is-white TIFF of 16 bits that lies",
        reading(white_is_zero(Image.fromarray(WIDE), orientation=6)),
        Gives(np.ascontiguousarray(np.rot90(255 - wide_grey(WIDE), -1))),
    ),
    Row("TIFF of 12 bits", reading(twelve_bits(TWELVE)), Near(grey(GREY), 1)),
]

JPEG, PROGRESSIVE = samples()["jpeg"], samples()["jpeg progressive"]


def without(count: int, sample: bytes) -> Callable[[Bench], Any]:
    """Whether a JPEG that ends so many bytes too early is seen as the whole file is."""
    whole = load_array(sample)
    return lambda _: np.array_equal(load_array(sample[:-count]), whole)


LARGE = encoded(Image.fromarray(np.indices((300, 400)).sum(0).astype(np.uint8)), "JPEG")
JPEGS = [
    *(
        Row(f"a {kind} JPEG without its last {count} bytes", without(count, data), Gives(True))
        for kind, data in (("sequential", JPEG.data), ("progressive", PROGRESSIVE.data), ("large", LARGE))
        for count in (1, 2)
    ),
    *(
        Row(
            f"a JPEG without its last {count} bytes",
            reading(LARGE[:-count]),
            Refused(ImageError, "picture bytes", "damaged or truncated", "save or download it again"),
        )
        for count in (6, 60, 600)
    ),
]


def above_pillows_limit(**policy: Any) -> Callable[[Bench], Any]:
    """The size of a picture of 256 pixels where Pillow opens up to 200."""

    def act(bench: Bench) -> Any:
        bench.monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        return load_image(PNG, SourcePolicy(**policy)).size

    return act


LIMITS = [
    Row("a limit above Pillow's own", above_pillows_limit(max_pixels=200_000_000), Gives((16, 16))),
    Row(
        "a limit of Pillow's that the app has lowered",
        above_pillows_limit(),
        Refused(ImageError, "picture bytes", "has more pixels than Pillow decodes", "make it smaller"),
    ),
]

ROWS = [*FLOATS, *TIFFS, *JPEGS, *LIMITS]
