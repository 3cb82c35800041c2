"""The reference's answers to prompts, kept beside a checkpoint as reference.npz, and what this package answers to them.

In the table, `pixels` is the largest difference of the processors. The next three are on the reference's pixels and
relative to the largest number: `inputs`, what enters the language model (of pictures, what the encoder and the
projector make), `layers`, what the worst of its layers gives, and `logits`, those of the last position. `tokens` are
those generated from this package's own pixels; `margin` is how far the second best was below the best where it came
nearest. A line of `sdpa` says how far the reference is from itself with transformers' other attention, so what the
order of sums alone makes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = "reference.npz"
STAGES = ("inputs", "layers", "logits")
TOLERANCE = 2e-5  # of logits, relative to the largest
EVERY = 8  # hidden states are kept of every eighth position


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
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        model.set_attn_implementation("sdpa")
        other = model(**inputs, logits_to_keep=1, output_hidden_states=True)
        model.set_attn_implementation("eager")
    states = _stages(made.hidden_states[0], made.logits[0])
    best = torch.stack(made.logits, 1).topk(2).values
    return {
        **{f"{name}/inputs/{key}": value.numpy() for key, value in inputs.items()},
        f"{name}/prompt": np.array(prompt),
        **{f"{name}/stages/{stage}": array for stage, array in states.items()},
        f"{name}/noise": np.array(_errors(_stages(other.hidden_states, other.logits[:, -1]), states)),
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
    stages = "".join(f" {stage:>8}" for stage in STAGES)
    print(f"{'prompt':>8} {'ids':>6} {'pixels':>10}{stages} {'tokens':>7} {'margin':>8}")
    agree = True
    with np.load(folder / FILE) as arrays:
        for name in (key.removesuffix("/prompt") for key in arrays if key.endswith("/prompt")):
            theirs = {key.rpartition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/inputs/")}
            ours = processor(text=[str(arrays[f"{name}/prompt"])], **pictures(arrays, name))
            same_ids = np.array_equal(ours["input_ids"], theirs["input_ids"])
            pixels = [key for key in theirs if key.startswith("pixel_values")]
            levels = max((np.abs(np.asarray(ours[key]) - theirs[key]).max() * 127.5 for key in pixels), default=0.0)
            out = model(**theirs, logits_to_keep=1, output_hidden_states=True)
            errors = _errors(
                _stages(out.hidden_states, out.logits[:, -1]),
                {stage: arrays[f"{name}/stages/{stage}"] for stage in STAGES},
            )
            del out
            expected = arrays[f"{name}/tokens"][0, theirs["input_ids"].shape[1] :]
            made = np.asarray(model.generate(**ours, max_new_tokens=len(expected), do_sample=False))
            same = int((made[0, -len(expected) :] == expected).sum()) if made.shape[1] >= len(expected) else 0
            columns = f"{name:>8} {'same' if same_ids else 'differ':>6} {levels:>4.1f} level"
            columns += _columns(errors)
            print(f"{columns} {same:>4}/{len(expected)} {float(arrays[f'{name}/margin']):>8.4f}", flush=True)
            print(f"{'sdpa':>26}{_columns(arrays[f'{name}/noise'])}", flush=True)
            agree &= same_ids and levels <= 1 and same == len(expected) and errors[-1] <= TOLERANCE
    return bool(agree)


def _stages(states: Sequence[Any], logits: Any) -> dict[str, np.ndarray]:
    """The arrays of the stages, of a model's hidden states and its last logits."""
    first, *layers = (np.array(state)[0, ::EVERY] for state in states)
    return {"inputs": first[None], "layers": np.stack(layers), "logits": np.array(logits)}


def _errors(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[float]:
    """The largest differences of the stages, relative to the largest number; of the worst layer."""
    return [
        max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found[stage], expected[stage], strict=True))
        for stage in STAGES
    ]


def _columns(errors: Sequence[float]) -> str:
    return "".join(f" {error:>8.1e}" for error in errors)


def cost() -> str:
    """What this process has taken until now, in words."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{time.process_time():.0f} s of a core, at most {peak / 1e9:.1f} GB"
