"""Tokenizers, templates and end tokens as people's folders have them (docs/checkpoints.md)."""

import functools
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from checkpoints import (
    edit_json,
    refused,
)
from conftest import GOLDEN

from mlx_lfm2vl import AutoProcessor, AutoTokenizer, GenerationOptions, convert, load
from mlx_lfm2vl.errors import TemplateError, TokenizerError
from mlx_lfm2vl.generation.detokenizer import Detokenizer
from mlx_lfm2vl.processing.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "model"))


# Tokenizers and templates


def split_tokenizer(folder: Path, names: list[str]) -> dict[str, int]:
    """Takes tokens out of tokenizer.json, and returns their ids."""
    data = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in data["added_tokens"] if token["content"] in names}
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in names]
    data["model"]["vocab"] = {token: id for token, id in data["model"]["vocab"].items() if token not in names}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return ids


SPOKEN = "<|im_start|>user\n<image>Hi <|tool_call_start|>[f()]<|tool_call_end|><|im_end|>"


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("names", [["<image>"], ["<|im_end|>", "<image>", "<|tool_call_start|>", "<|image_end|>"]])
def test_added_tokens_beside_tokenizer_json_count_at_their_ids(folder, place, names):
    before = Tokenizer.from_folder(folder)
    expected = before.encode(SPOKEN)
    ids = split_tokenizer(folder, names)
    assert len(ids) == len(names)
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=None)
    if place == "added_tokens.json":
        edit_json(folder / place, **ids)
    else:
        edit_json(
            folder / place, added_tokens_decoder={str(i): {"content": n, "special": True} for n, i in ids.items()}
        )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.get_vocab() == before.get_vocab()
    assert tokenizer.encode(SPOKEN) == expected and tokenizer.decode(expected) == before.decode(expected)
    model, processor = load(folder)
    assert processor.image_token_id == model.config.image_token_id


def test_new_tokens_behind_the_vocabulary_shift_no_other(folder):
    before = Tokenizer.from_folder(folder)
    edit_json(folder / "added_tokens.json", **{"<first>": 900, "<second>": 850})
    after = Tokenizer.from_folder(folder)
    assert after.encode("a<second><first>", add_special_tokens=False)[-2:] == [850, 900]
    assert {token: id for token, id in after.get_vocab().items() if id < 840} == before.get_vocab()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"<new>": 396}, r"tokenizer.json: '<new>' is to have the id 396, which '<image>' has"),
        ({"<new>": "x"}, r"added_tokens.json: '<new>' at 'x' is no added token with an id"),
        ({"<new>": 2**40}, r"is no added token with an id"),
        ({"": 900}, r"'' at 900 is no added token with an id"),
    ],
)
def test_added_tokens_that_make_no_sense_are_refused(folder, tokens, said):
    edit_json(folder / "added_tokens.json", **tokens)
    refused(folder, said, TokenizerError)


