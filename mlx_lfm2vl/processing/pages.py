"""The pictures of a call: out of the lists that they stand in, and a PDF document as its pages, not drawn yet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..errors import ImageError, counted
from . import pdf
from .arrays import is_array, to_numpy
from .fetch import DEFAULT_POLICY, SourcePolicy
from .open_file import LabelledBytes, is_remote, opened
from .pdf import PdfPage

MAX_DEPTH = 32  # of lists of pictures


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
    if isinstance(images, (list, tuple)):
        made = _with_pages(images, policy, 0)
        check_number(len(flatten(made)), policy)
        return made
    pages = pages_of([images], policy)
    return pages if len(pages) > 1 else pages[0]


def _with_pages(images: Sequence[Any], policy: SourcePolicy, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        return list(images)  # which `flatten` refuses
    made: list[Any] = []
    for entry in images:
        if isinstance(entry, (list, tuple)):
            made.append(_with_pages(entry, policy, depth + 1))
        else:
            made += expand_pages(entry, policy)
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
    if isinstance(picture, (PdfPage, Image.Image)) or is_array(picture):
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
