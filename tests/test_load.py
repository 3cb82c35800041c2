"""Folders of every public layout load to the same numbers; damaged or wrong ones are one clear error."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, logits_of
from safetensors.numpy import load_file, save_file

from mlx_lfm2vl.config import Lfm2VlConfig
from mlx_lfm2vl.errors import ConfigError, OptionError, WeightsError
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model, open_model
from mlx_lfm2vl.weights.names import parameters
from mlx_lfm2vl.weights.save import save_weights

IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def edit(folder: Path, change: Callable[[dict], dict | None]) -> None:
    """Rewrites the tensors of a folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file)


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "model"))


def config_of(folder: Path) -> Lfm2VlConfig:
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    assert isinstance(model.config, Lfm2VlConfig)
    return model.config


def logits(folder: Path, **options) -> np.ndarray:
    return np.array(load_model(folder, **options)(IDS, use_cache=False).logits.astype(mx.float32))


EXPECTED = logits(GOLDEN / "gen2")


def rename(old: str, new: str) -> Callable[[dict], dict]:
    def change(tensors):
        assert any(name.startswith(old) for name in tensors)
        return {(new + name[len(old) :] if name.startswith(old) else name): t for name, t in tensors.items()}

    return change


def to_mlx_layout(tensors: dict) -> dict:
    for old, new in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        tensors = rename(old, new)(tensors)
    return {
        name: np.ascontiguousarray(t.transpose(0, 2, 1)) if name.endswith("conv.conv.weight") else t
        for name, t in tensors.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        rename("model.vision_tower.vision_model.", "model.vision_tower."),
        rename("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        to_mlx_layout,
        lambda t: {**t, "lm_head.weight": t["model.language_model.embed_tokens.weight"]},
        lambda t: {**t, "model.vision_tower.vision_model.embeddings.position_ids": np.arange(256)},
    ],
    ids=["transformers 5", "third nesting", "mlx", "tied head that is stored", "position ids"],
)
def test_layouts_give_the_same_numbers(folder, change):
    edit(folder, change)
    np.testing.assert_array_equal(logits(folder), EXPECTED)


def test_shards_load_and_a_stale_index_does_no_harm(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number:05d}-of-00002.safetensors")
    stale = {"weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00009.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    np.testing.assert_array_equal(logits(folder), EXPECTED)


def test_a_tower_with_fewer_layers_than_the_config_says(folder):
    edit_config(folder, vision_config__num_hidden_layers=4, vision_feature_layer=-2)
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    assert model.config.vision_config.num_hidden_layers == 3
    assert len(model.model.vision_tower.encoder.layers) == 3


def test_another_number_of_tower_layers_names_the_tensor(folder):
    edit(folder, lambda t: {k: v for k, v in t.items() if "encoder.layers.2." not in k})
    refused(folder, r"tensor model\.vision_tower\.encoder\.layers\.2\.\S+ and \d+ more is missing")
    edit_config(folder, vision_config__num_hidden_layers=1)
    refused(folder, r"tensor model\.vision_tower\.encoder\.layers\.1\.\S+ and \d+ more has no place in this model")


def test_the_width_of_the_feed_forward_is_that_of_the_weights(folder):
    width = config_of(folder).text_config.feed_forward_size
    edit_config(folder, text_config__block_ff_dim=9999)
    assert config_of(folder).text_config.feed_forward_size == width
    np.testing.assert_array_equal(logits(folder), EXPECTED)


def test_a_stale_layer_norm_of_the_projector_is_left_out(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "gen25", tmp_path / "model"))
    width = 48 * 4
    edit(
        folder,
        lambda t: {
            **t,
            "model.multi_modal_projector.layer_norm.weight": np.full(width, 7, np.float32),
            "model.multi_modal_projector.layer_norm.bias": np.full(width, 7, np.float32),
        },
    )
    assert "layer_norm" not in load_model(folder).model.multi_modal_projector


def quantized(tensors: dict, names: list[str], bits: int) -> dict:
    out = {name: mx.array(t) for name, t in to_mlx_layout(tensors).items()}
    for name in names:
        packed, scales, biases = mx.quantize(out.pop(name + ".weight"), group_size=32, bits=bits)
        out |= {name + ".weight": packed, name + ".scales": scales, name + ".biases": biases}
    return out


