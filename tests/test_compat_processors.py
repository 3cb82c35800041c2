"""Processors of transformers' classes without torch: every keyword, attributes that are set, saving, casting."""

import importlib.util
import json
import shutil
import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, picture

from mlx_lfm2vl import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from mlx_lfm2vl.compat import tensors
from mlx_lfm2vl.errors import ImageError, OptionError, TemplateError

ASK = [
    {"role": "user", "content": [{"type": "image", "image": picture("large")}, {"type": "text", "text": "What is it?"}]}
]
CALL: dict[str, Any] = {"images": picture("large"), "text": "a <image> b"}


@pytest.fixture
def processor() -> Any:
    """One that the test may change."""
    return AutoProcessor.from_pretrained(GOLDEN / "gen2")


def equal(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)


@pytest.mark.parametrize(
    "named",
    [
        {"size": {"height": 64, "width": 64}},
        {"do_resize": False},
        {"do_convert_rgb": True},
        {"do_convert_rgb": False},
        {"images_kwargs": {"do_convert_rgb": False}},
        {"device": "cpu"},
        {"videos": None, "audio": None},
        {"disable_grouping": True, "data_format": "channels_first"},
        {"images_kwargs": {"do_resize": True}, "text_kwargs": {}, "common_kwargs": {"return_tensors": "np"}},
    ],
    ids=str,
)
def test_keywords_that_change_nothing_are_taken(named, processor):
    equal(processor(**CALL, **named), processor(**CALL))
    template = processor.apply_chat_template(ASK, tokenize=True, return_dict=True, **named)
    equal(template, processor.apply_chat_template(ASK, tokenize=True, return_dict=True))


@pytest.mark.parametrize(
    ("nested", "plain"),
    [
        ({"images_kwargs": {"do_image_splitting": False}}, {"do_image_splitting": False}),
        ({"text_kwargs": {"padding": "max_length", "max_length": 400}}, {"padding": "max_length", "max_length": 400}),
        ({"common_kwargs": {"return_tensors": None}}, {"return_tensors": None}),
    ],
    ids=str,
)
def test_nested_keywords_mean_what_plain_ones_do(nested, plain, processor):
    found, expected, without = processor(**CALL, **nested), processor(**CALL, **plain), processor(**CALL)
    equal(found, expected)
    assert type(found["input_ids"]) is not np.ndarray or found["input_ids"].shape != without["input_ids"].shape


def test_rows_are_padded_to_a_multiple(processor):
    made = processor(text=["a", "b c d"], padding=True, pad_to_multiple_of=8, padding_side="left")
    assert made["input_ids"].shape == (2, 8) and made["attention_mask"].sum(axis=1).tolist() != [8, 8]


def test_token_types_say_where_pictures_are(processor):
    made = processor(**CALL, return_mm_token_type_ids=True)
    assert list(made)[-1] == "mm_token_type_ids"
    np.testing.assert_array_equal(made["mm_token_type_ids"], made["input_ids"] == 396)


@pytest.mark.parametrize("kind", ["L", "RGBA", "P", "path"])
def test_pictures_that_are_not_rgb_are_not_left_so(kind, processor):
    image: Any = "examples/scene.png" if kind == "path" else picture("large").convert(kind)
    content = [{"type": "image", "image": image}]
    for call in (
        lambda **named: processor(images=image, text="<image>", **named),
        lambda **named: processor.image_processor(image, **named),
        lambda **named: processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, **named),
    ):
        with pytest.raises(OptionError, match=r"do_convert_rgb is False, which is not offered; .* convert them"):
            call(do_convert_rgb=False)