def test_a_template_in_processor_config_alone_counts(folder, tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    _, processor = load(folder)
    source, expected = processor.chat_template, processor.apply_chat_template(messages)
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    edit_json(folder / "processor_config.json", chat_template=source)
    out = convert(folder, tmp_path / "out")
    for place in (folder, out):
        _, processor = load(place)
        assert processor.apply_chat_template(messages) == expected
    edit_json(folder / "processor_config.json", chat_template=None)
    with pytest.raises(TemplateError, match="no such file"):
        load(folder)[1].apply_chat_template(messages)


PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def put_templates(folder: Path, places: Iterable[str]) -> None:
    """Leaves a template, which is the file's name, in these files of a folder and no other."""
    for name in PLACES:
        file = folder / name
        if name.startswith("chat_template"):
            file.unlink(missing_ok=True)
        if name == "chat_template.jinja" and name in places:
            file.write_text(name)
        elif name != "chat_template.jinja" and (file.exists() or name in places):
            edit_json(file, chat_template=name if name in places else None)


def test_of_several_templates_the_right_one_is_taken(folder, tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    for places in (PLACES, PLACES[1:], PLACES[2:], PLACES[3:]):
        put_templates(folder, places)
        processor = AutoProcessor.from_pretrained(folder)
        assert processor.chat_template == processor.apply_chat_template(messages, tokenize=False) == places[0]
        of_tokenizer = next(name for name in PLACES[2:] if name in places)
        for tokenizer in (processor.tokenizer, AutoTokenizer.from_pretrained(folder)):
            assert tokenizer.chat_template == tokenizer.get_chat_template() == of_tokenizer
            assert tokenizer.apply_chat_template(messages, tokenize=False) == of_tokenizer
        processor.save_pretrained(tmp_path / "saved")
        assert AutoProcessor.from_pretrained(tmp_path / "saved").chat_template == places[0]
    put_templates(folder, PLACES[1:3])
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = "one's own"
    assert processor.tokenizer.chat_template == processor.tokenizer.get_chat_template() == "one's own"
    processor.save_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).chat_template == "one's own"


def test_a_template_file_without_a_template_is_none(folder, tmp_path):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text("{}")
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    notes: list[str] = []
    convert(folder, tmp_path / "out", on_note=notes.append)
    assert any("has no chat template" in note for note in notes), notes


# End tokens


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        (2, None, "<|im_end|>", (2, 7)),
        ([2, 3], 4, "<|im_end|>", (2, 3, 4, 7)),
        (None, 4, None, (4,)),
        (None, None, "<|im_end|>", (7,)),
        (7, 7, "<|im_end|>", (7,)),
        (None, None, None, (2,)),  # the default of transformers
    ],
)
def test_end_tokens_of_all_files_add_up(folder, tmp_path, generation, config, tokenizer, expected):
    edit_json(folder / "generation_config.json", eos_token_id=generation)
    edit_json(folder / "config.json", eos_token_id=None, text_config__eos_token_id=config)
    edit_json(folder / "tokenizer_config.json", eos_token=tokenizer)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    model, _ = load(folder)
    assert model.generation_config.eos_token_ids == expected
    if len(expected) > 1:
        out = convert(folder, tmp_path / "out")
        assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == list(expected)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "additional_chat_templates"])
def test_templates_are_chosen_by_name(folder, place, tmp_path):
    plain, tools = "Plain {{ messages[0].role }}", "Tools {{ messages[0].role }}"
    if place.endswith(".json"):
        (folder / "chat_template.jinja").unlink()
        named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": tools}]
        edit_json(folder / place, chat_template=named)
    else:
        (folder / "chat_template.jinja").write_text(plain)
        (folder / place).mkdir()
        (folder / place / "tool_use.jinja").write_text(tools)
    processor, messages = AutoProcessor.from_pretrained(folder), [{"role": "user", "content": "Hi"}]
    processor.tokenizer.save_pretrained(tmp_path / "saved")
    for part in (processor, processor.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        render = functools.partial(part.apply_chat_template, messages, tokenize=False)
        assert render() == "Plain user" and render(chat_template="tool_use") == "Tools user"
        assert render(chat_template="other") == "other" and render(chat_template="{{ 1 }}") == "1"
    schema = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert processor.tokenizer.apply_chat_template(messages, tools=[schema], tokenize=False) == "Tools user"
    assert processor.tokenizer.get_chat_template(tools=[schema]) == tools
    assert processor.apply_chat_template(messages, tools=[schema], tokenize=False) == "Plain user"


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|reserved_20|>", "<|tool_call_start|>"])
def test_a_stop_text_that_is_a_special_token_is_its_id(stop):
    tokenizer = Tokenizer.from_folder(GOLDEN / "gen2")
    row = Detokenizer(tokenizer, GenerationOptions(stop=(stop, "never")), ())
    ids = tokenizer.encode(f"One{stop} two", add_special_tokens=False)
    text = ""
    for token in ids:
        text += row.push(token)
        if row.stopped:
            break
    assert row.stopped and token == tokenizer.convert_tokens_to_ids(stop) and text == "One"
    spelt = Detokenizer(tokenizer, GenerationOptions(stop=("<|img",)), ())
    assert not any(spelt.push(id) for id in tokenizer.encode("<|img_thumbnail|>")) and not spelt.stopped


# The page


def test_every_row_of_the_page_names_a_test():
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    page = re.sub(r"\n## Families\n.*?(?=\n## )", "", page, flags=re.DOTALL)  # whose last row names theirs
    cells = [line.strip("| ").split(" | ")[-1] for line in page.splitlines() if line.startswith("| ")]
    named = [cell for cell in cells if cell not in ("test", "---")]
    assert len(named) > 25
    for cell in named:
        found = re.fullmatch(r"`(?:(\w+\.py)::)?(test_\w+)`", cell)
        assert found, f"a row without a test: {cell}"
        file = tests / (found[1] or "test_checkpoints.py")
        assert f"def {found[2]}(" in file.read_text(encoding="utf-8"), cell
