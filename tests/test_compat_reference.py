"""compat's processors and configurations beside transformers' own, on random checkpoints. Needs the extra `reference`.

What torch or transformers would say of a folder is asked of it here and now; tests/golden holds what runs without.
"""

import copy
import importlib
import json
import shutil
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, picture
from test_checkpoint_texts import PLACES, put_templates

from mlx_lfm2vl import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, Lfm2VlConfig
from mlx_lfm2vl.errors import Lfm2VlError

torch = pytest.importorskip("torch", reason="torch is not installed")
importlib.import_module("tools.reference_shim")  # before transformers
transformers = importlib.import_module("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

FOLDERS = ("gen2", "gen25", "untied")
ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


@cache
def theirs(name: str = "gen2", kind: str = "AutoProcessor") -> Any:
    return getattr(transformers, kind).from_pretrained(GOLDEN / name)


@cache
def ours(name: str = "gen2") -> Any:
    return AutoProcessor.from_pretrained(GOLDEN / name)


def fresh(name: str = "gen2") -> tuple[Any, Any]:
    """Processors that a test may change."""
    return AutoProcessor.from_pretrained(GOLDEN / name), transformers.AutoProcessor.from_pretrained(GOLDEN / name)


def same(found: Any, expected: Any, where: str = "") -> None:
    """Equal keys, kinds, shapes, dtypes and numbers."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), f"{where}: {type(found)}"
        assert found.dtype == expected.dtype and found.shape == expected.shape, (where, found.dtype, expected.dtype)
        if expected.is_floating_point():
            np.testing.assert_allclose(found.float(), expected.float(), atol=1e-6, err_msg=where)
        else:
            assert torch.equal(found, expected), where
    elif hasattr(expected, "keys"):
        assert set(found.keys()) == set(expected.keys()), (where, set(found.keys()) ^ set(expected.keys()))
        for key in expected.keys():  # noqa: SIM118
            same(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, (list, tuple)) and expected and isinstance(expected[0], torch.Tensor):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where} {number}")
    else:
        assert found == expected, where


def template_of(kind: Any, folder: Any) -> Any:
    """What an `Auto` class takes for the template of a folder."""
    return kind.from_pretrained(folder).chat_template


def test_of_several_templates_the_references_is_taken(tmp_path):
    shutil.copytree(GOLDEN / "gen2", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    for count in range(1, len(PLACES) + 1):
        for places in combinations(PLACES, count):
            put_templates(tmp_path / "model", places)
            for kind in ("AutoTokenizer", "AutoProcessor"):
                expected = template_of(getattr(transformers, kind), tmp_path / "model")
                found = template_of(AutoTokenizer if kind == "AutoTokenizer" else AutoProcessor, tmp_path / "model")
                assert found == expected or (expected is None and found in places), (kind, places, found, expected)


PICTURE = {"images": "landscape", "text": "a <image> b"}
CALLS: dict[str, dict[str, Any]] = {
    "text": {"text": "Hello there."},
    "texts": {"text": ["Hello there.", "Hi"], "padding": True},
    "a picture": PICTURE,
    "tiles": {"images": "large", "text": "<image>"},
    "pictures of two texts": {"images": [["landscape"], ["small", "photo"]], "text": ["<image>", "a<image>b<image>"]}
    | {"padding": True, "padding_side": "left"},
    "a list of lists for one text": {"images": [["small", "photo"]], "text": ["<image> or <image>"]},
    "size": PICTURE | {"size": {"height": 64, "width": 64}},
    "do_resize": PICTURE | {"do_resize": False},
    "do_convert_rgb": PICTURE | {"do_convert_rgb": True},
    "device": PICTURE | {"device": "cpu"},
    "images_kwargs": PICTURE | {"images_kwargs": {"do_image_splitting": False, "max_image_tokens": 20}},
    "text_kwargs": {"text": ["a", "b c d"], "text_kwargs": {"padding": "max_length", "max_length": 12}},
    "common_kwargs": PICTURE | {"common_kwargs": {"return_tensors": "pt"}, "return_tensors": ...},
    "pad_to_multiple_of": {"text": ["a", "b c d"], "padding": True, "pad_to_multiple_of": 8},
    "pad_to_multiple_of a single text": {"text": "a b c", "padding": True, "pad_to_multiple_of": 8},
    "truncation": {"text": "a b c d e f g", "truncation": True, "max_length": 3},
    "truncation of several": {"text": ["a b c d e f", "b"], "truncation": "longest_first", "max_length": 3}
    | {"padding": "max_length"},
    "return_mm_token_type_ids": PICTURE | {"return_mm_token_type_ids": True},
    "videos": PICTURE | {"videos": None},
    "add_special_tokens": {"text": "a b", "add_special_tokens": True},
    "use_image_special_tokens": PICTURE | {"use_image_special_tokens": False},
    "no tensors": {"text": ["a", "b c d"], "return_tensors": None},
    "no tensors of a single text": {"text": "a b", "return_tensors": None},
    "do_normalize": PICTURE | {"do_normalize": False},
    "do_rescale": PICTURE | {"do_rescale": False},
    "rescale_factor": PICTURE | {"rescale_factor": 1 / 127.5},
    "image_mean": PICTURE | {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]},
    "resample": PICTURE | {"resample": 2},
    "tiles of another size": {"images": "large", "text": "<image>", "tile_size": 64},
    "fewer tiles": {"images": "large", "text": "<image>", "max_tiles": 3},
    "no thumbnail": {"images": "large", "text": "<image>", "use_thumbnail": False},
    "tolerance": {"images": "large", "text": "<image>", "max_pixels_tolerance": 100.0},
    "min_image_tokens": {"images": "small", "text": "<image>", "min_image_tokens": 40},
    "disable_grouping": PICTURE | {"disable_grouping": True},
    "data_format": PICTURE | {"data_format": "channels_first"},
}


def pictures(names: Any) -> Any:
    if isinstance(names, list):
        return [pictures(name) for name in names]
    return picture(names) if isinstance(names, str) else names


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", CALLS)
def test_processors_give_the_same_arrays(name, folder):
    call: dict[str, Any] = {"return_tensors": "pt"} | CALLS[name]
    call = {key: pictures(value) if key == "images" else value for key, value in call.items() if value is not ...}
    expected = theirs(folder)(**call)
    same(ours(folder)(**call), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch", "float", "uint8", "channels first", "batch"])
def test_pictures_come_in_the_same_kinds(kind):
    pixels = np.asarray(picture("landscape"))
    given = {
        "numpy": pixels,
        "torch": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "float": pixels.astype(np.float32) / 255,
        "uint8": np.ascontiguousarray(pixels),
        "channels first": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        "batch": torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None],
    }[kind]
    call = {"images": given, "text": "<image>", "return_tensors": "pt"}
    if kind == "float":
        call["do_rescale"] = False
    found, expected = ours()(**call), theirs()(**call)
    if kind == "float":  # resized in 8 bits here, so never beyond black and white
        np.testing.assert_allclose(found.pop("pixel_values"), expected.pop("pixel_values").clip(-1, 1), atol=1 / 127)
    same(found, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_image_splitting", False),
        ("max_image_tokens", 32),
        ("min_image_tokens", 30),
        ("tile_size", 64),
        ("max_tiles", 4),
        ("min_tiles", 4),
        ("use_thumbnail", False),
        ("image_mean", [0.1, 0.2, 0.3]),
        ("image_std", (0.1, 0.2, 0.3)),
        ("rescale_factor", 1 / 128),
        ("do_normalize", False),
        ("do_rescale", False),
        ("resample", 2),
        ("max_pixels_tolerance", 0.5),
    ],
)
def test_attributes_of_image_processors_are_obeyed_when_set(name, value):
    made = []
    for processor in fresh():
        setattr(processor.image_processor, name, value)
        made.append(processor(images=picture("large"), text="<image>", return_tensors="pt"))
    same(made[0], made[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("padding_side", "left"), ("padding_side", "right"), ("truncation_side", "left"), ("pad_token", "<|im_end|>")],
)
def test_attributes_of_tokenizers_are_obeyed_when_set(name, value):
    made = []
    for processor in fresh():
        setattr(processor.tokenizer, name, value)
        made.append(processor(text=["a b c d", "b"], return_tensors="pt", padding=True, truncation=True, max_length=3))
    same(made[0], made[1])


def test_attributes_of_processors_are_obeyed_when_set():
    made = []
    for processor in fresh():
        processor.use_image_special_tokens = False
        processor.chat_template = "{% for m in messages %}{{ m.content[0].type }}!{% endfor %}"
        made.append([processor(images=picture("small"), text="<image>", return_tensors="pt")["input_ids"].tolist()])
        made[-1].append(processor.apply_chat_template(ASK))
    same(made[0], made[1])


IDS = ("input_ids", "attention_mask")
TEMPLATES: dict[str, dict[str, Any]] = {
    "text": {},
    "with the answer's beginning": {"add_generation_prompt": True},
    "ids": {"tokenize": True, "return_dict": False, "return_tensors": "pt"},
    "ids as lists": {"tokenize": True, "return_dict": False},
    "arrays": {"tokenize": True, "return_dict": True, "return_tensors": "pt"},
    "lists": {"tokenize": True, "return_dict": True, "return_tensors": None},
    "defaults": {"tokenize": True},
    "options of the picture": {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    | {"do_image_splitting": False, "max_image_tokens": 24},
    "processor_kwargs": {"tokenize": True, "return_dict": True}
    | {"processor_kwargs": {"return_tensors": "pt", "max_image_tokens": 24}},
    "token types": {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    | {"processor_kwargs": {"return_mm_token_type_ids": True}},
    "padding": {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    | {"padding": "max_length", "max_length": 200},
    "another template": {"chat_template": "{{ bos_token }}{{ messages[0].content[1].text }}"},
    "a tool": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "a variable": {"enable_thinking": True, "chat_template": "{{ enable_thinking }}{{ messages | length }}"},
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_give_the_same(name, folder):
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture("landscape")}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A field."}]},
    ]
    call = ({} if name == "processor_kwargs" else {"return_tensors": None}) | TEMPLATES[name]  # NumPy's by default
    found = ours(folder).apply_chat_template(conversation, **copy.deepcopy(call))
    expected = theirs(folder).apply_chat_template(conversation, **copy.deepcopy(call))
    if name == "lists":  # of pictures it says arrays of the kind that each program computes with
        same({key: found[key] for key in IDS}, {key: expected[key] for key in IDS})
        np.testing.assert_allclose(found["pixel_values"], expected["pixel_values"], atol=1e-6)
    else:
        same(found, expected)


def test_several_conversations_give_the_same():
    turns = [
        [{"role": "user", "content": [{"type": "image", "image": picture(name)}, {"type": "text", "text": text}]}]
        for name, text in (("landscape", "What?"), ("small", "And this one, what is it?"))
    ]
    call = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True, "padding_side": "left"}
    same(ours().apply_chat_template(turns, **call), theirs().apply_chat_template(turns, **call))
    assert ours().apply_chat_template(turns) == theirs().apply_chat_template(turns)


def test_a_conversations_end_is_continued_the_same():
    conversation = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "My favour"}]
    call = {"continue_final_message": True}
    assert ours().apply_chat_template(conversation, **call) == theirs().apply_chat_template(conversation, **call)


def test_calls_of_tokenizers_give_the_same():
    parts = [each.tokenizer for each in (ours(), theirs())]
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}]
    calls = (
        lambda t: dict(t.pad(rows, return_tensors="pt")),
        lambda t: dict(t.pad({"input_ids": [[1, 2, 3], [4]]}, padding="max_length", max_length=5)),
        lambda t: dict(t.pad(rows, padding_side="left", pad_to_multiple_of=4)),
        lambda t: t.encode("a b c", return_tensors="pt"),
        lambda t: t.encode("a b c", add_special_tokens=False),
        lambda t: dict(t("a b c", truncation=True)),
        lambda t: t.convert_tokens_to_string(t.tokenize("Hello wörld 漢字 <|im_end|>")),
        lambda t: (t.is_fast, t.model_input_names, t.model_max_length, t.vocab, t.get_added_vocab()),
        lambda t: {id: str(token) for id, token in t.added_tokens_decoder.items()},
        lambda t: t.get_chat_template(),
    )
    for number, call in enumerate(calls):
        found, expected = (jsonable(call(each)) for each in parts)
        assert found == expected, number


def jsonable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {name: jsonable(each) for name, each in value.items()}
    return value


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokenizers_give_the_same(folder):
    our, their = AutoTokenizer.from_pretrained(GOLDEN / folder), theirs(folder, "AutoTokenizer")
    for call in (
        {"text": "Hello <image> there."},
        {"text": ["a b", "c"], "padding": True, "return_tensors": "pt"},
        {"text": ["a b", "c"]},
        {"text": "a b c", "truncation": True, "max_length": 2},
        {"text": "a", "padding": "max_length", "max_length": 5},
        {"text": "a", "add_special_tokens": False, "return_tensors": "pt"},
        {"text": ["a b", "c"], "padding": "longest", "pad_to_multiple_of": 4, "padding_side": "left"},
    ):
        found, expected = our(**call), dict(their(**call))
        expected.pop("token_type_ids", None)
        same(found, expected, str(call))
    ids = our("Hello <image> there, <|im_end|>")["input_ids"]
    for skip in (False, True):
        assert our.decode(ids, skip_special_tokens=skip) == their.decode(ids, skip_special_tokens=skip)
        assert our.batch_decode([ids, ids[1:]], skip) == their.batch_decode([ids, ids[1:]], skip)
    conversation = [{"role": "user", "content": "Hi"}]
    templates: tuple[dict[str, Any], ...] = (
        {"tokenize": False},
        {"tokenize": False, "add_generation_prompt": True},
        {"return_dict": False},
        {"return_tensors": "pt", "return_dict": True},
        {},
    )
    for call in templates:
        same(our.apply_chat_template(conversation, **call), their.apply_chat_template(conversation, **call), str(call))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "bos_token", "eos_token", "pad_token", "image_token"):
        assert getattr(our, name) == getattr(their, name), name
    assert our.convert_ids_to_tokens(ids) == their.convert_ids_to_tokens(ids)
    assert our.convert_tokens_to_ids("<image>") == their.convert_tokens_to_ids("<image>")
    assert len(our) == len(their) and our.get_vocab() == their.get_vocab()
    assert our.tokenize("a b") == their.tokenize("a b") and our.encode("a b") == their.encode("a b")
    assert set(our.all_special_tokens) >= set(their.all_special_tokens)  # here all that skip_special_tokens leaves out


def test_image_processors_give_the_same():
    our, their = (
        auto.from_pretrained(GOLDEN / "gen25") for auto in (AutoImageProcessor, transformers.AutoImageProcessor)
    )
    for call in (
        {"images": picture("large")},
        {"images": [picture("large"), picture("small")], "return_row_col_info": True},
        {"images": [[picture("large")], [picture("small")]], "do_image_splitting": False},
    ):
        found, expected = our(**call, return_tensors="pt"), their(**call, return_tensors="pt")
        same(found, expected, str(call))
    for name in ("image_mean", "size", "max_num_patches", "do_resize", "resample", "tile_size", "model_input_names"):
        found, expected = getattr(our, name), getattr(their, name)
        assert list(found) == list(expected) if name == "image_mean" else found == expected, name


def test_features_are_cast_and_moved_the_same():
    for arguments, named in (
        (("cpu",), {}),
        ((torch.bfloat16,), {}),
        (("cpu", torch.float16), {}),
        ((), {"device": "cpu", "dtype": torch.bfloat16}),
        ((), {"dtype": torch.float16}),
        ((torch.device("cpu"),), {"dtype": torch.float64}),
    ):
        made = [
            processor(images=picture("small"), text="<image>", return_tensors="pt").to(*arguments, **named)
            for processor in (ours(), theirs())
        ]
        same(made[0], made[1], str((arguments, named)))


def config_values(config: Any) -> dict[str, Any]:
    """What both kinds of configuration say, in one spelling."""
    names = "image_token_id projector_hidden_act projector_hidden_size projector_bias projector_use_layernorm"
    names += " downsample_factor tie_word_embeddings model_type output_attentions output_hidden_states return_dict"
    made = {name: getattr(config, name) for name in names.split()}
    text, vision = config.text_config, config.vision_config
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "norm_eps", "conv_bias", "conv_L_cache", "layer_types"),
        *("block_multiple_of", "block_ffn_dim_multiplier", "block_auto_adjust_ff_dim"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ):
        value = getattr(text, name)
        made[f"text {name}"] = list(value) if isinstance(value, tuple) else value
    for name in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
        *("patch_size", "num_patches", "hidden_act", "layer_norm_eps"),
    ):
        made[f"vision {name}"] = getattr(vision, name)
    return made


TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"image_token_id": 7},
        {"text_config": TINY},
        {"text_config": {**TINY, "eos_token_id": [3, 4], "bos_token_id": 5, "pad_token_id": 6}},
        {"text_config": {**TINY, "layer_types": ["conv", "full_attention"]}, "vision_config": {"hidden_size": 96}},
        {"tie_word_embeddings": False, "projector_use_layernorm": False, "projector_bias": False},
        {"tie_embedding": False},
        {"output_attentions": True, "return_dict": False, "output_hidden_states": True},
        {"downsample_factor": 1, "projector_hidden_size": 33, "projector_hidden_act": "relu"},
    ],
    ids=str,
)
def test_configurations_have_the_same_defaults(keywords):
    expected = transformers.Lfm2VlConfig(**keywords)
    if "tie_embedding" in keywords:
        assert expected.tie_word_embeddings is False
    assert config_values(Lfm2VlConfig(**keywords)) == config_values(expected)
    assert Lfm2VlConfig(**keywords, own=3).own == transformers.Lfm2VlConfig(**keywords, own=3).own == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("folder", FOLDERS)
def test_configurations_of_folders_say_the_same(folder, tmp_path):
    our, their = (kind.from_pretrained(GOLDEN / folder) for kind in (AutoConfig, transformers.AutoConfig))
    assert config_values(our) == config_values(their)
    assert config_values(our.get_text_config() and our) == config_values(their)
    our.save_pretrained(tmp_path / "ours")
    their.save_pretrained(tmp_path / "theirs")
    assert config_values(transformers.AutoConfig.from_pretrained(tmp_path / "ours")) == config_values(their)
    assert config_values(AutoConfig.from_pretrained(tmp_path / "theirs")) == config_values(our)
    given = {"output_attentions": True, "image_token_id": 5}
    our, their = (kind.from_pretrained(GOLDEN / folder, **given) for kind in (AutoConfig, transformers.AutoConfig))
    assert our.image_token_id == 5 and config_values(our) == config_values(their)


@pytest.mark.parametrize("folder", FOLDERS)
def test_saved_processors_load_in_the_other_program(folder, tmp_path):
    ours(folder).save_pretrained(tmp_path / "ours")
    theirs(folder).save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours" / "config.json").write_text(json.dumps({"model_type": "lfm2_vl"}))  # as their Auto classes need
    call = {"images": picture("large"), "text": "a <image>", "return_tensors": "pt"}
    for found in (
        transformers.AutoProcessor.from_pretrained(tmp_path / "ours"),
        AutoProcessor.from_pretrained(tmp_path / "ours"),
        AutoProcessor.from_pretrained(tmp_path / "theirs"),
    ):
        same(found(**call), theirs(folder)(**call))
        same(found.apply_chat_template(ASK), theirs(folder).apply_chat_template(ASK))


def test_what_both_refuse():
    for call in (
        {"images": picture("small"), "text": "no place"},
        {"text": "<image>"},
        {"images": picture("small")},
        {"text": ["a", "b c"], "return_tensors": "pt"},
    ):
        with pytest.raises(Lfm2VlError):
            ours()(**call)
        with pytest.raises(ValueError):
            theirs()(**call)
