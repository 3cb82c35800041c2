"""Folders that convert writes, decoded by the rules of mlx-swift-lm's source (LFM2VL.swift, BaseConfiguration.swift).

Swift is not run here. A rule is a key, its type, and the default that Swift takes for a key that is not there or null;
without a default the key is required.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import GOLDEN
from published_configs import GENERATIONS

from mlx_lfm2vl.config import GenerationConfig, Lfm2VlConfig, ProcessorConfig, read_json
from mlx_lfm2vl.conversion.card import SWIFT_HEAD
from mlx_lfm2vl.conversion.config_files import config_json
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.weights.load import open_model
from mlx_lfm2vl.weights.names import from_module

REQUIRED = object()
TEXT: dict[str, tuple[type, Any]] = {
    "model_type": (str, REQUIRED),
    "hidden_size": (int, REQUIRED),
    "num_hidden_layers": (int, REQUIRED),
    "num_attention_heads": (int, REQUIRED),
    "num_key_value_heads": (int, REQUIRED),
    "vocab_size": (int, REQUIRED),
    "norm_eps": (float, 1e-5),
    "conv_bias": (bool, False),
    "conv_L_cache": (int, 3),
    "block_multiple_of": (int, 256),
    "block_ffn_dim_multiplier": (float, 1.0),
    "block_auto_adjust_ff_dim": (bool, True),
    "rope_theta": (float, 1e6),
}
VISION: dict[str, tuple[type, Any]] = {
    "model_type": (str, REQUIRED),
    "hidden_size": (int, REQUIRED),
    "intermediate_size": (int, REQUIRED),
    "num_hidden_layers": (int, REQUIRED),
    "num_attention_heads": (int, REQUIRED),
    "num_channels": (int, 3),
    "patch_size": (int, 16),
    "num_patches": (int, 256),
    "layer_norm_eps": (float, 1e-6),
}
MODEL: dict[str, tuple[type, Any]] = {
    "model_type": (str, REQUIRED),
    "downsample_factor": (int, 2),
    "image_token_id": (int, 396),
    "projector_bias": (bool, True),
    "projector_hidden_size": (int, 2560),
    "projector_use_layernorm": (bool, True),
}
PROCESSOR: dict[str, tuple[type, Any]] = {
    "processor_class": (str, REQUIRED),
    "tile_size": (int, 512),
    "encoder_patch_size": (int, 16),
    "max_tiles": (int, 10),
    "downsample_factor": (int, 2),
}
QUANTIZATION: dict[str, tuple[type, Any]] = {
    "group_size": (int, REQUIRED),
    "bits": (int, REQUIRED),
    "mode": (str, "affine"),
}
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


def decode(data: dict[str, Any], rules: dict[str, tuple[type, Any]]) -> dict[str, Any]:
    out = {}
    for key, (kind, default) in rules.items():
        value = data.get(key)
        if value is None:
            assert default is not REQUIRED, f"{key} is required"
            value = default
        assert isinstance(value, (int, float) if kind is float else kind), (key, value)
        assert kind is bool or not isinstance(value, bool), (key, value)
        out[key] = value
    return out


def text_of(data: dict[str, Any]) -> dict[str, Any]:
    out = decode(data, TEXT)
    width = data.get("block_ff_dim") or out["hidden_size"]
    if out["block_auto_adjust_ff_dim"]:  # as the layers do it
        width = int(2 * width / 3)
        width = int(out["block_ffn_dim_multiplier"] * width)
        width = out["block_multiple_of"] * -(-width // out["block_multiple_of"])
    attention = data.get("full_attn_idxs")
    if attention is None:
        kinds = data.get("layer_types")
        count = out["num_hidden_layers"]
        attention = list(range(count)) if kinds is None else [i for i, k in enumerate(kinds) if k == "full_attention"]
    return {
        **out,
        "feed_forward": width,
        "attention": attention,
        "block_dim": data.get("block_dim", out["hidden_size"]),
    }


def assert_config(data: dict[str, Any]) -> None:
    """What Swift decodes is what this package reads."""
    config = Lfm2VlConfig.from_dict(data)
    words, tower = config.text_config, config.vision_config
    found = text_of(data["text_config"])
    assert found.pop("model_type") == "lfm2"
    assert found.pop("feed_forward") == words.feed_forward_size
    assert found.pop("attention") == [i for i, kind in enumerate(words.layer_types) if kind == "full_attention"]
    assert found.pop("block_dim") == words.hidden_size
    for key in ("block_multiple_of", "block_ffn_dim_multiplier", "block_auto_adjust_ff_dim"):
        found.pop(key)  # the width above is of them
    assert found == {key: getattr(words, key) for key in found}
    seen = decode(data["vision_config"], VISION)
    seen.pop("model_type")
    assert seen == {key: getattr(tower, key) for key in seen}
    whole = decode(data, MODEL)
    assert whole.pop("model_type") in ("lfm2_vl", "lfm2-vl")
    assert whole == {key: getattr(config, key) for key in whole}


def quantization_of(data: dict[str, Any]) -> dict[str, Any] | None:
    """The base and each module's own, None where it is dense."""
    record = data.get("quantization")
    if record is None:
        return None
    out: dict[str, Any] = {"": decode(record, QUANTIZATION)}
    for key, value in record.items():
        if key not in QUANTIZATION:
            out[key] = None if value is False else decode(value, QUANTIZATION)
            assert value is not True
    assert all(entry is None or entry["mode"] in MODES for entry in out.values())
    return out


