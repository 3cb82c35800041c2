"""Small picture files of every container that Pillow opens, made here, and the pixels that they hold.

`samples()` gives them by name. `pixels` is what a reader must find, bit for bit, derived from the source array by
arithmetic and not by any reader; None where the container loses information, and then `near` is how far off it may be.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16
_RNG = np.random.default_rng(11)
_RAMP = np.linspace(0, 255, SIDE, dtype=np.uint8)
RGB = np.stack(
    np.broadcast_arrays(_RAMP[:, None], _RAMP[None], np.uint8(90)), -1
).copy()  # smooth, for lossy containers
NOISE = _RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = _RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
ALPHA = _RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
BITS = _RNG.integers(0, 2, (SIDE, SIDE), dtype=np.uint8)
PALETTE = _RNG.integers(0, 256, (8, 3), dtype=np.uint8)
INDEX = _RNG.integers(0, 8, (SIDE, SIDE), dtype=np.uint8)
WIDE = _RNG.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)


@dataclass(frozen=True)
class Sample:
    """A file, and the pixels in it (height, width, 3) uint8, each at most `near` away."""

    data: bytes
    pixels: np.ndarray
    near: int = 0


Encoding = tuple[Image.Image, dict[str, Any], np.ndarray]  # a picture, how it is saved, what a reader must find


def grey(values: np.ndarray) -> np.ndarray:
    """(h, w) -> (h, w, 3), three equal channels."""
    return np.repeat(values[:, :, None], 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The colours (h, w, 3) at that opacity (h, w) before white, rounded."""
    mixed = colour.astype(np.int64) * alpha[..., None] + 255 * (255 - alpha[..., None].astype(np.int64))
    return ((mixed + 127) // 255).astype(np.uint8)


def wide_grey(values: np.ndarray) -> np.ndarray:
    """16-bit grey as 8-bit RGB, rounded."""
    return grey(np.rint(values / 257).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (SIDE, SIDE), INDEX.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG from its fields; `rows` are filtered, uncompressed scan lines, `chunks` come before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def png_rows(values: np.ndarray) -> bytes:
    """Scan lines without a filter of (h, ...) big-endian values."""
    return b"".join(b"\0" + row.tobytes() for row in values)


@functools.cache
def samples() -> dict[str, Sample]:
    """All samples, by name."""
    return {**_png(), **_everyday(), **_tiff(), **_old(), **_by_hand()}


def _png() -> dict[str, Sample]:
    noise, flat = Image.fromarray(NOISE), Image.fromarray(GREY)
    rgba = np.dstack([NOISE, ALPHA])
    wide_rgb = _RNG.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
    keyed = np.where((GREY[0, 0] == GREY)[..., None], 255, grey(GREY)).astype(np.uint8)
    clear = np.where((INDEX == 3)[..., None], 255, PALETTE[INDEX]).astype(np.uint8)
    opacity = np.array([0, 32, 64, 128, 200, 255, 1, 254], np.uint8)
    made: dict[str, Encoding] = {
        "png rgb": (noise, {}, NOISE),
        "png of one pixel": (noise.crop((0, 0, 1, 1)), {}, NOISE[:1, :1]),
        "png rgba": (Image.fromarray(rgba), {}, on_white(NOISE, ALPHA)),
        "png grey": (flat, {}, grey(GREY)),
        "png grey alpha": (Image.fromarray(np.dstack([GREY, ALPHA])), {}, on_white(grey(GREY), ALPHA)),
        "png grey key": (flat, {"transparency": int(GREY[0, 0])}, keyed),
        "png one bit": (Image.fromarray(BITS * 255).convert("1"), {}, grey(BITS * 255)),
        "png palette": (palette_image(), {}, PALETTE[INDEX]),
        "png palette key": (palette_image(), {"transparency": 3}, clear),
        "png palette alpha": (
            palette_image(),
            {"transparency": opacity.tobytes()},
            on_white(PALETTE[INDEX], opacity[INDEX]),
        ),
        "png 16 bit grey": (Image.fromarray(WIDE), {}, wide_grey(WIDE)),
    }
    frames = [Image.fromarray(255 - NOISE)]
    return {
        **{name: Sample(encoded(image, "PNG", **options), right) for name, (image, options, right) in made.items()},
        "png 16 bit rgb": Sample(
            png(SIDE, SIDE, 16, 2, png_rows(wide_rgb.astype(">u2"))), (wide_rgb >> 8).astype(np.uint8)
        ),
        "png animated": Sample(encoded(noise, "PNG", save_all=True, append_images=frames), NOISE),
        "png animated, default apart": Sample(
            encoded(noise, "PNG", save_all=True, append_images=frames, default_image=True), NOISE
        ),
    }


def _everyday() -> dict[str, Sample]:
    smooth, noise, colours = Image.fromarray(RGB), Image.fromarray(NOISE), palette_image()
    turned = Image.Exif()
    turned[0x0112] = 6
    more = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    clear = np.where((INDEX == 3)[..., None], 255, PALETTE[INDEX]).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([NOISE, ALPHA]))
    return {
        "jpeg": Sample(encoded(smooth, "JPEG", quality=95, subsampling=0), RGB, 4),
        "jpeg progressive": Sample(encoded(smooth, "JPEG", quality=95, subsampling=0, progressive=True), RGB, 4),
        "jpeg grey": Sample(encoded(Image.fromarray(RGB[..., 0]), "JPEG", quality=95), grey(RGB[..., 0]), 3),
        "jpeg cmyk": Sample(encoded(smooth.convert("CMYK"), "JPEG", quality=95), RGB, 4),
        "jpeg turned": Sample(encoded(smooth, "JPEG", quality=95, subsampling=0, exif=turned), np.rot90(RGB, -1), 4),
        "mpo": Sample(encoded(smooth, "MPO", quality=95, subsampling=0, **more), RGB, 4),
        "gif": Sample(encoded(colours, "GIF"), PALETTE[INDEX]),
        "gif key": Sample(encoded(colours, "GIF", transparency=3), clear),
        "gif animated": Sample(
            encoded(colours, "GIF", save_all=True, append_images=[colours.rotate(90)]), PALETTE[INDEX]
        ),
        "webp lossless": Sample(encoded(noise, "WEBP", lossless=True), NOISE),
        "webp lossless alpha": Sample(encoded(rgba, "WEBP", lossless=True, exact=True), on_white(NOISE, ALPHA)),
        "webp lossy": Sample(encoded(smooth, "WEBP", quality=95), RGB, 16),
        "webp animated": Sample(encoded(smooth, "WEBP", lossless=True, **more), RGB),
        "avif": Sample(encoded(smooth, "AVIF", quality=95), RGB, 16),
        "avif animated": Sample(encoded(smooth, "AVIF", quality=95, **more), RGB, 16),
        "bmp": Sample(encoded(noise, "BMP"), NOISE),
        "bmp palette": Sample(encoded(colours, "BMP"), PALETTE[INDEX]),
        "dib": Sample(encoded(noise, "DIB"), NOISE),
        "ico": Sample(encoded(noise, "ICO"), NOISE),
        "jpeg 2000": Sample(encoded(noise, "JPEG2000"), NOISE),
        "jpeg 2000 codestream": Sample(encoded(noise, "JPEG2000", no_jp2=True), NOISE),
        "jpeg 2000 rgba": Sample(encoded(rgba, "JPEG2000"), on_white(NOISE, ALPHA)),
    }


def _tiff() -> dict[str, Sample]:
    noise, bits = Image.fromarray(NOISE), Image.fromarray(BITS * 255).convert("1")
    rgba = Image.fromarray(np.dstack([NOISE, ALPHA]))
    inks = _RNG.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    cmyk = Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes())
    # Without a profile: ink and black each take their share of the light away
    light = (255 - inks[..., :3].astype(np.int64)) * (255 - inks[..., 3:].astype(np.int64)) / 255
    fractions = _RNG.random((SIDE, SIDE), dtype=np.float32)
    counts = WIDE.astype(np.int32)
    pages = {"save_all": True, "append_images": [Image.fromarray(255 - NOISE)]}
    made: dict[str, Encoding] = {
        f"tiff {kind}": (noise, {"compression": kind}, NOISE) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate")
    }
    made |= {"tiff packbits": (noise, {"compression": "packbits"}, NOISE)}
    made |= {
        f"tiff {kind}": (bits, {"compression": kind}, grey(BITS * 255)) for kind in ("group3", "group4", "tiff_ccitt")
    }
    made |= {
        "tiff rgba": (rgba, {}, on_white(NOISE, ALPHA)),
        "tiff 16 bit": (Image.fromarray(WIDE), {}, wide_grey(WIDE)),
        "tiff 32 bit": (Image.fromarray(counts), {}, wide_grey(counts)),
        "tiff float": (Image.fromarray(fractions), {}, grey(np.rint(fractions.astype(float) * 255).astype(np.uint8))),
        "tiff pages": (noise, pages, NOISE),
        "tiff palette": (palette_image(), {}, PALETTE[INDEX]),
    }
    swapped = struct.pack(">2sHI", b"MM", 42, 8) + _tiff_fields(">", 16)
    return {
        **{name: Sample(encoded(image, "TIFF", **options), right) for name, (image, options, right) in made.items()},
        "tiff cmyk": Sample(encoded(cmyk, "TIFF"), np.rint(light).astype(np.uint8), 1),
        "tiff jpeg": Sample(encoded(Image.fromarray(RGB), "TIFF", compression="jpeg", quality=95), RGB, 12),
        "tiff 16 bit big-endian": Sample(swapped + WIDE.astype(">u2").tobytes(), wide_grey(WIDE)),
    }


