"""Models and configurations of transformers' classes without torch: loading, saving, dtypes, embeddings, the hub."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend
from hub_server import HubServer

from mlx_lfm2vl import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    Lfm2VlConfig,
    Lfm2VlModel,
    load,
)
from mlx_lfm2vl.compat.loading import _ANYWAY, _NO_MEANING, _SILENT, REFUSED
from mlx_lfm2vl.errors import ConfigError, HubError, NotFiniteError, OptionError
from mlx_lfm2vl.weights.files import read_header
from mlx_lfm2vl.weights.names import parameters

IDS = np.array([[1, 500, 501, 502]])


def fresh(name: str = "gen2", **options: Any) -> Any:
    """A model that a test may change."""
    return AutoModelForImageTextToText.from_pretrained(GOLDEN / name, **options)


@cache_by_backend
def loaded(name: str = "gen2") -> Any:
    return fresh(name)


# Calls


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("how", ["load", "from_pretrained"])
def test_a_loaded_model_is_called_with_arrays_of_every_kind(how):
    model: Any = load(GOLDEN / "gen2")[0] if how == "load" else fresh()
    assert type(model.config) is Lfm2VlConfig is type(model.model.config)
    out = model(IDS)
    assert isinstance(out.logits, mx.array) and out.cache is out.past_key_values is out["cache"] is not None
    assert "cache" in out and "cache" not in list(out)
    for ids in (mx.array(IDS), IDS.tolist()):
        np.testing.assert_array_equal(np.array(model.forward(ids).logits), np.array(out.logits))
    assert model(IDS, token_type_ids=None, mm_token_type_ids=IDS * 0, return_dict=True).logits.shape == out.logits.shape


def test_a_configuration_says_the_defaults_of_calls():
    model = fresh()
    changed = AutoConfig.from_pretrained(GOLDEN / "gen2", output_hidden_states=True, output_attentions=True)
    assert model(IDS).hidden_states is None and model(IDS).attentions is None
    model.config = changed
    out = model(IDS)
    assert len(out.hidden_states) == len(changed.text_config.layer_types) + 1 and len(out.attentions) > 0
    assert model(IDS, output_hidden_states=False).hidden_states is None
    model.config = AutoConfig.from_pretrained(GOLDEN / "gen2", return_dict=False)
    assert isinstance(model(IDS), tuple)


def test_a_given_configuration_says_the_defaults_of_calls_too():
    config = AutoConfig.from_pretrained(GOLDEN / "gen2", output_hidden_states=True)
    assert fresh(config=config)(IDS).hidden_states is not None
    assert fresh(output_hidden_states=True)(IDS).hidden_states is not None
    assert fresh(config=str(GOLDEN / "gen2")).config == loaded().config
    assert fresh(config=config, backend="mlx").to("bfloat16")(IDS).hidden_states is not None
    model = fresh(config=config)
    model.resize_token_embeddings(900)
    assert model(IDS).hidden_states is not None


@pytest.mark.backends("mlx", "numpy")
def test_a_cache_has_both_names(golden):
    model, given = loaded(), golden("gen2-landscape").inputs
    out = model(**given)
    more = {"input_ids": np.array([[500]]), "attention_mask": np.ones((1, given["input_ids"].shape[1] + 1), np.int64)}
    one = np.array(model(**more, cache=out.cache.copy()).logits)
    np.testing.assert_array_equal(np.array(model(**more, past_key_values=out.cache).logits), one)
    np.testing.assert_array_equal(
        np.array(out.image_hidden_states), np.array(mx.concatenate(list(out.image_outputs.pooler_output)))
    )


# Loading


AUTOS = (AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, AutoImageProcessor, AutoConfig)


@pytest.mark.parametrize("name", sorted(_NO_MEANING))
def test_keywords_without_meaning_are_ignored_with_a_warning(name):
    value = {"attn_implementation": "flash_attention_2", "device_map": {"": 1}, "tp_size": 2}.get(name, True)
    for auto in AUTOS:
        with pytest.warns(UserWarning, match=rf"from_pretrained ignores what has no meaning here: {name} \(") as said:
            auto.from_pretrained(GOLDEN / "gen2", **{name: value})
        assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for silent in _ANYWAY.get(name, (None, False)):
            AutoProcessor.from_pretrained(GOLDEN / "gen2", **{name: silent})


def test_keywords_that_mean_what_is_done_anyway_are_taken():
    options: dict[str, Any] = {name: True for name in _SILENT if name != "backend"}
    options |= {"use_safetensors": True, "token": False, "local_files_only": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fresh(device_map="auto", attn_implementation="sdpa", **options).config == loaded().config


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_keywords_that_would_change_a_model_are_refused_with_the_way_out(name):
    given, off = {name: {"a": 1}}, {name: False}
    with pytest.raises(OptionError, match=re.escape(f"from_pretrained has no option {name!r}; {REFUSED[name]}")):
        AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", **off)
        for auto in (AutoProcessor, AutoTokenizer, AutoImageProcessor):
            auto.from_pretrained(GOLDEN / "gen2", **given)


@pytest.mark.parametrize("place", ["folder", "demo"])
def test_a_revision_of_a_folder_is_none(place):
    where = GOLDEN / "gen2" if place == "folder" else "demo"
    for auto in AUTOS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            auto.from_pretrained(where, revision="main")
        with pytest.warns(UserWarning, match=r"no meaning here: revision \(a folder of this disk has none\)"):
            auto.from_pretrained(where, revision="v2")


@pytest.mark.parametrize("auto", [AutoProcessor, AutoImageProcessor, AutoTokenizer])
@pytest.mark.parametrize(
    "named",
    [{"dtype": "auto"}, {"torch_dtype": mx.bfloat16}, {"config": AutoConfig.from_pretrained(GOLDEN / "gen2")}],
    ids=lambda named: next(iter(named)),
)
def test_what_is_for_models_changes_no_processor(named, auto):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made, plain = auto.from_pretrained(GOLDEN / "gen2", **named), auto.from_pretrained(GOLDEN / "gen2")
    given: dict[str, Any] = {"text": "Hi"}
    if auto is AutoImageProcessor:
        given = {"images": np.zeros((64, 64, 3), np.uint8)}
    for name, value in plain(**given).items():
        np.testing.assert_array_equal(made(**given)[name], value)


@pytest.mark.parametrize("named", [{"dtype": "bfloat16"}, {"torch_dtype": mx.bfloat16}, {"dtype": "torch.bfloat16"}])
def test_dtypes_are_named_in_every_spelling(named):
    model = fresh(**named)
    assert model.dtype == mx.bfloat16 and model.config.dtype == "bfloat16"
    assert model.get_input_embeddings().weight.dtype == mx.bfloat16
    assert fresh(dtype="auto").dtype == mx.float32


def test_a_subfolder_holds_the_model(tmp_path):
    (tmp_path / "inner").symlink_to(GOLDEN / "gen2")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, subfolder="inner")
    assert model.config == loaded().config
    assert AutoProcessor.from_pretrained(tmp_path, subfolder="inner").tokenizer.encode("a") == [1, 564]
    for wrong in ("../x", "/etc", 3):
        with pytest.raises(HubError, match=r"subfolder is .*, expected the name of a folder of the model's"):
            AutoConfig.from_pretrained(tmp_path, subfolder=wrong)


def test_what_from_pretrained_does_not_know_is_named():
    for auto in AUTOS[:4]:  # a configuration takes all, as the reference's
        with pytest.raises((OptionError, ConfigError), match="no option 'devicemap'"):
            auto.from_pretrained(GOLDEN / "gen2", devicemap="auto")
    with pytest.raises(OptionError, match=r"from_pretrained has no option 'devicemap'; did you mean device_map\?$"):
        fresh(devicemap="auto")
    with pytest.raises(OptionError, match=r"from_pretrained has no option 'colour'$"):
        fresh(colour=1)
    with pytest.raises(OptionError, match="return_unused_kwargs is not offered; leave it out"):
        AutoConfig.from_pretrained(GOLDEN / "gen2", return_unused_kwargs=True)
    other = replace(AutoConfig.from_pretrained(GOLDEN / "gen2"), projector_bias=False)
    with pytest.raises(ConfigError, match="config differs in projector_bias from the folder's; write it into"):
        fresh(config=other)


def test_a_generation_configuration_may_be_given():
    given = GenerationConfig(max_new_tokens=2, eos_token_id=7)
    model = fresh(generation_config=given)
    assert model.generation_config is given and model.generate(IDS).shape == (1, 6)


# Of itself


def test_a_model_counts_its_parameters():
    model = loaded()
    arrays = parameters(model)
    total = sum(array.size for array in arrays.values())
    assert model.num_parameters() == model.num_parameters(only_trainable=True) == total
    tables = [name for name in arrays if "embed_tokens" in name or "position_embedding" in name]
    assert len(tables) == 2
    left = total - sum(arrays[name].size for name in tables)
    assert model.num_parameters(exclude_embeddings=True) == left
    assert model.model.num_parameters() == total and loaded("untied").num_parameters() > total // 2


def test_packed_parameters_count_as_what_they_stand_for(tmp_path):
    from mlx_lfm2vl import convert

    out = convert(GOLDEN / "gen2", tmp_path / "q", q_bits=4, q_group_size=32, verify=False)
    model = AutoModelForImageTextToText.from_pretrained(out, backend="mlx")
    assert model.num_parameters() == loaded().num_parameters()
    with pytest.raises(OptionError, match="a quantised table of embeddings cannot be resized; load a dense checkpoint"):
        model.resize_token_embeddings(900)
    with pytest.raises(OptionError, match="transformers cannot load quantised weights of MLX; load a dense checkpoint"):
        model.save_pretrained(tmp_path / "hf", hf=True)
    assert not (tmp_path / "hf").exists()


def test_a_model_is_moved_and_cast_in_every_spelling():
    model = fresh(backend="mlx")
    for device in ("cpu", "cuda", "cuda:0", "mps", 0, mx.Device(mx.cpu), model.device, None):
        assert model.to(device) is model and model.dtype == mx.float32
    for arguments, named in (
        (("bfloat16",), {}),
        ((mx.float16,), {}),
        (("cpu", "bfloat16"), {}),
        ((), {"dtype": "torch.float16"}),
        (("bf16",), {}),
        ((), {"torch_dtype": "fp16", "non_blocking": True}),
        ((), {"device": "mps", "dtype": mx.bfloat16}),
    ):
        wanted = "float16" if re.search(r"(?<!b)float16|fp16", str((arguments, named))) else "bfloat16"
        assert model.to(*arguments, **named) is model
        assert str(model.dtype) == f"mlx.core.{wanted}" and model.config.dtype == wanted
        assert str(model(IDS).logits.dtype) == f"mlx.core.{wanted}"
    with pytest.raises(OptionError, match="device is 'moon', expected one of"):
        model.to("moon")
    with pytest.raises(OptionError, match="takes a device and a dtype, not precision"):
        model.to(precision="bf16")
    with pytest.raises(OptionError, match="dtype is 'float64', expected one of"):
        model.to("float64")


@pytest.mark.backends("numpy")
def test_the_backend_numpy_keeps_its_dtype(backend):
    model = fresh()
    assert model.to("float32").to("cpu").dtype == mx.float32
    with pytest.raises(OptionError, match="backend numpy computes in float32; load the model with dtype='bfloat16'"):
        model.to("bfloat16")
    narrow, other = (fresh(dtype="bfloat16", backend=each) for each in ("numpy", "mlx"))
    assert narrow.float().dtype == mx.float32 and narrow.config.dtype == "float32"
    np.testing.assert_allclose(np.array(narrow(IDS).logits), np.array(other.float()(IDS).logits), atol=1e-4)


@pytest.mark.parametrize("name", ["gen2", "untied"])
def test_embeddings_are_resized_in_table_and_head(name, tmp_path):
    model, ids = fresh(name, backend="mlx"), mx.array(IDS)
    old = model.config.text_config.vocab_size
    before, weight = np.array(model(IDS).logits), np.array(model.get_input_embeddings().weight)
    table = model.resize_token_embeddings(old + 5, pad_to_multiple_of=64)
    size = -(-(old + 5) // 64) * 64
    assert table == model.get_input_embeddings() and table.weight.shape[0] == size
    assert model.config.text_config.vocab_size == model.model.language_model.config.vocab_size == size
    np.testing.assert_allclose(np.array(table.weight)[-1], weight.mean(axis=0), atol=1e-6)
    logits = np.array(model(ids).logits)
    assert logits.shape[-1] == size
    np.testing.assert_allclose(logits[..., :old], before, atol=1e-4)
    assert model(np.array([[size - 1]])).logits.shape == (1, 1, size)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    np.testing.assert_allclose(np.array(again(IDS).logits), logits, atol=1e-4)
    model.resize_token_embeddings(600, mean_resizing=False)
    np.testing.assert_allclose(np.array(model(ids).logits), before[..., :600], atol=1e-4)
    for wrong in (300, True, 600.5):
        with pytest.raises(OptionError, match=r"new_num_tokens is .*, expected more than image_token_id 396"):
            model.resize_token_embeddings(wrong)


def test_embeddings_are_replaced():
    model = fresh()
    table = model.get_input_embeddings()
    model.set_input_embeddings(type(table.module)(table.num_embeddings, table.embedding_dim))
    assert model.get_input_embeddings() != table
    assert model.get_output_embeddings().module is model.get_input_embeddings().module  # tied
    model.set_input_embeddings(table)
    np.testing.assert_array_equal(np.array(model(IDS).logits), np.array(loaded()(IDS).logits))
    assert loaded("untied").get_output_embeddings() == loaded("untied").lm_head
    assert model.base_model is model.model and model.model.get_output_embeddings() is None
    model.tie_weights()
    assert str(model.device) in ("cpu", "mps", "cuda") and model.device.type == str(model.device)


def test_a_model_of_a_configuration_has_random_weights():
    config = AutoConfig.from_pretrained(GOLDEN / "gen2")
    model = AutoModelForImageTextToText.from_config(config)
    assert model.num_parameters() == loaded().num_parameters() and np.isfinite(np.array(model(IDS).logits)).all()


def test_a_model_of_no_configuration_is_refused():
    with pytest.raises(OptionError, match="config is dict, expected one of Lfm2VlConfig, Lfm3VlConfig, CausalLMConfig"):
        AutoModelForImageTextToText.from_config({"model_type": "lfm2_vl"})


# Configurations


def test_a_configuration_has_the_references_defaults():
    config = Lfm2VlConfig(text_config={"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2})
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    text = config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, 0)
    assert (config.output_attentions, config.output_hidden_states, config.return_dict) == (False, False, True)
    assert (config.image_token_id, config.downsample_factor, config.tie_word_embeddings) == (396, 2, True)


def test_a_configuration_takes_more_keywords():
    config: Any = Lfm2VlConfig(own=[3], output_attentions=True, tie_embedding=False, image_token_index=5)
    assert (config.own, config.output_attentions) == ([3], True)
    assert (config.tie_word_embeddings, config.image_token_id) == (False, 5)
    assert Lfm2VlConfig(torch_dtype=mx.bfloat16).dtype == Lfm2VlConfig(dtype="torch.bfloat16").dtype == "bfloat16"
    ends = Lfm2VlConfig(text_config={"eos_token_id": [7, 2]})
    assert ends.eos_token_id == [7, 2] and Lfm2VlConfig(text_config={"eos_token_id": [7]}).eos_token_id == 7
    assert config.get_text_config() is config.text_config
    with pytest.raises(ConfigError, match="downsample_factor is 'x'"):
        Lfm2VlConfig(downsample_factor="x")


@pytest.mark.parametrize("name", ["gen2", "gen25", "untied"])
def test_a_configuration_is_saved_and_loaded(name, tmp_path):
    config = AutoConfig.from_pretrained(GOLDEN / name)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(config.to_json_string()) == config.to_dict()
    assert AutoConfig.from_pretrained(tmp_path) == config == Lfm2VlConfig.from_dict(config.to_dict())
    changed = AutoConfig.from_pretrained(tmp_path, image_token_id=5)
    assert changed.image_token_id == 5 and changed != config


def test_attributes_of_a_configuration_survive(tmp_path):
    said = {"output_hidden_states": True, "use_cache": False, "note": "own", "labels": {"a": [1, 2]}}

    def says(config: Any) -> dict[str, Any]:
        return {name: getattr(config, name, None) for name in said}

    config = AutoConfig.from_pretrained(GOLDEN / "gen2", **said)
    config.save_pretrained(tmp_path / "config")
    model = fresh(config=config, backend="mlx").to("bfloat16")
    model.resize_token_embeddings(900)
    model.save_pretrained(tmp_path / "model")
    for made in (
        *(config, Lfm2VlConfig.from_dict(config.to_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))),
        *(AutoConfig.from_pretrained(tmp_path / "config"), AutoConfig.from_pretrained(tmp_path / "model")),
        *(model.config, model.model.config, AutoModelForImageTextToText.from_config(config).config),
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model").config,
    ):
        assert says(made) == said
    plain = AutoConfig.from_pretrained(GOLDEN / "gen2")
    assert not {"output_hidden_states", "note", "return_dict"} & plain.to_dict().keys()
    moved = Lfm2VlConfig.from_dict({**plain.to_dict(), "_name_or_path": "/home/me", "auto_map": {"A": "b"}})
    assert moved.to_dict() == plain.to_dict()


# Saving


def test_the_layout_of_transformers_is_that_of_the_hub(tmp_path):
    model = fresh("gen25", dtype="bfloat16")
    model.save_pretrained(tmp_path, hf=True, max_shard_size="5GB", safe_serialization=True)
    tensors: Any = mx.load(str(tmp_path / "model.safetensors"))
    assert "model.language_model.layers.0.conv.conv.weight" in tensors
    assert tensors["model.language_model.layers.0.conv.conv.weight"].shape[1] == 1  # (hidden, 1, taps) as torch has it
    assert {str(array.dtype) for array in tensors.values()} == {"mlx.core.bfloat16"}
    assert not any(name.startswith("lm_head") for name in tensors)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        np.array(again(IDS).logits.astype(mx.float32)), np.array(model(IDS).logits.astype(mx.float32))
    )
    assert again.generation_config == model.generation_config
    body: Any = Lfm2VlModel.from_pretrained(tmp_path)
    assert body(IDS)[0].shape == (1, 4, 64)
    with pytest.raises(OptionError, match="save_pretrained has no option 'colour'"):
        model.save_pretrained(tmp_path, colour=1)


@pytest.mark.parametrize(("size", "most"), [("100KB", 100_000), (50_000, 50_000), ("0.1 MiB", 104_857)])
def test_a_saved_model_has_files_of_max_shard_size(size, most, tmp_path):
    model = fresh()
    model.save_pretrained(tmp_path, max_shard_size=size, state_dict=None)
    files = [read_header(file) for file in tmp_path.glob("*.safetensors")]
    assert len(files) > 2
    assert all(len(file) == 1 or sum(info.nbytes for info in file.values()) <= most for file in files)
    np.testing.assert_array_equal(
        np.array(AutoModelForImageTextToText.from_pretrained(tmp_path)(IDS).logits), np.array(model(IDS).logits)
    )


@pytest.mark.parametrize("size", ["big", 0, -1, True, "5", None, 1.5])
def test_a_max_shard_size_that_is_none_is_refused(size, tmp_path):
    with pytest.raises(OptionError, match=r"max_shard_size is .*, expected bytes"):
        fresh().save_pretrained(tmp_path / "out", max_shard_size=size)
    with pytest.raises(OptionError, match="no option 'state_dict'; call load_weights"):
        fresh().save_pretrained(tmp_path / "out", state_dict={})
    assert not (tmp_path / "out").exists()


@pytest.mark.sampled(8)
@pytest.mark.parametrize("hf", [True, False])
@pytest.mark.parametrize("how", ["save_pretrained", "push_to_hub"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [np.inf, np.nan], ids=str)
def test_weights_that_are_not_finite_are_not_written(value, dtype, how, hf, tmp_path):
    fresh().save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = fresh(dtype=dtype, backend="mlx")
    table = model.get_input_embeddings()
    table.weight = mx.where(mx.arange(64) == 3, value, table.weight).astype(table.weight.dtype)
    way = "load the model with dtype 'bfloat16' or 'float32'" if dtype == "float16" else "nothing was written"
    words = f"embed_tokens.weight holds NaN, infinity or numbers beyond the range of {dtype}; {way}$"
    with pytest.raises(NotFiniteError, match=words):
        model.save_pretrained(tmp_path, hf=hf) if how == "save_pretrained" else model.push_to_hub("maker/one", hf=hf)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


PROGRAM = """
import json, sys
from mlx_lfm2vl import AutoConfig, AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
urls = [model.push_to_hub("maker/one", hf=True, commit_message="the model"), processor.push_to_hub("maker/one")]
model.save_pretrained(sys.argv[2] + "/two", push_to_hub=True, repo_id="maker/two", private=True)
AutoConfig.from_pretrained(folder).push_to_hub("maker/three")
model.generation_config.push_to_hub("maker/three")
processor.tokenizer.push_to_hub("maker/four")
processor.save_pretrained(sys.argv[2] + "/two", push_to_hub=True, repo_id="maker/two")
processor.tokenizer.encode("a")
again = AutoModelForImageTextToText.from_pretrained("maker/one", cache_dir=sys.argv[2] + "/cache", token="hf_right")
ids = [[1, 500, 501]]
same = again(ids).logits.tolist() == model(ids).logits.tolist()
try:
    processor.push_to_hub("maker/one", colour=1)
