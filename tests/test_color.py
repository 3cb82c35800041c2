"""Colours of a picture's own ICC profile: sRGB as lcms and arithmetic have it, or the pixels as they are."""

import io
import warnings

import numpy as np
import pytest
from conftest import load_array
from containers import encoded
from PIL import Image, ImageCms
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, p3_as_srgb, rgb_profile

from mlx_lfm2vl import Lfm2VlImageProcessor, load
from mlx_lfm2vl.config import ImageProcessorConfig, ProcessorConfig
from mlx_lfm2vl.errors import ImageWarning
from mlx_lfm2vl.generation.request import conversation
from mlx_lfm2vl.processing.fetch import DEFAULT_POLICY
from mlx_lfm2vl.processing.load_image import load_image

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (24, 16, 3), dtype=np.uint8)
GREY, ALPHA = NOISE[..., 0], NOISE[..., 1]
P3 = rgb_profile(DISPLAY_P3)
SWAPPED = rgb_profile(SRGB[::-1])
OFF = ImageProcessorConfig(color_management=False)


def by_lcms(image: Image.Image, profile: bytes) -> np.ndarray:
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert made is not None
    return np.asarray(made)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    white = Image.new("RGB", alpha.shape[::-1], "white")
    white.paste(Image.fromarray(colours), mask=Image.fromarray(alpha))
    return np.asarray(white)


def test_display_p3_is_what_arithmetic_says():
    got = load_array(encoded(Image.fromarray(NOISE), "PNG", icc_profile=P3))
    assert np.abs(got.astype(int) - p3_as_srgb(NOISE)).max() <= 2
    assert np.abs(got.astype(int) - NOISE).mean() > 3  # and is no small matter


def test_swapped_primaries_swap_the_channels():
    got = load_array(encoded(Image.fromarray(NOISE), "PNG", icc_profile=SWAPPED))
    assert np.abs(got.astype(int) - NOISE[..., ::-1]).max() <= 2


@pytest.mark.parametrize("profile", [P3, SWAPPED, rgb_profile(ADOBE_RGB, 2.2), rgb_profile(SRGB, 1.0)])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_every_container_is_converted_as_lcms_does(format, profile):
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = encoded(Image.fromarray(NOISE), format, icc_profile=profile, **options)
    np.testing.assert_array_equal(load_array(data), by_lcms(Image.open(io.BytesIO(data)).convert("RGB"), profile))


def test_a_heic_of_a_telephone_is_converted():
    import pillow_heif

    picture, buffer = Image.fromarray(NOISE), io.BytesIO()
    picture.info["icc_profile"] = P3
    pillow_heif.from_pillow(picture).save(buffer, quality=90)
    data = buffer.getvalue()
    plain = np.asarray(load_image(data, DEFAULT_POLICY, OFF))
    np.testing.assert_array_equal(load_array(data), by_lcms(Image.fromarray(plain), P3))


def test_transparency_and_palettes_keep_their_meaning():
    rgba = Image.fromarray(np.dstack([NOISE, ALPHA]))
    expected = on_white(by_lcms(Image.fromarray(NOISE), P3), ALPHA)
    np.testing.assert_array_equal(load_array(encoded(rgba, "PNG", icc_profile=P3)), expected)
    palette = Image.fromarray(NOISE).quantize(50)
    np.testing.assert_array_equal(
        load_array(encoded(palette, "PNG", icc_profile=P3)), by_lcms(palette.convert("RGB"), P3)
    )


