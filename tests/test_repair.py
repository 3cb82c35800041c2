"""convert --repair: what converters leave wrong is found, told, and put right in a new folder; the rest stays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from safetensors.numpy import load_file, save_file

from mlx_lfm2vl import Lfm2VlProcessor
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.config import ProcessorConfig
from mlx_lfm2vl.conversion import repair as conversion_repair
from mlx_lfm2vl.conversion.check import check_folder
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.conversion.repair import inspect, repair
from mlx_lfm2vl.errors import OutputError, WeightsError
from mlx_lfm2vl.weights.load import load_model

IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder)(IDS, use_cache=False).logits.astype(mx.float32))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound MLX folder, 8 bits."""
    return convert(GOLDEN / "gen25", tmp_path / "folder", q_bits=8, q_group_size=32, verify=False)


def edit(file: Path, **changes) -> None:
    data = json.loads(file.read_text())
    (data.get("image_processor") or data).update(changes)
    file.write_text(json.dumps(data))


def test_a_sound_folder_needs_nothing_and_gets_no_copy(folder, tmp_path):
    assert inspect(folder) == []
    assert repair(folder, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_tiling_and_patch_budget(folder, tmp_path):
    edit(folder / "processor_config.json", do_image_splitting=False, use_thumbnail=False, max_num_patches=256)
    found = [str(finding) for finding in repair(folder, tmp_path / "out")]
    assert found == [
        "processor_config.json: do_image_splitting is false, as converters leave it; set to true",
        "processor_config.json: use_thumbnail is false with it; set to true",
        "processor_config.json: max_num_patches is 256; set to 1024",
    ]
    data = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    data = data.get("image_processor") or data
    assert (data["do_image_splitting"], data["use_thumbnail"], data["max_num_patches"]) == (True, True, 1024)
    assert ProcessorConfig.from_folder(tmp_path / "out").notes == ()
    assert inspect(tmp_path / "out") == []


def test_the_patch_budget_is_the_one_of_pictures_in_tiles(folder, tmp_path):
    """Without tiles fewer patches would do; the budget that the makers wrote stays true."""
    edit(folder / "processor_config.json", do_image_splitting=False, max_image_tokens=64, min_image_tokens=16)
    (found,) = repair(folder, tmp_path / "out")
    assert found.problem.startswith("do_image_splitting is false")
    data = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert (data.get("image_processor") or data)["max_num_patches"] == 1024
    assert inspect(tmp_path / "out") == []


def test_stale_tensors_and_a_stale_index(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    extra = {f"multi_modal_projector.layer_norm.{leaf}": np.ones(160, np.float32) for leaf in ("weight", "bias")}
    save_file({**tensors, **extra}, folder / "model.safetensors", metadata={"format": "mlx"})
    first, second = [str(finding) for finding in repair(folder, tmp_path / "out")]
    assert "multi_modal_projector.layer_norm" in first and "1 more are used by nothing; left out" in first
    assert second.startswith("model.safetensors.index.json: says 'multi_modal_projector.layer_norm")
    assert set(mx.load(str(tmp_path / "out" / "model.safetensors"))) == set(tensors)
    np.testing.assert_array_equal(logits(tmp_path / "out"), logits(folder))
    assert check_folder(tmp_path / "out") == []


def test_missing_files_come_from_the_original(folder, tmp_path):
    for name in ("chat_template.jinja", "tokenizer.json", "processor_config.json"):
        (folder / name).unlink()
    with pytest.raises(OutputError, match=r"tokenizer.json: is missing; cannot be repaired from here; name .*--base"):
        repair(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = repair(folder, tmp_path / "out", base=GOLDEN / "gen25")
    assert [finding.file for finding in found] == ["tokenizer.json", "chat_template.jinja", "processor_config.json"]
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (GOLDEN / "gen25" / name).read_bytes()
    assert ProcessorConfig.from_folder(tmp_path / "out") == ProcessorConfig.from_folder(GOLDEN / "gen25")


@pytest.mark.parametrize("base", [GOLDEN / "gen25", "attacker/track-me"])
def test_a_card_opens_neither_a_folder_nor_a_strangers_repository(folder, tmp_path, monkeypatch, base):
    """Whoever wrote the card would choose what is read here, or learn who repairs."""
    (folder / "chat_template.jinja").unlink()
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
    monkeypatch.setattr(conversion_repair, "resolve", lambda name, **_: Path(name) if name == folder else asked(name))

    def asked(name):
        raise AssertionError(f"{name} was asked for")

    notes: list[str] = []
    (finding,) = repair(folder, tmp_path / "out", dry_run=True, on_note=notes.append)
    assert finding.remedy is None
    assert notes == (
        [f"its card names {base} as the base model; give it as the base (--base) to take files from there"]
        if base == "attacker/track-me"
        else []
    )


def test_a_count_that_the_weights_contradict_and_code(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    config["vision_feature_layer"] = -2
    (source / "config.json").write_text(json.dumps(config))
    (source / "modeling_lfm2_vl.py").write_text("raise SystemExit")
    found = {finding.file: str(finding) for finding in repair(source, tmp_path / "out")}
    assert "says 4 layers of the tower; set to the 3 there are" in found["config.json"]
    assert "modeling_lfm2_vl.py" in found and not (tmp_path / "out" / "modeling_lfm2_vl.py").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]["num_hidden_layers"] == 3


def test_quantization_errord_weights_are_beyond_repair(folder, tmp_path):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        repair(folder, tmp_path / "out")


def test_an_index_that_names_other_files_is_written_anew(folder, tmp_path):
    """As of a sharded original that a converter copied over its own."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (finding,) = repair(folder, tmp_path / "out")
    assert finding.file == "model.safetensors.index.json" and finding.remedy == "written anew"
    assert check_folder(tmp_path / "out") == []
    (folder / "model.safetensors.index.json").unlink()
    (finding,) = repair(folder, tmp_path / "out", overwrite=True)
    assert finding.file == "model.safetensors.index.json"
    assert check_folder(tmp_path / "out") == []


def test_repositories_are_repaired_from_the_original_of_their_card(folder, tmp_path):
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "README.md").write_text("---\nlibrary_name: mlx\nbase_model: LiquidAI/original\n---\n")
    edit(folder / "processor_config.json", do_image_splitting=False, use_thumbnail=False)
    repositories = {
        "someone/broken": Repository({path.name: path.read_bytes() for path in folder.iterdir()}),
        "LiquidAI/original": Repository({path.name: path.read_bytes() for path in (GOLDEN / "gen25").iterdir()}),
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    words = ["convert", "--repair", "--hf-path", "someone/broken", "--mlx-path", str(tmp_path / "out")]
    with HubServer(repositories) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lfm2vl", *words],
            env=clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
            cwd=GOLDEN.parent.parent,
            capture_output=True,
            text=True,
            timeout=180,
        )
        fetched = [request.path for request in hub.requests if request.method == "GET"]
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in told[:-1]] == [
        *("tokenizer.json", "chat_template.jinja", "processor_config.json", "processor_config.json")
    ]
    assert told[-1] == str(tmp_path / "out")
    assert not any("LiquidAI/original" in path and path.endswith(".safetensors") for path in fetched)
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (GOLDEN / "gen25" / name).read_bytes()
    assert inspect(tmp_path / "out") == []


def test_from_the_command_line(folder, tmp_path, capsys):
    edit(folder / "processor_config.json", max_num_patches=256)
    words = ["convert", "--repair", "--hf-path", str(folder), "--mlx-path", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    said = "processor_config.json: max_num_patches is 256; set to 1024\n"
    assert capsys.readouterr().out == said and not (tmp_path / "out").exists()
    assert main(words) == 0
    assert capsys.readouterr().out == said + f"{tmp_path / 'out'}\n"
    assert main(["convert", "--repair", "--hf-path", str(tmp_path / "out"), "--mlx-path", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().err == "mlx-lfm2vl: nothing to repair; nothing written\n"
    assert main([*words, "-q"]) == 2
    assert "leave --quantize out" in capsys.readouterr().err


def test_a_missing_policy_and_tokenizer_config_come_from_the_base(tmp_path):
    """In the first layout one file says how pictures are cut, and the other is there without it."""
    folder = convert(GOLDEN / "gen2", tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert (folder / "processor_config.json").is_file()
    with pytest.raises(OutputError, match=r"tokenizer_config.json: is missing; .*--base"):
        repair(folder, tmp_path / "out")
    found = repair(folder, tmp_path / "out", base=GOLDEN / "gen2")
    assert [(finding.file, finding.problem) for finding in found] == [
        ("tokenizer_config.json", "is missing"),
        ("processor_config.json", "does not say how pictures are cut"),
    ]
    wanted = ProcessorConfig.from_folder(GOLDEN / "gen2")
    assert ProcessorConfig.from_folder(tmp_path / "out") == wanted and wanted.image.tile_size == 128
    text = (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert text == (GOLDEN / "gen2" / "tokenizer_config.json").read_text()


def test_a_template_within_the_bases_tokenizer_config_is_taken(folder, tmp_path):
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    template = (base / "chat_template.jinja").read_text()
    edit(base / "tokenizer_config.json", chat_template=template)
    edit(folder / "tokenizer_config.json", model_max_length=77)  # its own, which stays
    for place in (base, folder):
        (place / "chat_template.jinja").unlink()
    assert [finding.file for finding in repair(folder, tmp_path / "out", base=base)] == ["chat_template.jinja"]
    assert inspect(tmp_path / "out") == []
    made, own = (json.loads((place / "tokenizer_config.json").read_text()) for place in (tmp_path / "out", folder))
    assert made == {**own, "chat_template": template} and own["model_max_length"] == 77


def test_an_empty_processor_file_is_replaced_by_the_bases(folder, tmp_path):
    (folder / "processor_config.json").write_text('{"processor_class": "Lfm2VlProcessor"}')
    with pytest.raises(OutputError, match=r"processor_config.json: does not say how pictures are cut; .*--base"):
        repair(folder, tmp_path / "out")
    (found,) = repair(folder, tmp_path / "out", base=GOLDEN / "gen25")
    assert str(found) == f"processor_config.json: does not say how pictures are cut; taken from {GOLDEN / 'gen25'}"
    assert ProcessorConfig.from_folder(tmp_path / "out") == ProcessorConfig.from_folder(GOLDEN / "gen25")
    assert inspect(tmp_path / "out") == []


def test_tiling_that_is_off_on_purpose_stays_off(folder, tmp_path):
    """As this package writes it for whoever passed `do_image_splitting=False`."""
    Lfm2VlProcessor.from_pretrained(folder, do_image_splitting=False).save_pretrained(folder)
    assert inspect(folder) == []


def test_references_to_code_and_a_false_total_are_found(tmp_path):
    folder = convert(GOLDEN / "gen25", tmp_path / "model")
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "processing.Processor"})
    edit(folder / "model.safetensors.index.json", metadata={"total_size": 3})
    found = repair(folder, tmp_path / "out")
    assert {(finding.file, finding.remedy) for finding in found} == {
        ("processor_config.json", "left out"),
        ("model.safetensors.index.json", "written anew"),
    }
    assert repair(tmp_path / "out", tmp_path / "again", dry_run=True) == []
    assert "auto_map" not in (tmp_path / "out" / "processor_config.json").read_text()
