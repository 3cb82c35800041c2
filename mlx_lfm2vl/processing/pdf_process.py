"""The process that reads one PDF: a program of its own, which pdf.py starts and which ends by itself.

PDFium is a large C++ library that strangers' files are handed to, and a page of a few hundred bytes can ask for years
of work. So it runs beside the caller's process: a crash is an exit code, and a thread ends the process when its time or
memory is used up. PDFium is not safe for threads, either; here it has one. Needs nothing but pypdfium2.

In: a list of JSON in the first argument, the document on stdin. The list holds the folders of pypdfium2, the ranges of
pages, how many of them may be asked for, the process's seconds and bytes, and width and height in pixels that the first
page is drawn with; where these are 0, sizes are asked for. Out: a line of JSON, and behind it for a page its pixels
(height, width, 4) uint8, RGB and an unused byte. Scripts are not run: pypdfium2's PDFium has no interpreter of them.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

Ranges = Sequence[tuple[int, int | None]]  # first and last page, from 1; None is the end of the document
TOO_LONG, TOO_LARGE = 3, 4  # exit codes
_LOOKS = 0.02  # seconds between two looks at time and memory
_PASSWORD = 4  # FPDF_ERR_PASSWORD


def chosen(ranges: Ranges, count: int, most: int) -> list[int]:
    """The numbers of the pages of a document of `count` pages that ranges name, in their order; at most `most` + 1 of
    them. Raises `ValueError` for a page that is not there."""
    numbers: list[int] = []
    for first, last in ranges:
        end = count if last is None else last
        if not 1 <= first <= count or end > count:
            missing = end if 1 <= first <= count else first
            raise ValueError(f"has {count} page{'' if count == 1 else 's'}, so there is no page {missing}")
        numbers += range(first, min(end, first + most - len(numbers)) + 1)
    return numbers[: most + 1]


def main() -> None:
    path, ranges, most_pages, seconds, memory, *size = json.loads(sys.argv[1])
    _watch(seconds, memory)
    sys.path += path
    answer, pixels = _done(sys.stdin.buffer.read(), ranges, most_pages, size)
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)
    sys.stdout.buffer.flush()
    os._exit(0)  # PDFium's objects need no farewell


def _watch(seconds: float, memory: int) -> None:
    """Ends this process when its time or memory is used up. The thread runs while PDFium does: ctypes lets go of the
    interpreter's lock."""
    deadline = time.monotonic() + seconds

    def look() -> None:
        while True:
            if time.monotonic() > deadline:
                os._exit(TOO_LONG)
            if _most_memory() > memory:
                os._exit(TOO_LARGE)
            time.sleep(_LOOKS)

    threading.Thread(target=look, daemon=True).start()


def _most_memory() -> int:
    """The most bytes that this program has held. Linux counts what its parent held into `ru_maxrss`, too."""
    try:
        with open("/proc/self/status", "rb") as status:
            held = next(line for line in status if line.startswith(b"VmHWM:"))
        return int(held.split()[1]) * 1024
    except (OSError, StopIteration):  # macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _done(data: bytes, ranges: Ranges, most_pages: int, size: Sequence[int]) -> tuple[dict[str, Any], bytes]:
    try:
        import pypdfium2
        import pypdfium2.raw as pdfium
    except (ImportError, OSError) as error:
        return {"library": str(error)}, b""
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD:
            return {"refused": "is encrypted; save it without a password"}, b""
        return {"error": "cannot open it"}, b""
    document.init_forms()
    try:
        numbers = chosen(ranges, len(document), most_pages)
    except ValueError as error:
        return {"refused": str(error)}, b""
    width, height = size
    if not width:
        return {"count": len(document), "pages": [(number, *_size(document, number)) for number in numbers]}, b""
    try:
        page = document[numbers[0] - 1]
    except pypdfium2.PdfiumError:
        return {"error": "cannot read this page"}, b""
    bitmap = pypdfium2.PdfBitmap.new_native(width, height, pdfium.FPDFBitmap_BGRx, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    place = (0, 0, width, height, 0, pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER)
    pdfium.FPDF_RenderPageBitmap(bitmap, page, *place)
    if document.formenv:
        pdfium.FPDF_FFLDraw(document.formenv, bitmap, page, *place)
    return {"width": width, "height": height}, bytes(bitmap.buffer)


def _size(document: Any, number: int) -> tuple[float, float]:
    """Width and height of a page as it is shown, in points; zeros where they make no sense."""
    try:
        width, height = document.get_page_size(number - 1)
    except Exception:  # the page itself is damaged, which is said when it is drawn
        return 0.0, 0.0
    good = all(math.isfinite(side) and side > 0 for side in (width, height))
    return (width, height) if good else (0.0, 0.0)


if __name__ == "__main__":
    main()