@pytest.mark.parametrize("name", ["video", "url", "path"])
def test_videos_of_every_spelling_are_not_left_as_they_are(name, processor):
    conversation = [{"role": "user", "content": [{"type": "video", name: "a.mp4"}]}]
    with pytest.raises(OptionError, match="do_convert_rgb is False"):
        processor.apply_chat_template(conversation, tokenize=True, do_convert_rgb=False)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"videos": [1]}, "videos is .*, which is not offered; put videos into the messages"),
        ({"audio": [1]}, "audio is .*, which is not offered; these models hear nothing"),
        ({"return_tensors": "tf"}, r"return_tensors is 'tf', expected 'np', 'mlx', 'pt' \(torch\), or None"),
        ({"device": "moon"}, "device is 'moon', expected one of auto, cpu, cuda"),
        ({"images_kwargs": 3}, "images_kwargs is int, expected a mapping"),
        ({"images_kwargs": {"tile_size": 64}, "tile_size": 64}, "tile_size is given twice: by itself and in images_kw"),
        ({"colour": 1}, "'colour' is neither a variable of the chat template nor an option of the processor"),
        ({"truncation": "some"}, "truncation is 'some', expected True or False"),
    ],
)
def test_what_is_not_offered_is_named(named, words, processor):
    with pytest.raises(OptionError, match=words):
        processor(**CALL, **named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_image_splitting", False),
        ("max_image_tokens", 32),
        ("tile_size", 64),
        ("max_tiles", 4),
        ("use_thumbnail", False),
        ("image_mean", [0.1, 0.2, 0.3]),
        ("do_normalize", False),
        ("resample", 2),
    ],
)
def test_attributes_that_are_set_mean_what_the_call_does(name, value, processor):
    expected, before = processor(**CALL, **{name: value}), processor(**CALL)
    setattr(processor.image_processor, name, value)
    found = processor(**CALL)
    equal(found, expected)
    assert any(not np.array_equal(found[each], before[each]) for each in found)
    equal(processor.apply_chat_template(ASK, tokenize=True, return_dict=True), _template(name, value))


def _template(name: str, value: Any) -> Any:
    made = AutoProcessor.from_pretrained(GOLDEN / "gen2", **{name: value})
    return made.apply_chat_template(ASK, tokenize=True, return_dict=True)


def test_attributes_that_cannot_be_set_say_so(processor):
    for part, name in (
        (processor, "image_token"),
        (processor, "colour"),
        (processor.image_processor, "size"),
        (processor.image_processor, "do_resize"),
        (processor.tokenizer, "vocab_size"),
    ):
        with pytest.raises(AttributeError, match=name):
            setattr(part, name, 3)
    with pytest.raises(OptionError, match="tile_size is 3"):
        processor.image_processor.tile_size = 3
    with pytest.raises(OptionError, match="padding_side is 'top', expected 'left' or 'right'"):
        processor.tokenizer.padding_side = "top"
    with pytest.raises(OptionError, match="pad_token is '<none>', which the tokenizer does not have"):
        processor.tokenizer.pad_token = "<none>"
    assert processor.image_processor.size == {"height": 128, "width": 128}


def test_attributes_of_text_are_obeyed_when_set(processor):
    processor.tokenizer.padding_side, processor.tokenizer.pad_token = "left", "<|im_end|>"
    row = processor(text=["a b c", "b"], padding=True)["input_ids"][1]
    assert row[0] == 7 and processor.tokenizer.pad_token_id == 7
    processor.tokenizer.truncation_side = "left"
    cut = processor(text="a b c", truncation=True, max_length=1)["input_ids"]
    assert cut[0, 0] == processor(text="a b c")["input_ids"][0, -1]
    assert 499 in processor(**CALL)["input_ids"]
    processor.tokenizer.image_end_token = "<|im_end|>"
    assert 499 not in processor(**CALL)["input_ids"]
    named = processor.tokenizer.special_tokens_map
    processor.tokenizer.special_tokens_map = {**named, "image_end_token": "<|image_end|>"}
    assert 499 in processor(**CALL)["input_ids"]
    processor.use_image_special_tokens = False
    assert 498 not in processor(**CALL)["input_ids"]
    processor.chat_template = "{{ messages | length }} messages"
    assert processor.apply_chat_template(ASK) == "1 messages"


@pytest.mark.parametrize("do_rescale", [True, False])
def test_pictures_of_floats_are_between_zero_and_one(do_rescale, processor):
    pixels = np.asarray(picture("large"))
    given = {"text": "<image>", "images": pixels.astype(np.float32) / 255, "do_rescale": do_rescale}
    equal(processor(**given), processor(images=pixels, text="<image>"))
    with pytest.raises(OptionError, match=r"do_rescale=False needs pictures that are all floats in 0\.\.1, or none"):
        processor(images=[pixels, pixels / 255], text="<image><image>", do_rescale=False)
    with pytest.raises(ImageError, match=r"floats must lie in 0\.\.1"):
        processor(images=pixels.astype(np.float32), text="<image>")


