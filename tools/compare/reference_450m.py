"""Shows that the full 450M shape loads here and gives the reference's logits and tokens: two commands.

    python -m tools.compare.reference_450m FOLDER
    python -m tools.compare.reference_450m --compare FOLDER

The first, with the extra `reference`, writes LFM2-VL-450M's shape with seeded random weights (float32, 1.8 GB, Hugging
Face format) and the reference's answers as FOLDER/reference.npz. The second loads FOLDER with mlx_lfm2vl and prints a
table; its exit code is 1 where logits differ by more than 2e-5 or a token differs.

In the table, `pixels` is the largest difference of the processors; `logits` that of the last position of the prompt, on
the reference's pixels and relative to the largest logit; `tokens` are those generated from this package's own pixels;
`margin` is how far the second best was below the best where it came nearest. The first command takes two minutes on two
CPU cores, the second up to half an hour, since MLX multiplies slowly there. MLX 0.32 on a CPU gives

      picture    ids     pixels    logits  tokens   margin
      256x256   same  0.0 level   9.1e-06   24/24   0.0149
      512x384   same  0.0 level   8.3e-06   24/24   0.0127
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROMPT = "What is in this picture?"
SIZES = ((256, 256), (512, 384))  # width, height
NEW_TOKENS = 24
TOLERANCE = 2e-5
INPUTS = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "spatial_shapes")
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
    import torch

    from ..golden.stages import load

    model, processor = load(str(folder))
    arrays: dict[str, Any] = {}
    for width, height in SIZES:
        picture = draw("450m", (width, height))
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True)
        name = f"{width}x{height}"
        arrays |= {f"{name}/{key}": inputs[key].numpy() for key in INPUTS}
        arrays[f"{name}/picture"] = np.asarray(picture)
        arrays[f"{name}/prompt"] = np.array(prompt)
        arrays[f"{name}/logits"] = made.logits[0].numpy()
        arrays[f"{name}/tokens"] = made.sequences.numpy()
        best = torch.stack(made.logits, 1).topk(2).values
        arrays[f"{name}/margins"] = (best[..., 0] - best[..., 1]).numpy()
    np.savez_compressed(folder / "reference.npz", **arrays)


def compare(folder: Path) -> bool:
    """Prints how mlx_lfm2vl's numbers differ from reference.npz; True where they agree."""
    from mlx_lfm2vl import load

    model, processor = load(folder)
    print(f"{'picture':>9} {'ids':>6} {'pixels':>10} {'logits':>9} {'tokens':>7} {'margin':>8}")
    agree = True
    with np.load(folder / "reference.npz") as arrays:
        for name in (f"{width}x{height}" for width, height in SIZES):
            theirs = {key: arrays[f"{name}/{key}"] for key in INPUTS}
            picture = Image.fromarray(arrays[f"{name}/picture"])
            ours = processor(images=picture, text=str(arrays[f"{name}/prompt"]))
            same_ids = np.array_equal(ours["input_ids"], theirs["input_ids"])
            levels = np.abs(np.asarray(ours["pixel_values"]) - theirs["pixel_values"]).max() * 127.5
            logits, expected = arrays[f"{name}/logits"], arrays[f"{name}/tokens"]
            error = _last_logits_error(model, theirs, logits)
            tokens = np.asarray(model.generate(**ours, max_new_tokens=NEW_TOKENS))
            same = 0
            if tokens.shape == expected.shape:
                same = int(np.sum(tokens[0, -NEW_TOKENS:] == expected[0, -NEW_TOKENS:]))
            columns = f"{name:>9} {'same' if same_ids else 'differ':>6} {levels:>4.1f} level {error:>9.1e}"
            margin = arrays[f"{name}/margins"].min()
            print(f"{columns} {same:>4}/{NEW_TOKENS} {margin:>8.4f}", flush=True)
            agree &= same_ids and same == NEW_TOKENS and error <= TOLERANCE
    return bool(agree)


def _last_logits_error(model: Any, inputs: dict[str, Any], expected: np.ndarray) -> float:
    logits = np.asarray(model(**inputs, logits_to_keep=1).logits)[:, -1]
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare mlx_lfm2vl with what FOLDER holds")
    args = parser.parse_args()
    if args.compare:
        return 0 if compare(args.folder) else 1
    make(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
