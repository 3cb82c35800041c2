"""The bundled demo model: a small LFM2-VL in Hugging Face format, package data beside this file.

In: nothing. Out: the path of its folder.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The folder of the demo model: config.json, weights, tokenizer, chat template, processor files and card."""
    return Path(__file__).resolve().parent
