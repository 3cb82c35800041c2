"""PDF documents of strangers, from their bytes to the pixels of a page. Each starts a process, hence the few."""

from __future__ import annotations

import functools
import io

import numpy as np
from pdfs import RED_LEFT, coloured, nested, pdf
from PIL import Image

from mlx_lfm2vl.errors import ImageError

from . import pictures
from .entrance import Entrance

TEXT = "BT /F 20 Tf 5 30 Td (Text) Tj ET"


@functools.cache
def seeds() -> dict[str, bytes]:
    scan = io.BytesIO()
    Image.effect_noise((40, 40), 60).save(scan, "PDF")
    font = "/Resources<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
    return {
        "colours": coloured("1 0 0", "0 1 0"),
        "forms": nested(4),
        "turned": pdf([RED_LEFT], page="/Rotate 90/CropBox[9 9 60 60]"),
        "scan": scan.getvalue(),
        "text": pdf([TEXT], page=font),
    }


def run(data: bytes) -> np.ndarray:
    """A right picture, where the bytes begin as a PDF does."""
    if not data.startswith(b"%PDF-"):
        raise ImageError("no PDF document")
    return pictures.run(data)


ENTRANCE = Entrance("pdfs", seeds, run, (ImageError,), executions=(40, 5_000))