@pytest.mark.parametrize("name", GENERATIONS)
def test_the_config_of_every_published_generation_decodes(name):
    data = GENERATIONS[name]
    config = Lfm2VlConfig.from_dict(data)
    written = config_json(data, config, mx.bfloat16, dict(config.quantization) if config.quantization else None)
    assert_config(written)
    again = Lfm2VlConfig.from_dict(written).text_config
    assert again.feed_forward_size == config.text_config.feed_forward_size
    assert (again.layer_types, again.rope_theta) == (config.text_config.layer_types, config.text_config.rope_theta)
    quantization_of(written)


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_parameters": {"rope_theta": 2e6, "rope_type": "default"}},
        {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": None, "intermediate_size": 132},
        {"block_auto_adjust_ff_dim": True, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0},
        {"layer_types": None, "full_attn_idxs": [2, 4]},
        {"full_attn_idxs": [0]},
        {"norm_eps": None, "block_norm_eps": 1e-6, "hidden_size": None, "block_dim": 64},
        {"num_attention_heads": None, "num_heads": 4, "num_key_value_heads": None},
    ],
    ids=str,
)
def test_other_spellings_are_written_in_the_one_that_swift_reads(changed):
    data = json.loads((GOLDEN / "gen25" / "config.json").read_text())
    data["text_config"] |= changed
    if changed.get("num_key_value_heads", 1) is None:
        data["text_config"] |= {"num_attention_heads": None, "num_heads": 8, "hidden_size": 64}
    config = Lfm2VlConfig.from_dict(data)
    written = config_json(data, config, mx.float32, None)
    assert_config(written)
    again = Lfm2VlConfig.from_dict(written)
    assert again.text_config.feed_forward_size == config.text_config.feed_forward_size
    assert again.text_config.layer_types == config.text_config.layer_types


def test_an_image_token_by_its_early_name_is_written_by_both():
    data = json.loads((GOLDEN / "gen25" / "config.json").read_text())
    data["image_token_index"] = data.pop("image_token_id") - 6
    assert_config(config_json(data, Lfm2VlConfig.from_dict(data), mx.float32, None))


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        *((checkpoint, {}) for checkpoint in ("gen2", "gen25", "untied")),
        ("gen2", {"q_bits": 8, "q_group_size": 32}),
        ("gen25", {"q_recipe": "mixed_4_8", "q_group_size": 32}),
        ("gen2", {"q_bits": 8, "q_group_size": 32, "q_vision": True}),
        ("gen25", {"q_mode": "mxfp8"}),
    ],
    ids=str,
)
def test_every_folder_decodes(checkpoint, options, tmp_path):
    out = convert(GOLDEN / checkpoint, tmp_path / "out", verify=False, **options)
    assert_folder(out)


def assert_folder(folder: Path) -> None:
    data = read_json(folder / "config.json")
    assert_config(data)
    widths = quantization_of(data)
    _, stored = open_model(folder)
    assert (widths is None) == (not stored.widths)
    for path, spec in stored.widths.items():
        assert widths is not None
        assert widths.get(from_module(path, "mlx"), widths[""]) == spec.to_dict()
    file = next(folder / n for n in ("preprocessor_config.json", "processor_config.json") if (folder / n).is_file())
    found = decode(read_json(file), PROCESSOR)
    assert found.pop("processor_class") == "Lfm2VlProcessor"
    image = ProcessorConfig.from_folder(folder).image
    assert found == {key: getattr(image, key) for key in found}
    has_head = not Lfm2VlConfig.from_dict(data).tie_word_embeddings  # for which Swift has no place
    assert (SWIFT_HEAD in (folder / "README.md").read_text()) == has_head
    ends = read_json(folder / "generation_config.json")["eos_token_id"]  # they replace those of config.json
    ends = {ends} if isinstance(ends, int) else set(ends)
    assert ends >= set(Lfm2VlConfig.from_dict(data).eos_token_ids)
    assert ends == set(GenerationConfig.from_dict(read_json(folder / "generation_config.json")).eos_token_ids)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_what_swift_looks_for_at_the_top_is_put_there(file, tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen25", tmp_path / "source"))
    image = json.loads((source / "processor_config.json").read_text())["image_processor"]
    (source / "processor_config.json").unlink()
    (source / file).write_text(json.dumps({"image_processor": image | {"tile_size": 256, "max_tiles": 4}}))
    out = convert(source, tmp_path / "out", verify=False)
    assert_folder(out)
    assert read_json(out / file)["tile_size"] == 256 and ProcessorConfig.from_folder(out).image.max_tiles == 4
