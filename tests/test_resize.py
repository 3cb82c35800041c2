"""The resize on its own: the reference's pictures bit for bit, and what holds for any sizes."""

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from threadpoolctl import threadpool_limits

from mlx_lfm2vl.processing.resize import resize as to_sizes

_FROZEN = np.load(GOLDEN / "resize.npz")
sides = st.integers(1, 90)
filters = st.sampled_from([2, 3])


def resize(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """At one size."""
    return to_sizes(Image.fromarray(pixels), [(height, width)], resample)[0]


@pytest.mark.parametrize("number", range(len(_FROZEN["cases"])))
def test_equals_the_reference(number):
    picture, resample, height, width = _FROZEN["cases"][number].tolist()
    ours = resize(_FROZEN[f"picture_{picture}"], height, width, resample)
    np.testing.assert_array_equal(ours, _FROZEN[f"resized_{number}"])


@settings(max_examples=80)
@given(sides, sides, sides, sides, filters, st.integers(0, 255))
def test_a_plain_picture_stays_plain(h, w, height, width, resample, level):
    out = resize(np.full((h, w, 3), level, np.uint8), height, width, resample)
    np.testing.assert_array_equal(out, np.full((height, width, 3), level, np.uint8))


@settings(max_examples=80)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
@example(16, 16, 26, 72, 56)
def test_is_pillows_picture_within_a_level_a_pass(h, w, height, width, seed):
    """Pillow has finer weights; along the rows first and then down, as here, bilinear differs by rounding alone."""
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    pillow = Image.fromarray(pixels)
    passes = 0
    for size in ((width, h), (width, height)):
        passes += size != pillow.size
        pillow = pillow.resize(size, 2)
    distance = np.abs(resize(pixels, height, width, 2).astype(int) - np.asarray(pillow).astype(int))
    assert distance.max() <= passes


def whole_weights(source: int, target: int, resample: int) -> tuple[list[tuple[int, np.ndarray]], int]:
    """By the definition, one output after the other: its first input and its weights (taps,) int64, and how many bits
    of them lie behind the point."""
    scale = source / target
    stretch = max(scale, 1.0)
    support = (resample - 1) * stretch
    taps = []
    for output in range(target):
        centre = scale * (output + 0.5)
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), source)
        x = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        if resample == 2:
            weights = np.maximum(1 - x, 0)
        else:
            weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)) * (x < 2)
        taps.append((first, weights / weights.sum()))
    largest = max(weights.max() for _, weights in taps)
    precision = max(bits for bits in range(23) if int(0.5 + largest * 2**bits) < 2**15)
    fixed = [(first, np.trunc(w * 2**precision + np.copysign(0.5, w)).astype(np.int64)) for first, w in taps]
    return fixed, precision


def nearly_half(
    taps: list[tuple[int, np.ndarray]], precision: int, source: int, rng: np.random.Generator
) -> np.ndarray:
    """(source,) uint8 that bring one output as close as may be to where it is rounded the other way."""
    pixels = rng.integers(0, 256, source)
    first, weights = taps[rng.integers(len(taps))]
    own = pixels[first : first + len(weights)]
    over = own @ weights - (rng.integers(255) << precision) - 2 ** (precision - 1) - rng.integers(-2, 3)
    for tap in np.argsort(-weights)[: (weights > 0).sum()]:  # the heaviest first, the lightest make it exact
        changed = np.clip(own[tap] - int(over / weights[tap]), 0, 255)
        over -= (own[tap] - changed) * weights[tap]
        own[tap] = changed
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("content", ["any", "black and white", "nearly black", "nearly white", "nearly half a level"])
@settings(max_examples=150)
@given(st.integers(5, 40), st.floats(0.5, 12), filters, st.integers(0, 2**32 - 1))
def test_sums_are_exact_at_every_scale(content, target, scale, resample, seed):
    """Whatever they are computed in: in float32, bilinear at scales of about 4 to 9 and bicubic of 2 to 4 of levels
    less 128, beyond them in float64."""
    rng, source = np.random.default_rng(seed), int(target * scale) + 1
    taps, precision = whole_weights(source, target, resample)
    if content == "nearly half a level":
        pixels = np.stack([nearly_half(taps, precision, source, rng) for _ in range(24)], 1).reshape(source, 8, 3)
    else:
        levels = {"any": range(256), "black and white": (0, 255)}
        levels |= {"nearly black": [0] * 19 + [1], "nearly white": [254] + [255] * 9}
        pixels = rng.choice(list(levels[content]), (source, 8, 3)).astype(np.uint8)
    sums = [np.tensordot(w, pixels[first : first + len(w)].astype(np.int64), 1) for first, w in taps]
    expected = np.clip((np.array(sums) + 2 ** (precision - 1)) >> precision, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(resize(pixels, target, 8, resample), expected)
    across = resize(pixels.transpose(1, 0, 2), 8, target, resample)
    np.testing.assert_array_equal(across.transpose(1, 0, 2), expected)


def test_large_pictures_are_done_in_strips_with_the_same_result():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 9000, 3), dtype=np.uint8)
    whole = resize(pixels, 64, 2000, 3)
    half = resize(pixels[:, :, ::-1], 64, 2000, 3)
    np.testing.assert_array_equal(whole, half[:, :, ::-1])
    turned = resize(pixels.transpose(1, 0, 2), 2000, 300, 3)  # one axis only: the same filter in either direction
    np.testing.assert_array_equal(turned.transpose(1, 0, 2), resize(pixels, 300, 2000, 3))


@pytest.mark.parametrize(("height", "width"), [(1100, 1000), (1000, 1100), (2200, 30), (500, 500)])
def test_several_threads_resize_to_the_same_pixels(height, width, monkeypatch):
    pixels = np.random.default_rng(5).integers(0, 256, (1100, 1000, 3), np.uint8)
    made = []
    for threads in (1, 3):
        with threadpool_limits(threads, "blas"):
            made.append(resize(pixels, height, width, 2))
    monkeypatch.setattr("mlx_lfm2vl.processing.resize.LARGE", pixels.size)
    made.append(resize(pixels, height, width, 2))
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
