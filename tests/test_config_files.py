"""The files beside the weights: kept as they are, and completed where something is missing and known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import GOLDEN

from mlx_lfm2vl.config import Lfm2VlConfig, ProcessorConfig
from mlx_lfm2vl.conversion.check import check_folder, check_index
from mlx_lfm2vl.conversion.config_files import generation_json
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.errors import ConfigError, OutputError, TemplateError, TokenizerError, WeightsError


def config(hidden: int, layers: int, vocabulary: int) -> Lfm2VlConfig:
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary, "eos_token_id": 7}
    return Lfm2VlConfig.from_dict({"model_type": "lfm2_vl", "text_config": text})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1024, 16, 65536), {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}),
        ((2048, 16, 65536), {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}),
        ((2048, 30, 65536), {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}),
        ((2048, 30, 128000), {"temperature": 0.2, "top_k": 50, "repetition_penalty": 1.0}),
    ],
)
def test_the_makers_sampling_is_added_where_the_source_has_none(shape, expected, tmp_path):
    assert generation_json(tmp_path, config(*shape)) == {"eos_token_id": 7, "do_sample": True, **expected}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9, "_from_model_config": true}')
    found = generation_json(tmp_path, config(*shape))
    assert found == {"eos_token_id": [9, 7], "_from_model_config": True, "do_sample": True, **expected}


def test_sampling_that_the_source_states_stays(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.7}')
    assert generation_json(tmp_path, config(1024, 16, 65536)) is None


def test_an_unknown_model_gets_its_end_tokens_only(tmp_path):
    assert generation_json(tmp_path, config(512, 4, 1000)) == {"eos_token_id": 7}
    unknown = config(512, 4, 1000)
    several = replace(unknown, text_config=replace(unknown.text_config, eos_token_id=(7, 8)))
    assert generation_json(tmp_path, several) == {"eos_token_id": [7, 8]}


@pytest.fixture
def source(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "gen25", tmp_path / "source"))


def test_without_processor_files_the_policy_of_config_json_is_written(source, tmp_path):
    data = json.loads((source / "config.json").read_text())
    (source / "processor_config.json").unlink()
    (source / "config.json").write_text(json.dumps({**data, "max_tiles": 6, "min_image_tokens": 32}))
    out = convert(source, tmp_path / "out")
    policy = ProcessorConfig.from_folder(out).image
    assert (policy.max_tiles, policy.min_image_tokens, policy.do_image_splitting) == (6, 32, True)


def test_tiling_is_as_the_source_has_it_and_a_doubt_is_said(source, tmp_path):
    data = json.loads((source / "processor_config.json").read_text())
    (data.get("image_processor") or data)["do_image_splitting"] = False
    (source / "processor_config.json").write_text(json.dumps(data))
    notes: list[str] = []
    out = convert(source, tmp_path / "out", on_note=notes.append)
    assert (out / "processor_config.json").read_bytes() == (source / "processor_config.json").read_bytes()
    assert [note for note in notes if "switches tiling off" in note]


def test_a_patch_budget_that_is_too_small_does_not_come_along(source, tmp_path):
    """Published copies say 256, with which transformers would cut tiles short; the limits beside it say 1024."""
    file = source / "processor_config.json"
    data = json.loads(file.read_text())
    image = data["image_processor"]
    assert image["max_num_patches"] == 1024
    file.write_text(json.dumps({**data, "image_processor": {**image, "max_num_patches": 256}}))
    out = convert(source, tmp_path / "out")
    assert json.loads((out / "processor_config.json").read_text()) == data


def test_links_of_the_hubs_cache_are_files_of_the_repository(source, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "main" / "8bit", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../../blobs/{number}")
    out = convert(snapshot, tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not any(file.is_symlink() for file in out.iterdir())
    (snapshot / "NOTICE").symlink_to(source / "config.json")
    with pytest.raises(OutputError, match="NOTICE: is a link that leads out of the folder"):
        convert(snapshot, tmp_path / "other")


def test_links_are_followed_into_the_shared_store_and_no_further(source, tmp_path):
    """What came through Xet: the repository's blob is itself a link, to the cache's own store."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "main", tmp_path / "models--a--b" / "blobs"
    store = tmp_path / "blobs" / "a8"
    for place in (snapshot, blobs, store):
        place.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, store / str(number))
        (blobs / f"etag-{number}").symlink_to(f"../../blobs/a8/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/etag-{number}")
    out = convert(snapshot, tmp_path / "out")
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    (tmp_path / "precious").write_text("a key")
    (snapshot / "NOTICE").symlink_to("../../../precious")
    with pytest.raises(OutputError, match="NOTICE: is a link that leads out of the folder"):
        convert(snapshot, tmp_path / "other")


def test_a_folder_that_is_called_snapshots_opens_nothing_beside_it(source, tmp_path):
    folder = tmp_path / "home" / "snapshots" / "model"
    shutil.copytree(source, folder)
    (tmp_path / "home" / "key").write_text("precious")
    (folder / "NOTICE").symlink_to("../../key")
    with pytest.raises(OutputError, match="NOTICE: is a link that leads out of the folder"):
        convert(folder, tmp_path / "out")


def test_code_and_foreign_weights_are_not_copied(source, tmp_path):
    for name in ("modeling_x.py", "pytorch_model.bin", "training_args.bin", "notes.md"):
        (source / name).write_text("x")
    for name in ("LICENSE", "NOTICE.txt"):
        (source / name).write_text(name)
    names = {path.name for path in convert(source, tmp_path / "out").iterdir()}
    assert not names & {"modeling_x.py", "pytorch_model.bin", "training_args.bin", "notes.md"}
    assert {"LICENSE", "NOTICE.txt", "README.md", "model.safetensors.index.json"} <= names


def test_a_model_without_a_template_converts_and_the_lack_is_said(source, tmp_path):
    (source / "chat_template.jinja").unlink()
    notes: list[str] = []
    out = convert(source, tmp_path / "out", q_bits=8, q_group_size=32, on_note=notes.append)
    assert [note for note in notes if "the quantization error was not measured" in note]
    assert [note for note in notes if "no question can be asked of this model" in note]
    assert not (out / "quantization_report.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer.json", None, TokenizerError),
        ("tokenizer.json", "{", TokenizerError),
        ("chat_template.jinja", "a\n{% if %}", TemplateError),
        ("processor_config.json", '{"max_tiles": 0}', ConfigError),
        ("generation_config.json", '{"eos_token_id": -1}', ConfigError),
    ],
)
def test_what_is_damaged_in_the_source_is_said_of_the_source(source, tmp_path, name, content, error):
    (source / name).unlink()
    if content is not None:
        (source / name).write_text(content)
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "out")
    assert str(caught.value).startswith(f"{source}/{name}: ")
    assert ".part" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_index_that_is_not_true_is_found(source, tmp_path):
    out = convert(source, tmp_path / "out")
    assert check_folder(out) == []
    file = out / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(
        WeightsError, match=rf"says '{name}' is in 'model-00001-of-00002.safetensors', the files say 'model\."
    ):
        check_index(out)
    for content in ("[]", '{"weight_map": 3}', '{"weight_map": {"a": ["/etc/passwd"]}}'):
        file.write_text(content)
        with pytest.raises(WeightsError, match=r"index\.json: (holds list|has no weight_map|says 'a' is in \['/etc)"):
            check_index(out)
    file.unlink()
    with pytest.raises(WeightsError, match=r"index\.json: no such file"):
        check_folder(out)
