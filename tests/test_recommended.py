"""The makers' sampling, by the model's shape, where its files recommend none."""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import GOLDEN

from mlx_lfm2vl import ConfigError, GenerationOptions, Lfm2VlConfig, demo, generate, load, stream_generate
from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.config.generation import CARDS
from mlx_lfm2vl.generation import options as options_module
from mlx_lfm2vl.generation.options import resolved

EMPTY = GenerationConfig(eos_token_ids=(7,), bos_token_id=1, pad_token_id=0)


def shape(hidden: int, layers: int, vocabulary: int) -> Lfm2VlConfig:
    config = Lfm2VlConfig()
    text = replace(config.text_config, hidden_size=hidden, num_hidden_layers=layers, vocab_size=vocabulary)
    return replace(config, text_config=text, image_token_id=396)


def sampling(config: Lfm2VlConfig, checkpoint: GenerationConfig = EMPTY, **chosen: object) -> tuple[object, ...]:
    options = GenerationOptions(**chosen).resolve(checkpoint.recommended(config.text_config))  # type: ignore[arg-type]
    return tuple(getattr(options, name) for name in ("temperature", "min_p", "top_k", "top_p", "repetition_penalty"))


GREEDY = (0.0, 0.0, 0, 1.0, 1.0)
FAMILY = (0.1, 0.15, 0, 1.0, 1.05)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ((1024, 16, 65536), FAMILY),
        ((2048, 16, 65536), FAMILY),
        ((2048, 30, 65536), FAMILY),
        ((2048, 30, 128000), (0.2, 0.0, 50, 1.0, 1.0)),
        ((1024, 16, 32000), GREEDY),
    ],
)
def test_each_published_model_gets_its_cards(model, expected):
    assert sampling(shape(*model)) == expected
    assert EMPTY.recommended(shape(*model).text_config).eos_token_ids == (7,)


def test_what_is_asked_for_and_what_the_checkpoint_says_come_first():
    model = shape(1024, 16, 65536)
    assert sampling(model, temperature=0.7) == (0.7, *FAMILY[1:])
    assert sampling(model, temperature=0.0, repetition_penalty=1.0) == (0.0, 0.15, 0, 1.0, 1.0)
    own = replace(EMPTY, do_sample=True, temperature=0.5, top_p=0.9)
    assert sampling(model, own) == (0.5, 0.0, 0, 0.9, 1.0)
    assert sampling(model, replace(EMPTY, repetition_penalty=1.2)) == (*GREEDY[:4], 1.2)


def test_configurations_may_be_made_with_lists():
    model, processor = load(demo.path())
    text = replace(model.config.text_config, layer_types=list(model.config.text_config.layer_types), eos_token_id=[7])
    model.config = replace(model.config, text_config=text)
    model.generation_config = GenerationConfig(eos_token_ids=[7])  # type: ignore[arg-type]
    assert resolved(model, None).temperature == 0
    assert generate(model, processor, "Hello.", max_tokens=4)


def test_the_bundled_model_is_greedy():
    model, _ = load(demo.path())
    assert resolved(model, None).temperature == 0


def test_answers_obey_it_but_the_references_generate_does_not(tmp_path, monkeypatch):
    """A published shape is too large for a test, so a small one takes a place in the table."""
    monkeypatch.setattr(options_module, "_recommended", GenerationConfig.recommended)  # the table changes
    text = json.loads((GOLDEN / "gen2" / "config.json").read_text())["text_config"]
    own = (text["hidden_size"], text["num_hidden_layers"], text["vocab_size"])
    shutil.copytree(GOLDEN / "gen2", tmp_path / "model")
    model, processor = load(tmp_path / "model")
    ids = processor.tokenizer("Hello.", return_tensors="np")["input_ids"]

    def answer(**chosen):
        options = GenerationOptions(max_tokens=12, seed=3, **chosen)
        return [t for p in stream_generate(model, processor, "Hello.", options=options) for t in p.tokens]

    greedy, reference = answer(), model.generate(ids, max_new_tokens=8).tolist()
    explicit = answer(temperature=5.0, top_k=50)
    monkeypatch.setitem(CARDS, own, {"temperature": 5.0, "top_k": 50})
    assert answer() == explicit != greedy == answer(temperature=0)
    assert model.generate(ids, max_new_tokens=8).tolist() == reference


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 1000), ("temperature", -1), ("top_p", 1.5), ("min_p", 2), ("repetition_penalty", 0)],
)
def test_sampling_out_of_range_is_told_with_its_file(name, value):
    with pytest.raises(ConfigError, match=rf"x/generation_config\.json: {name} is {value}.*, expected a number"):
        GenerationConfig.from_dict({name: value, "do_sample": True}, "x/generation_config.json")
