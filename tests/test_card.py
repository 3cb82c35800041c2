"""README.md of a converted folder, and what is read of the source's: claims, strangers' heads, links, sizes."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import GOLDEN
from huggingface_hub import ModelCard

from mlx_lfm2vl.conversion.card import INSTALL, MOST_OF_A_CARD, CardSource, front_matter, renamed, write_card
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.errors import OutputError


def source_with_card(folder: Path, head: str) -> Path:
    shutil.copytree(GOLDEN / "gen25", folder)
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n# A model\n\nlicense: not this\n")
    return folder


def test_the_card_is_read_by_the_hub_and_says_what_the_source_says(tmp_path):
    head = (
        'license: other\nlicense_name: lfm1.0\nlicense_link: LICENSE\nlanguage:\n- en\n- "no"\n- ja\n'
        "base_model: LiquidAI/LFM2.5-VL-450M\nlibrary_name: transformers\nmodel-index:\n- name: x\n  results: []\n"
        "datasets: [me/photos, them/charts]\ntags: [liquid, 'edge', transformers, safetensors, 4-bit]"
    )
    source = source_with_card(tmp_path / "source", head)
    (source / "LICENSE").write_text("the licence")
    out = convert(source, tmp_path / "My-8bit", q_bits=8, q_group_size=32, verify=False)
    assert (out / "LICENSE").read_text() == "the licence"
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data["library_name"] == "mlx" and data["pipeline_tag"] == "image-text-to-text"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "lfm1.0", "LICENSE")
    assert data["language"] == ["en", "no", "ja"]
    assert (data["base_model"], data["base_model_relation"]) == ("LiquidAI/LFM2.5-VL-450M", "finetune")
    assert data["datasets"] == ["me/photos", "them/charts"]
    assert data["tags"] == ["mlx", "mlx-lfm2vl", "lfm2_vl", "vision-language", "8-bit", "liquid", "edge"]
    text = (out / "README.md").read_text()
    assert "Converted from a local checkpoint, which was made from [LiquidAI/LFM2.5-VL-450M](" in text
    again = convert(out, tmp_path / "My-4bit", q_bits=4, q_group_size=32, verify=False)
    data = ModelCard.load(again / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("LiquidAI/LFM2.5-VL-450M", "quantized")
    assert "mlx-lfm2vl generate --model My-8bit" in text and 'load("My-8bit")' in text
    assert "Quantised to 8 bits in groups of 32" in text


def test_a_dense_conversion_of_a_repository_has_a_relation_too(tmp_path):
    shutil.copy(GOLDEN / "gen25" / "config.json", tmp_path)
    write_card(tmp_path, CardSource("me/fine-tune", {"base_model": "LiquidAI/LFM2.5-VL-450M"}), "me/mine")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("me/fine-tune", "quantized")


@pytest.mark.parametrize(
    ("said", "fused", "relation"),
    [
        ({}, False, "finetune"),
        ({}, True, "finetune"),
        ({"base_model_relation": "merge"}, False, "merge"),
        ({"base_model_relation": "adapter"}, True, "finetune"),
        ({"tags": ["mlx"]}, False, "quantized"),
    ],
)
def test_a_local_folder_has_a_relation_to_its_base(said, fused, relation, tmp_path):
    shutil.copy(GOLDEN / "gen25" / "config.json", tmp_path)
    source = CardSource(None, {"base_model": "LiquidAI/LFM2.5-VL-450M", **said})
    write_card(tmp_path, source, "mine", fused=fused)
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("LiquidAI/LFM2.5-VL-450M", relation)


@pytest.mark.parametrize(("token", "said"), [(396, False), (390, True)])
def test_the_card_says_where_swift_takes_another_image_token(token, said, tmp_path):
    data = json.loads((GOLDEN / "gen25" / "config.json").read_text()) | {"image_token_id": token}
    (tmp_path / "config.json").write_text(json.dumps(data))
    write_card(tmp_path, CardSource(None), "mine")
    text = (tmp_path / "README.md").read_text()
    assert (f"mlx-swift-lm takes 396 for the image token, which is {token} here" in text) == said


@pytest.mark.parametrize(
    ("options", "now"),
    [
        ({"dequantize": True}, "The weights are dense (float32)."),
        ({"q_bits": 4, "q_group_size": 32}, "Quantised to 4 bits in groups of 32, mode affine"),
    ],
)
def test_what_an_earlier_quantisation_lost_is_told(options, now, tmp_path):
    eight = convert(GOLDEN / "gen25", tmp_path / "eight", q_bits=8, q_group_size=32, verify=False)
    assert "not dense" not in (eight / "README.md").read_text()
    text = (convert(eight, tmp_path / "out", verify=False, **options) / "README.md").read_text()
    assert now in text
    assert "The source was not dense: Quantised to 8 bits in groups of 32, mode affine" in text
    assert "What that lost is not regained." in text


def test_the_card_says_which_parts_have_other_bits(tmp_path):
    mixed = convert(GOLDEN / "gen25", tmp_path / "mixed", q_recipe="mixed_4_8", q_group_size=32, verify=False)
    text = (mixed / "README.md").read_text()
    assert "Other widths: the vision tower (dense), the projector (dense), the embeddings (8 bits)." in text
    whole = convert(GOLDEN / "gen25", tmp_path / "whole", q_bits=4, q_group_size=32, q_vision=True, verify=False)
    text = (whole / "README.md").read_text()  # the tower's rows are too short for a group
    assert "Other widths: the vision tower (dense), the projector (dense and 4 bits)." in text


def test_the_card_says_how_programs_are_installed_and_load_the_folder(tmp_path):
    text = (convert(GOLDEN / "gen25", tmp_path / "out") / "README.md").read_text()
    assert INSTALL in text and "pip install mlx-lfm2vl" not in text
    assert "python -m mlx_vlm.generate --model out --image photo.jpg" in text
    assert "this folder itself was not run there" in text


def test_a_name_changes_in_our_cards_only(tmp_path):
    text = (convert(GOLDEN / "gen25", tmp_path / "out") / "README.md").read_text()
    card = renamed(text, "me/Mine-8bit")
    assert card.count("me/Mine-8bit") == 4 and 'load("me/Mine-8bit")' in card and "--model out " not in card
    assert card.replace("me/Mine-8bit", "out") == text
    assert renamed("# out\n\nMy own words about out.\n", "me/x") == "# out\n\nMy own words about out.\n"


def test_a_licence_that_did_not_come_along_is_not_linked(tmp_path):
    head = "license: other\nlicense_name: lfm1.0\nlicense_link: LICENSE"
    out = convert(source_with_card(tmp_path / "source", head), tmp_path / "out")
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert (data["license"], data["license_name"], data.get("license_link")) == ("other", "lfm1.0", None)


def test_the_python_of_the_card_runs(tmp_path, monkeypatch, capsys):
    convert(GOLDEN / "gen25", tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    shutil.copy(GOLDEN / "pictures" / "small.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.strip()


def test_a_card_claims_no_licence_and_no_base_that_is_not_known(tmp_path):
    out = convert(GOLDEN / "gen25", tmp_path / "out")
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert not {"license", "base_model", "base_model_relation"} & set(data)
    assert data["language"] == ["en"]


@pytest.mark.parametrize(
    "text",
    [
        "---" + "\n" * 10**6,
        "---\n-" + " " * 10**6 + ":\n---\n",
        "---\n" + "a" * 10**6,
        "---\na:" + " " * 10**6 + "\n---\n",
    ],
)
def test_the_head_of_a_card_is_read_in_one_go(text):
    started = time.process_time()
    assert front_matter(text) in ({}, {"a": ""})
    assert time.process_time() - started < 5


def test_a_card_that_lies_elsewhere_is_not_read(tmp_path):
    (tmp_path / "private.md").write_text("---\nlicense: my-private-words\n---\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "private.md")
    with pytest.raises(OutputError, match=r"README.md: is a link that leads out of the folder"):
        CardSource.of(tmp_path / "model", tmp_path / "model")


def test_only_the_beginning_of_a_card_is_read(tmp_path):
    with (tmp_path / "README.md").open("wb") as file:
        file.write(b"---\nlicense: mit\n---\n")
        file.truncate(20 * 2**30)
    assert CardSource.of(tmp_path, tmp_path).front_matter == {"license": "mit"}


def test_what_is_no_text_is_left_out_and_norwegian_stays():
    text = "---\nlanguage:\n- en\n- no\n- {a: b}\nlicense: mit\nlicense_name: 3\nextra:\n  a: b\n---\n# x\n"
    assert front_matter(text) == {"language": ["en", "no"], "license": "mit"}


@pytest.mark.parametrize(
    "head",
    [
        "license: mit: it\n",
        "- license\n",
        "license: mit\n3: x\n",
        "license: mit\nself: x\n",
        "license: !!python/object/apply:os.getcwd []\n",
        "license: 1" + ":00" * 20_000 + ".5\n",
        "license: 2001-13-45\n",
        "license: " + "9" * 60_000 + "\n",
        "license: " + "[" * 60_000 + "\n",
        "license: &a mit\nlanguage: [*a]\n",
        "k0: &k0 {a: 1}\n" + "".join(f"k{n + 1}: &k{n + 1} {{<<: [*k{n}, *k{n}]}}\n" for n in range(40)),
    ],
    ids=range(11),
)
def test_a_head_that_cannot_be_read_says_nothing_and_costs_little(head, capfd):
    started = time.process_time()
    assert front_matter(f"---\n{head}---\n") == {}
    assert time.process_time() - started < 5
    assert capfd.readouterr() == ("", "")


def test_what_the_source_says_ends_neither_the_card_nor_its_head(tmp_path):
    shutil.copy(GOLDEN / "gen25" / "config.json", tmp_path)
    license = "a\n---\n# no \ud800\0 \x1b"
    write_card(tmp_path, CardSource(None, {"license": license, "language": ["no", "'", "- x", "#"]}), "name")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["license"] == license and data["language"] == ["no", "'", "- x", "#"]
    assert (tmp_path / "README.md").read_text().count("\n---\n") == 1
    link = "x" * 3000
    write_card(tmp_path, CardSource(None, {"license": "other", "license_link": link}), "name")
    assert "license_link" not in ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_a_card_longer_than_its_bound_says_nothing(tmp_path):
    head = "---\nlicense: mit\n" + "# filler\n" * (MOST_OF_A_CARD // 9) + "---\n"
    (tmp_path / "README.md").write_text(head)
    assert CardSource.of(tmp_path, tmp_path).front_matter == {}
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "README.md")
    assert CardSource.of(tmp_path, tmp_path).front_matter == {}
