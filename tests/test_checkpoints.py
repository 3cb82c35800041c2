"""Folders of weights as people have them: loaded, or refused by a line that names the thing (docs/checkpoints.md)."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import (
    EMBEDDINGS,
    EXPECTED,
    INDEX,
    LFS,
    NORM,
    edit,
    edit_json,
    loaded,
    logits,
    logits_array,
    logits_of,
    refused,
    renamed,
    tensors_of,
)
from conftest import GOLDEN
from safetensors.numpy import load_file, save_file

from mlx_lfm2vl import AutoModelForImageTextToText, convert, load
from mlx_lfm2vl.conversion.repair import repair
from mlx_lfm2vl.conversion.upload import upload
from mlx_lfm2vl.errors import HubError, NotFiniteError, OutputError, TokenizerError
from mlx_lfm2vl.weights.names import from_module, to_module


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "model"))


# Heads


def head(tensors: dict) -> np.ndarray:
    embeddings = tensors[EMBEDDINGS]
    return np.roll(embeddings, 3, axis=0)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.lm_head.weight", "language_model.lm_head.weight"])
def test_a_head_that_differs_is_used_though_tied(folder, name):
    edit(folder, lambda t: {**t, name: head(t)})
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), np.roll(EXPECTED, 3, axis=-1))
    assert model.load_note.startswith("lm_head differs from the embeddings, which config.json ties to it; it is used")
    edit(folder, lambda t: {n: x for n, x in t.items() if n != name} | {name: t[EMBEDDINGS]})
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
    assert "lm_head" not in model and not model.load_note


@pytest.mark.parametrize("layout", ["mlx", "hub"])
def test_a_head_that_differs_is_written_untied(folder, tmp_path, layout):
    edit(folder, lambda t: {**t, "lm_head.weight": head(t)})
    notes: list[str] = []
    out = convert(folder, tmp_path / "out", layout=layout, on_note=notes.append)
    assert any("lm_head differs from the embeddings" in note for note in notes)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    np.testing.assert_array_equal(logits(out), np.roll(EXPECTED, 3, axis=-1))
    model = loaded(out)
    assert "differs" not in model.load_note and "lm_head" in model


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
def test_a_tied_head_stands_for_embeddings_that_are_not_stored(folder, tmp_path, name):
    edit(folder, renamed(lambda each: name if each == EMBEDDINGS else each))
    np.testing.assert_array_equal(logits(folder), EXPECTED)
    np.testing.assert_array_equal(logits(convert(folder, tmp_path / "out")), EXPECTED)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    refused(folder, f"tensor {EMBEDDINGS} is missing from the weight files")


def test_a_bias_of_the_head_is_refused(folder):
    edit(folder, lambda t: {**t, "lm_head.bias": np.zeros(832, np.float32)})
    refused(folder, "tensor lm_head.bias has no place in this model")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_head_that_differs_is_used(folder, tmp_path, bits):
    edit(folder, lambda t: {**t, "lm_head.weight": head(t)})
    out = convert(folder, tmp_path / "out", q_bits=bits, q_group_size=32, verify=False)
    edit_json(out / "config.json", tie_word_embeddings=True, text_config__tie_word_embeddings=True)
    model = loaded(out, dtype="auto")
    assert model.lm_head.bits == bits and "lm_head differs" in model.load_note


@pytest.mark.sampled(9)
@pytest.mark.parametrize("stored", ["none", "the same", "another"])
@pytest.mark.parametrize("top", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_ties_said_in_two_places_are_written_alike(folder, tmp_path, top, inner, stored):
    tensors = load_file(folder / "model.safetensors")
    if stored != "none":
        tensors["lm_head.weight"] = tensors[EMBEDDINGS] if stored == "the same" else head(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", tie_word_embeddings=top, tie_embedding=None)
    edit_json(folder / "config.json", text_config__tie_word_embeddings=None, text_config__tie_embedding=inner)
    if stored == "none" and top is False and inner is not True:
        return refused(folder, r"tensor lm_head.weight is missing from the weight files")
    expected = np.roll(EXPECTED, 3, axis=-1) if stored == "another" else EXPECTED
    np.testing.assert_array_equal(logits(folder), expected)
    convert(folder, tmp_path / "converted")
    AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").save_pretrained(tmp_path / "saved")
    for out in (tmp_path / "converted", tmp_path / "saved"):
        config = json.loads((out / "config.json").read_text())
        said = {part[key] for part in (config, config["text_config"]) for key in part if key.startswith("tie_")}
        is_stored = any("lm_head" in name for name in load_file(out / "model.safetensors"))
        assert said == {not is_stored} and config["tie_word_embeddings"] is not is_stored
        np.testing.assert_array_equal(logits(out), expected)


# Names


def bare(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize(
    "change",
    [renamed(bare), renamed(lambda name: name.removeprefix("model."))],
    ids=["model.layers", "language_model.layers"],
)
def test_text_names_without_nesting_load(folder, change):
    edit(folder, change)
    np.testing.assert_array_equal(logits(folder), EXPECTED)


@pytest.mark.parametrize("spelling", ["model.language_model.", "model.", "language_model.", "nowhere"])
@pytest.mark.parametrize("names", [str, bare], ids=["nested", "bare"])
def test_quantised_modules_load_whatever_the_record(folder, tmp_path, spelling, names):
    options: dict[str, Any] = {"q_bits": 4, "q_group_size": 32, "q_overrides": [("*.w1", 8), ("*.q_proj", "dense")]}
    out = convert(folder, tmp_path / "out", verify=False, **options)
    expected = logits(out, dtype="auto")
    written = json.loads((out / "config.json").read_text())["quantization"]
    base = {key: value for key, value in written.items() if "." not in key}
    entries = {key: value for key, value in written.items() if "." in key}
    assert entries
    moved = {key.replace("language_model.model.", spelling): value for key, value in entries.items()}
    said = base | ({} if spelling == "nowhere" else moved)
    edit_json(out / "config.json", quantization=said, quantization_config=said)
    tensors = tensors_of(out)
    flat = {names(name.replace("language_model.model.", "model.language_model.")): t for name, t in tensors.items()}
    mx.save_safetensors(str(out / "model.safetensors"), flat)
    model = loaded(out, dtype="auto")
    np.testing.assert_array_equal(logits_of(model), expected)
    assert model.config.quantization == written
    again = convert(out, tmp_path / "again", verify=False)
    assert json.loads((again / "config.json").read_text())["quantization"] == written


@pytest.mark.parametrize(
    ("wrapper", "adds"),
    [
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("base_model.model.", "PEFT"),
        ("_forward_module.", "Fabric"),
        ("model.module.", "DataParallel"),
    ],
)
def test_a_wrapper_in_the_names_is_named(folder, wrapper, adds):
    edit(folder, renamed(lambda name: wrapper + name))
    named = wrapper.removeprefix("model.")
    refused(folder, rf"model.safetensors: tensor {wrapper}\S+ has '{named}' in its name, as {adds} adds it; save the")


@pytest.mark.parametrize("wrapper", ["policy.", "student.", "transformer.", "actor.", "_actor_module.", "a.b."])
@pytest.mark.parametrize("layout", ["hub", "mlx"])
def test_an_unknown_wrapper_before_the_names_is_named(folder, wrapper, layout):
    inner = {"hub": lambda name: name, "mlx": lambda name: from_module(str(to_module(name)), "mlx")}[layout]
    edit(folder, renamed(lambda name: wrapper + inner(name)))
    edit(folder, lambda t: {**t, "v_head.weight": np.zeros(4, np.float32)})
    refused(folder, rf"tensor {wrapper}\S+ has '{wrapper}' in its name, as a wrapper adds it; save the model inside")
    edit(folder, lambda t: {f"reference.{name}" if "vision" in name else name: x for name, x in t.items()})
    refused(folder, r"has '(reference\.)?" + wrapper + "' in its name, as a wrapper adds it")


def test_a_name_of_no_layout_is_named_where_others_are_missing(folder):
    edit(folder, lambda t: {name.replace("embedding_norm", "colours"): x for name, x in t.items()})
    refused(folder, f"tensor {NORM} is missing from the weight files")
    edit(folder, lambda t: {**t, "audio.weight": np.zeros(4, np.float32), "audio.bias": np.zeros(4, np.float32)})
    refused(folder, r"tensor audio.\w+ and 1 more has a name that no LFM2-VL layout has")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_a_wrapper_of_single_layers_is_named(folder, wrapper):
    edit(folder, renamed(lambda name: name.replace("layers.1.", f"layers.1.{wrapper}")))
    refused(folder, rf"has '{wrapper}' in its name")


# Tensors that nothing needs, or that other programs make


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.rotary_emb.inv_freq",
        "language_model.model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.vision_tower.vision_model.embeddings.position_ids",
        "model.vision_tower.vision_model.head.attention.in_proj_weight",
        "vision_tower.head.probe",
        "v_head.summary.weight",
        "score.weight",
        "regression_head.weight",
        "model.pooler.dense.weight",
        "model.language_model.layers.1.self_attn.masked_bias",
        "model.language_model.pos_emb.inv_freq",
        "mtp.layers.0.weight",
        "logit_scale",
        "ema.model.language_model.embedding_norm.weight",
    ],
)
def test_tensors_that_nothing_needs_are_skipped_and_said(folder, tmp_path, name):
    edit(folder, lambda t: {**t, name: t[NORM]})
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
    assert f"tensor {name} left out, which the model does not use" in model.load_note
    notes: list[str] = []
    out = convert(folder, tmp_path / "out", on_note=notes.append)
    assert f"tensor {name} left out, which the model does not use" in notes
    assert len(load_file(out / "model.safetensors")) == len(load_file(folder / "model.safetensors")) - 1


@pytest.mark.parametrize(
    ("parts", "config", "named"),
    [
        (["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"], None, "bitsandbytes"),
        (["SCB"], {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        (["weight_scale_inv"], {"quant_method": "fp8"}, "FP8"),
        (["weight_scale"], {"quant_method": "modelopt", "format": "float-quantized"}, "modelopt (FP8)"),
        (["weight_scale"], {"quant_method": "compressed-tensors", "format": "int-quantized"}, "compressed-tensors"),
        (["weight_packed"], {"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        (["qweight", "qzeros", "scales", "g_idx"], {"quant_method": "gptq", "bits": 4}, "GPTQ"),
        (["qweight", "qzeros", "scales"], {"quant_method": "awq", "bits": 4}, "AWQ"),
        (["qweight", "qzeros", "scales"], None, "GPTQ or AWQ"),
    ],
)
def test_quantisations_of_other_programs_are_named(folder, parts, config, named):
    module = "model.language_model.layers.0.feed_forward.w1"
    edit(folder, lambda t: {**t, **{f"{module}.{part}": np.zeros(8, np.uint8) for part in parts}})
    edit_json(folder / "config.json", quantization_config=config)
    refused(folder, rf"model.safetensors: the weights are quantised by {re.escape(named)} \(tensor")


@pytest.mark.parametrize("method", ["torchao", "quanto", "aqlm", "eetq", "mxfp4"])
@pytest.mark.parametrize("part", ["weight._data", "codes", "weight"])
def test_a_method_that_no_name_tells_is_that_of_the_config(folder, method, part):
    module = "model.language_model.layers.0.feed_forward.w1"
    edit(
        folder,
        lambda t: {k: v for k, v in t.items() if k != f"{module}.weight"} | {f"{module}.{part}": np.zeros(8, np.uint8)},
    )
    edit_json(folder / "config.json", quantization_config={"quant_method": method})
    refused(folder, f"config.json says that the weights are quantised by {method}: if so, take the model")


@pytest.mark.parametrize(
    ("dtype", "bits", "says"),
    [
        *((f"F8_{kind}", 8, r"quantised by FP8 \(tensor \S+\)") for kind in ("E4M3", "E5M2", "E8M0", "E5M2FNUZ")),
        ("F6_E2M3", 6, "quantised by FP6"),
        ("F4", 4, "quantised by FP4"),
        ("F64", 64, r"tensor \S+w1.weight has dtype F64, which MLX does not read; save the model in bfloat16"),
    ],
)
def test_dtypes_of_whole_files_that_are_not_read_are_named(folder, dtype, bits, says):
    file = folder / "model.safetensors"
    header, body = {}, b""
    for name, tensor in load_file(file).items():
        quantised = name.endswith("layers.0.feed_forward.w1.weight")
        data = bytes(tensor.size * bits // 8) if quantised else tensor.tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype if quantised else "F32", "shape": tensor.shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    refused(folder, says)
    if dtype != "F64":
        edit_json(folder / "config.json", quantization_config={"quant_method": "modelopt"})
        refused(folder, r"quantised by modelopt \(FP")


def test_layers_of_an_adapter_that_is_not_merged_are_named(folder):
    name = "model.language_model.layers.1.self_attn.q_proj"
    edit(folder, lambda t: {n.replace(f"{name}.weight", f"{name}.base_layer.weight"): x for n, x in t.items()})
    edit(folder, lambda t: {**t, f"{name}.lora_A.default.weight": np.zeros((4, 64), np.float32)})
    refused(folder, rf"tensor {name}\.\S+ is of an adapter that is not merged; merge it \(merge_and_unload of PEFT\)")


# Files


def sharded(folder: Path) -> list[str]:
    """Two shards in place of one file, with a true index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {name: files[at % 2] for at, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return files


@pytest.mark.parametrize("other", ["consolidated.safetensors", "model.safetensors", "optimizer.safetensors"])
def test_a_true_index_is_followed_and_other_files_left_alone(folder, tmp_path, other):
    sharded(folder)
    save_file({NORM: np.zeros(64, np.float32)}, folder / other)
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
    assert f"{other} left alone (not named by {INDEX})" in model.load_note
    notes: list[str] = []
    out = convert(folder, tmp_path / "out", on_note=notes.append)
    assert any(f"{other} left alone" in note for note in notes)
    np.testing.assert_array_equal(logits(out), EXPECTED)


@pytest.mark.parametrize("more", [(), ("other.safetensors",)])
def test_files_that_a_partial_index_leaves_alone_are_named(folder, more):
    first, second = sharded(folder)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(json.dumps({"weight_map": {n: file for n, file in index.items() if file == first}}))
    for name in more:
        save_file({"score.weight": np.zeros(4, np.float32)}, folder / name)
    left = ", ".join((second, *more))
    refused(folder, rf"{INDEX}: names no file that holds tensor \S+ and \d+ more, and {left} left alone; remove this")
    (folder / INDEX).unlink()
    np.testing.assert_array_equal(logits(folder), EXPECTED)


@pytest.mark.parametrize("known", ["index", "numbers"])
def test_a_shard_that_is_missing_is_named(folder, known):
    first, second = sharded(folder)
    (folder / second).unlink()
    if known == "numbers":
        (folder / INDEX).unlink()
    refused(folder, rf"model/{second}: no such file, and tensor \S+ and \d+ more is missing; fetch it")
    (folder / first).unlink()
    if known == "index":
        refused(folder, rf"model/{first}: no such file and 1 more, which {INDEX} names; fetch what is missing")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapters.safetensors", "0000100_adapters.safetensors"])
def test_adapter_files_beside_a_model_are_left_alone(folder, name):
    save_file({"base_model.model.model.norm.weight": np.zeros(4, np.float32)}, folder / name)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
    assert f"{name} left alone (an adapter)" in model.load_note


def test_a_file_of_lora_layers_alone_is_left_alone(folder):
    lora = {f"x.q_proj.lora_{part}.weight": np.zeros((4, 4), np.float32) for part in "AB"}
    save_file(lora, folder / "checkpoint.safetensors")
    assert "checkpoint.safetensors left alone (an adapter)" in loaded(folder).load_note
    (folder / "model.safetensors").unlink()
    refused(folder, r"holds an adapter only \(checkpoint.safetensors\), not a model; load its base model with it")


BESIDE = {
    "consolidated.safetensors": lambda t: t,
    "model.fp16.safetensors": lambda t: {name: x.astype(np.float16) for name, x in t.items()},
    "ema.safetensors": lambda t: {name: 2 * x for name, x in t.items()},
    "optimizer.safetensors": lambda t: {"state.0.exp_avg": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_a_whole_model_are_left_alone(folder, name):
    save_file(BESIDE[name](load_file(folder / "model.safetensors")), folder / name)
    model = loaded(folder)
    np.testing.assert_array_equal(logits_of(model), EXPECTED)
    assert model.load_note == f"{name} left alone (model.safetensors holds the model)"


def test_a_file_beside_that_holds_the_rest_is_read(folder):
    tensors = load_file(folder / "model.safetensors")
    tower = {name: tensors.pop(name) for name in [*tensors] if "vision" in name}
    save_file(tensors, folder / "model.safetensors")
    save_file(tower, folder / "vision.safetensors")
    assert not loaded(folder).load_note
    np.testing.assert_array_equal(logits(folder), EXPECTED)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_git_lfs_pointer_is_named(folder, name):
    (folder / name).write_text(LFS)
    refused(
        folder, rf"model/{name}: is a Git LFS pointer, not the file itself; fetch the file \(git lfs pull\)", ValueError
    )


# Types


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", "text_config__dtype", None])
def test_the_dtype_of_the_config_decides_mixed_folders(folder, tmp_path, key):
    tensors = {name: mx.array(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    mixed = {name: t if "norm" in name else t.astype(mx.bfloat16) for name, t in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), mixed)
    silent = {f"{part}{name}": None for part in ("", "text_config__") for name in ("dtype", "torch_dtype")}
    edit_json(folder / "config.json", **silent)
    if key:
        edit_json(folder / "config.json", **{key: "bfloat16"})
    model = loaded(folder, dtype="auto")
    assert logits_array(model).dtype == mx.bfloat16
    assert "BF16 and F32 weights are mixed; all are taken as bfloat16" in model.load_note
    assert "mixed" not in loaded(folder, dtype="float32").load_note
    out = convert(folder, tmp_path / "out")
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {mx.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


def test_the_dtype_of_the_config_changes_no_uniform_folder(folder):
    edit_json(folder / "config.json", dtype="bfloat16", torch_dtype="bfloat16")
    model = loaded(folder, dtype="auto")
    assert logits_array(model).dtype == mx.float32 and not model.load_note


# Folders around a model, or in place of one


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LORA", "base_model_name_or_path": "Liquid/LFM2.5"}, "a LoRA adapter of Liquid/LFM2.5"),
        ({"fine_tune_type": "lora", "model": "models/mine"}, "a LoRA adapter of models/mine"),
        ({"peft_type": "IA3"}, "an adapter of a model that it does not name"),
        ([], "an adapter of a model that it does not name"),
    ],
)
def test_a_folder_of_an_adapter_is_told_from_a_model(tmp_path, config, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a.lora_A.weight": np.zeros(4, np.float32)}, tmp_path / "adapter_model.safetensors")
    line = rf"is {said}.*, not a whole model; load that one with it \(--adapter \S+, load\(\.\.\., adapter=\)\)"
    refused(tmp_path, line, HubError)
    shutil.copy(GOLDEN / "gen2" / "config.json", tmp_path)  # as trainers leave it beside an adapter
    refused(tmp_path, line, TokenizerError)
    shutil.copytree(GOLDEN / "gen2", tmp_path, ignore=shutil.ignore_patterns("model*"), dirs_exist_ok=True)
    refused(tmp_path, line)  # beside the base's configuration and tokenizer


# What a conversion carries on


@pytest.mark.parametrize(
    "quantization_config",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"group_size": 64, "bits": 4},
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "text_config__quantization_config", "compression_config"])
def test_dense_conversions_carry_no_stale_record(folder, tmp_path, quantization_config, key):
    edit_json(folder / "config.json", **{key: quantization_config})
    np.testing.assert_array_equal(logits(folder), EXPECTED)
    out = convert(folder, tmp_path / "out")
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    for file in (out / "config.json", tmp_path / "saved" / "config.json"):
        assert not re.search("quantization|compression", file.read_text())


TOLD = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "cache_dir")


@pytest.mark.parametrize("key", TOLD)
def test_no_path_of_a_disk_is_published(folder, tmp_path, key):
    place = "/home/somebody/secret"
    edit_json(folder / "config.json", _name_or_path=place, text_config___name_or_path=place)
    edit_json(folder / "tokenizer_config.json", **{key: place, "parts": [{key: place}]})
    edit_json(folder / "generation_config.json", **{key: place, "eos_token_id": None})  # which is written anew
    processor = next(folder.glob("*processor_config.json"))
    edit_json(processor, _name_or_path=place, image_processor___name_or_path=place)
    [finding, *_] = [f for f in repair(folder, tmp_path / "none", dry_run=True) if "where it came from" in f.problem]
    assert finding.file == "config.json" and finding.remedy == "left out"
    out = convert(folder, tmp_path / "out")
    assert not [file.name for file in out.glob("*.json") if "secret" in file.read_text()]
    assert "secret" not in (out / "README.md").read_text()
    model, processor = load(folder)
    for part in (model, processor, processor.tokenizer, model.config, model.generation_config):
        part.save_pretrained(tmp_path / "saved")
        assert not [file.name for file in (tmp_path / "saved").glob("*.json") if "secret" in file.read_text()]
    edit_json(out / "tokenizer_config.json", **{key: place})
    with pytest.raises(OutputError, match=rf"not fit to be published: tokenizer_config.json says where .* \({key}\)"):
        upload(out, "owner/name", dry_run=True)


@pytest.mark.parametrize("options", [{}, {"q_bits": 8, "q_group_size": 32}], ids=["dense", "8 bits"])
@pytest.mark.parametrize(
    "name",
    ["model.language_model.layers.0.feed_forward.w1.weight", NORM, "model.multi_modal_projector.linear_1.bias"],
)
def test_float16_that_overflows_is_refused_by_name(folder, tmp_path, options, name):
    edit(folder, lambda t: {**t, name: np.where(np.arange(t[name].size).reshape(t[name].shape) == 5, 1e5, t[name])})
    edit(folder, lambda t: {n: x.astype(np.float32) for n, x in t.items()})
    match = rf"tensor {name} holds numbers beyond the range of float16 \(65504\); choose the dtype bfloat16 or float32"
    with pytest.raises(NotFiniteError, match=match):
        convert(folder, tmp_path / "out", dtype="float16", verify=False, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    convert(folder, tmp_path / "out", dtype="bfloat16", verify=False, **options)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float16_that_overflows_is_not_loaded(folder, tmp_path, dtype):
    edit(folder, lambda t: t[NORM].__setitem__(3, 1e5))
    folder = convert(folder, tmp_path / "out", dtype=dtype, verify=False)
    said = rf"tensor {NORM} holds NaN, infinity or numbers beyond the range of float16; "
    with pytest.raises(NotFiniteError, match=said + "load the model with dtype 'bfloat16' or 'float32'"):
        AutoModelForImageTextToText.from_pretrained(folder, dtype="float16")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", backend="mlx")
    with pytest.raises(NotFiniteError, match=said + "use bfloat16 or float32"):
        model.half()
    assert model.dtype == mx.float32 and model.bfloat16().dtype == mx.bfloat16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_not_converted(folder, tmp_path, value):
    edit(folder, lambda t: t[NORM].__setitem__(3, value))
    with pytest.raises(NotFiniteError, match=rf"tensor {NORM} holds NaN or infinity; the model's files are damaged"):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_repair_says_what_config_json_says_wrongly(folder, tmp_path):
    edit(folder, lambda t: {**t, "lm_head.weight": head(t)})
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"}, tie_word_embeddings=True)
    findings = repair(folder, tmp_path / "out")
    problems = {finding.problem for finding in findings if finding.file == "config.json"}
    assert {"says of the head what the weights contradict", "records a quantisation of dense weights"} <= problems
    assert not [f for f in repair(tmp_path / "out", tmp_path / "none", dry_run=True) if f.file == "config.json"]
