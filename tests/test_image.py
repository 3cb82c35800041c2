"""The image processor: the reference's pixels, layout of patches, options, and errors."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from containers import png, png_chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_lfm2vl.config import ImageProcessorConfig, ProcessorConfig
from mlx_lfm2vl.errors import ImageError, OptionError
from mlx_lfm2vl.processing.fetch import SourcePolicy
from mlx_lfm2vl.processing.image_processor import Lfm2VlImageProcessor
from mlx_lfm2vl.processing.load_image import load_image

SMALL = ImageProcessorConfig(tile_size=64, min_image_tokens=1, max_image_tokens=4)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels(view: np.ndarray, height: int, width: int, patch: int = 16) -> np.ndarray:
    """(height, width, 3) uint8 of a view of patches, put together one patch at a time."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, flat in enumerate(view[: height * width // patch**2]):
        y, x = divmod(number, width // patch)
        pixels = np.rint(flat.reshape(patch, patch, 3) * 127.5 + 127.5)
        image[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] = pixels.astype(np.uint8)
    return image


def test_resizes_as_the_reference_does():
    golden = np.load(GOLDEN / "resize.npz")
    for number, (picture, resample, height, width) in enumerate(golden["cases"].tolist()):
        processor = Lfm2VlImageProcessor(resample=resample)
        image = golden[f"picture_{picture}"]
        views, _, _ = processor.crop_image_to_patches(
            image, min_tiles=2, max_tiles=2, use_thumbnail=True, thumbnail_size=(height, width), tile_size=32
        )
        name = f"picture {picture}, filter {resample}, {height}x{width}"
        np.testing.assert_array_equal(views[-1], golden[f"resized_{number}"], err_msg=name)


def test_a_picture_of_the_right_size_keeps_its_pixels():
    image = noise(96, 64)
    output = Lfm2VlImageProcessor(min_image_tokens=1)(image)
    assert output["spatial_shapes"].tolist() == [[6, 4]]
    np.testing.assert_array_equal(levels(output["pixel_values"][0], 96, 64), image)
    # float32 as the reference computes it, bit for bit
    first = (image[0, 0].astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    np.testing.assert_array_equal(output["pixel_values"][0, 0, :3], first)


def test_padding_is_zeros_and_masked():
    output = Lfm2VlImageProcessor()(noise(256, 256))
    assert output["pixel_values"].shape == (1, 1024, 768)
    assert output["pixel_values"].dtype == np.float32
    assert output["pixel_attention_mask"].dtype == np.int32
    assert output["spatial_shapes"].dtype == np.int64
    assert output["pixel_attention_mask"].tolist() == [[1] * 256 + [0] * 768]
    assert not output["pixel_values"][0, 256:].any()
    assert output.spatial_shapes is output["spatial_shapes"]


def test_tiles_come_row_by_row_and_the_thumbnail_last():
    image = noise(128, 192)  # exactly 2x3 tiles of 64
    output = Lfm2VlImageProcessor(SMALL)(image, return_row_col_info=True)
    assert (output["image_rows"].tolist(), output["image_cols"].tolist()) == ([2], [3])
    assert output["image_sizes"].tolist() == [[32, 64]]
    assert output["spatial_shapes"].tolist() == [[4, 4]] * 6 + [[2, 4]]
    for number, view in enumerate(output["pixel_values"][:6]):
        row, col = divmod(number, 3)
        tile = image[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64]
        np.testing.assert_array_equal(levels(view, 64, 64), tile)


def test_crop_image_to_patches_gives_tiles_and_thumbnail():
    image = noise(128, 192)
    views, columns, rows = Lfm2VlImageProcessor(SMALL).crop_image_to_patches(image)
    assert (columns, rows, len(views)) == (3, 2, 7)
    np.testing.assert_array_equal(views[4], image[64:, 64:128])
    assert views[-1].shape == (32, 64, 3)
    views, columns, rows = Lfm2VlImageProcessor(SMALL).crop_image_to_patches(image, 1, 1, 64, True)
    assert (columns, rows, len(views)) == (1, 1, 1)  # one tile has no thumbnail
    views, columns, rows = Lfm2VlImageProcessor(SMALL).crop_image_to_patches(image, use_thumbnail=False)
    assert len(views) == 6


def test_smart_resize_is_width_first():
    processor = Lfm2VlImageProcessor()
    assert processor.smart_resize(480, 640) == (576, 416)
    assert processor.smart_resize(480, 640, max_image_tokens=64) == (288, 192)
    assert processor.smart_resize(480, 640, 2, 64, 256, 16) == (576, 416)


def test_overrides_hold_for_one_call():
    processor = Lfm2VlImageProcessor()
    image = noise(800, 1000)
    assert len(processor(image)["pixel_values"]) == 7
    assert len(processor(image, use_thumbnail=False)["pixel_values"]) == 6
    assert len(processor(image, max_tiles=4)["pixel_values"]) == 5
    assert processor(image, do_image_splitting=False)["spatial_shapes"].tolist() == [[28, 34]]
    assert processor(image, do_image_splitting=False, max_image_tokens=64)["pixel_values"].shape == (1, 256, 768)
    small = noise(64, 64)
    assert processor(small, min_image_tokens=4)["spatial_shapes"].tolist() == [[4, 4]]
    assert len(processor(image)["pixel_values"]) == 7
    assert processor.max_image_tokens == 256


def test_resample_is_obeyed():
    image = noise(200, 200)
    bilinear, bicubic = (Lfm2VlImageProcessor(resample=r)(image)["pixel_values"] for r in (2, 3))
    assert np.abs(bilinear - bicubic).max() > 0.1
    override = Lfm2VlImageProcessor(resample=2)(image, resample=Image.Resampling.BICUBIC)["pixel_values"]
    np.testing.assert_array_equal(override, bicubic)


def test_normalisation_options():
    image = noise(64, 64)
    processor = Lfm2VlImageProcessor(min_image_tokens=1)
    raw = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0, 0, :3]
    np.testing.assert_array_equal(raw, image[0, 0])
    rescaled = processor(image, do_normalize=False)["pixel_values"][0, 0, :3]
    np.testing.assert_array_equal(rescaled, image[0, 0] * np.float32(1 / 255))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = processor(image, image_mean=mean, image_std=std)["pixel_values"][0, 0, :3]
    np.testing.assert_allclose(given, (image[0, 0] / 255 - mean) / std, rtol=1e-5)


def test_nested_and_flat_lists_are_the_same():
    a, b, c = noise(64, 64, 1), noise(300, 200, 2), noise(128, 192, 3)
    processor = Lfm2VlImageProcessor(SMALL)
    one_by_one = [processor(image)["pixel_values"] for image in (a, b, c)]
    for images in ([a, b, c], [[a, b], [c]], [[a], [], [b, c]], (a, [b, c])):
        np.testing.assert_array_equal(processor(images)["pixel_values"], np.concatenate(one_by_one))
    batch = np.stack([a, a])
    assert processor(batch)["pixel_values"].shape[0] == 2 * len(one_by_one[0])


def test_without_padding_views_must_have_one_size():
    processor = Lfm2VlImageProcessor(do_pad=False)
    output = processor([noise(256, 256), noise(256, 256)])
    assert output["pixel_values"].shape == (2, 256, 768)
    with pytest.raises(OptionError, match="do_pad"):
        processor([noise(256, 256), noise(256, 384)])


def test_lists_of_plain_numbers_with_return_tensors_none():
    output = Lfm2VlImageProcessor()(noise(256, 256), return_row_col_info=True, return_tensors=None)
    assert output["image_rows"] == [1]
    assert output["image_sizes"] == [[256, 256]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_image_tokens": 0}, "max_image_tokens is 0"),
        ({"tile_size": 500}, "tile_size is 500"),
        ({"min_tiles": 5, "max_tiles": 2}, "min_tiles is 5"),
        ({"resample": 1}, "resample is 1"),
        ({"tile_sise": 512}, "no option 'tile_sise'"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'.*'np'"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(OptionError, match=match):
        Lfm2VlImageProcessor()(noise(64, 64), **options)


def test_no_picture_at_all():
    with pytest.raises(ImageError, match="no picture"):
        Lfm2VlImageProcessor()([])


def test_reads_published_files_and_reads_back_what_it_writes(tmp_path):
    processor = Lfm2VlImageProcessor.from_pretrained(GOLDEN / "gen2", max_tiles=4)
    assert processor.config == ProcessorConfig.from_folder(GOLDEN / "gen2").image.with_overrides(max_tiles=4)
    processor.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "Lfm2VlImageProcessor"
    (tmp_path / "new" / "config.json").write_text("{}")
    again = Lfm2VlImageProcessor.from_pretrained(tmp_path / "new")
    assert again.config == processor.config


def test_settings_read_as_attributes():
    processor = Lfm2VlImageProcessor(tile_size=256)
    assert (processor.tile_size, processor.max_image_tokens, processor.max_num_patches) == (256, 256, 1024)
    assert processor.model_input_names == ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    with pytest.raises(AttributeError, match="tile_sise"):
        processor.tile_sise  # noqa: B018


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), resample=st.sampled_from([2, 3]))
def test_one_colour_stays_one_colour_at_every_size(height, width, resample):
    image = np.full((height, width, 3), (10, 200, 77), np.uint8)
    output = Lfm2VlImageProcessor(SMALL, resample=resample)(image)
    mask = output["pixel_attention_mask"].astype(bool)
    seen = np.rint(output["pixel_values"][mask].reshape(-1, 3) * 127.5 + 127.5)
    assert (seen == (10, 200, 77)).all()
    assert (mask.sum(axis=1) == output["spatial_shapes"].prod(axis=1)).all()


@pytest.mark.parametrize(
    ("depth", "colour", "value", "clear", "wanted"),
    [
        (16, 0, 0x1234, 0x1234, 255),
        (16, 0, 0, 0, 255),
        (16, 0, 0x1235, 0x1234, 18),
        (16, 2, 0x8000, 0x8000, 255),
        (16, 2, 0x8000, 0x1234, 128),
        (2, 0, 1, 1, 255),
        (2, 0, 1, 2, 85),
        (4, 0, 1, 1, 255),
        (4, 0, 1, 17, 17),
        (8, 0, 85, 85, 255),
        (8, 0, 85, 1, 85),
        (1, 0, 0, 0, 255),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_whatever_its_depth(depth, colour, value, clear, wanted):
    samples = 3 if colour == 2 else 1
    row = struct.pack(">H", value) * samples if depth == 16 else bytes([value << (8 - depth)])
    tone = struct.pack(">H", clear) * samples
    picture = png(1, 1, depth, colour, b"\0" + row, png_chunk(b"tRNS", tone))
    assert load_image(picture).getpixel((0, 0)) == (wanted,) * 3


@pytest.mark.parametrize("mode", ["I;16", "I", "L"])
def test_the_transparent_grey_of_an_image_is_white_too(mode):
    image = Image.new(mode, (2, 1), 7)
    image.putpixel((1, 0), 9)
    image.info["transparency"] = 7
    assert load_image(image).getpixel((0, 0)) == (255,) * 3 != load_image(image).getpixel((1, 0))
    assert image.info == {"transparency": 7} and image.mode == mode, "the caller's is not changed"


def test_a_picture_in_an_icon_is_measured_before_it_is_decoded():
    picture = png(1100, 1000, 8, 0, b"")  # without any pixels: decoding would say so
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(picture), 22) + picture
    with pytest.raises(ImageError, match="1100x1000 is more than 1,000,000 pixels"):
        load_image(icon, SourcePolicy(max_pixels=1_000_000))
    with pytest.raises(ImageError, match="damaged"):
        load_image(icon)


def test_large_files_are_held_one_at_a_time_and_never_twice(tmp_path):
    """12 megapixels are 48 MB in Pillow, and 27 of views in the end; a thread takes 5 for its rows. A second copy would
    be 36 more."""
    Image.new("RGB", (4000, 3000), (10, 90, 200)).save(tmp_path / "large.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "small.jpg")
    program = """
import sys
from mlx_lfm2vl import Lfm2VlImageProcessor
from peak import peak_memory
small, large = sys.argv[1:]
process, peaks = Lfm2VlImageProcessor(), []
for pictures in (small, large, [large] * 6):
    process(pictures)
    peaks.append(peak_memory() / 1e6)
print(peaks[1] - peaks[0], (peaks[2] - peaks[1]) / 5)
"""
    names = [str(tmp_path / name) for name in ("small.jpg", "large.jpg")]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True, env=here)
    one, further = map(float, done.stdout.split())
    assert one < 96 + 8 * (os.cpu_count() or 1) and 20 < further < 40