@pytest.mark.parametrize("projector", [False, True], ids=["dense projector", "quantised projector"])
def test_modules_are_quantised_where_scales_are_stored(folder, projector):
    names = ["language_model.model.layers.0.feed_forward.w1", "language_model.model.embed_tokens"]
    names += ["multi_modal_projector.linear_1"] if projector else []
    tensors = quantized(load_file(folder / "model.safetensors"), names, 8)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    edit_config(folder, quantization={"group_size": 32, "bits": 8})
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype="auto")
    found = {path for path, module in model.named_modules() if hasattr(module, "scales")}
    assert len(found) == len(names)
    assert ("model.multi_modal_projector.linear_1" in found) == projector
    out = np.array(logits_of(model, IDS))
    assert 0 < np.abs(out - EXPECTED).max() < 0.1 * np.abs(EXPECTED).max()


W1, W1_MLX = "model.language_model.layers.0.feed_forward.w1", "language_model.model.layers.0.feed_forward.w1"


def quantize_w1(folder: Path, bits: int, group_size: int, mode: str = "affine") -> None:
    tensors = {name: mx.array(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    parts = mx.quantize(tensors.pop(f"{W1}.weight"), group_size=group_size, bits=bits, mode=mode)
    tensors |= {f"{W1}.{part}": array for part, array in zip(("weight", "scales", "biases"), parts, strict=False)}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"),
    [(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)]
    + [(4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")],
)
@pytest.mark.parametrize("stated", [None, {"bits": 7, "group_size": 2**40, "mode": ["x"]}], ids=["silent", "wrong"])
def test_bits_groups_and_mode_follow_from_the_shapes(folder, bits, group_size, mode, stated):
    quantize_w1(folder, bits, group_size, mode)
    edit_config(folder, quantization=stated)
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype="auto")
    w1 = model.model.language_model.layers[0].feed_forward.w1
    assert (w1.bits, w1.group_size, w1.mode) == (bits, group_size, mode)
    assert model.config.quantization is not None
    entries = {key: value for key, value in model.config.quantization.items() if value is not False}
    assert entries == {"bits": bits, "group_size": group_size, "mode": mode}


@pytest.mark.parametrize(
    ("part", "shape"), [("weight", (384, 9)), ("scales", (384, 3)), ("scales", (384, 0)), ("biases", None)]
)
def test_shapes_of_no_quantisation_are_refused(folder, part, shape):
    quantize_w1(folder, 4, 64)
    edit(folder, lambda t: {n: np.zeros(shape, x.dtype) if shape and n == f"{W1}.{part}" else x for n, x in t.items()})
    edit(folder, lambda t: {name: x for name, x in t.items() if shape or not name.endswith(".biases")})
    refused(folder, rf"model.safetensors: {W1} has a weight of .* which no quantisation of MLX has; convert")


def test_a_module_may_have_bits_of_its_own(folder):
    name = "language_model.model.layers.0.feed_forward.w1"
    tensors = quantized(load_file(folder / "model.safetensors"), [name], 4)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    edit_config(folder, quantization={"group_size": 64, "bits": 8, name: {"group_size": 32, "bits": 4}})
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype="auto")
    w1 = model.model.language_model.layers[0].feed_forward.w1
    assert (w1.bits, w1.group_size) == (4, 32)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_cpu_quantised_weights_become_float32_and_mean_the_same(folder, bits):
    names = ["language_model.model.layers.0.feed_forward.w1", "language_model.model.embed_tokens"]
    names += ["multi_modal_projector.linear_1"]
    tensors = quantized(load_file(folder / "model.safetensors"), names, bits)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {k: v.astype(mx.bfloat16) if v.dtype == mx.float32 else v for k, v in tensors.items()},
    )
    edit_config(folder, quantization={"group_size": 32, "bits": bits})
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    assert {str(array.dtype) for array in parameters(model).values()} == {"mlx.core.float32"}
    assert not [path for path, module in model.named_modules() if hasattr(module, "scales")]
    assert model.config.quantization is None and model.model.config.quantization is None
    assert f"the {bits}-bit weights were made float32" in model.load_note
    as_stored: Lfm2VlForConditionalGeneration = load_model(folder, dtype="float32")
    assert hasattr(as_stored.model.multi_modal_projector.linear_1, "scales") and as_stored.load_note == ""
    expected = np.array(logits_of(as_stored, IDS))
    assert np.abs(np.array(logits_of(model, IDS)) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.backends("numpy")
def test_on_a_cpu_16_bits_become_float32_unless_a_type_is_asked_for(folder):
    edit(folder, lambda t: {name: tensor.astype(np.float16) for name, tensor in t.items()})
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    assert {str(array.dtype) for array in parameters(model).values()} == {"mlx.core.float32"}
    assert "the float16 weights were made float32" in model.load_note
    as_stored: Lfm2VlForConditionalGeneration = load_model(folder, dtype="auto")
    assert {str(array.dtype) for array in parameters(as_stored).values()} == {"mlx.core.float16"}
    assert as_stored.load_note == ""
    stored = parameters(as_stored)
    assert list(stored) == list(parameters(model))
    for name, one in parameters(model).items():
        np.testing.assert_array_equal(np.array(one), np.array(stored[name].astype(mx.float32)), err_msg=name)


@pytest.mark.backends("numpy")
def test_weights_too_large_for_float32_stay_as_they_are(folder, monkeypatch):
    edit(folder, lambda t: {name: tensor.astype(np.float16) for name, tensor in t.items()})
    monkeypatch.setattr("mlx_lfm2vl.backends.cpu.weights.free_memory", lambda: 1_000_000)
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    assert {str(array.dtype) for array in parameters(model).values()} == {"mlx.core.float16"}
    assert "the float16 weights stay as they are" in model.load_note


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtype(folder, name):
    model: Lfm2VlForConditionalGeneration = load_model(folder, dtype=name)
    assert {str(array.dtype) for array in parameters(model).values()} == {f"mlx.core.{name}"}
    assert np.abs(logits(folder, dtype=name) - EXPECTED).max() < 0.1 * np.abs(EXPECTED).max()


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(OptionError, match=r"dtype is 'int8', expected one of float32, float16, bfloat16"):
        load_model(folder, dtype="int8")


def test_a_loaded_model_works_in_another_thread(folder):
    model: Lfm2VlForConditionalGeneration = load_model(folder)
    results = []
    thread = threading.Thread(target=lambda: results.append(np.array(logits_of(model, IDS, use_cache=False))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], EXPECTED)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_loading_makes_no_second_copy(dtype, tmp_path):
    """A model of 90 MB, of which no tensor is above 4 MB, in a process of its own so that its peak is its own."""
    text: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 2048}
    text |= {"intermediate_size": 1024, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [2, 5]}
    vision = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    config = {"model_type": "lfm2_vl", "projector_hidden_size": 128, "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(Lfm2VlForConditionalGeneration(Lfm2VlConfig.from_dict(config)), tmp_path)
    program = f"""
import mlx.core as mx
from pathlib import Path
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model, open_model
from mlx_lfm2vl.weights.save import save_weights
model = load_model(Path({str(tmp_path)!r}), dtype={dtype!r})
print(mx.get_peak_memory(), mx.get_active_memory(), mx.get_cache_memory())
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    peak, active, kept = map(int, out.split())
    assert kept == 0
    stored = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert active < (1.02 if dtype is None else 0.51) * stored
    assert peak < active + 10_000_000


def refused(folder: Path, match: str, error: type[Exception] = WeightsError) -> None:
    with pytest.raises(error, match=match) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_tensors_that_do_not_fit_are_named(folder):
    original = (folder / "model.safetensors").read_bytes()
    norm = "model.language_model.embedding_norm.weight"

    def attempt(change, match):
        (folder / "model.safetensors").write_bytes(original)
        edit(folder, change)
        refused(folder, match)

    attempt(lambda t: {k: v for k, v in t.items() if k != norm}, f"tensor {norm} is missing")
    attempt(
        lambda t: {k: v for k, v in t.items() if "vision_tower" not in k},
        r"model.vision_tower.embeddings.patch_embedding.weight and \d+ more is missing",
    )
    attempt(
        lambda t: {**t, "model.language_model.extra": t[norm]},
        "tensor model.language_model.extra has no place in this model",
    )
    attempt(lambda t: {**t, norm: t[norm][:5]}, rf"tensor {norm} has shape \[5\], the configuration asks for \[64\]")
    attempt(lambda t: {**t, "language_model.model.embedding_norm.weight": t[norm]}, "are the same parameter")


def test_folders_without_config_or_weights(tmp_path, folder):
    refused(tmp_path, r"config.json: no such file", ConfigError)
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no .safetensors file")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    refused(folder, r"it has pytorch_model.bin, which is not read")


def test_quantization_errord_files_are_named(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])

    def attempt(data: bytes, match: str) -> None:
        file.write_bytes(data)
        refused(folder, f"model.safetensors: .*{match}")

    def with_header(change: Callable[[dict], None]) -> bytes:
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    name = "model.language_model.embedding_norm.weight"
    attempt(b"", "truncated or not a safetensors file")
    attempt(whole[:100], "truncated or not a safetensors file")
    attempt(whole[:-1000], "is truncated or its .* not fully covered")
    attempt(b"<html>not found</html>", "truncated or not a safetensors file")
    attempt(struct.pack("<Q", 2**62) + whole[8:], "truncated or not a safetensors file")
    attempt(struct.pack("<Q", 4) + b"[1,2" + whole, "header cannot be read")
    attempt(struct.pack("<Q", 5) + b"[1,2]" + whole, "header is not true .*sequence")
    attempt(with_header(lambda h: h[name].update(shape=[2**30])), "header is not true .*invalid shape")
    attempt(with_header(lambda h: h[name].update(shape=[-64])), "integer `-64`")
    attempt(with_header(lambda h: h[name].update(dtype="F31")), "unknown variant `F31`")
    attempt(with_header(lambda h: h[name].update(data_offsets=[0])), "invalid length 1")
    offset = header[name]["data_offsets"]
    attempt(with_header(lambda h: h[name].update(data_offsets=[offset[0] + 4, offset[1] + 4])), "invalid offset for")
    attempt(whole + b"more", "not fully covered.*; fetch the file again")
    last = max(header, key=lambda key: 0 if key == "__metadata__" else header[key]["data_offsets"][1])
    shifted = [number + 8 for number in header[last]["data_offsets"]]
    attempt(
        with_header(lambda h: h[last].update(data_offsets=shifted)) + bytes(8), f"invalid offset for tensor `{last}`"
    )
    empty = {"dtype": "F64", "shape": [0, 2**31], "data_offsets": [offset[0], offset[0]]}
    attempt(with_header(lambda h: h.update(empty=empty)), "tensor empty has dtype F64, which MLX does not read")
    attempt(
        with_header(lambda h: h.update(empty={**empty, "dtype": "F32"})), r"has shape \[0, 2147483648\], which is none"
    )
    twice = whole[8 : 8 + length].rstrip()[:-1] + f',"{name}":{json.dumps(header[name])}}}'.encode()
    attempt(struct.pack("<Q", len(twice)) + twice + whole[8 + length :], f"the key '{name}' stands twice")
    attempt(with_header(lambda h: h.update({"two\nlines": h.pop(name)})), r"called 'two\\nlines', which is no name")
    attempt(with_header(lambda h: h[name].update(shape=[1] * 9 + [64])), "which is none")


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.uint8])
def test_weights_that_are_no_floating_point_numbers_are_refused(folder, dtype):
    norm = "model.language_model.embedding_norm.weight"
    edit(folder, lambda t: {**t, norm: t[norm].astype(dtype)})
    refused(folder, rf"tensor {norm} has dtype \w+, expected BF16 or F16 or F32")


def test_a_pipe_is_no_weight_file(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "is not a regular file")


@pytest.mark.parametrize("act", ["cut", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_said(folder, act):
    file, other = folder / "model.safetensors", folder / "other"
    shutil.copy(file, other)
    _, stored = open_model(folder)
    if act == "cut":
        os.truncate(file, 200_000)
        with pytest.raises(WeightsError, match=r"model\.safetensors: .*fetch the file again"):
            list(map(mx.eval, stored.read().values()))
    else:
        other.replace(file)
        with pytest.raises(WeightsError, match="was replaced or written to while it was read; load it again"):
            stored.check_unchanged()
