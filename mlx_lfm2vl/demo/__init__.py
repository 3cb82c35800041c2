"""The bundled demo model: a small LFM2-VL in Hugging Face format, as package data."""

from pathlib import Path


def path() -> Path:
    """The folder of the demo model, for `load` or any other program that reads Hugging Face folders."""
    return Path(__file__).parent
