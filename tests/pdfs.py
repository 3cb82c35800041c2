"""PDF documents for tests, written by hand: a page is a size and a content stream."""

from __future__ import annotations

from collections.abc import Sequence

RED_LEFT = "1 0 0 rg 0 0 36 72 re f"  # the left half of a page of 72 points
RING = (  # black, in the middle of a page of 600 points
    "0 0 0 RG 30 w 420 300 m 420 366 366 420 300 420 c 234 420 180 366 180 300 c "
    "180 234 234 180 300 180 c 366 180 420 234 420 300 c s"
)


def document(*objects: str | bytes) -> bytes:
    """A file of these objects, numbered from 1, which is the catalogue."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, value in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, value.encode() if isinstance(value, str) else value)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def stream(content: str, entries: str = "") -> str:
    return f"<<{entries}/Length {len(content)}>>stream\n{content}\nendstream"


def pdf(contents: Sequence[str], box: str = "0 0 72 72", page: str = "", more: Sequence[str] = ()) -> bytes:
    """Pages with these contents, all of one media box and further entries `page`; objects `more` follow the pages', the
    first of one page with the number 5."""
    count = len(contents)
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(count))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {count}>>"]
    for number, content in enumerate(contents):
        objects += [f"<</Type/Page/Parent 2 0 R/MediaBox[{box}]/Contents {4 + 2 * number} 0 R{page}>>", stream(content)]
    return document(*objects, *more)


def coloured(*colours: str, side: int = 72) -> bytes:
    """A page a colour ("1 0 0"), which fills it."""
    return pdf([f"{colour} rg 0 0 {side} {side} re f" for colour in colours], f"0 0 {side} {side}")


def nested(depth: int) -> bytes:
    """A page that draws a form twice, which draws another one twice, and so on: 2^depth rectangles."""
    forms = []
    for number in range(depth):
        last = number == depth - 1
        inner = "" if last else f"/Resources<</XObject<</F {6 + number} 0 R>>>>"
        content = "0 0 9 9 re f" if last else "/F Do /F Do"
        forms.append(stream(content, f"/Type/XObject/Subtype/Form/BBox[0 0 72 72]{inner}"))
    return pdf(["/F Do"], page="/Resources<</XObject<</F 5 0 R>>>>", more=forms)


def encrypted() -> bytes:
    """A document whose password is not empty."""
    data = pdf([RED_LEFT], more=[f"<</Filter/Standard/V 1/R 2/P -4/O<{'12' * 32}>/U<{'34' * 32}>>>"])
    return data.replace(b"/Root 1 0 R>>", b"/Root 1 0 R/Encrypt 5 0 R/ID[<00><00>]>>")
