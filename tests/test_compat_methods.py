"""Methods and names of transformers, without torch: parameters, embeddings, criteria, seeds, tokenizers."""

import copy
import json
import pickle
import random
import re
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend

import mlx_lfm2vl
from mlx_lfm2vl import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    Lfm2VlConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from mlx_lfm2vl.compat import not_offered
from mlx_lfm2vl.errors import ConfigError, InputError, OptionError, TokenizerError
from mlx_lfm2vl.weights.files import read_header

IDS = np.array([[1, 500, 501, 502]])
SAMPLED: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True}


@cache_by_backend
def loaded(name: str = "gen2") -> Any:
    return AutoModelForImageTextToText.from_pretrained(GOLDEN / name)


# Embeddings and parameters


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["gen2", "untied"])
def test_the_table_of_embeddings_takes_ids_of_every_kind(name):
    table = loaded(name).get_input_embeddings()
    expected = np.array(table.weight)[IDS]
    for ids in (IDS, mx.array(IDS), IDS.tolist()):
        found = table(ids)
        assert isinstance(found, mx.array) and found.dtype == loaded(name).dtype
        np.testing.assert_array_equal(np.array(found), expected)
    assert (table.num_embeddings, table.embedding_dim) == table.weight.shape
    np.testing.assert_array_equal(np.array(table(500)), expected[0, 1])
    for wrong in (-1, table.num_embeddings):
        with pytest.raises(InputError, match=f"ids hold {wrong}; the model's vocabulary has ids 0 to"):
            table([[wrong]])
    with pytest.raises(InputError, match=r"ids are float.*, expected whole numbers"):
        table([0.5])


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["gen2", "untied"])
def test_the_head_gives_logits_of_hidden_states(name):
    model = loaded(name)
    hidden = model.model(IDS).last_hidden_state
    for head in (model.lm_head, model.get_output_embeddings()):
        np.testing.assert_allclose(np.array(head(hidden)), np.array(model(IDS).logits), atol=1e-5)
    assert not hasattr(model.model, "lm_head")


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["gen2", "untied"])
def test_parameters_have_the_names_and_shapes_of_transformers(name, tmp_path):
    model = loaded(name)
    model.save_pretrained(tmp_path, hf=True)
    saved = read_header(tmp_path / "model.safetensors")
    shapes = {each.replace("vision_tower.vision_model.", "vision_tower."): info.shape for each, info in saved.items()}
    assert {each: array.shape for each, array in model.named_parameters()} == shapes
    state = model.state_dict()
    assert {each: array.shape for each, array in state.items()} == {**shapes, "lm_head.weight": shapes[TABLE]}
    if name == "gen2":
        assert mx.array_equal(state["lm_head.weight"], state[TABLE])
    assert next(model.named_parameters("x"))[0].startswith("x.model.")
    assert model.get_memory_footprint() == sum(info.nbytes for info in saved.values())
    assert model.can_generate() and not model.model.can_generate()
    assert model.get_decoder() is model.model.language_model


TABLE = "model.language_model.embed_tokens.weight"


def test_a_model_is_cast_by_methods_named_as_dtypes():
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", backend="mlx")
    for method in ("half", "bfloat16", "float"):
        assert getattr(model, method)().dtype == {"half": mx.float16, "bfloat16": mx.bfloat16}.get(method, mx.float32)
    assert model.eval() is model.cuda() is model.cuda(0) is model.cpu() is model
    assert (model.base_model_prefix, model.main_input_name) == ("model", "input_ids")


@pytest.mark.parametrize("name", sorted(not_offered.MODEL))
def test_methods_of_models_that_are_not_offered_say_what_to_do(name):
    for model in (loaded(), loaded().model):
        assert not hasattr(model, name)
        with pytest.raises(
            AttributeError, match=re.escape(f"{name!r}, as it is not offered: {not_offered.MODEL[name]}")
        ):
            getattr(model, name)
        of = f"^type object {type(model).__name__!r}"
        with pytest.raises(AttributeError, match=f"{of} has no attribute {name!r}, as "):
            getattr(type(model), name)
    with pytest.raises(AttributeError, match=r"object has no attribute 'colour'$"):
        loaded().colour  # noqa: B018


