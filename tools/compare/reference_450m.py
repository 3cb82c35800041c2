"""Shows that the full 450M shape loads here and gives the reference's logits and tokens: two commands.

    python -m tools.compare.reference_450m FOLDER
    python -m tools.compare.reference_450m --compare FOLDER

The first, with the extra `reference`, writes LFM2-VL-450M's shape with seeded random weights (float32, 1.8 GB, Hugging
Face format) and the reference's answers as FOLDER/reference.npz. The second loads FOLDER with mlx_lfm2vl and prints a
table; its exit code is 1 where logits differ by more than 2e-5 or a token differs.

`reference.py` says what stands in the table. Each command takes two minutes on two CPU cores; with MLX in place of the
backend numpy the second takes half an hour, and logits are within 9.1e-6. The backend numpy gives

      prompt    ids     pixels   inputs   layers   logits  tokens   margin
     256x256   same  0.0 level  1.2e-06  9.2e-06  7.5e-06   24/24   0.0149
                          sdpa  6.5e-07  8.8e-06  1.8e-06
     512x384   same  0.0 level  1.4e-06  1.1e-05  5.7e-06   24/24   0.0127
                          sdpa  6.9e-07  6.9e-06  1.6e-06
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .reference import FILE, answered, compare

PROMPT = "What is in this picture?"
SIZES = ((256, 256), (512, 384))  # width, height
NEW_TOKENS = 24
_ATTENTION_LAYERS = (2, 5, 8, 10, 12, 14)


def config_450m(base: dict[str, Any]) -> dict[str, Any]:
    """`base`, a small configuration of the same generation, widened to LFM2-VL-450M's shape."""
    layers = ["full_attention" if i in _ATTENTION_LAYERS else "conv" for i in range(16)]
    text = {
        "block_dim": 1024,
        "block_ff_dim": 6656,
        "block_multiple_of": 256,
        "conv_dim": 1024,
        "conv_dim_out": 1024,
        "hidden_size": 1024,
        "layer_types": layers,
        "num_attention_heads": 16,
        "num_heads": 16,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
    }
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    return base | {
        "projector_hidden_size": 2560,
        "text_config": base["text_config"] | text,
        "vision_config": base["vision_config"] | vision,
    }


def make(folder: Path) -> None:
    """Writes the checkpoint and reference.npz into `folder`."""
    from ..golden.checkpoints import CONFIGS, IMAGE_PROCESSORS, write_like
    from ..golden.pictures import draw

    limits = {"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512}
    write_like("gen2", folder, config_450m(CONFIGS["gen2"]) | limits, IMAGE_PROCESSORS["gen2"] | limits, seed=450)
    from ..golden.stages import load

    model, processor = load(str(folder))
    arrays: dict[str, Any] = {}
    for width, height in SIZES:
        picture, name = draw("450m", (width, height)), f"{width}x{height}"
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        arrays |= {f"{name}/picture": np.asarray(picture), **answered(model, name, inputs, prompt, NEW_TOKENS)}
    np.savez_compressed(folder / FILE, **arrays)


def pictures(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The processor's keywords of a prompt's picture."""
    return {"images": Image.fromarray(arrays[f"{name}/picture"])}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare mlx_lfm2vl with what FOLDER holds")
    args = parser.parse_args()
    if args.compare:
        return 0 if compare(args.folder, pictures) else 1
    make(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