def _tiff_fields(order: str, bits: int) -> bytes:
    """The directory of a grey TIFF of one strip that follows it."""
    fields = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: SIDE}
    fields[279] = SIDE * SIDE * bits // 8
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in fields.items())
    return struct.pack(order + "H", len(fields)) + entries + struct.pack(order + "I", 0)


def _old() -> dict[str, Sample]:
    noise, bits, colours = Image.fromarray(NOISE), Image.fromarray(BITS * 255).convert("1"), palette_image()
    rgba = Image.fromarray(np.dstack([NOISE, ALPHA]))
    fractions = _RNG.random((SIDE, SIDE), dtype=np.float32)
    return {
        "blp": Sample(encoded(colours, "BLP"), PALETTE[INDEX]),
        "dds": Sample(encoded(noise, "DDS"), NOISE),
        "im": Sample(encoded(noise, "IM"), NOISE),
        "msp": Sample(encoded(bits, "MSP"), grey(BITS * 255)),
        "pcx": Sample(encoded(noise, "PCX"), NOISE),
        "pcx palette": Sample(encoded(colours, "PCX"), PALETTE[INDEX]),
        "ppm": Sample(encoded(noise, "PPM"), NOISE),
        "pgm": Sample(encoded(Image.fromarray(GREY), "PPM"), grey(GREY)),
        "pgm 16 bit": Sample(f"P5 {SIDE} {SIDE} 65535\n".encode() + WIDE.astype(">u2").tobytes(), wide_grey(WIDE)),
        "pbm": Sample(encoded(bits, "PPM"), grey(BITS * 255)),
        "pfm": Sample(
            encoded(Image.fromarray(fractions), "PPM"), grey(np.rint(fractions.astype(float) * 255).astype(np.uint8))
        ),
        "qoi": Sample(encoded(noise, "QOI"), NOISE),
        "qoi rgba": Sample(encoded(rgba, "QOI"), on_white(NOISE, ALPHA)),
        "sgi": Sample(encoded(noise, "SGI"), NOISE),
        "spider": Sample(encoded(Image.fromarray(GREY.astype(np.float32)), "SPIDER"), grey(GREY)),
        "tga": Sample(encoded(noise, "TGA"), NOISE),
        "tga packed": Sample(encoded(noise, "TGA", compression="tga_rle"), NOISE),
        "tga rgba": Sample(encoded(rgba, "TGA"), on_white(NOISE, ALPHA)),
        "xbm": Sample(encoded(bits, "XBM"), grey(BITS * 255)),
    }


