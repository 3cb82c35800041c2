"""The reference's answers to prompts, kept beside a checkpoint as reference.npz, and what this package answers to them.

In the table, `pixels` is the largest difference of the processors; `logits` that of the last position of the prompt, on
the reference's pixels and relative to the largest logit; `tokens` are those generated from this package's own pixels;
`margin` is how far the second best was below the best where it came nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE = "reference.npz"
TOLERANCE = 2e-5  # of logits, relative to the largest


def answered(model: Any, name: str, inputs: Mapping[str, Any], prompt: str, new_tokens: int) -> dict[str, Any]:
    """The arrays of reference.npz about one prompt.

    Args:
        model: transformers' model.
        name: of the prompt in the file.
        inputs: what the reference's processor made of it, as tensors of torch.
        prompt: the text that it was made of.
        new_tokens: to generate, greedily.
    """
    import torch

    with torch.no_grad():
        made = model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    best = torch.stack(made.logits, 1).topk(2).values
    return {
        **{f"{name}/inputs/{key}": value.numpy() for key, value in inputs.items()},
        f"{name}/prompt": np.array(prompt),
        f"{name}/logits": made.logits[0].numpy(),
        f"{name}/tokens": made.sequences.numpy(),
        f"{name}/margin": (best[..., 0] - best[..., 1]).min().numpy(),
    }


def compare(folder: Path, pictures: Callable[[Mapping[str, np.ndarray], str], dict[str, Any]]) -> bool:
    """Prints how mlx_lfm2vl's numbers differ from reference.npz in `folder`.

    Args:
        folder: the checkpoint.
        pictures: makes the keywords of the processor that hold a prompt's pictures, of the file's arrays and its name.

    Returns:
        True where ids and tokens are the same, pixels differ by at most one level and logits by `TOLERANCE`.
    """
    from mlx_lfm2vl import load

    model, processor = load(folder)
    print(f"{'prompt':>8} {'ids':>6} {'pixels':>10} {'logits':>9} {'tokens':>7} {'margin':>8}")
    agree = True
    with np.load(folder / FILE) as arrays:
        for name in (key.removesuffix("/prompt") for key in arrays if key.endswith("/prompt")):
            theirs = {key.rpartition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/inputs/")}
            ours = processor(text=[str(arrays[f"{name}/prompt"])], **pictures(arrays, name))
            same_ids = np.array_equal(ours["input_ids"], theirs["input_ids"])
            pixels = [key for key in theirs if key.startswith("pixel_values")]
            levels = max((np.abs(np.asarray(ours[key]) - theirs[key]).max() * 127.5 for key in pixels), default=0.0)
            logits = arrays[f"{name}/logits"]
            found = np.asarray(model(**theirs, logits_to_keep=1).logits)[:, -1]
            error = float(np.abs(found - logits).max() / np.abs(logits).max())
            expected = arrays[f"{name}/tokens"][0, theirs["input_ids"].shape[1] :]
            made = np.asarray(model.generate(**ours, max_new_tokens=len(expected), do_sample=False))
            same = int((made[0, -len(expected) :] == expected).sum()) if made.shape[1] >= len(expected) else 0
            columns = f"{name:>8} {'same' if same_ids else 'differ':>6} {levels:>4.1f} level {error:>9.1e}"
            print(f"{columns} {same:>4}/{len(expected)} {float(arrays[f'{name}/margin']):>8.4f}", flush=True)
            agree &= same_ids and levels <= 1 and same == len(expected) and error <= TOLERANCE
    return bool(agree)
