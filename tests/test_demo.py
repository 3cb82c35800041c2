"""The bundled demo model: a complete checkpoint of the family that answers about pictures it never saw."""

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Loaded, cache_by_backend
from safetensors import safe_open

from mlx_lfm2vl import GenerationOptions, Lfm2VlProcessor, demo, generate, load
from mlx_lfm2vl.cli import main
from tools.demo import files, rows, tasks

ROOT = Path(__file__).parents[1]
WRITTEN = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@cache_by_backend
def load_demo() -> Loaded:
    return load("demo")


@pytest.fixture
def loaded() -> Loaded:
    return load_demo()


def test_the_folder_is_complete_and_small():
    names = {file.name for file in demo.path().iterdir() if file.is_file()}
    assert names >= {*WRITTEN, "model.safetensors", "README.md"}
    assert sum(file.stat().st_size for file in demo.path().iterdir() if file.is_file()) < 8_000_000


@pytest.mark.parametrize("name", WRITTEN)
def test_the_files_are_those_that_training_uses(name, tmp_path):
    files.write(tmp_path)
    ours, made = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (demo.path(), tmp_path))
    assert ours == made


def test_weights_are_bfloat16_under_the_hub_names_and_tied():
    with safe_open(demo.path() / "model.safetensors", "np") as stored:
        names = list(stored.keys())
        assert {stored.get_slice(name).get_dtype() for name in names} == {"BF16"}
    parts = ("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector.")
    assert all(name.startswith(parts) for name in names)
    assert not any("lm_head" in name for name in names)


def test_special_tokens_have_the_ids_of_the_family():
    config = json.loads((demo.path() / "config.json").read_text())
    generation = json.loads((demo.path() / "generation_config.json").read_text())
    processor = Lfm2VlProcessor.from_pretrained(demo.path())
    assert config["image_token_id"] == 396
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 7, 0)
    assert generation["do_sample"] is False
    picture = np.zeros((128, 128, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is in this image?"}]
    ids = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = np.asarray(ids).reshape(-1).tolist()
    assert ids[:2] == [1, 6] and ids.count(1) == 1
    assert ids[4:22] == [498, *[396] * 16, 499]


def test_a_picture_beyond_the_budget_is_tiled():
    processor = Lfm2VlProcessor.from_pretrained(demo.path())
    views = processor.image_processor(np.zeros((256, 256, 3), np.uint8), return_row_col_info=True)
    assert views["pixel_values"].shape[0] == 5
    assert (np.asarray(views["image_rows"]).item(), np.asarray(views["image_cols"]).item()) == (2, 2)


# Chance: a description at most 1 in 864 (size, colour, shape and place of one object), a count 1 in 10, a choice
# between pictures 1 in 2 or 3; always the commonest answer ("Yes.") gets about an eighth of the questions.
@pytest.mark.backends("numpy")
@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("task", "least"),
    [
        *(("describe", 0.8), ("ask", 0.7), ("chat", 0.75), ("count", 0.6), ("read", 0.55), ("handwritten", 0.7)),
        *(("compare", 0.7), ("tiled", 0.65), ("detect", 0.75), ("recall", 0.8), ("overlap", 0.65)),
        ("extract", 0.85),
    ],
)
def test_held_out_pictures_are_answered_far_above_chance(tmp_path, capsys, task, least):
    assert rate(tmp_path, capsys, task) >= least


@pytest.mark.backends("numpy")
def test_tiles_show_what_the_whole_does_not(tmp_path, capsys):
    assert rate(tmp_path, capsys, "tiled", "--no-tiling") < rate(tmp_path, capsys, "tiled")


def rate(folder: Path, capsys: pytest.CaptureFixture[str], task: str, *options: str) -> float:
    """The mean score of the demo over 30 held-out rows of a task."""
    rows.write_rows(folder / "rows.jsonl", rows.scored(task, 30))
    assert main(["evaluate", "demo", "--task", str(folder / "rows.jsonl"), "--json", *options]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    return model["groups"][task]["score"]


def examples() -> list[tuple[str, str, str]]:
    """(picture, prompt, answer) of the rows of examples/README.md's table that the demo answers."""
    lines = (ROOT / "examples" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [(picture.strip("`"), prompt, answer) for picture, prompt, answer in rows]


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize(("picture", "prompt", "answer"), examples())
def test_the_examples_are_answered_as_their_table_says(loaded, picture, prompt, answer):
    model, processor = loaded
    assert generate(model, processor, prompt, images=[ROOT / "examples" / picture]) == answer


def test_the_same_answer_twice(loaded: Loaded):
    sample = next(rows.held_out("describe", 1))
    options = GenerationOptions(max_tokens=64)
    first, second = (generate(*loaded, "Describe the image.", list(sample.images), options=options) for _ in range(2))
    assert first == second != ""


@pytest.mark.reference
def test_transformers_gives_the_same_answers(loaded):
    torch = pytest.importorskip("torch")
    importlib.import_module("tools.reference_shim")  # before transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(demo.path(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(demo.path())
    ours = load("demo", dtype="float32")
    for seed, size in ((1, (128, 128)), (2, (96, 160)), (3, (128, 128))):
        sample = tasks.make("describe", "test", seed, size)
        content = [{"type": "image", "image": sample.images[0]}, {"type": "text", "text": "Describe the image."}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=64)
        text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert generate(*ours, "Describe the image.", [sample.images[0]]) == text