def heic() -> dict[str, Sample]:
    """Samples that take pillow-heif to make and to read."""
    import pillow_heif

    def made(*pictures: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        file = pillow_heif.HeifFile()
        for picture in pictures:
            file.add_from_pillow(Image.fromarray(picture))
        file.save(buffer, quality=-1, chroma=444, matrix_coefficients=0)  # lossless: RGB as it is
        return buffer.getvalue()

    return {
        "heic": Sample(made(NOISE), NOISE),
        "heic rgba": Sample(made(np.dstack([NOISE, ALPHA])), on_white(NOISE, ALPHA)),
        "heic of several": Sample(made(NOISE, 255 - NOISE), NOISE),
    }


def _by_hand() -> dict[str, Sample]:
    """Containers that Pillow reads and does not write."""
    planes = NOISE.transpose(2, 0, 1).tobytes()
    psd = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, SIDE, SIDE, 8, 3) + bytes(12) + struct.pack(">H", 0) + planes
    sun = struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, NOISE.size, 1, 0, 0) + NOISE[..., ::-1].tobytes()
    cards = [("SIMPLE", "T"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", SIDE), ("NAXIS2", SIDE)]
    fits = "".join(f"{key:8}= {value!s:>20}".ljust(80) for key, value in cards) + "END".ljust(80)
    pcx = encoded(palette_image(), "PCX")
    letters = "abcdefgh"
    colours = [
        f'"{letter} c #{red:02x}{green:02x}{blue:02x}",'
        for letter, (red, green, blue) in zip(letters, PALETTE, strict=True)
    ]
    lines = ['"' + "".join(letters[i] for i in row) + '",' for row in INDEX]
    xpm = "\n".join(["/* XPM */", "static char *a[] = {", f'"{SIDE} {SIDE} 8 1",', *colours, *lines, "};", ""])
    cursor = bytearray(encoded(Image.fromarray(NOISE), "ICO", bitmap_format="bmp"))
    cursor[2] = 2
    inner = encoded(Image.fromarray(NOISE), "PNG")
    brush = struct.pack(">5I", 28, 2, SIDE, SIDE, 1) + b"GIMP" + struct.pack(">I", 1) + GREY.tobytes()
    return {
        "psd": Sample(psd, NOISE),
        "sun": Sample(sun, NOISE),
        "fits": Sample(fits.encode().ljust(2880) + GREY[::-1].tobytes(), grey(GREY)),
        "dcx": Sample(struct.pack("<3I", 0x3ADE68B1, 12, 0) + pcx, PALETTE[INDEX]),
        "xpm": Sample(xpm.encode(), PALETTE[INDEX]),
        "cur": Sample(bytes(cursor), NOISE),
        "gbr": Sample(brush, grey(GREY)),
        "icns": Sample(
            b"icns" + struct.pack(">I", 16 + len(inner)) + b"icp4" + struct.pack(">I", 8 + len(inner)) + inner, NOISE
        ),
    }
