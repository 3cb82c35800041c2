"""Pictures resized by the reference's own call: torchvision.transforms.v2.functional.resize, 8-bit and antialiased.

On a CPU with AVX2 or on ARM that is torch's 8-bit kernel (elsewhere bilinear goes through float32 and may differ by a
level): across, then down, each pass rounded to 8 bits, with the weights of a pass in 16-bit fixed point at the highest
precision at which the largest fits, and an axis that keeps its length left alone. mlx_lfm2vl/processing/resize.py does
the same; Pillow, which would be the obvious choice, differs in two ways:

- version 13 (12 did not) begins with the pass that saves most work. Where the picture grows across and shrinks down
  that is the one down, and bicubic overshoot, cut off between the passes, then differs by 20 levels and more. Two calls
  of Pillow, across and then down, avoid that;
- its weights have 22 bits, which leaves differences of one level (bilinear) or two (bicubic) in up to 1 % of the
  values.
"""

from itertools import product
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

from .pictures import draw

FILTERS = (2, 3)  # Pillow's numbers: bilinear, bicubic
# (height, width): both smaller, both larger, one of each in both ways, one axis as it was
TARGETS = [(32, 32), (112, 128), (40, 150), (120, 40), (61, 50), (64, 90)]


def resized() -> dict[str, Any]:
    """Arrays `picture_I` (h, w, 3) uint8; `cases` (n, 4): picture, filter, height, width; `resized_N` for each case."""
    rng = np.random.default_rng(7)
    edges = (np.indices((64, 96)).sum(0) // 4 % 2 * 255).astype(np.uint8)
    pictures = [
        rng.integers(0, 256, (61, 83, 3), dtype=np.uint8),
        np.repeat(edges[..., None], 3, axis=2),
        np.asarray(draw("small")),
        np.asarray(draw("column")),
    ]
    arrays = {f"picture_{i}": picture for i, picture in enumerate(pictures)}
    cases = [(i, resample, *size) for (i, resample), size in product(product(range(len(pictures)), FILTERS), TARGETS)]
    arrays["cases"] = np.array(cases)
    processor = Lfm2VlImageProcessor()
    for n, (i, resample, height, width) in enumerate(cases):
        image = torch.from_numpy(pictures[i].copy()).permute(2, 0, 1)[None].contiguous()
        size = SizeDict(height=height, width=width)
        result = TorchvisionBackend.resize(processor, image, size, resample=resample)
        arrays[f"resized_{n}"] = result[0].permute(1, 2, 0).contiguous().numpy()
    return arrays