# Names


def test_a_model_without_its_head_has_its_auto_class():
    np.testing.assert_array_equal(
        np.array(AutoModel.from_pretrained(GOLDEN / "gen2")(IDS).last_hidden_state),
        np.array(loaded().model(IDS).last_hidden_state),
    )


@pytest.mark.backends("mlx", "numpy")
def test_criteria_and_processors_are_of_the_named_classes():
    class After(StoppingCriteria):
        def __init__(self, length: int):
            self.length = length

        def __call__(self, input_ids: Any, scores: Any, **named: Any) -> bool:
            return bool(input_ids.shape[1] >= self.length)

    class Only(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return mx.where(mx.arange(scores.shape[1]) == 77, scores, -mx.inf)

    criteria, processors = StoppingCriteriaList([After(9), After(6)]), LogitsProcessorList([Only()])
    made = loaded().generate(IDS, max_new_tokens=9, stopping_criteria=criteria, logits_processor=processors)
    assert np.array(made)[0, 4:].tolist() == [77, 77]
    assert criteria(mx.array(made), None).tolist() == [True] and criteria(IDS, None).tolist() == [False]
    scores = processors(IDS, mx.zeros((1, 100)))
    assert mx.isinf(scores).sum().item() == 99
    with pytest.raises(NotImplementedError, match=r"has no __call__\(input_ids, scores\)"):
        StoppingCriteria()(IDS, None)


@pytest.mark.backends("mlx", "numpy")
def test_a_seed_that_was_set_repeats_what_follows(monkeypatch):
    monkeypatch.setattr("mlx_lfm2vl.compat.seed._answers", None)

    def drawn() -> tuple[Any, ...]:
        answers = [np.array(loaded().generate(IDS, **SAMPLED)).tolist() for _ in range(2)]
        return (answers, random.random(), np.random.rand(), mx.random.uniform().item())

    set_seed(3)
    first = drawn()
    set_seed(np.int64(3))
    assert drawn() == first and first[0][0] != first[0][1]
    set_seed(4)
    assert drawn()[0] != first[0]
    for wrong in (-1, 2**32, 0.5):
        with pytest.raises(OptionError, match=r"seed is .*, expected a whole number from 0 to 4294967295"):
            set_seed(wrong)


def test_features_are_of_the_class_that_is_exported():
    processor = AutoProcessor.from_pretrained(GOLDEN / "gen2")
    made = processor(text="Hi", return_tensors="np")
    assert isinstance(made, BatchFeature) and isinstance(processor.tokenizer("Hi"), BatchFeature)
    assert made.data == dict(made) and made.data["input_ids"] is made.input_ids
    assert mlx_lfm2vl.BatchFeature is BatchFeature


# Tokenizers


def test_a_tokenizer_says_what_the_references_says():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    assert isinstance(tokenizer.all_special_ids, list) and tokenizer.all_special_ids == sorted(
        tokenizer.all_special_ids
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids) == tokenizer.all_special_tokens
    assert tokenizer.name_or_path == str(GOLDEN / "gen2") and tokenizer.is_fast
    assert tokenizer.get_added_vocab()["<image>"] == 396 == tokenizer.vocab["<image>"]
    assert tokenizer.added_tokens_decoder[396].content == "<image>"
    assert tokenizer.model_max_length == 1000000000000000019884624838656
    assert tokenizer.model_input_names == list(tokenizer("Hi")) == ["input_ids", "attention_mask"]
    text = "Hello wörld 漢字 <|im_end|>"
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text
    assert tokenizer.get_chat_template() == (GOLDEN / "gen2" / "chat_template.jinja").read_text(encoding="utf-8")
    assert tokenizer.get_chat_template("{{ x }}") == "{{ x }}"
    assert tokenizer.backend_tokenizer is tokenizer.backend


PADDED = {"input_ids": [[1, 2, 3], [4, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}


@pytest.mark.parametrize(
    "given",
    [
        {"input_ids": [[1, 2, 3], [4]]},
        [{"input_ids": [1, 2, 3]}, {"input_ids": np.array([4])}],
        {"input_ids": [[1, 2, 3], [4]], "attention_mask": [[1, 1, 1], [1]]},
        [[1, 2, 3], [4]],
    ],
)
def test_rows_of_ids_are_padded_as_a_collator_asks(given):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    made = tokenizer.pad(given, return_tensors="np")
    assert {name: value.tolist() for name, value in made.items()} == PADDED
    assert dict(tokenizer.pad(given, True)) == PADDED
    assert tokenizer.pad(given, padding_side="left", pad_to_multiple_of=4)["input_ids"] == [[0, 1, 2, 3], [0, 0, 0, 4]]
    with pytest.raises(OptionError, match="labels cannot be padded; pad input_ids and attention_mask alone"):
        tokenizer.pad({"input_ids": [[1]], "labels": [[1]]})
    masked = tokenizer.pad({"input_ids": [[0, 5], [4]], "attention_mask": [[0, 1], [1]]})
    assert masked["attention_mask"] == [[0, 1], [1, 0]]


def test_a_text_is_encoded_with_the_keywords_of_a_call():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    ids = tokenizer.encode("a b c d")
    np.testing.assert_array_equal(tokenizer.encode("a b c d", return_tensors="np"), [ids])
    assert tokenizer.encode("a b c d", truncation=True, max_length=3) == ids[:3]
    assert tokenizer.encode("a b c d", False) == ids[1:]


@pytest.mark.parametrize("name", ["gen2", "gen25"])
@pytest.mark.parametrize("given", [None, "{{ messages[0].content }}!"])
def test_a_saved_tokenizer_keeps_its_chat_template(name, given, tmp_path):
    tokenizer: Any = AutoTokenizer.from_pretrained(GOLDEN / name)
    if given is not None:
        tokenizer.chat_template = given
    tokenizer.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_chat_template() == tokenizer.get_chat_template()
    assert given in (None, again.get_chat_template())
    messages = [{"role": "user", "content": "Hi"}]
    assert again.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)


def test_a_text_is_cut_to_the_length_that_the_files_say(tmp_path):
    tokenizer: Any = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    ids = tokenizer.encode("a b c d")
    assert tokenizer("a b c d", truncation=True)["input_ids"] == ids
    tokenizer.model_max_length = np.int64(3)
    tokenizer.save_pretrained(tmp_path)
    for each in (
        AutoTokenizer.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(GOLDEN / "gen2", model_max_length=3),
    ):
        assert each.model_max_length == 3 and each("a b c d", truncation=True)["input_ids"] == ids[:3]
        assert (
            each("a b c d")["input_ids"] == ids and each("a b", max_length=2, truncation=True)["input_ids"] == ids[:2]
        )
    for wrong in ("x", -1, True):
        with pytest.raises(OptionError, match=r"model_max_length is .*, expected a whole number from 0"):
            tokenizer.model_max_length = wrong
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": wrong}))
        with pytest.raises(TokenizerError, match=r"model_max_length is .*, expected a number of tokens"):
            AutoTokenizer.from_pretrained(tmp_path)


def test_keywords_of_a_tokenizer_are_taken_or_say_the_way_out():
    AutoTokenizer.from_pretrained(GOLDEN / "gen2", clean_up_tokenization_spaces=False, legacy=False, from_slow=True)
    for name in ("add_bos_token", "add_eos_token"):
        with pytest.raises(OptionError, match=f"no option {name!r}; tokenizer.json says .* add_special_tokens=False"):
            AutoTokenizer.from_pretrained(GOLDEN / "gen2", **{name: True})


# Copies and configurations


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))], ids=["copy", "pickle"]
)
def test_processors_are_copied_and_pickled_after_use(copied):
    processor, messages = AutoProcessor.from_pretrained(GOLDEN / "gen2"), [{"role": "user", "content": "Hi"}]
    text = processor.apply_chat_template(messages)
    again = copied(processor)
    assert again is not processor and again.apply_chat_template(messages) == text
    assert again.tokenizer("a b") == processor.tokenizer("a b") and again.to_dict() == processor.to_dict()
    assert copied(processor.tokenizer).encode("a b") == processor.tokenizer.encode("a b")


