"""Pixels of any mode or array to RGB with 8 bits a channel.

Contract: colours become sRGB by a function of the caller; transparency lies on white, rounded exactly; 16 bits of grey
become 8 by rounding (of coloured pictures Pillow keeps the high byte); the wide modes I and F are scaled by the
narrowest usual range that holds the values. What has no known meaning raises `ImageError` with one line that begins
with the picture's label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError

DIM = 16  # of 255; a picture that is nowhere brighter is black to the eye
FRACTIONS = 0.9  # of all floats; where so many lie in 0..1 the others are highlights
OVERSHOOT = 0.5  # of its range, by which floats of a picture may leave it
CHANNELS = (1, 3, 4)  # of an array
STRIP = 1 << 24  # wide values that are turned to floats at a time


Colours = Callable[[Image.Image], Image.Image]  # of an opaque image of mode L, RGB or CMYK: the same in RGB


def as_srgb(image: Image.Image) -> Image.Image:
    """An image of mode L, RGB or CMYK as mode RGB, its colours taken for those of sRGB; itself if it is RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb(image: Image.Image, label: str, clear: Any = None, colours: Colours = as_srgb) -> Image.Image:
    """The loaded image as mode RGB; itself if it is that already.

    `clear`: the colour that is transparent, or the palette's entries, as Pillow's `info["transparency"]`; where it is
    None that holds. `colours` makes sRGB of the opaque image, which has the mode L, RGB or CMYK.
    """
    if image.mode == "LAB":
        return _from_lab(image)
    clear = image.info.get("transparency") if clear is None else clear
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return colours(_grey(image, label, clear))
    if image.mode == "La":
        image = image.convert("LA")
    if clear is not None and image.info.get("transparency") != clear:
        image = image.copy()
        image.info["transparency"] = clear
    grey = image.mode in ("1", "L", "LA")
    if "A" in image.getbands() or "a" in image.getbands() or clear is not None:
        image = image.convert("LA" if grey else "RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(colours(image.convert("L" if grey else "RGB")), mask=image.getchannel("A"))
        return white
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if grey else "RGB")
    return colours(image)


def _grey(image: Image.Image, label: str, clear: Any) -> Image.Image:
    """One of the wide modes as mode L."""
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        grey = _scaled(values, image.mode, label)
    else:
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 steps of 16 bits are one of 8
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only an in-place transform returns None
    return converted


def from_array(array: np.ndarray, label: str) -> Image.Image:
    """An array of `in_rows`, of uint8 or of floats in 0..1, as mode RGB."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ImageError(f"{label}: expected uint8 in 0..255 or floats in 0..1")
        _check_nan(array, label)
        low, high = float(array.min()), float(array.max())
        if not (low >= -0.5 / 255 and high < 255.5 / 255):
            raise ImageError(
                f"{label}: floats must lie in 0..1, these run from {low:g} to {high:g}; give uint8 for 0..255"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return rgb(Image.fromarray(np.ascontiguousarray(array)), label)


def in_rows(array: np.ndarray, label: str) -> np.ndarray:
    """An array (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, with
    its channels last. Raises `ImageError` for one that is no picture."""
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        return array.transpose(1, 2, 0)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS):
        return array
    if array.ndim == 4 and any(channels in array.shape[1:] for channels in CHANNELS):
        raise ImageError(f"{label}: is a batch of {len(array)}; give a list of its pictures, list(array)")
    raise ImageError(
        f"{label}: expected (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 "
        "channels"
    )


def _scaled(values: np.ndarray, mode: str, label: str) -> np.ndarray:
    """Values of the wide modes I and F to uint8, by the narrowest usual range that holds them: 0..1 (F only), 0..255,
    0..65535. Floats may overshoot it, as filters and exposure make them; they are clipped. Floats that would be black
    to the eye are refused."""
    _check_nan(values, label)
    low, high = float(values.min()), float(values.max())
    over = OVERSHOOT if mode == "F" else 0.0
    if (mode == "F" and high <= 1 + over) or (low >= -over and _are_fractions(values, high)):
        top = 1
    else:
        top = 255 if high <= 255 * (1 + over) else 65535
    black = mode == "F" and top > 1 and high * 255 <= DIM * top
    if black or not (low >= -over * top and (high <= top * (1 + over) or (top == 1 and high < math.inf))):
        way = "scale them to 0..1, or convert to 8 bits" if mode == "F" else "convert to 8 bits"
        raise ImageError(f"{label}: values from {low:g} to {high:g} in mode {mode} have no known scale; {way}")
    scale = 255.0 if top == 1 else 1.0 if top == 255 else 1 / 257
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values.shape[1])
    for start in range(0, len(values), rows):
        strip = np.rint(values[start : start + rows].astype(np.float64) * scale)
        scaled[start : start + rows] = np.clip(strip, 0, 255)
    return scaled


def _are_fractions(values: np.ndarray, high: float) -> bool:
    """Whether floats above 1 are still those of a picture in 0..1 with bright lights: by 0..255 it would be all but
    black. Most lie in 0..1 then, also of those that are not 0, or all up to `DIM`."""
    if values.dtype.kind != "f" or not math.isfinite(high):
        return False
    lights, dark = np.count_nonzero(values > 1), np.count_nonzero(values == 0)
    most = lights <= (1 - FRACTIONS) * values.size and lights * 2 < values.size - dark
    return (most or high <= DIM) and bool((values != np.rint(values)).any())


def _check_nan(values: np.ndarray, label: str) -> None:
    """Raises `ImageError` for floats some of which are no numbers."""
    if values.dtype.kind == "f" and (count := int(np.count_nonzero(np.isnan(values)))):
        which = "1 of its values is" if count == 1 else f"{count} of its values are"
        raise ImageError(f"{label}: {which} NaN, which is no colour; replace NaN (numpy.nan_to_num)")
