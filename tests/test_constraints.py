"""Answers that hold to a form: whatever the model would rather say, and whoever is answered beside it."""

import json
import re
from typing import Any

import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, statistics_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mlx_lfm2vl import (
    Completion,
    GenerationOptions,
    GenerationRequest,
    ResponseFormat,
    generate,
    generate_batch,
    load,
    stream_generate,
)

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


FORMS: list[Any] = [
    None,
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    ResponseFormat.regex(r"(ab|c){2,6}"),
    ResponseFormat.choice(["a long text that is forced", "a long text that is not", "b"]),
    ResponseFormat.grammar('start: "x" start | "end of it all"'),
]


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    options = GenerationOptions(
        temperature=draw(st.sampled_from([0.0, 0.7, 2.0])),
        max_tokens=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 99)),
        repetition_penalty=draw(st.sampled_from([None, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        top_k=draw(st.sampled_from([None, 4])),
        logprobs=draw(st.booleans()),
        logit_bias=draw(st.sampled_from([{}, {40: 5.0, 50: -3.0}])),
        response_format=draw(st.sampled_from(FORMS)),
    )
    return GenerationRequest(draw(st.sampled_from(["Hi", "Who is that over there?"])), options=options)


def alone(request: GenerationRequest) -> tuple[str, tuple[int, ...], str]:
    model, processor = random_model()
    made = Completion.of(list(stream_generate(model, processor, request.prompt, options=request.options)))
    return made.text, made.tokens, made.finish_reason


@pytest.mark.backends("mlx", "numpy")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests(), min_size=2, max_size=5), st.integers(2, 4))
def test_rows_with_forms_and_free_ones_answer_as_if_alone(rows, batch_size):
    model, processor = random_model()
    made = list(generate_batch(model, processor, rows, batch_size=batch_size))
    assert [(each.text, each.tokens, each.finish_reason) for each in made] == [alone(row) for row in rows]


@pytest.mark.backends("mlx", "numpy")
def test_forced_tokens_take_one_step_together():
    model, processor = random_model()
    form = ResponseFormat.choice(["this text is long and certain"])
    steps = {}
    for logprobs in (False, True):  # whose tokens are run one by one
        options = GenerationOptions(response_format=form, logprobs=logprobs)
        answer = Completion.of(list(stream_generate(model, processor, "Say it.", options=options)))
        assert (answer.text, answer.finish_reason) == ("this text is long and certain", "stop")
        steps[logprobs] = statistics_of(answer).model_steps
        tokens = len(answer.tokens)
    assert steps == {False: 2, True: tokens} and tokens > 5
