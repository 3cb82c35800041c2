"""Any picture to RGB: PIL images, arrays, paths, addresses, base64, open files and bytes of a picture file or a PDF.

The result is what a person sees (formats.py, pdf.py and pixels.py say how), or one line of `ImageError` that names the
picture and the way out. What a PDF document is named by stands for all its pages, or for those in brackets behind it
(`a.pdf[2-5]`): `expand_pages` puts them in its place, not drawn yet.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..config import ImageConfig, ImageProcessorConfig
from ..errors import ImageError, ImageWarning, counted, short
from . import pdf
from .arrays import is_array, to_numpy
from .fetch import DEFAULT_POLICY, SourcePolicy
from .formats import check_size, decode, header_size, open_picture
from .jpeg import with_end
from .open_file import LabelledBytes, is_remote, opened
from .pdf import PdfPage
from .pixels import from_array, in_rows

MAX_DEPTH = 32  # of lists of pictures
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
    if hasattr(picture, "ndim") and is_array(picture):
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
    array = in_rows(array, label)
    check_size(array.shape[1], array.shape[0], label, policy)
    return from_array(array, label)


def flatten(images: Any, depth: int = 0) -> list[Any]:
    """The pictures of a single picture, a list, a list a sample (nested to some depth), or a batch array (4 axes).
    Raises `ImageError`."""
    if depth > MAX_DEPTH:
        raise ImageError(f"pictures are nested in more than {MAX_DEPTH} lists; give a list of pictures")
    if isinstance(images, (list, tuple)):
        return [picture for entry in images for picture in flatten(entry, depth + 1)]
    if getattr(images, "ndim", None) == 4 and is_array(images):
        return list(to_numpy(images))
    return [images]


def with_pages(images: Any, policy: SourcePolicy) -> Any:
    """The same pictures, in the same lists, each PDF document replaced by its pages. Raises `ImageError`."""
    several = isinstance(images, (list, tuple))
    made = _with_pages(images if several else [images], policy, 0)
    check_number(len(flatten(made)) if several else len(made), policy)
    return made if several or len(made) > 1 else made[0]


def _with_pages(images: Sequence[Any], policy: SourcePolicy, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        return list(images)  # which `flatten` refuses
    made: list[Any] = []
    for entry in images:
        nested = isinstance(entry, (list, tuple))
        made += [_with_pages(entry, policy, depth + 1)] if nested else expand_pages(entry, policy)
    return made


def pages_of(images: Sequence[Any], policy: SourcePolicy) -> list[Any]:
    """`expand_pages` of several pictures. Raises `ImageError`, also for more than the policy allows."""
    pages = [page for picture in images for page in expand_pages(picture, policy)]
    check_number(len(pages), policy)
    return pages


def check_number(pictures: int, policy: SourcePolicy) -> None:
    """Raises `ImageError` for more pictures in a call than the policy allows; a page counts as one."""
    if policy.max_pictures is not None and pictures > policy.max_pictures:
        given = f"{counted(pictures, 'picture')} in one call, pages and frames counted"
        raise ImageError(f"{given}, but at most {policy.max_pictures}; give fewer")


def expand_pages(picture: Any, policy: SourcePolicy) -> list[Any]:
    """The pages of a PDF document, or of another picture it alone, as `load_image` reads each. Nothing is drawn yet.
    What is at an address is fetched.

    Raises:
        ImageError: it cannot be fetched, or is a PDF document that cannot be read. What is wrong with another picture
            that is here `load_image` says.
    """
    if isinstance(picture, (PdfPage, Image.Image)) or (hasattr(picture, "ndim") and is_array(picture)):
        return [picture]
    is_pdf = False
    try:
        with opened(picture, policy) as file:
            is_pdf = file.is_pdf()
            if is_pdf:
                return list(file.pages(policy))
            if isinstance(picture, str) and isinstance(file.file, io.BytesIO):
                return [LabelledBytes(file.label, file.file.getvalue())]  # is fetched and decoded once
    except ImageError:
        if is_pdf or is_remote(picture):
            raise
    return [picture]  # of which `load_image` says what is wrong with it


def page_names(name: str) -> list[str]:
    """Names of the pages of a PDF file ("a.pdf[1]", ...) where `name` is a file of several; else `name` alone,
    and what is wrong with it is said when it is read."""
    try:
        with opened(name, DEFAULT_POLICY) as file:
            if file.selection is None and file.is_pdf():
                count = pdf.page_count(file.file.read(int(DEFAULT_POLICY.max_bytes)), file.label)
                return [f"{name}[{number}]" for number in range(1, count + 1)]
    except ImageError:
        pass
    return [name]
