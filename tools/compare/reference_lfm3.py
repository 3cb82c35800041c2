"""Shows that the shape of LFM3-VL-2B loads here and gives the reference's logits and tokens: two commands.

    python -m tools.compare.reference_lfm3 FOLDER [--layers N] [--vision-layers N]
    python -m tools.compare.reference_lfm3 --compare FOLDER

The first, with the extra `reference`, writes LFM3-VL-2B's shape with seeded random weights (float32, 7.7 GB, Hugging
Face format; fewer layers of the same widths take less) and the reference's answers as FOLDER/reference.npz. The second
loads FOLDER with mlx_lfm2vl and prints a table; its exit code is 1 where logits differ by more than 2e-5 or a token
differs. Prompts are a picture, a video, and a text that is longer than the window of 256 tokens.

In the table, `pixels` is the largest difference of the processors; `logits` that of the last position of the prompt, on
the reference's pixels and relative to the largest logit; `tokens` are those generated from this package's own pixels;
`margin` is how far the second best was below the best where it came nearest.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (448, 320)  # of the picture and of the video's frames: width, height
FRAMES, RATE = 12, 4
WORDS = "Please read the text and write it down in one line: the small one is near the large one. " * 16
PROMPTS = {"picture": "What is in this picture?", "video": "What moves?", "text": WORDS}
NEW_TOKENS = 16
TOLERANCE = 2e-5


def make(folder: Path, layers: int, vision_layers: int) -> None:
    """Writes the checkpoint and reference.npz into `folder`."""
    from ..golden import lfm3  # first, as it lets transformers load
    from ..golden.checkpoints import set_weights, write_json
    from ..golden.pictures import draw
    from ..golden.tokenizer import write_lfm3_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    import torch
    from transformers import Lfm3VlConfig, Lfm3VlForConditionalGeneration

    ids = {name: value for name, value in lfm3.CONFIG.items() if name.endswith("_token_id")}
    ends = {name: value for name, value in lfm3.CONFIG["text_config"].items() if name.endswith("_token_id")}
    config = Lfm3VlConfig(
        text_config={"model_type": "lfm3", "num_hidden_layers": layers, **ends},
        vision_config={"num_hidden_layers": vision_layers},
        **ids,
    )
    model = Lfm3VlForConditionalGeneration(config).eval()
    set_weights(model, 2000)
    model.save_pretrained(folder)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    write_lfm3_tokenizer(lfm3.TOKENS, config.text_config.vocab_size, folder)
    write_json(folder / "processor_config.json", lfm3.PROCESSOR)
    del model
    model, processor = lfm3.load(folder)
    whole = draw("lfm3", (SIZE[0] + 4 * FRAMES, SIZE[1]))
    frames = [whole.crop((4 * n, 0, 4 * n + SIZE[0], SIZE[1])) for n in range(FRAMES)]
    arrays: dict[str, Any] = {"picture": np.asarray(frames[0]), "video": np.stack([np.asarray(f) for f in frames])}
    for name, words in PROMPTS.items():
        kinds = {"picture": "image", "video": "video"}
        content = [*([{"type": kinds[name]}] if name in kinds else []), {"type": "text", "text": words}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        given: dict[str, Any] = {"images": [frames[0]]} if name == "picture" else {}
        if name == "video":
            metadata = [{"total_num_frames": FRAMES, "fps": RATE}]
            given = {"videos": [arrays["video"]], "video_metadata": metadata}
        inputs = processor(text=[prompt], return_tensors="pt", **given)
        with torch.no_grad():
            made = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        best = torch.stack(made.logits, 1).topk(2).values
        arrays |= {f"{name}/inputs/{key}": value.numpy() for key, value in inputs.items()}
        arrays |= {f"{name}/prompt": np.array(prompt), f"{name}/logits": made.logits[0].numpy()}
        arrays |= {
            f"{name}/tokens": made.sequences.numpy(),
            f"{name}/margin": (best[..., 0] - best[..., 1]).min().numpy(),
        }
    np.savez_compressed(folder / "reference.npz", **arrays)


def compare(folder: Path) -> bool:
    """Prints how mlx_lfm2vl's numbers differ from reference.npz; True where they agree."""
    from mlx_lfm2vl import load, load_video

    model, processor = load(folder)
    print(f"{'prompt':>8} {'ids':>6} {'pixels':>10} {'logits':>9} {'tokens':>7} {'margin':>8}")
    agree = True
    with np.load(folder / "reference.npz") as arrays:
        for name in PROMPTS:
            theirs = {key.rpartition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/inputs/")}
            given: dict[str, Any] = {"images": [arrays["picture"]]} if name == "picture" else {}
            if name == "video":
                given = {"videos": [load_video(arrays["video"], frame_rate=RATE)]}
            ours = processor(text=[str(arrays[f"{name}/prompt"])], **given)
            same_ids = np.array_equal(ours["input_ids"], theirs["input_ids"])
            pixels = [key for key in theirs if key.startswith("pixel_values")]
            levels = max((np.abs(np.asarray(ours[key]) - theirs[key]).max() * 127.5 for key in pixels), default=0.0)
            logits = arrays[f"{name}/logits"]
            found = np.asarray(model(**theirs, logits_to_keep=1).logits)[:, -1]
            error = float(np.abs(found - logits).max() / np.abs(logits).max())
            tokens = np.asarray(model.generate(**ours, max_new_tokens=NEW_TOKENS, do_sample=False))
            same = int((tokens[0, -NEW_TOKENS:] == arrays[f"{name}/tokens"][0, -NEW_TOKENS:]).sum())
            columns = f"{name:>8} {'same' if same_ids else 'differ':>6} {levels:>4.1f} level {error:>9.1e}"
            print(f"{columns} {same:>4}/{NEW_TOKENS} {float(arrays[f'{name}/margin']):>8.4f}", flush=True)
            agree &= same_ids and levels <= 1 and same == NEW_TOKENS and error <= TOLERANCE
    return bool(agree)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare mlx_lfm2vl with what FOLDER holds")
    parser.add_argument("--layers", type=int, default=24, metavar="N", help="of the language model (default: all 24)")
    parser.add_argument("--vision-layers", type=int, default=14, metavar="N", help="of the encoder (default: all 14)")
    args = parser.parse_args()
    if args.compare:
        return 0 if compare(args.folder) else 1
    make(args.folder, args.layers, args.vision_layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
