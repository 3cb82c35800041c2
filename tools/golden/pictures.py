"""Test pictures drawn from a seed: smooth gradients, hard-edged blocks, and noise in one corner.

Gradients show errors of alignment, edges those of the resize filter, noise those of the order of pixels; noise stays in
a corner because it does not compress and these pictures are committed.
"""

import numpy as np
from PIL import Image

# name: (width, height). Together they cover what decides how a picture is processed: orientation, a grid below the
# 16 x 16 position table, up- and downscaling, a count of tokens below the maximum, tiling, and strips.
SIZES = {
    "landscape": (320, 208),
    "portrait": (150, 262),
    "small": (60, 44),
    "square": (256, 256),
    "wide": (400, 150),
    "photo": (640, 416),
    "large": (1056, 540),
    "tall": (330, 700),
    "column": (1, 20),
    "strip": (300, 4),
}


def draw(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture `name` as 8-bit RGB, (width, height) by default SIZES[name]; the same bytes on every machine.

    Another name is another picture; one that is not in SIZES needs a size.
    """
    width, height = size or SIZES[name]
    rng = np.random.default_rng([2, *name.encode()])
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.empty((height, width, 3), np.int64)
    for channel in range(3):
        start, across, down = (int(v) for v in rng.integers(-220, 220, 3))
        pixels[..., channel] = 128 + start // 3 + across * x // (2 * width) + down * y // (2 * height)
    for _ in range(6):
        w, h = (int(rng.integers(max(1, side // 12), max(2, side // 3))) for side in (width, height))
        left, top = int(rng.integers(0, max(1, width - w))), int(rng.integers(0, max(1, height - h)))
        pixels[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    w, h = max(1, width // 8), max(1, height // 8)
    pixels[-h:, :w] = rng.integers(0, 256, (h, w, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")
