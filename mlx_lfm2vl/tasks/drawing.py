"""Results drawn over pictures, to be seen on any of them: each outline is black, coloured and white, and each label
stands on a plate of its colour, in black or white, whichever contrasts more."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import AnswerWarning, OptionError
from ..processing.load_image import load_image
from .labels import Rectangle, place_labels
from .results import Box, Point

COLOURS = (  # Okabe and Ito's, which people with any colour vision tell apart, and a red and a violet
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#e6194b", "#b39ddb"),
)
LEAST_SIDE = 640  # pixels of the longer side up to which a picture is enlarged, as letters need room
MOST_SCALE = 64
LONGEST_LABEL = 48  # characters
_FONTS = (  # Pillow looks for these names in the folders of the system
    *("Arial Unicode.ttf", "Hiragino Sans GB.ttc", "PingFang.ttc", "AppleSDGothicNeo.ttc"),  # macOS
    *("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "wqy-microhei.ttc", "ipag.ttf"),
    *("NanumGothic.ttf", "NotoSans-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
    *("NotoSansThai-Regular.ttf", "NotoSansHebrew-Regular.ttf", "DejaVuSans.ttf", "FreeSans.ttf"),
    *("arial.ttf", "segoeui.ttf", "msgothic.ttc", "msyh.ttc", "malgun.ttf", "Nirmala.ttf", "LeelawUI.ttf"),  # Windows
)
_HIGH_AND_LOW = "Ég"  # letters as high and as low as there are
_MISSING = "\U0010fffe"  # which no font has


def draw_boxes(image: Any, boxes: Box | Sequence[Box], *, scale: int | None = None) -> Image.Image:
    """The picture with outlines and labels; labels of one text have one colour.

    Args:
        image: the picture, as `generate` takes it.
        boxes: those of this picture, in its pixels; or one.
        scale: how many times the picture is enlarged. None is the least number that makes a side 640 pixels long or
            longer, 1 for larger pictures.

    Returns:
        A new image of mode RGB. An `AnswerWarning` says which labels have letters that no font of the system has.

    Raises:
        ImageError, OptionError
    """
    return _drawn(image, _marks("boxes", boxes, Box), scale, round_marks=False)


def draw_points(image: Any, points: Point | Sequence[Point], *, scale: int | None = None) -> Image.Image:
    """As `draw_boxes`, with a ring around each point. Labels stand beside their rings."""
    return _drawn(image, _marks("points", points, Point), scale, round_marks=True)


def enlargement(size: tuple[int, int]) -> int:
    """How many times a picture (width, height) is enlarged to be drawn on: the least number that makes a side 640
    pixels long or longer."""
    return min(-(-LEAST_SIDE // max(size)), MOST_SCALE)


Mark = tuple[str, tuple[float, float, float, float]]  # a label, and left, top, right, bottom


def _marks(name: str, given: Any, kind: type[Box] | type[Point]) -> list[Mark]:
    """The boxes or points to be drawn, of which one may be given alone. Raises `OptionError`."""
    things = [given] if isinstance(given, kind) else given
    if not isinstance(things, Iterable):
        raise OptionError(f"{name} is {type(given).__name__}, expected a list of {kind.__name__}")
    marks = []
    for thing in things:
        if not isinstance(thing, kind):
            raise OptionError(f"{name} holds {type(thing).__name__}, expected {kind.__name__}")
        edges = thing.edges if isinstance(thing, Box) else (thing.x, thing.y, thing.x, thing.y)
        finite = False
        with contextlib.suppress(TypeError):
            finite = all(map(math.isfinite, edges))
        if not finite:
            raise OptionError(f"{thing!r} cannot be drawn: its place is no finite numbers")
        marks.append((thing.label, edges))
    return marks


def _drawn(image: Any, marks: list[Mark], scale: int | None, round_marks: bool) -> Image.Image:
    picture = load_image(image)
    if scale is None:
        scale = enlargement(picture.size)
    if not isinstance(scale, int) or isinstance(scale, bool) or not 1 <= scale <= MOST_SCALE:
        raise OptionError(f"scale is {scale!r}, expected an integer from 1 to {MOST_SCALE}")
    canvas = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    line = max(1, min(round(max(canvas.size) / 320), min(canvas.size) // 60))
    size = max(11, min(round(max(canvas.size) / 45), round(min(canvas.size) / 8)))
    margin = max(2, size // 4)  # between a plate's edge and its letters
    names = list(dict.fromkeys(label for label, _ in marks))
    colours = [COLOURS[names.index(label) % len(COLOURS)] for label, _ in marks]
    radius = 4 * line if round_marks else 0
    outlines = [_on_canvas(edges, scale, radius, canvas.size) for _, edges in marks]
    pen = ImageDraw.Draw(canvas)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in outlines]
    for number in sorted(range(len(marks)), key=lambda number: -areas[number]):  # small ones above large ones
        _outline(pen.ellipse if round_marks else pen.rectangle, outlines[number], colours[number], line)
    rim = line if round_marks else 0  # the outermost line of a ring
    rims = [(left - rim, top - rim, right + rim, bottom + rim) for left, top, right, bottom in outlines]
    room = canvas.width, canvas.height - 2 * (radius + line) * round_marks  # a plate finds place beside its ring
    texts = [_fitted(label, size, margin, room) for label, _ in marks]
    shown = [number for number, (text, _, _) in enumerate(texts) if text]
    places = place_labels(canvas.size, [rims[n] for n in shown], [texts[n][2] for n in shown], round_marks)
    for number, place in zip(shown, places, strict=True):
        text, font, _ = texts[number]
        ink = max(("#000000", "#ffffff"), key=lambda tint: contrast(tint, colours[number]))
        pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colours[number], outline=ink)
        start = place[0] + margin - font.getbbox(text)[0], place[1] + margin - font.getbbox(_HIGH_AND_LOW)[1]
        pen.text(start, text, fill=ink, font=font)
    return canvas


def file_format(name: str) -> str:
    """Pillow's name of the format that a file's ending stands for. Raises `OptionError` if it can write none."""
    known = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    if known is None or known not in Image.SAVE:
        raise OptionError(f"{name}: its ending is no format of pictures; end it in .png or .jpg")
    return known


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours "#rrggbb", 1 to 21 (WCAG 2.2: (lighter + 0.05) / (darker + 0.05) of relative
    luminances)."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _on_canvas(edges: tuple[float, float, float, float], scale: int, radius: int, size: tuple[int, int]) -> Rectangle:
    """Whole pixels of the enlarged picture, at least one, within it."""
    left, top, right, bottom = (round(edge * scale) for edge in edges)
    left, top = min(max(left - radius, 0), size[0] - 1), min(max(top - radius, 0), size[1] - 1)
    return left, top, min(max(right + radius, left + 1), size[0]), min(max(bottom + radius, top + 1), size[1])


def _outline(draw: Callable[..., None], box: Rectangle, colour: str, line: int) -> None:
    """Lines around a box by a method of `ImageDraw`, from outside in: black, its colour twice as wide, white."""
    left, top, right, bottom = box
    line = max(1, min(line, min(right - left, bottom - top) // 8))  # small boxes keep what is in them
    for inset, width, tint in ((-line, line, "#000000"), (0, 2 * line, colour), (2 * line, line, "#ffffff")):
        if right - left > 2 * inset and bottom - top > 2 * inset:
            edges = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
            draw(edges, outline=tint, width=width)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _fitted(label: str, size: int, margin: int, room: tuple[int, int]) -> tuple[str, Font, tuple[int, int]]:
    """The text of a label that fits into the picture, maybe none, its font, and width and height of its plate."""
    text = "".join(character if character.isprintable() else " " for character in label).strip()
    text = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 3].rstrip()}..."
    font = _font(text, size)
    _, top, _, bottom = font.getbbox(_HIGH_AND_LOW)
    while text:
        left, _, right, low = font.getbbox(text)
        plate = round(right - left) + 2 * margin, round(max(bottom, low) - top) + 2 * margin
        if plate[0] <= room[0] and 2 * plate[1] <= room[1]:  # a plate hides at most half of a picture's height
            return text, font, plate
        text = text.removesuffix("...")[:-1]
        text = f"{text}..." if text else ""
    return "", font, (0, 0)


def _font(text: str, size: int) -> Font:
    """Pillow's own font, or one of the system's that has letters which that one lacks."""
    plain = ImageFont.load_default(float(size))
    if not isinstance(plain, ImageFont.FreeTypeFont) or _has(plain, text):
        return plain
    for name in _FONTS:
        if (font := _system_font(name, size)) is not None and _has(font, text):
            return font
    warnings.warn(f"label {text!r}: no font of this system that is known has its letters", AnswerWarning, stacklevel=2)
    return plain


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    missing = bytes(font.getmask(_MISSING))
    return all(bytes(font.getmask(character)) != missing for character in set(text) if not character.isspace())


@functools.lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
