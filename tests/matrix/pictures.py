"""Pictures of every mode, container, shape and defect, as `load_array` and the image processor read them."""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import load_array
from containers import (
    ALPHA,
    BITS,
    GREY,
    NOISE,
    RGB,
    SIDE,
    WIDE,
    Sample,
    encoded,
    grey,
    heic,
    on_white,
    samples,
    wide_grey,
)
from PIL import Image

from mlx_lfm2vl import Lfm2VlImageProcessor, SourcePolicy
from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.load_image import load_image

from .bench import Bench
from .row import Gives, Near, Refused, Row, without_bench

PNG = encoded(Image.fromarray(NOISE), "PNG")
AGAIN = "save or download it again"
SAID = {
    "animated": "is animated; only its first frame is read",
    "pages": "has several pages; only the first is read",
    "several": "holds several pictures; only the main one is read",
}


def reading(data: bytes, **policy: Any) -> Callable[[Bench], np.ndarray]:
    return lambda _: load_array(data, SourcePolicy(**policy))


def file(name: str, data: bytes | str) -> Callable[[Bench], np.ndarray]:
    return lambda bench: load_array(bench.write(name, data))


def container(name: str, sample: Sample) -> Row:
    said = next((words for kind, words in SAID.items() if kind in name), "")
    outcome = Near(sample.pixels, sample.near, said) if sample.near else Gives(sample.pixels, said)
    return Row(f"container {name}", file(f"a.{name.split()[0]}", sample.data), outcome)


CONTAINERS = [container(name, sample) for name, sample in {**samples(), **heic()}.items()]

# --- images that are open already, of every mode --------------------------------------------------------------------

COLOURS = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)]], np.uint8)
LAB = np.array([[(255, 0, 0), (0, 0, 0)]], np.uint8)  # lightness, and no colour
WHITE_AND_BLACK = np.array([[(255, 255, 255), (0, 0, 0)]], np.uint8)
CLEAR = np.array([[(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)]], np.uint8)
CLEAR_ON_WHITE = on_white(CLEAR[..., :3], CLEAR[..., 3])


