"""What the reference's image processor decides for a picture of a size, without its pixels.

The processor itself is called, on torch's "meta" device: tensors there have shapes and no values.
"""

from typing import Any

import numpy as np
import torch
from transformers import Lfm2VlProcessor
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

POLICIES: dict[str, dict[str, Any]] = {
    "published": {},  # the class's defaults: 2..10 tiles of 512, tolerance 2.0, a thumbnail, 64..256 tokens
    "legacy": {"max_pixels_tolerance": 1.5, "use_thumbnail": False},
    "from-one-tile": {"min_tiles": 1},
    "small": {"tile_size": 128, "min_image_tokens": 16, "max_image_tokens": 64},
}
RANDOM_SIZES = 280
# (width, height): published resolutions, halves that round to even, both sides of the "too large" border, ties between
# grids, strips, and single pixels
CHOSEN = """
1x1 1x2 2x1 16x16 32x32 31x33 48x48 80x80 240x272 256x256 255x257 272x272 288x288 384x256 256x384 150x200 512x512
528x528 560x400 600x600 640x480 480x640 656x656 657x657 660x700 700x700 720x720 720x730 720x736 736x720 722x724
723x724 724x724 725x725 730x715 752x690 798x657 657x798 800x600 960x540 500x650 1240x1754 1700x2200 1920x2485 1024x544
1024x512 512x1024 1024x1024 1024x768 768x1024 1024x977 1025x978 1376x768 1280x720 1920x1080 1080x1920 2560x1440
1600x800 800x1600 1695x2187 4000x3000 3000x4000 3000x1000 1000x3000 300x1000 144x4000 4000x144 80x4000 32x1024 1024x32
1x1000 1x1023 1x1024 1x1030 1030x1 1x2000 2000x1 1x8000 8000x1 1x30000 30000x1 33x16000 512x5120 5120x512 1536x1024
1024x1536 1024x2048 2048x1024 2048x2048 1365x768 768x1365 1000x1000 750x750 900x450 450x900 1100x500 2000x500 500x2000
2500x500 208x320 112x112 128x128 160x144 176x192 200x360 362x362 364x361 370x370 384x384 400x300 256x1280 1280x256
250x90
"""


def geometry() -> dict[str, Any]:
    """{"policies": ..., "results": {policy: [result, ...]}}, each result a dict with

    size        [width, height]
    large       whether it passes the "too large" test
    resized     [height, width] of the smart resize
    grid        [rows, columns] of tiles, [1, 1] where not split
    shapes      [rows, columns] of patches of every view
    features    how many the projector would give
    tokens      how many image tokens the text gets
    reference   "ok", or

                "mismatch": features are not tokens, and the reference's model raises: it stretches the picture to a
                "grid" of one tile, and counts the tokens of the smart resize
                "overflow": a view has more patches than max_num_patches, and the reference raises, here or in its model
    """
    rng = np.random.default_rng(11)
    sizes = [(int(w), int(h)) for w, h in (size.split("x") for size in CHOSEN.split())]
    sizes += [(int(w), int(h)) for w, h in np.exp(rng.uniform(np.log(8), np.log(4200), (RANDOM_SIZES, 2)))]
    results = {name: [_result(w, h, options) for w, h in sizes] for name, options in POLICIES.items()}
    return {"policies": POLICIES, "results": results}


def _result(width: int, height: int, options: dict[str, Any]) -> dict[str, Any]:
    processor = Lfm2VlImageProcessor(**options)
    limits = {
        name: getattr(processor, name) for name in ("max_image_tokens", "encoder_patch_size", "downsample_factor")
    }
    tolerance = {"max_pixels_tolerance": processor.max_pixels_tolerance}
    names = ("min_tiles", "max_tiles", "use_thumbnail", "min_image_tokens", "tile_size", "resample")
    split = limits | tolerance | {name: getattr(processor, name) for name in names}
    picture = torch.empty(3, height, width, device="meta", dtype=torch.uint8)
    views, rows, cols, sizes = processor.resize_and_split(picture[None], **split)
    shapes = [[view.shape[-2] // 16, view.shape[-1] // 16] for view in views[0]]
    made = {"image_rows": rows, "image_cols": cols, "image_sizes": sizes}
    features = sum(-(-h // 2) * -(-w // 2) for h, w in shapes)
    tokens = _count_tokens(processor, made)
    reference = "ok" if features == tokens else "mismatch"
    if max(h * w for h, w in shapes) > processor.max_num_patches:
        reference = "overflow"
    else:
        whole = processor([[picture]], return_row_col_info=True, input_data_format="channels_first")
        if whole["spatial_shapes"].tolist() != shapes or any(whole[key] != value for key, value in made.items()):
            raise AssertionError(f"{width}x{height}: the whole image processor decides otherwise than its part")
    return {
        "size": [width, height],
        "large": processor._is_image_too_large(height, width, **limits, **tolerance),
        "resized": sizes[0],
        "grid": [rows[0], cols[0]],
        "shapes": shapes,
        "features": features,
        "tokens": tokens,
        "reference": reference,
    }


def _count_tokens(image_processor: Any, made: Any) -> int:
    """The image tokens that the reference's processor writes; it has a tokenizer only to know their names."""
    processor = Lfm2VlProcessor.__new__(Lfm2VlProcessor)
    processor.image_processor, processor.image_token = image_processor, "<image>"
    return processor.replace_image_token(made, 0, use_image_special_tokens=False).count("<image>")
