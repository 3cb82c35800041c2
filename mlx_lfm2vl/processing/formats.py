"""Files of pictures to upright RGB images: every container that Pillow opens, and HEIC where pillow-heif is installed.

Contract: the number of pixels is checked before anything is decoded, and again after it, since some containers say one
size and hold another. EXIF orientation is applied, and colours of an ICC profile become sRGB. Of an animation or a file
of several pages the first is read, of several pictures in a HEIC file the main one, and an `ImageWarning` says so. What
cannot be read raises `ImageError` with one line that begins with the picture's label and ends with the way out. Nothing
is ever executed: PostScript is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, TiffImagePlugin

from ..config import ImageConfig
from ..errors import ImageError, ImageWarning, short
from . import jpeg
from .fetch import DEFAULT_POLICY, SourcePolicy
from .not_pictures import OTHERS, UNDRAWN, UNKNOWN
from .pixels import Colours, as_srgb, rgb

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
ALLOW_LARGER = ", or allow more (max_pixels of SourcePolicy)"  # the way out of a policy's owner
FRAMES = {  # what is said of several frames; in other formats they are no more than previews or layers of one picture
    **dict.fromkeys(
        ("GIF", "PNG", "WEBP", "FLI"),
        "is animated; only its first frame is read; --video or videos= reads all",
    ),
    "AVIF": "is animated; only its first frame is read",
    **dict.fromkeys(("TIFF", "DCX"), "has several pages; only the first is read"),
    "HEIF": "holds several pictures; only the main one is read",
}

TURNS = {  # what puts a picture of that EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF

# The filters of warnings are the whole process's, hence the lock; our own warnings are issued under it, lest another
# thread's silence swallows them. Whoever receives one may read a picture in turn, hence re-entrant.
_WARNINGS = threading.RLock()


def suffixes() -> tuple[str, ...]:
    """Suffixes of picture files in small letters: all that Pillow registers, and HEIC's. Of some formats the files are
    refused, with the program that draws them."""
    return (*sorted(Image.registered_extensions()), ".heic", ".heif")


def begins_as_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a picture that Pillow reads."""
    try:
        with _quietly(), Image.open(path):
            return True
    except (OSError, Image.DecompressionBombError):
        return False


def header_size(file: BinaryIO, label: str, policy: SourcePolicy) -> tuple[int, int]:
    """(height, width) as the header of an open file says. Raises `ImageError`."""
    try:
        with _quietly():
            width, height = _opened(file, label, policy).size
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(error, label, "damaged") from None
    return height, width


def open_picture(file: BinaryIO, label: str, policy: SourcePolicy, config: ImageConfig) -> Image.Image:
    """The picture in an open file. Raises `ImageError`."""
    try:
        with _quietly():
            image = _opened(file, label, policy)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(error, label, "damaged") from None
    _check_format(image, label)
    check_size(image.width, image.height, label, policy)
    if image.format in jpeg.FORMATS or "jpeg" in str(image.info.get("compression")):
        scans, ends = jpeg.scans(file, image)
        if scans > jpeg.MAX_SCANS:
            way = "which take too long to decode; save it anew"
            raise ImageError(f"{label}: has more than {jpeg.MAX_SCANS} scans, {way}")
        if not ends:
            image = jpeg.ended(file) or image
    remark = FRAMES.get(image.format or "")
    with contextlib.suppress(Exception):  # what follows the first frame is damaged; it is not read
        remark = remark if getattr(image, "is_animated", False) else None
    picture = decode(image, label, policy, config)
    if remark:
        _say(f"{label}: {remark}")
    return picture