def mode(name: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(name, (values.shape[1], values.shape[0]), values.tobytes())


def premultiplied(values: np.ndarray) -> np.ndarray:
    """(h, w, channels) with alpha last -> with the colours multiplied by it, as the modes RGBa and La have them."""
    colours = np.rint(values[..., :-1] * (values[..., -1:] / 255)).astype(np.uint8)
    return np.concatenate([colours, values[..., -1:]], axis=-1)


def alpha_palette() -> Image.Image:
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([(0, 255), (1, 0)])
    return image


def in_memory(name: str, image: Callable[[], Image.Image], right: np.ndarray, within: int = 0) -> Row:
    return Row(f"mode {name}", lambda _: load_array(image()), Near(right, within) if within else Gives(right))


MODES = [
    in_memory("1", lambda: Image.fromarray(BITS * 255).convert("1"), grey(BITS * 255)),
    in_memory("L", lambda: Image.fromarray(GREY), grey(GREY)),
    in_memory("LA", lambda: mode("LA", np.dstack([GREY, ALPHA])), on_white(grey(GREY), ALPHA)),
    in_memory(
        "La", lambda: mode("La", premultiplied(CLEAR[..., [0, 3]])), on_white(CLEAR[..., [0] * 3], CLEAR[..., 3])
    ),
    in_memory("P", lambda: Image.fromarray(COLOURS).quantize(6), COLOURS),
    in_memory("PA", alpha_palette, np.array([[(10, 20, 30), (255, 255, 255)]], np.uint8)),
    in_memory("RGB", lambda: Image.fromarray(NOISE), NOISE),
    in_memory("RGBX", lambda: mode("RGBX", np.dstack([NOISE, ALPHA])), NOISE),
    in_memory("RGBA", lambda: mode("RGBA", np.dstack([NOISE, ALPHA])), on_white(NOISE, ALPHA)),
    in_memory("RGBa", lambda: mode("RGBa", premultiplied(CLEAR)), CLEAR_ON_WHITE),
    in_memory("CMYK", lambda: mode("CMYK", np.dstack([255 - COLOURS, COLOURS[..., 0] * 0])), COLOURS),
    in_memory("YCbCr", lambda: Image.fromarray(COLOURS).convert("YCbCr"), COLOURS, 2),
    in_memory(
        "HSV",
        lambda: mode("HSV", np.array([[(0, 255, 255), (9, 0, 77)]], np.uint8)),
        np.array([[(255, 0, 0), (77, 77, 77)]], np.uint8),
    ),
    in_memory("LAB", lambda: mode("LAB", LAB), WHITE_AND_BLACK, 1),
    in_memory("I;16", lambda: mode("I;16", WIDE.astype("<u2")), wide_grey(WIDE)),
    in_memory("I;16L", lambda: mode("I;16L", WIDE.astype("<u2")), wide_grey(WIDE)),
    in_memory("I;16B", lambda: mode("I;16B", WIDE.astype(">u2")), wide_grey(WIDE)),
    in_memory("I of 16 bits", lambda: Image.fromarray(WIDE.astype(np.int32)), wide_grey(WIDE)),
    in_memory("I of 8 bits", lambda: Image.fromarray(GREY.astype(np.int32)), grey(GREY)),
    in_memory("F of fractions", lambda: Image.fromarray((GREY / 255).astype(np.float32)), grey(GREY)),
    in_memory("F of 8 bits", lambda: Image.fromarray(GREY.astype(np.float32)), grey(GREY)),
    Row(
        "mode I below zero",
        lambda _: load_array(Image.fromarray(np.array([[-5, 5]], np.int32))),
        Refused(ImageError, "PIL image I", "values from -5 to 5 in mode I have no known scale", "convert to 8 bits"),
    ),
    Row(
        "mode F with NaN",
        lambda _: load_array(Image.fromarray(np.array([[np.nan, 5]], np.float32))),
        Refused(
            ImageError, "PIL image F", "1 of its values is NaN, which is no colour", "replace NaN (numpy.nan_to_num)"
        ),
    ),
    Row(
        "an array of several pictures",
        lambda _: load_array(np.zeros((2, 5, 6, 3), np.uint8)),
        Refused(ImageError, "array (2, 5, 6, 3) uint8", "is a batch of 2", "give a list of its pictures, list(array)"),
    ),
]

# --- orientation, shapes, arrays -------------------------------------------------------------------------------------

TURNED = {
    1: NOISE,
    2: NOISE[:, ::-1],
    3: NOISE[::-1, ::-1],
    4: NOISE[::-1],
    5: NOISE.transpose(1, 0, 2),
    6: np.rot90(NOISE, -1),
    7: np.rot90(NOISE, 2).transpose(1, 0, 2),
    8: np.rot90(NOISE),
}


def with_orientation(number: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(Image.fromarray(NOISE), format, exif=exif)


def shapes(width: int, height: int, **options: Any) -> Callable[[Bench], Any]:
    """The patch grids of the views, the values that a picture of one colour has in all of them, and the longest row of
    patches: through a file, as a user has it."""

    def act(bench: Bench) -> Any:
        data = encoded(Image.new("RGB", (width, height), (255, 255, 255)), "PNG")
        made = Lfm2VlImageProcessor(**options)(bench.write("a.png", data))
        mask = made["pixel_attention_mask"].astype(bool)
        assert mask.sum(axis=1).tolist() == made["spatial_shapes"].prod(axis=1).tolist()
        return made["spatial_shapes"].tolist(), set(np.unique(made["pixel_values"][mask]).tolist())

    return act


# Where the reference fails: checked by hand against the rules of its smart resize
SHAPES = [
    Row(
        f"shape {width}x{height}{' with ' + str(options) if options else ''}",
        shapes(width, height, **options),
        Gives((grids, {1.0})),
    )
    for width, height, options, grids in (
        (1, 1, {}, [[16, 16]]),
        (1, 1030, {}, [[512, 2]]),
        (1030, 1, {}, [[2, 512]]),
        (1, 20000, {}, [[512, 2]]),
        (20000, 1, {}, [[2, 512]]),
        (722, 724, {"min_tiles": 1}, [[32, 30]]),
        (2000, 1, {}, [[2, 512]]),
        (512, 512, {}, [[32, 32]]),
    )
]

ARRAYS = [
    Row("array of grey", lambda _: load_array(GREY), Gives(grey(GREY))),
    Row("array with the channels first", lambda _: load_array(NOISE.transpose(2, 0, 1)), Gives(NOISE)),
    Row("array of fractions", lambda _: load_array(NOISE / 255), Gives(NOISE)),
    Row("array of fractions, half precision", lambda _: load_array((GREY / 255).astype(np.float16)), Gives(grey(GREY))),
    Row("array with alpha", lambda _: load_array(np.dstack([NOISE, ALPHA])), Gives(on_white(NOISE, ALPHA))),
    Row("array that is a view", lambda _: load_array(NOISE[::-2, ::3]), Gives(np.ascontiguousarray(NOISE[::-2, ::3]))),
    *(
        Row(f"array {name}", without_bench(load_array, array), Refused(ImageError, "array", what, way))
        for name, array, what, way in (
            ("of wide integers", NOISE.astype(np.int64), "expected uint8 in 0..255 or floats in 0..1", "uint8"),
            ("of booleans", BITS.astype(bool), "expected uint8 in 0..255 or floats in 0..1", "uint8"),
            ("of objects", np.array([[None]]), "expected uint8 in 0..255 or floats in 0..1", "uint8"),
            ("of floats up to 255", NOISE.astype(float), "floats must lie in 0..1", "give uint8 for 0..255"),
            (
                "of floats below zero",
                NOISE / 127.5 - 1,
                "floats must lie in 0..1, these run from -1 to 1",
                "give uint8",
            ),
            (
                "with NaN",
                np.full((2, 2), np.nan),
                "values are NaN, which is no colour",
                "replace NaN (numpy.nan_to_num)",
            ),
            ("with infinity", np.full((2, 2), np.inf), "floats must lie in 0..1, these run from inf", "give uint8"),
            ("of one axis", GREY[0], "expected (height, width)", "with 1, 3 or 4 channels"),
            ("of two channels", NOISE[..., :2], "expected (height, width)", "with 1, 3 or 4 channels"),
            ("of five axes", NOISE[None, None], "expected (height, width)", "with 1, 3 or 4 channels"),
            ("without rows", NOISE[:0], "is 16x0 pixels", "nothing to see"),
        )
    ),
    *(
        Row(
            f"a picture of type {type(thing).__name__}",
            without_bench(load_array, thing),
            Refused(ImageError, f"type {type(thing).__name__}", "cannot be read", "give a PIL image"),
        )
        for thing in (None, 7, {"url": "a.png"}, [NOISE])
    ),
]

# --- files -----------------------------------------------------------------------------------------------------------


def fifo(bench: Bench) -> np.ndarray:
    os.mkfifo(bench.folder / "a.png")
    return load_array(bench.folder / "a.png")


def listening(bench: Bench) -> np.ndarray:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.png")
        return load_array("a.png")


def link(to: str, content: bytes | None = None) -> Callable[[Bench], np.ndarray]:
    def act(bench: Bench) -> np.ndarray:
        if content is not None:
            bench.write(to, content)
        (bench.folder / "a.png").symlink_to(bench.folder / to)
        return load_array(bench.folder / "a.png")

    return act


def forbidden(bench: Bench) -> np.ndarray:
    """As a user who may not read the file: root, who may read everything, becomes nobody for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(PNG)
        path.chmod(0)
        os.chmod(folder, 0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            return load_array(path)
        finally:
            os.seteuid(user)


def without_pillow_heif(bench: Bench) -> np.ndarray:
    data = heic()["heic"].data
    bench.monkeypatch.setitem(sys.modules, "pillow_heif", None)  # its import fails
    return load_array(data)


def preview() -> bytes:
    """A TIFF whose first picture says that it is a smaller copy, as raw files of cameras begin."""
    from PIL import TiffImagePlugin

    fields = TiffImagePlugin.ImageFileDirectory_v2()
    fields[254] = 1
    return encoded(Image.fromarray(NOISE), "TIFF", tiffinfo=fields)


def missing(name: str, data: bytes | str, what: str, way: str) -> Row:
    return Row(f"file: {name}", file("a.png", data), Refused(ImageError, "{folder}/a.png", what, way))


def metafile() -> bytes:
    """A placeable Windows metafile of 1 x 0.5 inches that draws nothing."""
    return struct.pack("<6s4hH6x4s", b"\xd7\xcd\xc6\x9a\0\0", 0, 0, 1440, 720, 1440, b"\x01\0\t\0") + bytes(50)


UNDRAWN = [  # what Pillow registers suffixes of, and does not draw
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 data, which Pillow does not draw", "as PNG (with h5py, say)"),
    (
        "GRIB 1",
        b"GRIB\0\0\0\1" + bytes(100),
        "GRIB data, which Pillow does not draw",
        "as PNG (with ecCodes",
    ),
    (
        "GRIB 2",
        b"GRIB\0\0\0\2" + bytes(100),
        "GRIB data, which Pillow does not draw",
        "as PNG (with ecCodes",
    ),
    ("BUFR", b"BUFR" + bytes(100), "BUFR data, which Pillow does not draw", "as PNG (with ecCodes"),
    ("WMF", metafile(), "a Windows metafile, which Pillow draws on Windows only", "to PNG (with LibreOffice, say)"),
    ("MPEG video", b"\0\0\1\xb3\x01\x20\x10" + bytes(100), "not a picture but a video", "ask about it with --video"),
    ("MPEG program", b"\0\0\1\xba" + bytes(100), "not a picture but a video", "ask about it with --video"),
]
NO_PICTURE = "not a picture in a format that Pillow reads"
FILES = [
    missing("empty", b"", "the file is empty", AGAIN),
    missing("a text", "This is a text.", NO_PICTURE, "convert it to PNG or JPEG"),
    missing("zeros", bytes(5000), NO_PICTURE, "convert it to PNG or JPEG"),
    missing("one byte", b"\x89", NO_PICTURE, "convert it to PNG or JPEG"),
    missing("a program", b"\x7fELF" + bytes(100), NO_PICTURE, "convert it to PNG or JPEG"),
    missing("PDF", b"%PDF-1.7\n", "damaged (PDFium cannot open it)", "save or download it again"),
    missing("SVG", "<?xml version='1.0'?>\n<svg/>", "not a picture but an SVG drawing", "export it as PNG"),
    missing("a web page", "\n<!DOCTYPE html><html>", "not a picture but a web page", "give the address of the picture"),
    missing(
        "a git-lfs pointer", "version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs", "git lfs pull"
    ),
    missing("a video", b"\0\0\0\x20ftypisom" + bytes(50), "not a picture but a video", "ask about it with --video"),
    missing("JPEG XL", b"\xff\x0a" + bytes(50), "JPEG XL, which Pillow does not read", "convert it to PNG or JPEG"),
    missing("PostScript", "%!PS-Adobe-3.0 EPSF-3.0\n", "EPS is a program, which is not run here", "convert it to PNG"),
    *(missing(name, data, what, way) for name, data, what, way in UNDRAWN),
    missing("a camera's raw file", preview(), "a camera's raw file", "export it as JPEG"),
    missing("a truncated PNG", PNG[: len(PNG) // 2], "damaged or truncated (", AGAIN),
    missing("a PNG that ends in its header", PNG[:20], "damaged (Truncated File Read)", AGAIN),
    missing("a PNG with a wrong checksum", PNG[:30] + b"\0" + PNG[31:], "damaged at its beginning", AGAIN),
    missing("a truncated JPEG", samples()["jpeg"].data[:-100], "damaged or truncated (", AGAIN),
    missing("a JPEG that ends in its header", samples()["jpeg"].data[:100], "damaged (Truncated File Read)", AGAIN),
    missing("a truncated progressive JPEG", samples()["jpeg progressive"].data[:-200], "damaged or truncated (", AGAIN),
    missing("a truncated TIFF", samples()["tiff raw"].data[:150], "damaged", AGAIN),
    missing("a truncated BMP", samples()["bmp"].data[:100], "damaged or truncated (", AGAIN),
    missing("a truncated QOI", samples()["qoi"].data[:20], "damaged or truncated (", AGAIN),
    Row(
        "file: a GIF with a whole first frame and half a second",
        file("a.gif", samples()["gif animated"].data[:-40]),
        Gives(samples()["gif"].pixels, SAID["animated"]),
    ),
    Row("file: not there", lambda b: load_array("no.png"), Refused(ImageError, "no.png", "no such picture")),
    Row("file: no name", lambda b: load_array(""), Refused(ImageError, "path", "is empty", "name a file")),
    Row(
        "file: a folder",
        lambda b: load_array(b.folder),
        Refused(ImageError, "{folder}", "is a directory, not a picture", "name a file in it"),
    ),
    Row(
        "file: a pipe nobody writes to",
        fifo,
        Refused(ImageError, "a.png", "is not a regular file", "give a file"),
        seconds=30,
    ),
    Row(
        "file: /dev/zero",
        lambda _: load_array("/dev/zero"),
        Refused(ImageError, "/dev/zero", "is not a regular file but a device or pipe", "give a file"),
        seconds=30,
    ),
    Row("file: a socket", listening, Refused(ImageError, "a.png", "is not a regular file", "give a file")),
    Row(
        "file: that may not be read",
        forbidden,
        Refused(ImageError, "a.png", "permission denied", "make it readable"),
    ),
    Row("file: a link to a picture", link("b.png", PNG), Gives(NOISE)),
    Row(
        "file: a link to nothing",
        link("no.png"),
        Refused(ImageError, "a.png", "is a link to a file that is not there", "name the file"),
    ),
    Row("file: a link to itself", link("a.png"), Refused(ImageError, "a.png", "cannot be opened (Too many levels")),
    Row(
        "file: base64 text in place of a name",
        lambda _: load_array("QUJDRA" * 1000),
        Refused(ImageError, "QUJDRA", "too long for a path", "base64 text goes into a data: URI"),
    ),
    Row(
        "file: a name with a zero byte",
        lambda _: load_array("a\0.png"),
        Refused(ImageError, "a\\x00.png", "cannot be opened (embedded null byte)"),
    ),
    Row(
        "file: the home of nobody known",
        lambda _: load_array("~no-such-user/a.png"),
        Refused(ImageError, "~no-such-user/a.png", "cannot be opened (Could not determine home directory"),
    ),
    Row(
        "file: a name that moves the cursor",
        lambda _: load_array("a\x1b[2J\nb.png"),
        Refused(ImageError, "a\\x1b[2J b.png", "no such picture"),
    ),
    Row(
        "file: paths forbidden",
        lambda bench: load_array(bench.write("a.png", PNG), SourcePolicy(allow_paths=False)),
        Refused(ImageError, "{folder}/a.png", "local paths are not allowed here", "give the picture itself"),
    ),
    Row(
        "bytes: none",
        lambda _: load_array(b""),
        Refused(ImageError, "picture bytes", "there are no bytes in it", "give those of a picture file"),
    ),
    Row(
        "HEIC without pillow-heif",
        without_pillow_heif,
        Refused(ImageError, "picture bytes", "is HEIC, which needs pillow-heif", "pip install pillow-heif"),
    ),
    Row(
        "a truncated HEIC",
        reading(heic()["heic"].data[:-300]),
        Refused(ImageError, "picture bytes", "damaged", AGAIN),
    ),
]


def many_rows(names: list[str]) -> Callable[[Bench], Any]:
    return lambda bench: [load_image(bench.write(name, PNG)).size for name in names]


NAMES = [
    Row(
        "file: names with spaces, letters, brackets",
        many_rows(["a b.png", "é 图.png", "[x].png", "-.png"]),
        Gives([(16, 16)] * 4),
    ),
]

ROWS = [
    *CONTAINERS,
    *MODES,
    *(
        Row(f"orientation {n}", reading(with_orientation(n, "PNG")), Gives(np.ascontiguousarray(TURNED[n])))
        for n in TURNED
    ),
    Row("orientation in TIFF", reading(with_orientation(6, "TIFF")), Gives(np.ascontiguousarray(TURNED[6]))),
    Row("orientation in WebP", lambda _: load_array(with_orientation(6, "WEBP")).shape, Gives((SIDE, SIDE, 3))),
    *(
        Row(
            f"orientation in damaged EXIF data of {format}",
            reading(encoded(Image.fromarray(NOISE), format, exif=b"Exif\0\0no TIFF header", **options)),
            Gives(NOISE, "picture bytes: its EXIF data are damaged, so it is read as it lies"),
        )
        for format, options in (("PNG", {}), ("WEBP", {"lossless": True}))
    ),
    Row(
        "orientation in damaged EXIF data of JPEG",
        reading(encoded(Image.fromarray(RGB), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0no TIFF header")),
        Near(RGB, 4),
    ),
    Row("orientation that is none", reading(with_orientation(99, "PNG")), Gives(NOISE)),
    *SHAPES,
    *ARRAYS,
    *FILES,
    *NAMES,
]
