"""Shows that the shape of LFM3-VL-2B loads here and gives the reference's logits and tokens: one command.

    python -m tools.compare.reference_lfm3 FOLDER [--layers N] [--vision-layers N]

It needs the extra `reference` and takes three steps, each in a process of its own, so that memory holds one model.
`--step` does one alone.

write      LFM3-VL-2B's shape with seeded random weights: float32, 7.7 GB in Hugging Face format; fewer layers of the
           same widths take less
reference  transformers' answers, as FOLDER/reference.npz
compare    loads FOLDER with mlx_lfm2vl and prints a table; its exit code, and the command's, is 1 where a stage differs
           by more than 2e-5 or a token differs

Prompts are a picture, a video, and a text that is longer than the window of 256 tokens. `reference.py` says what stands
in the table. With all layers, the backend numpy gives

      prompt    ids     pixels   inputs   layers   logits  tokens   margin
     picture   same  0.0 level  5.5e-06  3.9e-05  1.8e-05   16/16   0.2225
                          sdpa  1.1e-06  8.7e-06  4.7e-06
       video   same  0.0 level  5.6e-06  3.8e-05  1.4e-05   16/16   0.0546
                          sdpa  1.0e-06  8.0e-06  4.1e-06
        text   same  0.0 level  0.0e+00  8.4e-06  7.9e-06   16/16   0.0160
                          sdpa  0.0e+00  1.4e-06  1.4e-06

The steps take 46, 110 and 177 s of a core, and 8.2, 8.5 and 8.0 GB. Beside the encoder and projector in float64, the
inputs of the picture are off by 3.3e-6 in the reference, 5.2e-6 on the backend numpy and 9.0e-6 with MLX on a CPU.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .reference import FILE, answered, compare, cost

SIZE = (256, 192)  # of the picture and of the video's frames: width, height
FRAMES, RATE = 12, 4
WORDS = "Please read the text and write it down in one line: the small one is near the large one. " * 16
PROMPTS = {"picture": "What is in this picture?", "video": "What moves?", "text": WORDS}
NEW_TOKENS = 16
STEPS = ("write", "reference", "compare")


def write(folder: Path, layers: int, vision_layers: int) -> None:
    """Writes the checkpoint into `folder`."""
    from ..golden import lfm3  # first, as it lets transformers load
    from ..golden.checkpoints import set_weights, write_json
    from ..golden.tokenizer import write_lfm3_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    from transformers import Lfm3VlConfig, Lfm3VlForConditionalGeneration
    from transformers.initialization import no_init_weights

    ids = {name: value for name, value in lfm3.CONFIG.items() if name.endswith("_token_id")}
    ends = {name: value for name, value in lfm3.CONFIG["text_config"].items() if name.endswith("_token_id")}
    config = Lfm3VlConfig(
        text_config={"model_type": "lfm3", "num_hidden_layers": layers, **ends},
        vision_config={"num_hidden_layers": vision_layers},
        **ids,
    )
    with no_init_weights():
        model = Lfm3VlForConditionalGeneration(config).eval()
    model.tie_weights()  # which is a part of what is not done above
    set_weights(model, 2000)
    model.save_pretrained(folder, max_shard_size="1GB")
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    write_lfm3_tokenizer(lfm3.TOKENS, config.text_config.vocab_size, folder)
    write_json(folder / "processor_config.json", lfm3.PROCESSOR)


def answer(folder: Path) -> None:
    """Writes reference.npz into `folder`."""
    from ..golden import lfm3  # first, as it lets transformers load
    from ..golden.pictures import draw

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
        arrays |= answered(model, name, inputs, prompt, NEW_TOKENS)
    np.savez_compressed(folder / FILE, **arrays)


def pictures(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """The processor's keywords of a prompt's pictures."""
    from mlx_lfm2vl import load_video

    if name == "video":
        return {"videos": [load_video(arrays["video"], frame_rate=RATE)]}
    return {"images": [arrays["picture"]]} if name == "picture" else {}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help="do this step alone")
    parser.add_argument("--layers", type=int, default=24, metavar="N", help="of the language model (default: all 24)")
    parser.add_argument("--vision-layers", type=int, default=14, metavar="N", help="of the encoder (default: all 14)")
    args = parser.parse_args()
    if args.step is None:
        command = [sys.executable, "-m", "tools.compare.reference_lfm3", *sys.argv[1:], "--step"]
        return next((code for step in STEPS if (code := subprocess.run([*command, step]).returncode)), 0)
    same = True
    if args.step == "write":
        write(args.folder, args.layers, args.vision_layers)
    elif args.step == "reference":
        answer(args.folder)
    else:
        same = compare(args.folder, pictures)
    print(f"{args.step}: {cost()}", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
