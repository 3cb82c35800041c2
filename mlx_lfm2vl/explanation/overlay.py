"""Heat maps over pictures, and a sheet of them: one for the whole answer and one for each of its words.

A map is drawn as what lies above its own mean, its highest cell in full colour: a little attention lies everywhere, and
without it maps point better (tools/demo/evidence.py measures it). So colours tell places, not amounts, and sheets say
the share of the attention that lay on the picture in words. Where a map lies nowhere above its mean the picture stays
as it is.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import OptionError, OutputError, counted

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
COLOURS = np.array([(255, 247, 188), (254, 196, 79), (240, 100, 30), (165, 15, 30), (90, 0, 40)], np.float32)
STRONGEST = 0.7  # opacity of the highest cell
INK, PAPER, GREY, FRAME = (25, 25, 25), (255, 255, 255), (110, 110, 110), (190, 190, 190)
WIDE, NARROW, GAP, COLUMNS, MOST_WORDS = 480, 220, 16, 4, 40
MOST_SCALE = 64  # times that a picture is enlarged
LEGEND = ("even or less", "most attention")

Panel = tuple[str, str, np.ndarray]  # a text of the answer, a remark on it, and its map


def above_mean(attention: np.ndarray) -> np.ndarray:
    """The part of a map (rows, columns) above its mean, 0 to 1 for its highest cell."""
    above = np.maximum(attention - attention.mean(), 0)
    most = above.max()
    return above / most if most > 1e-6 * attention.max() else np.zeros_like(above)


def heat_map(picture: Image.Image, attention: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """A map (rows, columns) over its picture, of the picture's size or another (width, height). Between the middles of
    cells values run evenly."""
    base = picture.convert("RGB").resize(size or picture.size, Image.Resampling.LANCZOS)
    heat = Image.fromarray(above_mean(attention).astype(np.float32)).resize(base.size, Image.Resampling.BILINEAR)
    value = np.clip(np.asarray(heat), 0, 1)[..., None]
    pixels = np.asarray(base, np.float32)
    faded = 0.6 * pixels.mean(axis=-1, keepdims=True) + 0.4 * pixels  # so that a picture's own colours are told apart
    opacity = STRONGEST * np.minimum(1, value * 2)
    made = (1 - opacity) * faded + opacity * _colour(value[..., 0])
    return Image.fromarray(np.clip(made, 0, 255).astype(np.uint8))


def sheet(picture: Image.Image, title: str, whole: Panel, words: Sequence[Panel]) -> Image.Image:
    """The picture under the map of the whole answer, then smaller ones of its words with their names, and a legend."""
    shown = list(words[:MOST_WORDS])
    large, small = _size(picture, WIDE), _size(picture, NARROW)
    across = max(large[0], min(COLUMNS, max(1, len(shown))) * (small[0] + GAP) - GAP, WIDE)
    fonts = {points: ImageFont.load_default(points) for points in (13, 15, 17)}
    lines = textwrap.wrap(title, max(20, across // 9)) or [""]
    columns = max(1, (across + GAP) // (small[0] + GAP))
    rows = -(-len(shown) // columns)
    top = GAP + 24 * len(lines) + GAP
    below = top + large[1] + 30
    height = below + rows * (small[1] + 36) + 24 * (len(words) > len(shown)) + 56
    canvas = Image.new("RGB", (across + 2 * GAP, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((GAP, GAP + 24 * number), line, INK, fonts[17])
    _paste(canvas, heat_map(picture, whole[2], large), (GAP, top))
    pen.text((GAP, top + large[1] + 6), f"{whole[0]}: {whole[1]}", GREY, fonts[13])
    for number, (word, remark, attention) in enumerate(shown):
        x = GAP + number % columns * (small[0] + GAP)
        y = below + number // columns * (small[1] + 36)
        _paste(canvas, heat_map(picture, attention, small), (x, y))
        pen.text((x, y + small[1] + 3), _fitted(word, small[0] - 50, fonts[15]), INK, fonts[15])
        pen.text((x + small[0], y + small[1] + 5), remark, GREY, fonts[13], anchor="ra")
    if len(words) > len(shown):
        text = f"and {counted(len(words) - len(shown), 'more word')}"
        pen.text((GAP, below + rows * (small[1] + 36)), text, GREY, fonts[13])
    _legend(canvas, height - 40, fonts[13])
    return canvas


def check_file(file: str | os.PathLike[str], overwrite: bool = True) -> Path:
    """The path of a drawing that can be written there. Raises `OptionError` for a format, `OutputError` for a place,
    and without `overwrite` for a file that is there."""
    path = Path(file).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{path}: a drawing is written as {', '.join(name[1:] for name in FORMATS)}, by its name")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another file, or --overwrite")
    return path


def save(drawing: Image.Image, path: Path) -> None:
    """Writes a drawing. Raises `OutputError`."""
    try:
        drawing.save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets of several pictures, one below the other."""
    canvas = Image.new("RGB", (max(each.width for each in sheets), sum(each.height for each in sheets)), PAPER)
    top = 0
    for each in sheets:
        canvas.paste(each, (0, top))
        top += each.height
    return canvas


def _colour(value: np.ndarray) -> np.ndarray:
    """Values 0 to 1 (...) as colours (..., 3), light to dark, so that greys and colour-blind eyes tell them apart."""
    at = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(value, at, COLOURS[:, channel]) for channel in range(3)], axis=-1)


def _size(picture: Image.Image, width: int) -> tuple[int, int]:
    """(width, height) of a picture as wide as told, or narrower where it would be higher than 1.4 times that."""
    scale = min(width / picture.width, 1.4 * width / picture.height)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _fitted(word: str, width: int, font: Font) -> str:
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(f"{word}...") > width:
        word = word[:-1]
    return f"{word}..."


def _paste(canvas: Image.Image, panel: Image.Image, at: tuple[int, int]) -> None:
    """Puts a panel on the sheet, within a thin frame that shows where a white picture ends."""
    canvas.paste(panel, at)
    edges = (at[0] - 1, at[1] - 1, at[0] + panel.width, at[1] + panel.height)
    ImageDraw.Draw(canvas).rectangle(edges, outline=FRAME)


def _legend(canvas: Image.Image, top: int, font: Font) -> None:
    pen, width = ImageDraw.Draw(canvas), 160
    left = GAP + round(font.getlength(LEGEND[0])) + 8
    value = np.linspace(0, 1, width)
    opacity = (STRONGEST * np.minimum(1, value * 2))[:, None]
    bar = (1 - opacity) * 255 + opacity * _colour(value)
    canvas.paste(Image.fromarray(np.tile(bar.astype(np.uint8), (14, 1, 1))), (left, top))
    pen.rectangle((left, top, left + width, top + 14), outline=GREY)
    pen.text((GAP, top - 1), LEGEND[0], INK, font)
    pen.text((left + width + 8, top - 1), LEGEND[1], INK, font)
    text = "attention of the answer's tokens above the picture's mean"
    pen.text((GAP, top + 18), text, GREY, font)
