"""Pictures of every mode, container and defect, as `load_array` reads them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mlx_lfm2vl.errors import ImageError
from mlx_lfm2vl.processing.source import load_array

from .row import Gives, Refused, Row

RGB = np.random.default_rng(7).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


ROWS = [
    Row("RGB as PNG", lambda _: load_array(encoded(Image.fromarray(RGB))), Gives(RGB)),
    Row(
        "a text with a picture's name",
        lambda bench: load_array(bench.write("a.png", b"text")),
        Refused(ImageError, "{folder}/a.png", "not a picture"),
    ),
]
