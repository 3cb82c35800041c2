"""Freezes the reference's numbers for `mlx-lfm2vl doctor` into mlx_lfm2vl/doctor/data/.

    python -m tools.golden.doctor              writes the folder anew
    python -m tools.golden.doctor --check      makes everything again and lists what differs

It needs the extra `reference` (torch, torchvision, transformers 5.23). The folder then holds

    scene.png     the picture that the demo model is asked about
    random.npz    of the random checkpoint (mlx_lfm2vl/doctor/checkpoint.py), with P its prompts `picture` and `text`:
    lfm3.npz      the same of LFM3-VL's (mlx_lfm2vl/doctor/lfm3_checkpoint.py)
                  P/rows                 which positions of the prompt are kept; the last `STEPS` always are
                  P/logits               (rows, vocabulary) float32: all positions in one pass, without a cache
                  P/logits_bfloat16      the same with weights and activations in bfloat16, as float32
                  image/rows             which image tokens are kept
                  image/features         (rows, hidden) float32: what tower and projector make of the views
                  image/features_bfloat16
    demo.npz      of the demo model (its weights made float32) and scene.png, with W of `float32`, `bfloat16`, `8 bits`
                  and `4 bits`; the last two are float32 models whose weights this package's converter has quantised
                  and dequantised again:
                  question               a text
                  prompt                 (T,) int64: its token ids, of pictures and template
                  W/answer               (tokens,) int64: the greedy answer
                  W/logits               (tokens of float32/answer, vocabulary) float32: at the positions that choose
                                         the tokens of float32/answer, that answer given

Attention is transformers' usual one (sdpa), on a CPU.

`--check` wants integers and texts equal, floats within 1e-5 of the largest of their array, and 0.1 where they are in
bfloat16: another processor adds in another order.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, Lfm2VlForConditionalGeneration, Lfm3VlForConditionalGeneration

from mlx_lfm2vl import convert, demo
from mlx_lfm2vl.doctor.checkpoint import STEPS
from mlx_lfm2vl.doctor.checks import CHECKPOINTS
from mlx_lfm2vl.doctor.reference import DATA

from .stages import load_as

NETWORKS = {"random": Lfm2VlForConditionalGeneration, "lfm3": Lfm3VlForConditionalGeneration}
ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What is in this image?"
SCENE = ROOT / "examples" / "scene.png"
PROMPT_ROWS = 12  # of each prompt, evenly, before the last `STEPS`
IMAGE_ROWS = 12
NEW_TOKENS = 32
SMALLEST_MARGIN = 0.1  # of a token of an answer before the second best
TOLERANCE, ROUNDED_TOLERANCE = 1e-5, 0.1


def make(folder: Path) -> None:
    """Writes all files into `folder`."""
    torch.set_num_threads(1)  # sums in one order
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SCENE, folder / SCENE.name)
    for name in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            np.savez_compressed(folder / f"{name}.npz", **random_arrays(Path(temporary), name))
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        np.savez_compressed(folder / "demo.npz", **demo_arrays(Path(temporary)))


def random_arrays(folder: Path, kind: str) -> dict[str, Any]:
    """Of a random checkpoint, which is written into `folder`."""
    checkpoint = CHECKPOINTS[kind]
    (folder / "config.json").write_text(json.dumps(checkpoint.CONFIG))
    weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in checkpoint.tensors().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    prompts = checkpoint.prompts()
    pictures = {
        "pixel_values": torch.from_numpy(prompts.pixel_values),
        "spatial_shapes": torch.from_numpy(prompts.spatial_shapes),
        "pixel_attention_mask": torch.from_numpy(prompts.pixel_attention_mask),
    }
    if kind == "lfm3":  # which takes the patches of all pictures one after the other
        mask = pictures["pixel_attention_mask"].bool()
        grids = torch.nn.functional.pad(pictures["spatial_shapes"], (1, 0), value=1)
        pictures = {"pixel_values": pictures["pixel_values"][mask], "image_grid_thw": grids}
    arrays: dict[str, Any] = {}
    for suffix, dtype in (("", torch.float32), ("_bfloat16", torch.bfloat16)):
        model = load_as(str(folder), dtype, "sdpa", NETWORKS[kind])
        pictures["pixel_values"] = pictures["pixel_values"].to(dtype)
        for name, ids in (("picture", prompts.picture), ("text", prompts.text)):
            before = np.linspace(0, ids.shape[1] - STEPS - 1, PROMPT_ROWS).astype(int)
            rows = np.concatenate([before, np.arange(ids.shape[1] - STEPS, ids.shape[1])])
            logits = model(input_ids=torch.from_numpy(ids), **(pictures if name == "picture" else {})).logits
            arrays[f"{name}/rows"] = rows
            arrays[f"{name}/logits{suffix}"] = logits[0, rows].float().numpy()
        features = torch.cat(model.get_image_features(**pictures).pooler_output)
        rows = np.linspace(0, len(features) - 1, IMAGE_ROWS).astype(int)
        arrays["image/rows"] = rows
        arrays[f"image/features{suffix}"] = features[rows].float().numpy()
    return arrays


def demo_arrays(folder: Path) -> dict[str, Any]:
    """Of the demo model; quantised ones are written into `folder`."""
    inputs = _demo_inputs()
    arrays = {"question": np.array(QUESTION), "prompt": inputs["input_ids"][0].numpy()}
    models = {
        "float32": load_as(str(demo.path()), torch.float32, "sdpa"),
        "bfloat16": load_as(str(demo.path()), torch.bfloat16, "sdpa"),
    }
    for bits in (8, 4):
        quantised, dense = folder / f"{bits}-quantised", folder / f"{bits}-dense"
        convert("demo", quantised, quantize=True, q_bits=bits, dtype="float32", verify=False)
        convert(quantised, dense, dequantize=True, dtype="float32", layout="hub", verify=False)
        models[f"{bits} bits"] = load_as(str(dense), torch.float32, "sdpa")
    length = inputs["input_ids"].shape[1]
    for width, model in models.items():
        made = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        best = torch.stack(made.logits, 1).float().topk(2).values
        margin = float((best[..., 0] - best[..., 1]).min())
        if margin < SMALLEST_MARGIN:
            raise ValueError(f"{width}: the smallest margin is {margin:.2g}; choose another picture or question")
        arrays[f"{width}/answer"] = made.sequences[0, length:].numpy()
        print(f"{width}: {len(arrays[f'{width}/answer'])} tokens, smallest margin {margin:.2f}")
    answer = torch.from_numpy(arrays["float32/answer"])[None]
    whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], answer], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    for width, model in models.items():
        logits = model(**whole).logits[0, length - 1 : -1]
        arrays[f"{width}/logits"] = logits.float().numpy()
    return arrays


def _demo_inputs() -> dict[str, Any]:
    processor = AutoProcessor.from_pretrained(demo.path())
    with Image.open(SCENE) as picture:
        content = [{"type": "image", "image": picture.convert("RGB")}, {"type": "text", "text": QUESTION}]
        turns = [{"role": "user", "content": content}]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return dict(processor.apply_chat_template(turns, **options))


def differences(old: Path, new: Path) -> list[str]:
    """One line for each array in which the folder `old` differs from `new`."""
    found = [] if (old / SCENE.name).read_bytes() == (new / SCENE.name).read_bytes() else [f"{SCENE.name}: differs"]
    for name in (*(f"{name}.npz" for name in CHECKPOINTS), "demo.npz"):
        with np.load(old / name) as before, np.load(new / name) as after:
            found += [f"{name}: {key} only on one side" for key in set(before) ^ set(after)]
            for key in sorted(set(before) & set(after)):
                one, two = before[key], after[key]
                tolerance = ROUNDED_TOLERANCE if "bfloat16" in key else TOLERANCE
                if one.shape != two.shape or one.dtype != two.dtype:
                    found.append(f"{name}: {key} is {one.dtype}{one.shape}, now {two.dtype}{two.shape}")
                elif one.dtype.kind != "f":
                    found += [] if np.array_equal(one, two) else [f"{name}: {key} differs"]
                elif not np.abs(one - two).max() <= tolerance * np.abs(two).max():
                    found.append(f"{name}: {key} differs by {np.abs(one - two).max() / np.abs(two).max():.1e}")
    return found


def main() -> int:
    """Command line; exit code 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    if not args.check:
        make(DATA)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        found = differences(DATA, Path(temporary))
    print("\n".join(found) or "no differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