def decode(image: Image.Image, label: str, policy: SourcePolicy, config: ImageConfig) -> Image.Image:
    """An image that the caller has opened, upright and as RGB of sRGB; of several frames the one that it stands at. The
    image itself if it is that already, else one without metadata, so that it is not turned or converted again."""
    _check_format(image, label)
    check_size(image.width, image.height, label, policy)
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_preview(image):
            raise ImageError(f"{label}: is a camera's raw file, of which only a preview can be read; export it as JPEG")
        clear = image.info.get("transparency")
        if clear is not None and image.format == "PNG":
            clear = _in_8_bits(clear, image)
        image.load()
        check_size(image.width, image.height, label, policy)
        profile = image.info.get("icc_profile") if config.color_management else None
        colours: Colours = partial(_to_srgb, profile=profile, label=label) if profile else as_srgb
        upright: Image.Image = image
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("I;16", "F"):
            if image.tag_v2.get(_BITS) == (12,):  # which Pillow leaves as they are in 16
                upright = Image.fromarray((np.asarray(image).astype(np.uint32) * 65535 // 4095).astype(np.uint16))
            if image.tag_v2.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds in other modes
                colours = partial(lambda opaque, colours: colours(ImageChops.invert(opaque)), colours=colours)
        if config.exif and (turn := TURNS.get(_orientation(image, label))) is not None:
            upright = upright.transpose(turn)
        plain = upright.mode == "RGB" and not profile and clear is None and "transparency" not in upright.info
        picture = upright if plain else rgb(upright, label, clear, colours)
        if picture is not image:
            picture.info = {}
        return picture
    except (ImageError, ImageWarning):  # the latter where warnings are errors
        raise
    except Exception as error:
        raise _damaged(error, label, "damaged or truncated") from None


def _check_format(image: Image.Image, label: str) -> None:
    """Raises `ImageError` for what Pillow recognises and does not draw by itself."""
    drawn = not isinstance(image, ImageFile.StubImageFile) or image._handler is not None
    if image.format in ("EPS", "MPEG") or not drawn:
        raise ImageError(f"{label}: {UNDRAWN.get(image.format or '', UNKNOWN)}")


def _in_8_bits(clear: Any, image: Image.Image) -> Any:
    """The transparent colour of a PNG file, which Pillow keeps in the file's depth, in the 8 bits of its pixels."""
    tiles: Any = getattr(image, "tile", None)
    mode = tiles[0][3] if tiles else None
    if isinstance(clear, int) and mode in ("L;2", "L;4"):
        return clear * {"L;2": 85, "L;4": 17}[mode]
    if isinstance(clear, tuple) and mode == "RGB;16B":
        return tuple(value >> 8 for value in clear)
    return clear


def check_size(width: int, height: int, label: str, policy: SourcePolicy) -> None:
    """Raises `ImageError` for a picture without pixels or with too many."""
    if width < 1 or height < 1:
        raise ImageError(f"{label}: is {width}x{height} pixels, so there is nothing to see")
    if width * height > policy.max_pixels:
        size = f"{width}x{height} is more than {policy.max_pixels:,} pixels"
        raise ImageError(f"{label}: {size}; make it smaller{ALLOW_LARGER}")


def _damaged(error: Exception, label: str, how: str) -> ImageError:
    """What a decoder raised of a damaged file, which can be anything, as an `ImageError`."""
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{label}: has more pixels than Pillow decodes; make it smaller{ALLOW_LARGER}")
    if isinstance(error, MemoryError):
        return ImageError(f"{label}: there is not enough memory for its pixels; make it smaller")
    return ImageError(f"{label}: {how} ({short(str(error)) or type(error).__name__}); save or download it again")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings (size, damaged metadata): what matters of them is checked here."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(file: BinaryIO, label: str, policy: SourcePolicy) -> Image.Image:
    start = file.read(1000)
    file.seek(0)
    if re.match(rb"(\xc5\xd0\xd3\xc6|%!PS)", start):
        raise ImageError(f"{label}: {UNDRAWN['EPS']}")
    if start.startswith(b"\0\0\1\0"):
        for width, height in _icons(file):
            check_size(width, height, label, policy)
        file.seek(0)
    try:
        return Image.open(file)
    except Image.UnidentifiedImageError:
        pass
    except Image.DecompressionBombError:
        if policy.max_pixels <= DEFAULT_POLICY.max_pixels:
            raise
        return _beyond_pillows_limit(file, start[:16])
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        try:
            import pillow_heif
        except ImportError:
            raise ImageError(
                f"{label}: is HEIC, which needs pillow-heif (pip install pillow-heif); or convert it to JPEG"
            ) from None
        return pillow_heif.HeifImageFile(file)
    for pattern, known in OTHERS:
        if re.match(pattern, start, re.I | re.S):
            raise ImageError(f"{label}: {known}")
    raise ImageError(f"{label}: {UNKNOWN}")


def _beyond_pillows_limit(file: BinaryIO, start: bytes) -> Image.Image:
    """A picture that Pillow does not open for its size. The caller's limit is checked before it is decoded."""
    for factory, accepts in Image.OPEN.values():
        if accepts is not None and accepts(start) is True:
            file.seek(0)
            return factory(file, "")
    raise Image.DecompressionBombError  # of a format that is not known by its beginning


def _icons(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Width and height of the pictures in an icon, which says others maybe; they are decoded when it is opened."""
    (count,) = struct.unpack("<4xH", file.read(6))
    for entry in struct.iter_unpack("<12xI", file.read(16 * count)):
        file.seek(entry[0])
        head = file.read(24)
        if head.startswith(b"\x89PNG"):
            yield struct.unpack(">16xII", head)
        else:
            width, height = struct.unpack_from("<ii", head, 4)
            yield abs(width), abs(height) // 2  # with its mask below it


def _orientation(image: Image.Image, label: str) -> Any:
    try:
        with _quietly():
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of the metadata, while the pixels are whole
        _say(f"{label}: its EXIF data are damaged, so it is read as it lies")
        return 1


def _to_srgb(image: Image.Image, profile: Any, label: str) -> Image.Image:
    from .color import ProfileError, to_srgb

    try:
        return to_srgb(image, bytes(profile))
    except (ProfileError, TypeError) as error:
        _say(f"{label}: its colour profile {error}, so its colours are read as sRGB")
        return as_srgb(image)


def _say(remark: str) -> None:
    with _WARNINGS:
        warnings.warn(remark, ImageWarning, stacklevel=2)


def _is_preview(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether the first picture of a TIFF says of itself that it is a smaller copy (NewSubfileType, TIFF 6.0, page 36),
    as in raw files of cameras."""
    kind: Any = image.tag_v2.get(254, 0)
    return image.tell() == 0 and isinstance(kind, int) and bool(kind & 1)
