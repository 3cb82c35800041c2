"""Colours in a picture's own ICC profile to sRGB, which models are trained on, by lcms (PIL.ImageCms).

Contract: a profile that is sRGB in effect costs nothing after its first use. Intent is perceptual, lcms's default. What
cannot be used raises `ProfileError`, and the caller reads the pixels as they are.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 16 * 2**20  # the largest in use, of printing presses, have 3 million
SRGB = ImageCms.createProfile("sRGB")
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # those of profiles, and the modes of their pictures


class ProfileError(ValueError):
    """A profile cannot be used."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of mode L, RGB or CMYK, whose colours are those of the profile, as sRGB in mode RGB. Grey may have a
    profile of RGB. Raises `ProfileError`."""
    transform, mode = _transform(profile)
    if image.mode == "L" and mode == "RGB":
        image = image.convert("RGB")
    if image.mode != mode:
        raise ProfileError(f"is for {mode}, the picture is {image.mode}")
    if _is_srgb(profile):
        return image.convert("RGB") if image.mode != "RGB" else image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only an in-place transform returns None
    return converted


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, str]:
    """From the colours of a profile to sRGB, and the mode of the pictures that it is for."""
    if len(profile) > MAX_PROFILE_BYTES:
        raise ProfileError(f"has more than {MAX_PROFILE_BYTES >> 20} MiB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[source.profile.xcolor_space.strip()]
        return ImageCms.buildTransform(source, SRGB, mode, "RGB"), mode
    except KeyError as error:
        raise ProfileError(f"is for {error}") from None
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ProfileError("is damaged") from error


@lru_cache(maxsize=8)
def _is_srgb(profile: bytes) -> bool:
    """Whether no colour moves by more than a level, which is rounding: a name such as "sRGB" proves nothing."""
    transform, mode = _transform(profile)
    if mode == "CMYK":
        return False
    levels = np.arange(256, dtype=np.uint8)
    if mode == "RGB":
        some = np.stack(np.meshgrid(*[levels[::17]] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
        image = Image.fromarray(np.concatenate([some, np.stack([levels] * 3, axis=-1)[:, None]]))
    else:
        image = Image.fromarray(levels[:, None])
    moved = ImageCms.applyTransform(image, transform)
    difference = np.asarray(moved).astype(np.int16) - np.asarray(image.convert("RGB"))
    return int(np.abs(difference).max()) <= 1
