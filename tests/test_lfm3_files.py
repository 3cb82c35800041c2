"""LFM3-VL's folders, converted and saved; its policy, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, picture, read_tensors
from test_lfm3 import FOLDER, GREEDY, assert_close, loaded

from mlx_lfm2vl import (
    Completion,
    convert,
    explain,
    generate,
    load,
    stream_generate,
)
from mlx_lfm2vl.cli.models import described
from mlx_lfm2vl.config import ImageProcessorConfig, Lfm3VlImageProcessorConfig, Lfm3VlProcessorConfig
from mlx_lfm2vl.config.lfm3 import Lfm3Config, RopeParameters
from mlx_lfm2vl.conversion.plan import QuantizationOptions, make_plan
from mlx_lfm2vl.conversion.repair import repair
from mlx_lfm2vl.errors import ConfigError, ImageError, InputError, OptionError, PromptError
from mlx_lfm2vl.generation.arguments import PixelOverrides
from mlx_lfm2vl.weights.load import open_model

# Folders


@pytest.mark.parametrize("bits", [8, 4])
def test_a_converted_model_answers(bits, tmp_path, golden):
    case = golden("lfm3-several")
    folder = convert(FOLDER, tmp_path / "out", q_bits=bits, q_group_size=32, verify=False)
    model, processor = load(folder)
    out: Any = model(**case.inputs)
    reference, ours = case.arrays["logits"], np.array(out.logits)[tuple(case.arrays["token_rows"].T)]
    error = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
    assert 1e-4 < error < (0.05 if bits == 8 else 0.7)
    responses = list(stream_generate(model, processor, case.conversations[0], options=GREEDY))
    tokens = Completion.of(responses).tokens
    made = np.array(model.generate(**case.inputs, max_new_tokens=24, do_sample=False))
    assert list(tokens) == made[0, case.arrays["input_ids"].shape[1] :].tolist()[: len(tokens)]
    assert described(folder, False) == f"LFM3-VL, {bits} bits"


def test_a_target_size_finds_bits_that_fit(tmp_path, golden):
    folder = convert(FOLDER, tmp_path / "out", target_size=0.0011, q_group_size=32)
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 1.1e6
    out: Any = load(folder)[0](**golden("lfm3-videos").inputs)
    assert np.isfinite(np.array(out.logits)).all()


def test_a_repaired_folder_has_its_policy_again(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "broken", ignore=shutil.ignore_patterns("processor_config.json"))
    findings = repair(tmp_path / "broken", tmp_path / "out", base=FOLDER)
    assert "processor_config.json: is missing; taken from" in "\n".join(map(str, findings))
    assert load(tmp_path / "out")[1].image_processor.config == loaded()[1].image_processor.config


def test_an_answer_about_a_video_holds_to_its_form():
    form = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked: dict[str, Any] = {"videos": GOLDEN / "videos" / "clip.png", "max_tokens": 60, "response_format": form}
    assert isinstance(json.loads(generate(*loaded(), "Answer.", **asked))["a"], int)


def test_a_dense_conversion_keeps_every_number(tmp_path, golden):
    case = golden("lfm3-several")
    model, _ = load(convert(FOLDER, tmp_path / "out"))
    out: Any = model(**case.inputs)
    assert_close(np.array(out.logits)[tuple(case.arrays["token_rows"].T)], case.arrays["logits"], "logits")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "lfm3_vl" in card and "mlx-vlm" not in card
    assert (tmp_path / "out" / "processor_config.json").read_bytes() == (FOLDER / "processor_config.json").read_bytes()


@pytest.mark.parametrize("hf", [False, True])
def test_a_saved_model_is_the_same(hf, tmp_path, golden):
    case = golden("lfm3-several")
    model, processor = loaded()
    model.save_pretrained(tmp_path, hf=hf)
    processor.save_pretrained(tmp_path)
    again: Any = load(tmp_path)[0](**case.inputs)
    assert_close(np.array(again.logits)[tuple(case.arrays["token_rows"].T)], case.arrays["logits"], "logits")
    if hf:
        ours, makers = (read_tensors(folder / "model.safetensors") for folder in (tmp_path, FOLDER))
        assert {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in makers.items()}


def test_a_conversion_to_the_makers_layout_has_their_names(tmp_path):
    folder = convert(FOLDER, tmp_path / "out", layout="hub")
    ours, makers = (read_tensors(each / "model.safetensors") for each in (folder, FOLDER))
    assert ours.keys() == makers.keys()
    assert all(np.array_equal(ours[name], makers[name]) for name in makers)


def test_a_recipe_spends_bits_on_narrow_and_last_layers():
    model: Any = open_model(FOLDER)[0]
    widths = {path: module.weight.shape[-1] for path, module in model.named_modules() if "weight" in module}
    plan = make_plan(widths, 10**6, QuantizationOptions(recipe="mixed_4_8", group_size=32))
    eight = {path for path, spec in plan.modules.items() if spec is not None and spec.bits == 8}
    layer = "model.language_model.layers."
    assert {f"{layer}1.self_attn.k_proj", f"{layer}1.self_attn.gate_proj", f"{layer}2.conv.out_proj"} <= eight
    assert f"{layer}1.self_attn.q_proj" not in eight and f"{layer}1.self_attn.o_proj" not in eight


# Files


def test_a_policy_of_videos_of_its_own_file_is_read_and_copied(tmp_path):
    folder = Path(shutil.copytree(FOLDER, tmp_path / "in"))
    processor = json.loads((folder / "processor_config.json").read_text())
    pictures, videos = processor.pop("image_processor"), processor.pop("video_processor")
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos | {"max_frames": 9}))
    made = load(convert(folder, tmp_path / "out"))[1].image_processor.config
    expected = loaded()[1].image_processor.config
    assert made == replace(expected, video=replace(expected.video, max_frames=9))
    (folder / "video_preprocessor_config.json").unlink()  # then the reference takes that of pictures
    assert Lfm3VlProcessorConfig.from_folder(folder).image.video.max_pixels == expected.max_pixels


def test_rope_theta_beside_rope_parameters_is_of_those_without():
    kinds = {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25}, "sliding_attention": {}}
    made = Lfm3Config.from_dict({"rope_theta": 5000.0, "rope_parameters": kinds})
    assert (made.full_rope, made.sliding_rope) == (RopeParameters(5000.0, 0.25), RopeParameters(5000.0))
    own = {"sliding_attention": {"rope_theta": 3.0}}
    made = Lfm3Config.from_dict({"rope_parameters": {**kinds, **own}})
    assert (made.full_rope, made.sliding_rope) == (RopeParameters(1e6, 0.25), RopeParameters(3.0))
    assert Lfm3Config.from_dict({"rope_theta": 5000.0}) == Lfm3Config.from_dict({})


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_a_token_that_is_none_stays_none(name):
    none: dict[str, Any] = {name: None}
    config = replace(Lfm3Config.from_dict({}), **none)
    assert Lfm3Config.from_dict(config.to_dict()) == config


# Bad input


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size"])
def test_videos_cut_otherwise_than_pictures_are_refused(name):
    video = {name: 1}
    with pytest.raises(ConfigError, match=f"video processor: {name} is 1, expected the image processor's"):
        Lfm3VlProcessorConfig.from_dicts({"video_processor": video})
    config = Lfm3VlImageProcessorConfig().with_overrides(**video)
    assert getattr(config.video, name) == getattr(config, name) == 1
    assert Lfm3VlProcessorConfig.from_dicts({"image_processor": video}).image == config


@pytest.mark.parametrize("name", ["rope_theta", "full"])
def test_rope_parameters_of_no_kind_of_layers_are_refused(name):
    with pytest.raises(ConfigError, match=f"text_config: rope_parameters: a key is '{name}', expected full_attention"):
        Lfm3Config.from_dict({"rope_parameters": {name: 1.0}})


def test_a_picture_200_times_as_long_as_wide_is_refused():
    model, processor = loaded()
    with pytest.raises(ImageError, match="3x700 pixels is more than 200 times"):
        list(stream_generate(model, processor, "What?", images=[picture("strip").resize((3, 700))]))


def test_a_video_is_not_explained():
    model, processor = loaded()
    turns = [{"role": "user", "content": [{"type": "video", "path": GOLDEN / "videos" / "odd.png"}]}]
    with pytest.raises(PromptError, match="a video, which is not explained"):
        explain(model, processor, turns)


def test_the_types_of_overrides_are_the_policys():
    own = Lfm3VlImageProcessorConfig.options() - ImageProcessorConfig.options() - {"video"}
    assert set(PixelOverrides.__annotations__) == own


def test_tiles_are_refused_by_name():
    model, processor = loaded()
    with pytest.raises(OptionError, match="do_image_splitting is True"):
        list(stream_generate(model, processor, "What?", images=[picture("small")], do_image_splitting=True))
    with pytest.raises(OptionError, match="'tile_size' is neither"):
        list(stream_generate(model, processor, "What?", images=[picture("small")], tile_size=64))


def test_budgets_in_tokens_bound_the_picture(golden):
    _, processor = loaded()
    for most in (4, 9, 30):
        made = processor.image_processor(picture("photo"), max_image_tokens=most)
        assert made["image_grid_thw"].prod() / 4 <= most


def test_patches_that_do_not_fit_their_grids_are_refused(golden):
    case = golden("lfm3-small")
    model, _ = loaded()
    with pytest.raises(InputError, match=r"the patches have shape \(3, 1536\)"):
        model(**{**case.inputs, "pixel_values": case.inputs["pixel_values"][:3]})
    with pytest.raises(InputError, match=r"image_grid_thw has shape \(1, 2\)"):
        model(**{**case.inputs, "image_grid_thw": np.array([[2, 2]])})


def test_another_familys_class_refuses_the_folder():
    from mlx_lfm2vl import Lfm2VlForConditionalGeneration, Lfm3VlForConditionalGeneration

    with pytest.raises(ConfigError, match="model_type is 'lfm3_vl'"):
        Lfm2VlForConditionalGeneration.from_pretrained(FOLDER)
    with pytest.raises(ConfigError, match="model_type is 'lfm2_vl'"):
        Lfm3VlForConditionalGeneration.from_pretrained(Path(GOLDEN / "gen2"))
