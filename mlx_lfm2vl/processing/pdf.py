"""PDF documents as pictures, one a page: which pages a name asks for, how large they are drawn, and their pixels.

A page is drawn with as many pixels as the model's largest view of it has: with its area in points w * h and the largest
view W * H pixels, at sqrt(W * H / (w * h)) pixels a point, and never at more than 300 dpi. What a PDF viewer shows is
drawn: within the crop box, turned as the page says, with annotations and form fields, on white. Each document is read
by a process of its own (pdf_process.py), which needs pypdfium2. Whatever a document does to it, and however long it
would take, the caller gets a picture or an `ImageError`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import ImageConfig
from ..errors import ImageError, short
from ..threads import check_cancelled
from . import geometry, pdf_process
from .fetch import SourcePolicy
from .formats import check_size
from .pdf_process import Ranges

SUFFIX = ".pdf"
MAX_DPI = 300.0
POINTS_PER_INCH = 72.0
MAX_SECONDS = 30.0  # of a process
_LOOKS = 0.05  # seconds between two looks whether the work is cancelled
MAX_MEMORY = 2 * 2**30  # of a process, in bytes
WHOLE: Ranges = ((1, None),)
_SIDE = 2**20  # pixels of a page's longer side that no model sees more of
_INSTALL = "pip install pypdfium2"
AT_A_TIME = " pages at a time"  # of a document, by the policy
_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{1,9})?)?\s*")


@dataclass(frozen=True, eq=False)
class PdfPage:
    """A page of a PDF document, which `load_image` draws. `label` names it as a user would ("a.pdf[3]"), `number`
    counts from 1, `width` and `height` are those that a viewer shows, in points."""

    document: bytes = field(repr=False)
    label: str
    number: int
    width: float
    height: float

    def size(self, policy: SourcePolicy, config: ImageConfig) -> tuple[int, int]:
        """(width, height) in pixels as it is drawn. Raises `ImageError` for a page without area."""
        if not self.width or not self.height:
            raise ImageError(
                f"{self.label}: the page is missing or has no size, so there is nothing to see; leave it out"
            )
        scale = _SIDE / max(self.width, self.height)
        plan = geometry.plan(max(1, round(self.height * scale)), max(1, round(self.width * scale)), config)
        view = plan.rows * plan.cols * plan.tile_size**2 if plan.tiled else plan.width * plan.height
        scale = math.sqrt(min(view, policy.max_pixels) / self.width / self.height)
        scale = min(scale, MAX_DPI / POINTS_PER_INCH)
        width, height = (max(1, math.floor(side * scale)) for side in (self.width, self.height))
        check_size(width, height, self.label, policy)
        return width, height

    def draw(self, policy: SourcePolicy, config: ImageConfig) -> Image.Image:
        """The page as an RGB image. Raises `ImageError`."""
        size = self.size(policy, config)
        _, pixels = _read(self.document, self.label, ((self.number, self.number),), 1, size)
        return Image.frombytes("RGB", size, pixels, "raw", "RGBX")


def pages(document: bytes, label: str, selection: str | None, policy: SourcePolicy) -> list[PdfPage]:
    """The pages of a document that a selection names ("2-5", "1,3,7-"; None: all). Raises `ImageError`."""
    answer, _ = _read(document, label, _ranges(selection, label), int(policy.max_pages))
    found = answer["pages"]
    if len(found) > policy.max_pages:
        few = f"{label}[{found[0][0]}-{found[0][0] + int(policy.max_pages) - 1}]"
        way_out = f"name fewer, such as {few}" if label.lower().endswith(SUFFIX) else "give a document of fewer"
        raise ImageError(f"{label}: more than {policy.max_pages}{AT_A_TIME}; {way_out}")
    return [PdfPage(document, f"{label}[{number}]", number, width, height) for number, width, height in found]


def page_count(document: bytes, label: str) -> int:
    """How many pages a document has. Raises `ImageError`."""
    answer, _ = _read(document, label, ((1, 1),), 1)
    return int(answer["count"])


def _ranges(selection: str | None, label: str) -> Ranges:
    if selection is None:
        return WHOLE
    ranges: list[tuple[int, int | None]] = []
    for part in selection.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (0, 0) if found is None else (int(found[1]), int(found[3]) if found[3] else None)
        if found is not None and not found[2]:
            last = first
        if first < 1 or (last is not None and last < first):
            raise ImageError(f"{label}[{selection}]: names no pages; write {label}[2], {label}[2-5] or {label}[1,3,7-]")
        ranges.append((first, last))
    return ranges


def _read(
    document: bytes, label: str, ranges: Ranges, most_pages: int, size: tuple[int, int] = (0, 0)
) -> tuple[dict[str, Any], bytes]:
    """The answer of a process of its own about a document. Raises `ImageError`, and what cancels the work."""
    job = json.dumps([_library(label), ranges, most_pages, MAX_SECONDS, MAX_MEMORY, *size])
    command = [sys.executable, "-I", "-S", pdf_process.__file__, job]
    try:
        code, output = _run(command, document)
    except OSError as error:
        raise ImageError(f"{label}: no process can be started to read it ({error.strerror or error})") from None
    if code == pdf_process.TOO_LONG:
        raise ImageError(f"{label}: takes more than {MAX_SECONDS:g} seconds to draw; export the page as PNG")
    if code == pdf_process.TOO_LARGE:
        raise ImageError(f"{label}: needs more than {MAX_MEMORY >> 30} GiB of memory; export the page as PNG")
    line, _, pixels = output.partition(b"\n")
    answer = json.loads(line) if code == 0 and line else {"error": "cannot read it to the end"}
    if "library" in answer:
        reason = short(answer["library"])
        raise ImageError(f"{label}: pypdfium2 cannot be imported ({reason}); {_INSTALL} anew")
    if "refused" in answer:
        raise ImageError(f"{label}: {answer['refused']}")
    if "error" in answer:
        raise ImageError(f"{label}: damaged (PDFium {answer['error']}); save or download it again")
    return answer, pixels


def _run(command: list[str], document: bytes) -> tuple[int, bytes]:
    """A program's exit code and output. It is killed when the work is cancelled, or runs for too long."""
    pipe, output, deadline = subprocess.PIPE, list[bytes](), time.monotonic() + 2 * MAX_SECONDS
    # In a session of its own Ctrl-C reaches this process alone, which ends that one.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        # `communicate` with a timeout does not go on with what it has not written yet
        reader = threading.Thread(target=lambda: output.append(process.communicate(document)[0]), daemon=True)
        try:
            reader.start()
            while reader.is_alive() and time.monotonic() < deadline:
                check_cancelled()
                reader.join(_LOOKS)
            late = reader.is_alive()
        finally:
            process.kill()
            if reader.ident is not None:
                reader.join()
        return (pdf_process.TOO_LONG, b"") if late else (process.returncode, output[0])


def _library(label: str) -> list[str]:
    """The folders of pypdfium2, which is imported by the process alone. Raises `ImageError` where it is missing."""
    specs = [importlib.util.find_spec(name) for name in ("pypdfium2", "pypdfium2_raw")]
    found = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    if len(found) != len(specs):
        raise ImageError(f"{label}: is a PDF document, which needs pypdfium2 ({_INSTALL}); or export the page as PNG")
    if getattr(sys, "frozen", False) is True or not sys.executable:
        raise ImageError(
            f"{label}: is a PDF document, which needs Python's own program to be read; in an app without one, export "
            "the page as PNG"
        )
    return list(dict.fromkeys(str(Path(origin).parent.parent) for origin in found))
