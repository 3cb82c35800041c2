"""convert: complete folders, the same numbers where nothing is lost, nothing half-written where something fails."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN, read_tensors
from safetensors import safe_open

from mlx_lfm2vl.config import Lfm2VlConfig
from mlx_lfm2vl.conversion.convert import convert as convert_and_measure
from mlx_lfm2vl.errors import HubError, OptionError, OutputError, WeightsError
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model
from mlx_lfm2vl.weights.names import parameters
from mlx_lfm2vl.weights.save import save_weights

convert = partial(convert_and_measure, verify=False)  # measuring has its own tests
IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


@pytest.mark.parametrize("checkpoint", ["gen2", "gen25", "untied"])
def test_a_dense_conversion_is_the_same_model(checkpoint, tmp_path):
    out = convert(GOLDEN / checkpoint, tmp_path / "out")
    np.testing.assert_array_equal(logits(out), logits(GOLDEN / checkpoint))
    source = {p.name for p in (GOLDEN / checkpoint).iterdir()}
    assert {p.name for p in out.iterdir()} == source | {"model.safetensors.index.json", "README.md"}
    said, kept = (json.loads((each / "processor_config.json").read_text()) for each in (GOLDEN / checkpoint, out))
    assert kept == said | {key: kept[key] for key in kept.keys() - said.keys()}  # what mlx-swift-lm needs is added
    for name in source - {"config.json", "processor_config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (GOLDEN / checkpoint / name).read_bytes(), name


def test_the_file_is_in_the_layout_that_mlx_programs_read(tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out")
    tensors = read_tensors(out / "model.safetensors")
    with safe_open(out / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "mlx"
    assert tensors["language_model.model.layers.0.conv.conv.weight"].shape == (64, 3, 1)
    assert "vision_tower.embeddings.patch_embedding.weight" in tensors
    assert "multi_modal_projector.linear_1.weight" in tensors
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors) and set(index["weight_map"].values()) == {"model.safetensors"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 32), (6, 32), (5, 64), (4, 32), (4, 64)])
def test_quantised(bits, group, tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_bits=bits, q_group_size=group)
    model: Lfm2VlForConditionalGeneration = load_model(out, dtype="auto")
    language = {p for p, m in model.model.language_model.named_modules() if hasattr(m, "bits")}
    assert "embed_tokens" in language and "layers.0.feed_forward.w1" in language
    assert not any("conv.conv" in path for path in language)
    assert not any(hasattr(m, "bits") for _, m in model.model.vision_tower.named_modules())
    assert not any(hasattr(m, "bits") for _, m in model.model.multi_modal_projector.named_modules())
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"]["bits"] == bits and config["quantization"]["group_size"] == group
    dense = logits(GOLDEN / "gen2")
    error = np.abs(logits(out) - dense).max() / np.abs(dense).max()
    assert 0 < error < {8: 0.1, 6: 0.2, 5: 0.4, 4: 0.8}[bits]
    assert (out / "model.safetensors").stat().st_size < (GOLDEN / "gen2" / "model.safetensors").stat().st_size


def test_layers_that_no_group_divides_stay_dense_on_record(tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_bits=8, q_group_size=64)  # hidden size 64, feed-forward 96
    config = json.loads((out / "config.json").read_text())["quantization"]
    dense = {name for name, entry in config.items() if entry is False}
    assert dense == {f"language_model.model.layers.{n}.feed_forward.w2" for n in range(4)}
    model: Lfm2VlForConditionalGeneration = load_model(out, dtype="auto")
    for path, module in model.model.language_model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.QuantizedLinear, nn.QuantizedEmbedding)):
            assert hasattr(module, "bits") == (f"language_model.model.{path}" not in dense), path
    with pytest.raises(OptionError, match="no module would be quantised"):
        convert(GOLDEN / "gen2", tmp_path / "none", q_bits=8, q_group_size=128)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_that_of_every_tensor_and_of_the_config(dtype, tmp_path):
    out = convert(GOLDEN / "gen25", tmp_path / "out", dtype=dtype)
    assert {str(t.dtype) for t in read_tensors(out / "model.safetensors").values()} == {f"mlx.core.{dtype}"}
    config = json.loads((out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype


def test_converting_a_converted_folder_changes_nothing(tmp_path):
    once = convert(GOLDEN / "gen25", tmp_path / "once", q_bits=8, q_group_size=32)
    given: dict[str, dict[str, Any]] = {"twice": {}, "same": {"q_bits": 8, "q_group_size": 32}}
    for name, options in given.items():
        twice = convert(once, tmp_path / name, **options)
        for file in (path for path in once.iterdir() if path.name != "README.md"):  # it names its folder
            assert file.read_bytes() == (twice / file.name).read_bytes(), file.name


def test_shards_and_their_index(tmp_path):
    model: Lfm2VlForConditionalGeneration = load_model(GOLDEN / "gen2")
    save_weights(model, tmp_path, shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        assert {name for name, where in index.items() if where == file} == set(mx.load(str(tmp_path / file)))
    shutil.copy(GOLDEN / "gen2" / "config.json", tmp_path)
    again = parameters(load_model(tmp_path))
    for name, array in parameters(model).items():
        assert mx.array_equal(array, again[name]).item(), name


def test_what_is_wrong_in_config_json_is_put_right(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    config["vision_feature_layer"] = -2
    config["auto_map"] = {"AutoConfig": "configuration_lfm2_vl.Lfm2VlConfig"}
    (source / "config.json").write_text(json.dumps(config))
    written = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert written["vision_config"]["num_hidden_layers"] == 3
    assert "auto_map" not in written


def test_only_a_model_folder_is_overwritten_and_never_the_source(tmp_path):
    target = convert(GOLDEN / "gen2", tmp_path / "out")
    (target / "notes.txt").write_text("of the old one")
    with pytest.raises(OutputError, match=r"out: exists already; .*--overwrite"):
        convert(GOLDEN / "gen25", target)
    assert (target / "notes.txt").exists()
    convert(GOLDEN / "gen25", target, overwrite=True)
    assert not (target / "notes.txt").exists()
    assert load_model(target).config == load_model(GOLDEN / "gen25").config
    with pytest.raises(OutputError, match="is the source itself"):
        convert(target, target, overwrite=True)

    photos, file, link, holder = tmp_path / "photos", tmp_path / "file", tmp_path / "link", tmp_path / "holder"
    (photos / "sub").mkdir(parents=True)
    (photos / "a.txt").write_text("precious")
    file.write_text("precious")
    link.symlink_to(target)
    shutil.copytree(target, holder / "q8")
    for place in (photos, file, link):
        with pytest.raises(OutputError, match="is no model folder, so it is not overwritten"):
            convert(GOLDEN / "gen2", place, overwrite=True)
    with pytest.raises(OutputError, match=r"is no model folder|holds the source"):
        convert(holder / "q8", holder, overwrite=True)
    assert (photos / "a.txt").read_text() == file.read_text() == "precious"
    assert (holder / "q8" / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "holder", "link", "out", "photos"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"q_bits": 7}, OptionError, "q_bits is 7, expected one of 2, 3, 4, 5, 6, 8"),
        ({"q_mode": "mxfp4", "q_bits": 8}, OptionError, "q_bits is 8, expected 4 with q_mode mxfp4"),
        ({"q_mode": "nvfp4", "q_group_size": 64}, OptionError, "q_group_size is 64, expected 16 with q_mode nvfp4"),
        ({"q_mode": "fp4"}, OptionError, "q_mode is 'fp4', expected one of affine"),
        ({"q_recipe": "mixed"}, OptionError, "q_recipe is 'mixed', expected one of mixed_2_6"),
        ({"q_recipe": "mixed_4_8", "q_bits": 4}, OptionError, "says the bits itself"),
        ({"q_vision": True}, OptionError, "say how to quantise; add quantize"),
        ({"q_bits": 8, "dequantize": True}, OptionError, "exclude each other"),
        ({"dequantize": True}, OptionError, "is not quantised; there is nothing"),
        ({"layout": "gguf"}, OptionError, "layout is 'gguf'"),
        ({"layout": "hub", "q_bits": 8}, OptionError, "layout hub is for dense models; leave quantising out"),
        ({"q_bits": 8, "q_overrides": [("*.w9", 8)]}, OptionError, r"q_override '\*.w9' matches no module"),
        ({"q_bits": 8, "q_overrides": [("*.w1", 7)]}, OptionError, r"q_override \*.w1=7: expected dense or one of 2"),
        ({"q_bits": 8, "q_overrides": [("*.w2", 8)]}, OptionError, r"w2 has rows of 96, not a multiple of .* 64"),
        ({"q_bits": 4, "q_group_size": 48}, OptionError, "q_group_size is 48"),
        ({"dtype": "int8"}, OptionError, "dtype is 'int8'"),
    ],
)
def test_options_are_checked_before_anything_is_written(options, error, match, tmp_path):
    with pytest.raises(error, match=match):
        convert(GOLDEN / "gen2", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "source"))
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="truncated"):
        convert(source, tmp_path / "out")
    with pytest.raises(HubError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        convert(GOLDEN / "gen2", blocked / "out")


def large_folder(folder: Path) -> int:
    """A float32 model of about 100 MB, whose largest tensor has 4 MB; returns its bytes."""
    text: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "vocab_size": 2048}
    text |= {"intermediate_size": 1024, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [2, 5]}
    vision = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    config = {"model_type": "lfm2_vl", "projector_hidden_size": 128, "text_config": text, "vision_config": vision}
    shutil.copytree(GOLDEN / "gen25", folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    save_weights(Lfm2VlForConditionalGeneration(Lfm2VlConfig.from_dict(config)), folder)
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float16"}, {"q_bits": 4}, {"q_bits": 8, "dtype": "bfloat16"}, {"q_recipe": "mixed_4_8"}],
    ids=str,
)
def test_weights_stream_through(options, tmp_path):
    """In a process of its own, so that its peak is its own: a few of the largest tensors, never the model."""
    size = large_folder(tmp_path / "source")
    assert size > 90_000_000
    program = f"""