def test_grey_by_a_grey_profile_or_one_of_rgb():
    linear, image = grey_profile(1.0), Image.fromarray(GREY)
    np.testing.assert_array_equal(load_array(encoded(image, "PNG", icc_profile=linear)), by_lcms(image, linear))
    with_alpha = Image.fromarray(np.dstack([GREY, ALPHA]), "LA")
    np.testing.assert_array_equal(
        load_array(encoded(with_alpha, "PNG", icc_profile=linear)), on_white(by_lcms(image, linear), ALPHA)
    )
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_array(encoded(wide, "PNG", icc_profile=linear)), by_lcms(image, linear))
    steep = rgb_profile(SRGB, 1.0)
    np.testing.assert_array_equal(
        load_array(encoded(image, "PNG", icc_profile=steep)), by_lcms(image.convert("RGB"), steep)
    )


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_by_the_profile_of_its_press(format):
    data = encoded(Image.fromarray(NOISE).convert("CMYK"), format, icc_profile=cmyk_profile())
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(load_array(data), by_lcms(opened, cmyk_profile()))
    assert np.abs(load_array(data).astype(int) - np.asarray(opened.convert("RGB"))).mean() > 8


def test_an_image_that_the_caller_opened_is_converted_once():
    data = encoded(Image.fromarray(NOISE), "PNG", icc_profile=P3)
    once = load_image(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(once), by_lcms(Image.fromarray(NOISE), P3))
    assert load_image(once) is once


@pytest.mark.parametrize(
    "profile",
    [
        rgb_profile(SRGB, name="by another name"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
)
def test_a_profile_of_srgb_changes_nothing(profile):
    image = Image.open(io.BytesIO(encoded(Image.fromarray(NOISE), "PNG", icc_profile=profile)))
    assert load_image(image) is image


def test_a_profile_is_judged_by_its_numbers_not_its_name():
    got = load_array(
        encoded(Image.fromarray(NOISE), "PNG", icc_profile=rgb_profile(DISPLAY_P3, name="sRGB IEC61966-2.1"))
    )
    assert np.abs(got.astype(int) - p3_as_srgb(NOISE)).max() <= 2


@pytest.mark.parametrize(
    ("image", "profile", "what"),
    [
        (Image.fromarray(NOISE), P3[:300], "is damaged"),
        (Image.fromarray(NOISE), b"no profile", "is damaged"),
        (Image.fromarray(NOISE), bytes(16 * 2**20 + 1), "has more than 16 MiB"),
        (Image.fromarray(NOISE), grey_profile(2.2), "is for L, the picture is RGB"),
        (Image.fromarray(NOISE).convert("CMYK"), P3, "is for RGB, the picture is CMYK"),
    ],
)
def test_a_profile_without_use_is_said_and_ignored(image, profile, what):
    data = encoded(image, "TIFF", icc_profile=profile)
    with pytest.warns(ImageWarning, match=f"picture bytes: its colour profile {what}, so its colours are read as sRGB"):
        got = load_array(data)
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_the_switch_reads_pixels_as_transformers_does():
    data = encoded(Image.fromarray(NOISE), "PNG", icc_profile=P3)
    np.testing.assert_array_equal(np.asarray(load_image(data, DEFAULT_POLICY, OFF)), NOISE)
    plain = Lfm2VlImageProcessor()(NOISE)["pixel_values"]
    for made in (
        Lfm2VlImageProcessor(color_management=False)(data),
        Lfm2VlImageProcessor()(data, color_management=False),
    ):
        np.testing.assert_array_equal(made["pixel_values"], plain)
    assert not np.array_equal(Lfm2VlImageProcessor()(data)["pixel_values"], plain)
    _, processor = load("demo", color_management=False)
    messages = conversation("What?", data)
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    _, managed = load("demo")
    other = managed.apply_chat_template(messages, tokenize=True, return_dict=True, color_management=False)
    np.testing.assert_array_equal(made["pixel_values"], other["pixel_values"])


def test_a_damaged_profile_is_not_looked_at_when_switched_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(encoded(Image.fromarray(NOISE), "TIFF", icc_profile=b"no profile"), DEFAULT_POLICY, OFF)


def test_how_pictures_are_read_is_no_matter_of_the_checkpoint():
    config = ImageProcessorConfig(color_management=False, exif=False)
    written = ProcessorConfig(image=config).to_dict()
    assert not {"color_management", "exif"} & written["image_processor"].keys()
    assert ProcessorConfig.from_dicts({"color_management": False, "exif": False}).image == ImageProcessorConfig()