except Exception as error:
    refused = f"{type(error).__name__}: {error}"
try:
    processor.push_to_hub("maker/one", token="hf_wrong")
except Exception as error:
    denied = type(error).__name__
print(json.dumps({"urls": urls, "same": same, "refused": refused, "denied": denied}))
"""


def test_models_processors_and_configurations_are_pushed_to_the_hub(tmp_path):
    with HubServer({}) as hub:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = {
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            **{"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parent.parent), "HF_TOKEN": "hf_right"},
        }
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(GOLDEN / "gen2"), str(tmp_path)],
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert process.returncode == 0, process.stderr[-2000:]
        said = json.loads(process.stdout.splitlines()[-1])
        one, two = hub.repositories["maker/one"], hub.repositories["maker/two"]
        model = {"config.json", "generation_config.json", "model.safetensors"}
        processor = {"chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
        assert model | processor <= set(one.files) and model | processor <= set(two.files)
        assert two.private and not one.private
        parts = [set(hub.repositories[f"maker/{name}"].files) - {".gitattributes"} for name in ("three", "four")]
        assert parts == [{"config.json", "generation_config.json"}, processor - {"processor_config.json"}]
        assert "the model" in hub.commits
        assert said["same"] and all(url.startswith(hub.url) for url in said["urls"])
        assert said["refused"] == "OptionError: push_to_hub has no option 'colour'"
        assert said["denied"] == "HubError"


def test_a_models_from_pretrained_takes_a_template_and_both_dtypes():
    with pytest.warns(UserWarning, match="from_pretrained ignores chat_template, which is the processor's"):
        model = AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", chat_template="{{ messages }}")
    again = AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", dtype="bfloat16", torch_dtype="float32")
    assert (model.dtype, again.dtype) == (mx.float32, mx.bfloat16)
