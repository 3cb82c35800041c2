"""preprocessor_config.json and processor_config.json, variants A to F, and options that override them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import GENERATIONS

from mlx_lfm2vl import ConfigError
from mlx_lfm2vl.config import ImageProcessorConfig, ProcessorConfig

LEGACY_POLICY = {
    "processor_class": "Lfm2VlProcessor",
    "downsample_factor": 2,
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "max_pixels_tolerance": 1.5,
    "max_num_patches": 1024,
    "use_image_special_tokens": True,
    "auto_map": {"AutoProcessor": "processing_lfm2_vl.Lfm2VlProcessor"},
}
SIGLIP = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Siglip2ImageProcessorFast",
    "input_data_format": "channels_last",
    "max_num_patches": 1024,
    "patch_size": 16,
    "processor_class": "Lfm2VlProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
NESTED = {
    "data_format": "channels_first",
    "do_image_splitting": True,
    "do_resize": True,
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "max_image_tokens": 256,
    "max_num_patches": 1024,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 1,
    "resample": 3,
    "return_row_col_info": True,
    "size": {"height": 512, "width": 512},
    "tile_size": 512,
    "use_thumbnail": True,
}


def test_variant_a_flat_policy_beside_a_siglip_file():
    config = ProcessorConfig.from_dicts(SIGLIP, LEGACY_POLICY)
    assert config.image == ImageProcessorConfig(max_pixels_tolerance=1.5, resample=3)
    assert config.use_image_special_tokens and config.notes == ()


def test_variant_b_one_flat_preprocessor_file():
    flat = {**SIGLIP, "image_processor_type": "Lfm2VlImageProcessorFast", "use_thumbnail": False}
    del flat["input_data_format"]
    config = ProcessorConfig.from_dicts(flat, None)
    assert config.image == ImageProcessorConfig(resample=3, use_thumbnail=False)


def test_variant_c_markup_in_one_file_and_pictures_in_the_other():
    config = ProcessorConfig.from_dicts(
        {**SIGLIP, "resample": 2}, {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": False}
    )
    assert config.image == ImageProcessorConfig(resample=2)
    assert not config.use_image_special_tokens


def test_variant_d_nested_and_it_wins_over_the_other_file():
    nested = {"image_processor": NESTED, "processor_class": "Lfm2VlProcessor"}
    assert ProcessorConfig.from_dicts(None, nested).image == ImageProcessorConfig(min_tiles=1, resample=3)
    both = ProcessorConfig.from_dicts({**SIGLIP, "resample": 2, "min_tiles": 3}, nested)
    assert both.image == ImageProcessorConfig(min_tiles=1, resample=3)


def test_variant_e_tiling_that_a_converter_switched_off_stays_on():
    off = {"image_processor": {**NESTED, "do_image_splitting": False, "use_thumbnail": False}}
    config = ProcessorConfig.from_dicts(None, off)
    assert config.image.do_image_splitting and config.image.use_thumbnail
    assert len(config.notes) == 1
    assert "do_image_splitting: false" in config.notes[0] and "--no-tiling" in config.notes[0]
    assert not config.image.with_overrides(do_image_splitting=False).do_image_splitting


def test_variant_f_a_wrong_patch_budget_is_derived_anew():
    config = ProcessorConfig.from_dicts({**SIGLIP, "max_num_patches": 256}, None)
    assert config.image.max_num_patches == 1024


def test_without_processor_files_the_model_config_is_used():
    config = ProcessorConfig.from_dicts(None, None, {**GENERATIONS["LFM2.5-VL-450M"], "max_tiles": 6})
    assert config.image == ImageProcessorConfig(max_tiles=6)
    assert ProcessorConfig.from_dicts().image == ImageProcessorConfig()


def test_processor_files_are_found_in_a_folder(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGLIP), encoding="utf-8")
    (tmp_path / "processor_config.json").write_text(json.dumps(LEGACY_POLICY), encoding="utf-8")
    assert ProcessorConfig.from_folder(tmp_path) == ProcessorConfig.from_dicts(SIGLIP, LEGACY_POLICY)


@pytest.mark.parametrize("splitting", [True, False])
def test_patch_budget_covers_a_tile_only_where_tiles_are_cut(splitting):
    config = ImageProcessorConfig(max_image_tokens=64, do_image_splitting=splitting)
    assert config.max_num_patches == (1024 if splitting else 256)


@given(
    st.builds(
        ImageProcessorConfig,
        do_image_splitting=st.just(True),
        min_tiles=st.integers(1, 4),
        max_tiles=st.integers(4, 12),
        use_thumbnail=st.booleans(),
        min_image_tokens=st.integers(1, 64),
        max_image_tokens=st.integers(64, 512),
        tile_size=st.integers(1, 32).map(lambda n: 32 * n),
        max_pixels_tolerance=st.floats(0.5, 4),
        resample=st.sampled_from((2, 3)),
        image_mean=st.tuples(*[st.floats(-1, 1)] * 3),
        image_std=st.tuples(*[st.floats(0.1, 1)] * 3),
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_any_picture_policy_survives_writing_and_reading(image, special):
    config = ProcessorConfig(image=image, use_image_special_tokens=special)
    assert ProcessorConfig.from_dicts(None, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("downsample_factor", 0),
        ("min_tiles", 11),
        ("max_tiles", 0),
        ("max_tiles", "10"),
        ("min_image_tokens", 257),
        ("max_image_tokens", 0),
        ("max_image_tokens", 10**12),
        ("tile_size", 500),
        ("encoder_patch_size", -16),
        ("resample", 1),
        ("max_pixels_tolerance", float("nan")),
        ("max_pixels_tolerance", 0),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", 0.5),
        ("use_thumbnail", "true"),
        ("rescale_factor", -1),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_name_and_value(name, value):
    with pytest.raises(ConfigError) as caught:
        ProcessorConfig.from_dicts({**LEGACY_POLICY, name: value}, None)
    assert f"{name} is" in str(caught.value) and str(value if not isinstance(value, list) else value[0]) in str(
        caught.value
    )


def test_an_unknown_override_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no option 'max_tokens'; there are .*max_image_tokens"):
        ImageProcessorConfig().with_overrides(max_tokens=3)


def test_an_override_of_none_keeps_what_the_checkpoint_says():
    config = ImageProcessorConfig(max_tiles=6)
    assert config.with_overrides(max_tiles=None, min_tiles=3) == ImageProcessorConfig(max_tiles=6, min_tiles=3)


def test_a_budget_beyond_the_other_takes_it_along():
    config = ImageProcessorConfig(min_image_tokens=64, max_image_tokens=256)
    assert config.with_overrides(max_image_tokens=32).min_image_tokens == 32
    assert config.with_overrides(min_image_tokens=300).max_image_tokens == 300
    with pytest.raises(ConfigError, match="min_image_tokens is 9"):
        config.with_overrides(min_image_tokens=9, max_image_tokens=8)


def test_tiling_that_was_switched_off_here_stays_off():
    chosen = ProcessorConfig(image=ImageProcessorConfig(do_image_splitting=False, use_thumbnail=False))
    again = ProcessorConfig.from_dicts(processor=chosen.to_dict())
    assert again == chosen and again.notes == ()
