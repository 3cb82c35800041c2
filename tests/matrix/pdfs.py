"""PDF documents as pictures: which pages a name asks for, what is drawn of them, and what is wrong with documents."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import load_array
from containers import NOISE, encoded
from pdfs import RED_LEFT, coloured, document, encrypted, nested, pdf
from PIL import Image

from mlx_lfm2vl import SourcePolicy
from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing import pdf as pdf_module
from mlx_lfm2vl.processing.load_image import expand_pages
from mlx_lfm2vl.processing.pdf import PdfPage

from .bench import Bench
from .row import Gives, Outcome, Refused, Row
from .web import response

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ALL = [1, 2, 3]
THREE = coloured("1 0 0", "0 1 0", "0 0 1")
AGAIN = "save or download it again"


def pages(picture: Any, **policy: Any) -> list[int]:
    """The numbers of the pages that a picture stands for."""
    found = expand_pages(picture, SourcePolicy(**policy))
    if not isinstance(found[0], PdfPage):
        load_array(picture, SourcePolicy(**policy))
    return [page.number for page in found if isinstance(page, PdfPage)]


def named(selection: str, outcome: Outcome) -> Row:
    def act(bench: Bench) -> Any:
        bench.write("a.pdf", THREE)
        return pages(f"a.pdf{selection}")

    return Row(f"pages of a.pdf{selection}", act, outcome)


def wrong(selection: str, what: str, way: str = "") -> Row:
    return named(selection, Refused(ImageError, "a.pdf", what, way))


HOW = "write a.pdf[2], a.pdf[2-5] or a.pdf[1,3,7-]"
PAGES = [
    named("", Gives(ALL)),
    named("[2]", Gives([2])),
    named("[2-3]", Gives([2, 3])),
    named("[2-]", Gives([2, 3])),
    named("[3,1]", Gives([3, 1])),
    named("[ 1 , 3 - 3 ]", Gives([1, 3])),
    named("[1,1]", Gives([1, 1])),
    wrong("[4]", "has 3 pages, so there is no page 4"),
    wrong("[2-9]", "has 3 pages, so there is no page 9"),
    wrong("[7-]", "has 3 pages, so there is no page 7"),
    wrong("[0]", "names no pages", HOW),
    wrong("[3-2]", "names no pages", HOW),
    wrong("[-2]", "names no pages", HOW),
    wrong("[]", "names no pages", HOW),
    wrong("[one]", "names no pages", HOW),
    wrong("[1;2]", "names no pages", HOW),
    wrong("[99999999999999999999]", "names no pages", HOW),
    wrong("[1-1000000000]", "names no pages", HOW),
    wrong("[1-999999999]", "has 3 pages, so there is no page 999999999"),
]


def beside(bench: Bench) -> Any:
    bench.write("a.pdf", THREE)
    bench.write("a.pdf[2]", coloured("0 0 1", "0 0 1"))
    return pages("a.pdf[2]")


def address(bench: Bench, selection: str, body: bytes = THREE) -> Any:
    server = bench.web({"/paper": response("200 OK", body)})
    return pages(f"{server.url}/paper{selection}", allow_private_addresses=True)


def home(bench: Bench) -> Any:
    bench.monkeypatch.setenv("HOME", str(bench.folder))
    bench.write("a.pdf", THREE)
    return pages("~/a.pdf[2]")


def opened(bench: Bench) -> Any:
    with open(bench.write("a.pdf", THREE), "rb") as file:
        file.seek(5)
        return pages(file), file.tell()


ENCODED = base64.b64encode(THREE).decode()
SOURCES = [
    Row("a file whose name has brackets", beside, Gives([1, 2])),
    Row("a path object", lambda b: pages(b.write("a.pdf", THREE)), Gives(ALL)),
    Row("pages of a path object", lambda b: pages(Path(f"{b.write('a.pdf', THREE)}[3]")), Gives([3])),
    Row("a file: address", lambda b: pages(f"file://{b.write('a.pdf', THREE)}[2]"), Gives([2])),
    Row("a name with ~", home, Gives([2])),
    Row("a name without a suffix", lambda b: pages(b.write("paper", THREE)), Gives(ALL)),
    Row("pages of a name without a suffix", lambda b: pages(f"{b.write('paper', THREE)}[2]"), Gives([2])),
    Row("a suffix in capitals", lambda b: pages(f"{b.write('A.PDF', THREE)}[2]"), Gives([2])),
    Row("a URL", lambda b: address(b, ""), Gives(ALL)),
    Row("pages of a URL", lambda b: address(b, "[3,1]"), Gives([3, 1])),
    Row("brackets in the query of a URL", lambda b: address(b, "?a[1]"), Refused(ImageError, "?a[1]", "answered 404")),
    Row(
        "pages of a picture at a URL",
        lambda b: address(b, "[1]", encoded(Image.fromarray(NOISE), "PNG")),
        Refused(ImageError, "/paper", "is no PDF document, so it has no pages [1]", "name it alone"),
    ),
    Row("a data: URI", lambda _: pages(f"data:application/pdf;base64,{ENCODED}"), Gives(ALL)),
    Row("base64 text", lambda _: pages(ENCODED), Gives(ALL)),
    Row("bytes", lambda _: pages(THREE), Gives(ALL)),
    Row("a bytearray", lambda _: pages(bytearray(THREE)), Gives(ALL)),
    Row("a BytesIO", lambda _: pages(io.BytesIO(THREE)), Gives(ALL)),
    Row("an open file, which stays where it stood", opened, Gives((ALL, 5))),
    Row(
        "text before its header",
        lambda b: pages(b.write("a.pdf", b"From: me\n\n" + THREE)),
        Gives(ALL),
    ),
    Row(
        "one picture asked of several pages",
        lambda b: load_array(b.write("a.pdf", THREE))[0, 0].tolist(),
        Gives([255, 0, 0], "{folder}/a.pdf: has several pages; only the first is read"),
    ),
    Row(
        "one picture asked of one page",
        lambda b: load_array(f"{b.write('a.pdf', THREE)}[2]")[0, 0].tolist(),
        Gives([0, 255, 0]),
    ),
    Row(
        "pages of a picture",
        lambda b: load_array(f"{b.write('a.png', encoded(Image.fromarray(NOISE), 'PNG'))}[2]"),
        Refused(ImageError, "{folder}/a.png", "is no PDF document, so it has no pages [2]", "name it alone"),
    ),
    Row("pages of no file", lambda b: load_array("a.pdf[2]"), Refused(ImageError, "a.pdf", "no such picture")),
    Row(
        "paths forbidden",
        lambda b: pages(f"{b.write('a.pdf', THREE)}[1]", allow_paths=False),
        Refused(ImageError, "{folder}/a.pdf[1]", "local paths are not allowed here", "give the picture itself"),
    ),
]


def halves(left: tuple[int, ...], right: tuple[int, ...]) -> np.ndarray:
    """A page of an inch, at 300 dpi."""
    made = np.empty((300, 300, 3), np.uint8)
    made[:, :150], made[:, 150:] = left, right
    return made


def drawn(name: str, data: bytes, expected: np.ndarray) -> Row:
    return Row(f"drawn: {name}", lambda _: load_array(data), Gives(expected))


LEFT = halves(RED, WHITE)
STAMP = "<</Type/XObject/Subtype/Form/BBox[0 0 36 72]/Length 23>>stream\n1 0 0 rg 0 0 36 72 re f\nendstream"
BOX = "/Rect[0 0 36 72]/AP<</N 6 0 R>>/F 4"
DRAWN = [
    drawn("one half", pdf([RED_LEFT]), LEFT),
    drawn("turned by its page", pdf([RED_LEFT], page="/Rotate 90"), np.rot90(LEFT, -1)),
    drawn("turned by -90", pdf([RED_LEFT], page="/Rotate -90"), np.rot90(LEFT)),
    drawn(
        "the crop box of a larger page",
        pdf([f"1 0 0 1 100 50 cm {RED_LEFT}"], "0 0 400 300", "/CropBox[100 50 172 122]"),
        LEFT,
    ),
    drawn("a box that does not begin at 0", pdf([f"1 0 0 1 -9 -9 cm {RED_LEFT}"], "-9 -9 63 63"), LEFT),
    drawn("an annotation", pdf([""], page="/Annots[5 0 R]", more=[f"<</Type/Annot/Subtype/Stamp{BOX}>>", STAMP]), LEFT),
    drawn(
        "a hidden annotation",
        pdf([""], page="/Annots[5 0 R]", more=[f"<</Type/Annot/Subtype/Stamp{BOX.replace('/F 4', '/F 2')}>>", STAMP]),
        halves(WHITE, WHITE),
    ),
    drawn(
        "a form field",
        pdf(
            [""],
            page="/Annots[5 0 R]",
            more=[f"<</Type/Annot/Subtype/Widget/FT/Tx/T(a)/P 3 0 R{BOX}>>", STAMP],
        ).replace(b"/Type/Catalog", b"/AcroForm<</Fields[5 0 R]>>/Type/Catalog"),
        LEFT,
    ),
    drawn(
        "half transparent on white",
        pdf([f"/G gs {RED_LEFT}"], page="/Resources<</ExtGState<</G<</ca .5>>>>>>"),
        halves((255, 128, 128), WHITE),
    ),
    drawn("nothing", pdf([""]), halves(WHITE, WHITE)),
]


def faulty(name: str, data: bytes, what: str, way: str, **policy: Any) -> Row:
    return Row(
        f"faulty: {name}",
        lambda b: pages(b.write("a.pdf", data), **policy),
        Refused(ImageError, "{folder}/a.pdf", what, way),
    )


def bounded(data: bytes, **limits: float) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        for name, value in limits.items():
            bench.monkeypatch.setattr(pdf_module, name, value)
        return load_array(bench.write("a.pdf", data))

    return act


def without_pypdfium2(bench: Bench) -> Any:
    bench.monkeypatch.setitem(sys.modules, "pypdfium2", None)  # as where it is not installed
    return pages(bench.write("a.pdf", THREE))


def with_a_broken_pypdfium2(bench: Bench) -> Any:
    bench.write("broken/pypdfium2/__init__.py", "import no_such_module")
    bench.monkeypatch.syspath_prepend(str(bench.folder / "broken"))
    bench.monkeypatch.delitem(sys.modules, "pypdfium2", raising=False)  # another test may have imported it
    return pages(bench.write("a.pdf", THREE))


def in_a_frozen_app(bench: Bench) -> Any:
    bench.monkeypatch.setattr(sys, "frozen", True, raising=False)
    return pages(bench.write("a.pdf", THREE))


NO_PAGES = document("<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[]/Count 0>>")
MISCOUNTED = pdf(["", ""]).replace(b"/Count 2", b"/Count 9")
FAULTY = [
    faulty("empty", b"", "the file is empty", AGAIN),
    faulty("a beginning alone", b"%PDF-1.7\n", "damaged (PDFium cannot open it)", AGAIN),
    faulty("cut in the middle", THREE[: len(THREE) // 3], "damaged (PDFium cannot open it)", AGAIN),
    faulty("encrypted", encrypted(), "is encrypted", "save it without a password"),
    faulty("no pages", NO_PAGES, "damaged (PDFium cannot open it)", AGAIN),
    Row(
        "faulty: a page that is missing",
        lambda b: load_array(f"{b.write('a.pdf', MISCOUNTED)}[5]"),
        Refused(ImageError, "{folder}/a.pdf[5]", "is missing or has no size", "leave it out"),
    ),
    faulty("more pages than allowed", THREE, "more than 2 pages at a time", "name fewer, such as", max_pages=2),
    Row(
        "faulty: more pages than allowed, without a name",
        lambda b: pages(THREE, max_pages=2),
        Refused(ImageError, "picture bytes", "more than 2 pages at a time", "give a document of fewer"),
    ),
    faulty("more bytes than allowed", THREE, "more than 100 bytes", "make it smaller", max_bytes=100),
    Row(
        "faulty: a picture called so",
        lambda b: load_array(b.write("a.pdf", encoded(Image.fromarray(NOISE), "PNG"))),
        Gives(NOISE),
    ),
    Row(
        "faulty: a text called so",
        lambda b: pages(b.write("a.pdf", "text")),
        Refused(ImageError, "{folder}/a.pdf", "not a picture", "convert it to PNG"),
    ),
    Row(
        "faulty: drawings in drawings without end",
        bounded(nested(35), MAX_MEMORY=2**28, MAX_SECONDS=300.0),
        Refused(ImageError, "{folder}/a.pdf[1]", "needs more than", "export the page as PNG"),
    ),
    Row(
        "faulty: a million rectangles",
        bounded(pdf(["0 0 72 72 re f\n" * 1_000_000]), MAX_SECONDS=1.0),
        Refused(ImageError, "{folder}/a.pdf[1]", "takes more than 1 seconds", "export the page as PNG"),
    ),
    Row(
        "pypdfium2 is not installed",
        without_pypdfium2,
        Refused(ImageError, "{folder}/a.pdf", "needs pypdfium2", "pip install pypdfium2"),
    ),
    Row(
        "pypdfium2 is damaged",
        with_a_broken_pypdfium2,
        Refused(ImageError, "{folder}/a.pdf", "pypdfium2 cannot be imported", "pip install pypdfium2"),
    ),
    Row(
        "an app without a Python of its own",
        in_a_frozen_app,
        Refused(ImageError, "{folder}/a.pdf", "needs Python's own program", "export the page as PNG"),
    ),
]

ROWS = [*PAGES, *SOURCES, *DRAWN, *FAULTY]
