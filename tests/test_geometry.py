"""Sizes to views and token counts: the reference's numbers, and one count for pixels and text at every size."""

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.config import ImageProcessorConfig
from mlx_lfm2vl.processing.geometry import (
    find_closest_aspect_ratio,
    grid_layout,
    is_too_large,
    plan,
    smart_resize,
    target_ratios,
)

POLICIES = ("published", "legacy", "from-one-tile", "small")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_references_decisions(policy, golden_json):
    golden = golden_json("geometry")
    config = ImageProcessorConfig(**golden["policies"][policy])
    for expected in golden["results"][policy]:
        width, height = expected["size"]
        view = plan(height, width, config)
        large = is_too_large(
            height,
            width,
            config.max_image_tokens,
            config.encoder_patch_size,
            config.downsample_factor,
            config.max_pixels_tolerance,
        )
        assert large == expected["large"], expected
        if expected["reference"] == "ok":
            found = {
                "resized": [view.height, view.width],
                "grid": [view.rows, view.cols],
                "shapes": [list(shape) for shape in view.spatial_shapes],
                "features": sum(rows * cols for rows, cols in view.spatial_shapes) // 4,
                "tokens": view.tokens,
            }
            assert found == {name: expected[name] for name in found}, expected
        else:  # the reference fails; here the numbers must at least be consistent
            assert view.tokens == sum(rows * cols for rows, cols in view.spatial_shapes) // 4
            assert max(rows * cols for rows, cols in view.spatial_shapes) <= config.max_num_patches


def test_the_golden_sizes_include_those_at_which_the_reference_fails(golden_json):
    results = golden_json("geometry")["results"]
    kinds = {policy: {result["reference"] for result in results[policy]} for policy in POLICIES}
    assert "mismatch" in kinds["from-one-tile"]
    assert "overflow" in kinds["published"]


@pytest.mark.parametrize(
    ("width", "height", "grid", "tokens"),
    [
        (256, 384, (1, 1), 96),
        (640, 480, (1, 1), 234),
        (500, 650, (1, 1), 252),
        (512, 1024, (1, 1), 242),
        (1024, 1024, (2, 2), 1280),
        (1024, 544, (1, 2), 743),
        (1920, 1080, (2, 4), 2300),
        (1920, 2485, (3, 2), 1788),
        (4000, 3000, (2, 3), 1770),
        (1000, 3000, (3, 1), 1011),
    ],
)
def test_published_token_counts(width, height, grid, tokens):
    view = plan(height, width, ImageProcessorConfig())
    assert ((view.rows, view.cols), view.tokens) == (grid, tokens)


def test_a_grid_of_one_tile_is_not_split():
    # the reference stretches these pictures to a tile; at 722x724 it then finds 256 features for 240 tokens
    config, whole = ImageProcessorConfig(min_tiles=1), ImageProcessorConfig(do_image_splitting=False)
    sizes = [(height, width) for height in range(640, 820) for width in range(640, 820)]
    unsplit = [
        size for size in sizes if is_too_large(*size, 256, 16, 2, 2.0) and grid_layout(*size, 1, 10, 512) == (1, 1)
    ]
    assert len(unsplit) == 282
    for size in unsplit:
        assert plan(*size, config).spatial_shapes == plan(*size, whole).spatial_shapes
    assert plan(724, 722, config).tokens == 240


def test_strips_that_pass_the_budget_are_shortened():
    assert smart_resize(1, 1030, 2, 64, 256, 16) == (8224, 32)  # 257 tokens, more than a view holds
    view = plan(1, 1030, ImageProcessorConfig())
    assert (view.height, view.width, view.tokens) == (32, 8192, 256)
    view = plan(1030, 1, ImageProcessorConfig())
    assert (view.height, view.width, view.tokens) == (8192, 32, 256)


def test_order_of_the_grids():
    assert target_ratios(1, 10) == (
        *(
            (1, 1),
            (1, 2),
            (2, 1),
            (3, 1),
            (1, 3),
            (2, 2),
            (4, 1),
            (1, 4),
            (5, 1),
            (1, 5),
            (1, 6),
            (6, 1),
            (3, 2),
            (2, 3),
        ),
        *((7, 1), (1, 7), (4, 2), (2, 4), (1, 8), (8, 1), (1, 9), (3, 3), (9, 1), (2, 5), (5, 2), (10, 1), (1, 10)),
    )
    assert target_ratios(2, 10) == target_ratios(1, 10)[1:]


@pytest.mark.parametrize("least", [1, 2])
def test_the_order_of_equal_grids_decides_nothing_as_published(least):
    ratios = target_ratios(least, 10)
    reordered = [
        tuple(ratio for area in range(11) for ratio in order if ratio[0] * ratio[1] == area)
        for order in (sorted(ratios), sorted(ratios, reverse=True))
    ]
    rng = random.Random(3)
    # every tie between two grids, at areas on both sides of each threshold, and sizes at random
    between = [(a, b) for a, b in permutations(ratios, 2)]
    sizes = [(rng.randrange(1, 6000), rng.randrange(1, 6000)) for _ in range(2000)]
    for (w1, h1), (w2, h2) in between:
        wide, high = w1 * h2 + w2 * h1, 2 * h1 * h2  # the mean of the two aspect ratios
        sizes += [(wide * k, high * k) for k in (5, 40, 100, 200)]
    for width, height in sizes:
        grid = grid_layout(height, width, least, 10, 512)
        for order in reordered:
            assert find_closest_aspect_ratio(width / height, order, width, height, 512) == grid


sides = st.one_of(st.integers(1, 20000), st.integers(1, 64), st.integers(600, 800))
configs = st.builds(
    ImageProcessorConfig,
    do_image_splitting=st.booleans(),
    min_tiles=st.integers(1, 4),
    max_tiles=st.integers(4, 12),
    use_thumbnail=st.booleans(),
    min_image_tokens=st.integers(1, 64),
    max_image_tokens=st.integers(64, 300),
    tile_size=st.sampled_from([64, 128, 256, 512]),
    max_pixels_tolerance=st.sampled_from([1.0, 1.5, 2.0]),
)


@settings(max_examples=500, deadline=None)
@given(height=sides, width=sides, config=configs)
def test_pixels_and_text_agree_and_views_fit_at_every_size(height, width, config):
    view = plan(height, width, config)
    assert view.height % 32 == view.width % 32 == 0
    assert min(view.height, view.width) >= 32
    features = [rows // 2 * (cols // 2) for rows, cols in view.spatial_shapes]
    assert view.tokens == sum(features)
    assert all(4 * count <= config.max_num_patches for count in features)
    assert view.tiled == (view.rows * view.cols > 1)
    assert len(features) == (view.rows * view.cols + config.use_thumbnail if view.tiled else 1)
    if view.tiled:
        assert config.do_image_splitting
        assert config.min_tiles <= view.rows * view.cols <= config.max_tiles


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_turning_a_picture_turns_its_views(height, width):
    config = ImageProcessorConfig(do_image_splitting=False)
    upright, lying = plan(height, width, config), plan(width, height, config)
    assert (upright.height, upright.width) == (lying.width, lying.height)
