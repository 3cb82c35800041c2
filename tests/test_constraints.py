"""Answers that hold to a form: whatever the model would rather say, and whoever is answered beside it."""

import json
import re

import pytest
from conftest import GOLDEN, Loaded, cache_by_backend
from jsonschema import Draft202012Validator

from mlx_lfm2vl import GenerationOptions, ResponseFormat, generate, load, stream_generate

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
HOT = GenerationOptions(temperature=2.0, max_tokens=200)


@cache_by_backend
def random_model() -> Loaded:
    return load(GOLDEN / "gen25")


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_answer_under_a_schema(seed):
    model, processor = random_model()
    text = generate(model, processor, "Who?", options=HOT, response_format=PERSON, seed=seed)
    Draft202012Validator(PERSON).validate(json.loads(text))


@pytest.mark.backends("mlx", "numpy")
def test_random_weights_answer_as_a_regex_says():
    model, processor = random_model()
    form = ResponseFormat.regex(r"[A-Z]{2}-\d{3}")
    options = GenerationOptions(response_format=form, temperature=2.0, seed=1)
    answer = list(stream_generate(model, processor, "Which?", options=options))
    assert re.fullmatch(r"[A-Z]{2}-\d{3}", "".join(piece.text for piece in answer))
    assert answer[-1].finish_reason == "stop"


@pytest.mark.backends("mlx", "numpy")
def test_random_weights_choose_one_of_the_texts():
    model, processor = random_model()
    form = ResponseFormat.choice(["a cat", "a dog", "naïve: $[x]"])
    answers = {generate(model, processor, "What?", options=HOT, response_format=form, seed=seed) for seed in range(8)}
    assert len(answers) > 1 and answers <= {"a cat", "a dog", "naïve: $[x]"}