@pytest.mark.parametrize(("kind", "expected"), [("np", np.ndarray), ("mlx", mx.array), (None, list)], ids=str)
def test_arrays_are_of_the_kind_that_the_call_says(kind, expected, processor):
    made = processor(**CALL, return_tensors=kind)
    ids = processor.apply_chat_template(ASK, tokenize=True, return_tensors=kind)
    assert isinstance(made["input_ids"], expected) and isinstance(ids, expected)
    assert np.asarray(made["input_ids"]).tolist() == processor(**CALL)["input_ids"].tolist()


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_torch_tensors_are_mlx_arrays_without_torch(processor):
    tensors._warn_without_torch.cache_clear()
    with pytest.warns(UserWarning, match="'pt' gives MLX arrays here, as torch is not installed; the models take them"):
        made = processor(**CALL, return_tensors="pt")
    assert all(isinstance(each, mx.array) for each in made.values())
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        processor.apply_chat_template(ASK, tokenize=True, return_dict=True, return_tensors="pt")


CASTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("bfloat16",), {}),
    ((mx.bfloat16,), {}),
    (("mps", "bfloat16"), {}),
    (("cpu", mx.bfloat16), {}),
    ((), {"dtype": "bfloat16"}),
    (("bf16",), {}),
    ((), {"torch_dtype": "bf16"}),
    ((), {"dtype": mx.bfloat16, "device": "cuda:0"}),
    ((mx.Device(mx.cpu),), {"dtype": "torch.bfloat16", "non_blocking": True}),
]


@pytest.mark.parametrize(("arguments", "named"), CASTS, ids=str)
def test_features_are_cast_in_every_spelling(arguments, named, processor):
    made = processor(**CALL)
    ids = made["input_ids"]
    assert made.to(*arguments, **named) is made
    assert made["pixel_values"].dtype == mx.bfloat16 and made["input_ids"] is ids
    assert made["pixel_attention_mask"].dtype == np.int32


def test_features_of_a_device_alone_stay(processor):
    made = processor(**CALL)
    for device in ("cpu", "cuda", "cuda:1", "mps", "auto", 0, mx.Device(mx.cpu), mx.cpu, None):
        assert made.to(device)["pixel_values"].dtype == np.float32
    assert made.to("float16")["pixel_values"].dtype == np.float16
    assert made.to(np.float32)["pixel_values"].dtype == np.float32
    for wrong in (("moon",), ("cpu", "moon"), ("cpu", "float32", 1), ("int8",)):
        with pytest.raises(OptionError, match=r"device is|dtype is|to\(\) takes a device and a dtype"):
            made.to(*wrong)
    with pytest.raises(OptionError, match=r"to\(\) takes a device and a dtype, not copy"):
        made.to(copy=True)


def test_a_saved_processor_loads_without_a_configuration(tmp_path, processor):
    processor.image_processor.max_image_tokens = 48
    processor.chat_template = "{{ messages | length }} messages"
    processor.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    ]
    again = AutoProcessor.from_pretrained(tmp_path)
    equal(again(**CALL), processor(**CALL))
    assert again.apply_chat_template(ASK) == "1 messages" and again.to_dict() == processor.to_dict()
    assert json.loads(again.to_json_string()) == json.loads((tmp_path / "processor_config.json").read_text())


SET = {
    **{"padding_side": "left", "truncation_side": "left", "pad_token": "<|im_end|>", "eos_token": "<|endoftext|>"},
    **{"bos_token": None, "image_token": "<|reserved_14|>", "chat_template": "{{ messages | length }}"},
}