import mlx.core as mx
from mlx_lfm2vl.conversion.convert import convert
from peak import peak_memory
before = peak_memory()
convert({str(tmp_path / "source")!r}, {str(tmp_path / "out")!r}, verify=False, **{options!r})
print(mx.get_peak_memory(), peak_memory() - before)
"""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=here).stdout
    peak, resident = map(int, out.split())
    assert peak < 20_000_000
    assert resident < 60_000_000  # with the tokenizer and the libraries that the check loads


def test_progress_counts_the_bytes_that_are_written(tmp_path):
    seen = []
    out = convert(GOLDEN / "gen2", tmp_path / "out", progress=lambda *step: seen.append(step))
    total = sum(array.nbytes for array in read_tensors(out / "model.safetensors").values())
    assert {(stage, whole) for stage, _, whole in seen} == {("weights", total)}
    done = [step[1] for step in seen]
    assert done == sorted(set(done)) and done[-1] == total


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the middle of the weights."""
    program = f"""
import resource, sys
from mlx_lfm2vl.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
sys.exit(main(["convert", "--hf-path", {str(GOLDEN / "gen2")!r}, "--mlx-path", {str(tmp_path / "out")!r}]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith(f"mlx-lfm2vl: error: {tmp_path / 'out'}: cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path):
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(GOLDEN / "gen2", tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
