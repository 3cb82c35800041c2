"""Any picture to RGB: PIL images, arrays, paths, addresses, base64, open files and bytes of a picture file or a PDF.

The result is what a person sees (formats.py, pdf.py and pixels.py say how), or one line of `ImageError` that names the
picture and the way out. `SourcePolicy` says what a caller may reach and how large pictures may be. An app that passes
on strangers' messages forbids URLs and paths. Only regular files are opened. What a PDF document is named by stands for
all its pages, or for those in brackets behind it (`a.pdf[2-5]`): `expand_pages` of pages.py puts them in its place.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import Any

from PIL import Image

from ..config import ImageConfig, ImageProcessorConfig
from ..errors import ImageError, ImageWarning, short
from .arrays import is_array, to_numpy
from .fetch import DEFAULT_POLICY, SourcePolicy
from .formats import check_size, decode, header_size, open_picture
from .jpeg import with_end
from .open_file import is_remote, opened
from .pdf import PdfPage
from .pixels import from_array, height_width

DEFAULT_CONFIG = ImageProcessorConfig()
Picture = Image.Image  # as `load_image` returns it: of mode RGB


def load_image(
    picture: Any,
    policy: SourcePolicy = DEFAULT_POLICY,
    config: ImageConfig = DEFAULT_CONFIG,
    *,
    exif: bool | None = None,
    color_management: bool | None = None,
) -> Image.Image:
    """The picture as a PIL image of mode RGB.

    Args:
        picture: a PIL image, an array of NumPy, MLX or torch, a path, a URL (http, https, file), a `data:` URI, base64
            text, an open file, which is read from its start, or the bytes of a picture file. An array is (height,
            width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, of uint8 or of
            floats in 0..1. Where both readings fit, the last axis is the channels. A PIL image is read at the frame
            where it stands, a file at its first frame and a PDF at its first page, or the first that is chosen, with an
            `ImageWarning` if there are more.
        policy: what may be reached, and how large it may be.
        config: its `color_management` and `exif` hold, and a page of a PDF is drawn as large as it can be seen; nothing
            is resized.
        exif, color_management: these fields of `config`, for this picture; None leaves them.

    Raises:
        ImageError: it cannot be read, or may not.
        ConfigError: a field is neither True nor False.
    """
    fields: dict[str, Any] = {"exif": exif, "color_management": color_management}
    if given := {name: value for name, value in fields.items() if value is not None}:
        config = replace(config, **given)
    if isinstance(picture, PdfPage):
        return picture.draw(policy, config)
    if isinstance(picture, Image.Image):
        file = getattr(picture, "filename", "")
        name = f"PIL image {short(str(file)) if file else picture.mode}"
        return decode(with_end(picture) if picture.format == "JPEG" else picture, name, policy, config)
    if is_array(picture):
        return _from_array(picture, policy)
    with opened(picture, policy) as file:
        if not file.is_pdf():
            return open_picture(file.file, file.label, policy, config)
        pages = file.pages(policy)
    if len(pages) > 1:
        warnings.warn(f"{file.label}: has several pages; only the first is read", ImageWarning, stacklevel=2)
    return pages[0].draw(policy, config)


def stated_size(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> tuple[int, int] | None:
    """(height, width) that a picture file on this machine states; nothing is decoded. None for what would be fetched,
    for a PDF document and for what cannot be read."""
    if isinstance(picture, str) and is_remote(picture):
        return None
    try:
        with opened(picture, policy) as file:
            return None if file.is_pdf() else header_size(file.file, file.label, policy)
    except ImageError:
        return None


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _from_array(picture: Any, policy: SourcePolicy) -> Image.Image:
    try:
        array = to_numpy(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # a sparse tensor, one without memory
        raise ImageError(
            f"a picture of type {type(picture).__name__} is no array in memory ({short(str(error))})"
        ) from None
    label = f"array {array.shape} {array.dtype}"
    height, width = height_width(array.shape, label)
    check_size(width, height, label, policy)
    return from_array(array, label)