@pytest.mark.parametrize("layout", ["config", "map", "nested", "objects", "no files"])
@pytest.mark.parametrize("name", SET)
def test_what_was_set_of_a_tokenizer_is_saved(name, layout, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(GOLDEN / "gen2", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {key: token for key, token in config.items() if key.endswith("_token") and isinstance(token, str)}
    if layout in ("map", "nested"):
        config = {key: value for key, value in config.items() if key not in named}
    if layout == "map":
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
    elif layout == "nested":
        config["extra_special_tokens"] = named
    elif layout == "objects":
        config |= {key: {"content": token, "special": True} for key, token in named.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if layout == "no files":
        tokenizer.folder = None
    known = {key: getattr(tokenizer, key) for key in SET}
    setattr(tokenizer, name, SET[name])
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert {key: getattr(again, key) for key in SET} == {**known, name: SET[name]}
    again.save_pretrained(tmp_path / "saved")
    assert getattr(AutoTokenizer.from_pretrained(tmp_path / "saved"), name) == SET[name]


def test_a_tokenizer_that_was_not_changed_is_saved_byte_for_byte(tmp_path, processor):
    processor.tokenizer.pad_token = "<|im_end|>"
    processor.tokenizer.pad_token = "<|pad|>"
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / "gen2" / name).read_bytes()


@pytest.mark.parametrize(
    ("key", "place"),
    [("name_or_path", "/home/me"), ("_name_or_path", "/home/me"), ("auto_map", {"AutoProcessor": "/home/me"})],
)
def test_saved_files_do_not_say_where_they_came_from(key, place, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(GOLDEN / "gen2", folder)
    for name in ("tokenizer_config.json", "processor_config.json", "config.json"):
        data = json.loads((folder / name).read_text())
        inner = {name: {**value, key: place} for name, value in data.items() if isinstance(value, dict)}
        (folder / name).write_text(json.dumps({**data, **inner, key: place}))
    made, tokenizer = AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.folder = None
    made.save_pretrained(tmp_path / "made")
    made.image_processor.save_pretrained(tmp_path / "pictures")
    tokenizer.save_pretrained(tmp_path / "text")
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "config")
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path / "model")
    files = [file for file in tmp_path.glob("*/*.json") if file.parent != folder]
    assert len(files) > 6
    assert not [file for file in files if key in file.read_text() or "/home/me" in file.read_text()]
    assert AutoTokenizer.from_pretrained(tmp_path / "made").eos_token == tokenizer.eos_token


def test_parts_of_processors_are_saved_and_loaded(tmp_path, processor):
    processor.image_processor.tile_size = 64
    processor.image_processor.save_pretrained(tmp_path / "pictures")
    again = AutoImageProcessor.from_pretrained(tmp_path / "pictures")
    assert again.to_dict() == processor.image_processor.to_dict() == json.loads(again.to_json_string())
    equal(again(picture("large")), processor.image_processor.preprocess(picture("large")))
    assert AutoImageProcessor.from_pretrained(tmp_path / "pictures", max_tiles=4, do_resize=True).max_tiles == 4
    processor.tokenizer.save_pretrained(tmp_path / "text")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text", padding_side="left", pad_token="<|im_end|>")
    assert tokenizer("Hi")["input_ids"] == processor.tokenizer("Hi")["input_ids"]
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 7)
    with pytest.raises(OptionError, match=r"Tokenizer.from_pretrained has no option 'colour'"):
        AutoTokenizer.from_pretrained(tmp_path / "text", colour=1)
    for made in (AutoImageProcessor, AutoProcessor):
        with pytest.raises(OptionError, match="no option 'hub'"):
            made.from_pretrained("demo", hub={})


def test_a_template_may_be_given_at_loading(processor):
    made = AutoProcessor.from_pretrained(
        GOLDEN / "gen2", chat_template="{{ messages | length }}", padding_side="left", use_image_special_tokens=False
    )
    assert made.apply_chat_template(ASK) == "1" and made.tokenizer.padding_side == "left"
    assert 498 not in made(**CALL)["input_ids"]
    assert AutoProcessor.from_pretrained(GOLDEN / "gen2", max_image_tokens=33).image_processor.max_image_tokens == 33


def test_tokenizers_render_chats_of_text(processor):
    tokenizer, chat = processor.tokenizer, [{"role": "user", "content": "Hi"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert ids["input_ids"] == tokenizer.encode(text, add_special_tokens=False)
    both = tokenizer.apply_chat_template([chat, chat[:1]], return_tensors="np", padding=True, return_dict=False)
    assert both.shape[0] == 2 and isinstance(both, np.ndarray)
    assert tokenizer.apply_chat_template(chat, chat_template="{{ own }}", own="x", tokenize=False) == "x"
    plain = type(tokenizer)(tokenizer.backend)
    with pytest.raises(TemplateError, match="this tokenizer has no chat template; pass chat_template="):
        plain.apply_chat_template(chat)


def test_answers_become_text(processor):
    ids = processor.tokenizer.encode("Hello<|im_end|>", add_special_tokens=False)
    assert processor.decode(mx.array(ids)) == "Hello<|im_end|>"
    assert processor.batch_decode(np.array([ids, ids]), skip_special_tokens=True) == ["Hello", "Hello"]
    assert processor.post_process_image_text_to_text([ids]) == ["Hello"]
    assert processor.post_process_multimodal_output([ids], generation_mode="text") == ["Hello"]
    with pytest.raises(OptionError, match="generation_mode is 'image'; these models write 'text' only"):
        processor.post_process_multimodal_output([ids], generation_mode="image")
