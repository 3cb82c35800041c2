"""The reference's frozen numbers in data/; tools/golden/doctor.py makes and describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
PICTURE = DATA / "scene.png"


class Numbers(NamedTuple):
    """Rows of the reference's logits or features: `exact` (rows, values) of its float32 model, `rounded` of its
    bfloat16 model. `rows`: which they are of all positions."""

    rows: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray


@dataclass(frozen=True)
class DemoNumbers:
    """Numbers of the demo model and `PICTURE`; `answers` and `logits` by width, "float32", "bfloat16", "8 bits" or "4
    bits"."""

    question: str
    prompt: np.ndarray
    answers: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]


def random_numbers(model: str = "random") -> dict[str, Numbers]:
    """Numbers of a random checkpoint: logits of its two prompts, "picture" and "text", and image tokens, "image". Reads
    data/random.npz or, for "lfm3", data/lfm3.npz."""
    values = {"picture": "logits", "text": "logits", "image": "features"}
    with np.load(DATA / f"{model}.npz") as stored:
        return {
            name: Numbers(stored[f"{name}/rows"], stored[f"{name}/{kind}"], stored[f"{name}/{kind}_bfloat16"])
            for name, kind in values.items()
        }


def demo_numbers() -> DemoNumbers:
    """Reads data/demo.npz."""
    with np.load(DATA / "demo.npz") as stored:
        widths = [name.removesuffix("/answer") for name in stored if name.endswith("/answer")]
        return DemoNumbers(
            question=str(stored["question"]),
            prompt=stored["prompt"],
            answers={width: stored[f"{width}/answer"] for width in widths},
            logits={width: stored[f"{width}/logits"] for width in widths},
        )
