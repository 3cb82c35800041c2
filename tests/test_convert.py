"""convert: complete folders, the same numbers where nothing is lost, nothing half-written where something fails."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from mlx.utils import tree_flatten

from mlx_lfm2vl.errors import HubError, OptionError, OutputError, WeightsError
from mlx_lfm2vl.weights.convert import convert
from mlx_lfm2vl.weights.load import load_model
from mlx_lfm2vl.weights.save import save_weights

IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


@pytest.mark.parametrize("checkpoint", ["gen2", "gen25", "untied"])
def test_a_dense_conversion_is_the_same_model(checkpoint, tmp_path):
    out = convert(GOLDEN / checkpoint, tmp_path / "out")
    np.testing.assert_array_equal(logits(out), logits(GOLDEN / checkpoint))
    source = {p.name for p in (GOLDEN / checkpoint).iterdir()}
    assert {p.name for p in out.iterdir()} == source | {"model.safetensors.index.json"}
    for name in source - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (GOLDEN / checkpoint / name).read_bytes(), name


def test_the_file_is_in_the_layout_that_mlx_programs_read(tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out")
    tensors, metadata = mx.load(str(out / "model.safetensors"), return_metadata=True)
    assert metadata["format"] == "mlx"
    assert tensors["language_model.model.layers.0.conv.conv.weight"].shape == (64, 3, 1)
    assert "vision_tower.embeddings.patch_embedding.weight" in tensors
    assert "multi_modal_projector.linear_1.weight" in tensors
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors) and set(index["weight_map"].values()) == {"model.safetensors"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 32), (4, 32), (4, 64)])
def test_quantised(bits, group, tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_bits=bits, q_group_size=group)
    model = load_model(out)
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
    assert 0 < error < {8: 0.1, 4: 0.8}[bits]
    assert (out / "model.safetensors").stat().st_size < (GOLDEN / "gen2" / "model.safetensors").stat().st_size


def test_layers_that_a_group_does_not_divide_stay_dense_and_the_record_says_so(tmp_path):
    out = convert(GOLDEN / "gen2", tmp_path / "out", q_bits=8, q_group_size=128)  # hidden size 64
    record = json.loads((out / "config.json").read_text())["quantization"]
    assert record["language_model.model.embed_tokens"] is False
    model = load_model(out)
    for path, module in model.model.language_model.named_modules():
        assert record.get(f"language_model.model.{path}", True) is not False or not hasattr(module, "bits")
    np.testing.assert_allclose(logits(out), logits(GOLDEN / "gen2"), atol=0.05 * np.abs(logits(GOLDEN / "gen2")).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_that_of_every_tensor_and_of_the_config(dtype, tmp_path):
    out = convert(GOLDEN / "gen25", tmp_path / "out", dtype=dtype)
    assert {str(t.dtype) for t in mx.load(str(out / "model.safetensors")).values()} == {f"mlx.core.{dtype}"}
    config = json.loads((out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype


def test_converting_twice_changes_nothing(tmp_path):
    once = convert(GOLDEN / "untied", tmp_path / "once", q_bits=8, q_group_size=32)
    twice = convert(once, tmp_path / "twice")
    for name in {p.name for p in once.iterdir()} - {"config.json"}:
        assert (once / name).read_bytes() == (twice / name).read_bytes(), name
    np.testing.assert_array_equal(logits(once), logits(twice))
    with pytest.raises(OptionError, match="is quantised already"):
        convert(once, tmp_path / "again", q_bits=4)


def test_shards_and_their_index(tmp_path):
    model = load_model(GOLDEN / "gen2")
    save_weights(model, tmp_path, shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        assert {name for name, where in index.items() if where == file} == set(mx.load(str(tmp_path / file)))
    shutil.copy(GOLDEN / "gen2" / "config.json", tmp_path)
    again = dict(tree_flatten(load_model(tmp_path).parameters()))
    for name, array in tree_flatten(model.parameters()):
        assert mx.array_equal(array, again[name]).item(), name


def test_what_is_wrong_in_config_json_is_put_right(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    config["auto_map"] = {"AutoConfig": "configuration_lfm2_vl.Lfm2VlConfig"}
    (source / "config.json").write_text(json.dumps(config))
    written = json.loads((convert(source, tmp_path / "out") / "config.json").read_text())
    assert written["vision_config"]["num_hidden_layers"] == 3
    assert "auto_map" not in written


def test_an_existing_target_is_kept_unless_overwritten(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out: exists already; .*--overwrite"):
        convert(GOLDEN / "gen2", target)
    assert (target / "precious.txt").read_text() == "mine"
    convert(GOLDEN / "gen2", target, overwrite=True)
    assert not (target / "precious.txt").exists()
    with pytest.raises(OutputError, match="is the source itself"):
        convert(target, target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"q_bits": 5}, OptionError, "q_bits is 5, expected one of 4, 8"),
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