def test_a_configuration_says_what_the_references_says(tmp_path):
    config = loaded().config
    assert (config.text_config.model_type, config.vision_config.model_type) == ("lfm2", "siglip2_vision_model")
    assert config.torch_dtype == config.dtype == "float32"
    assert config.name_or_path == config._name_or_path == loaded().name_or_path == str(GOLDEN / "gen2")
    assert "name_or_path" not in config.to_json_string() and Lfm2VlConfig().name_or_path == ""
    changed = AutoConfig.from_pretrained(GOLDEN / "gen2")
    changed.update({"use_cache": False, "own": 1})
    assert not changed.use_cache and changed.to_dict()["own"] == 1
    with pytest.raises(
        ConfigError, match=r"config: projector_bias cannot be set; make another by Lfm2VlConfig.from_dict"
    ):
        changed.update({"projector_bias": False})
    assert config.architectures == ["Lfm2VlForConditionalGeneration"] and not config.is_encoder_decoder
    whole = config.to_dict()
    assert config.to_diff_dict() == whole
    assert whole["text_config"] == config.text_config.to_dict() and whole["text_config"]["hidden_size"] == 64
    assert whole["vision_config"] == config.vision_config.to_dict()


@pytest.mark.parametrize("name", ["gen2", "lfm3"])
def test_a_field_that_is_set_says_how_to_change_it(name):
    config = AutoConfig.from_pretrained(GOLDEN / name)
    for field, says in (
        (
            "image_token_id",
            r"make another by \w+\.from_pretrained\(\.\.\., image_token_id=\.\.\.\) or datac",
        ),
        (
            "eos_token_id",
            r"make another by dataclasses.replace\(config, text_config=dataclasses.replace\(",
        ),
        ("architectures", "it follows from the fields"),
    ):
        with pytest.raises(AttributeError, match=rf"^{field} cannot be set, as configurations are immutable; {says}"):
            setattr(config, field, 5)
    assert AutoConfig.from_pretrained(GOLDEN / name, image_token_id=5).image_token_id == 5
    assert replace(config, image_token_id=5).image_token_id == 5
    assert replace(config, text_config=replace(config.text_config, eos_token_id=5)).eos_token_id == 5
    for part in ("text_config", "vision_config"):
        says = rf"dataclasses.replace\(config, {part}=dataclasses.replace\(config.{part}, num_hidden_layers=\.\.\.\)\)"
        with pytest.raises(AttributeError, match=rf"^num_hidden_layers cannot be set, .*; make another by {says}"):
            getattr(config, part).num_hidden_layers = 5
    config.own = 3
    assert config.to_dict()["own"] == 3


@pytest.mark.parametrize("name", sorted(not_offered.CONFIG))
def test_attributes_that_configurations_lack_say_where_to_look(name):
    config = AutoConfig.from_pretrained(GOLDEN / "gen2")
    assert not hasattr(config, name)
    with pytest.raises(AttributeError, match=re.escape(f"not offered: {not_offered.CONFIG[name]}")):
        getattr(config, name)


@pytest.mark.parametrize("name", sorted(not_offered.TOKENIZER))
def test_methods_of_tokenizers_that_are_not_offered_say_what_to_do(name):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    with pytest.raises(AttributeError, match=re.escape(f"not offered: {not_offered.TOKENIZER[name]}")):
        getattr(tokenizer, name)
