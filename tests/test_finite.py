"""Numbers that are none are an error with the name of their source, in the row where they are, never text."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture
from mlx.utils import tree_flatten, tree_unflatten

from mlx_lfm2vl import (
    Chat,
    Engine,
    GenerationOptions,
    GenerationRequest,
    NotFiniteError,
    generate,
    generate_batch,
    load,
)

SHORT = GenerationOptions(max_tokens=4)
TEXT_PART = "model.language_model.layers.2.feed_forward.w2.weight"
VISION_PART = "model.vision_tower.encoder.layers.1.mlp.fc2.weight"


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


@pytest.fixture
def spoil():
    """Puts a number into a parameter; all is as before at the end."""
    model, _ = loaded()
    before = dict(tree_flatten(model.parameters()))

    def change(name: str, value: float, everywhere: bool = False) -> None:
        array = np.array(before[name])
        array[... if everywhere else (0,) * array.ndim] = value
        model.update(tree_unflatten([(name, mx.array(array))]))

    yield change
    model.update(tree_unflatten(list(before.items())))


def answers_of(*questions: GenerationRequest):
    return list(generate_batch(*loaded(), questions))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [TEXT_PART, "model.language_model.embedding_norm.weight", VISION_PART])
def test_a_damaged_tensor_is_named(spoil, name, value):
    spoil(name, value)
    with pytest.raises(NotFiniteError, match=rf"tensor {name} holds NaN or infinity; the model's files are damaged"):
        generate(*loaded(), "What?", picture("small"), options=SHORT)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.language_model.layers.1.feed_forward.w2.weight", r"reaches model\.language_model\.layers\.2\."),
        ("model.language_model.embedding_norm.weight", "comes from the last layer or the head"),
        ("model.vision_tower.embeddings.patch_embedding.weight", r"comes from model\.vision_tower\.embeddings"),
        (VISION_PART, r"comes from model\.vision_tower\.encoder\.layers\.1"),
        ("model.vision_tower.post_layernorm.weight", r"comes from model\.vision_tower\.post_layernorm"),
        ("model.multi_modal_projector.linear_2.weight", r"comes from model\.multi_modal_projector"),
    ],
)
def test_an_overflow_is_told_with_the_part_where_it_begins(spoil, name, place):
    spoil(name, 3e38, everywhere=True)
    with pytest.raises(NotFiniteError, match=f"{place}.*; the weights are damaged, or their dtype is too small"):
        generate(*loaded(), "What?", picture("small"), options=SHORT)


def test_the_other_rows_are_answered_when_a_picture_fails(spoil):
    good = [GenerationRequest(text, options=SHORT) for text in ("Hello.", "What is this? Why?")]
    expected = [answer.tokens for answer in answers_of(*good)]
    spoil("model.vision_tower.post_layernorm.weight", float("nan"))
    one, two, three = answers_of(good[0], GenerationRequest("What?", picture("small"), options=SHORT), good[1])
    assert isinstance(two.error, NotFiniteError) and not two.text
    assert [one.tokens, three.tokens] == expected


def test_the_other_rows_are_answered_when_a_word_fails():
    """The embedding of one token is infinite; the head has weights of its own."""
    model, processor = load(GOLDEN / "untied")
    good = [GenerationRequest(text, options=SHORT) for text in ("Hello.", "What is this? Why?")]
    expected = [answer.tokens for answer in generate_batch(model, processor, good)]
    (word,) = processor.tokenizer.encode("~", add_special_tokens=False)
    assert not any(word in tokens for tokens in expected)
    model.model.language_model.embed_tokens.weight[word] = mx.inf
    bad = GenerationRequest("What is ~?", options=SHORT)
    one, two, three = generate_batch(model, processor, [good[0], bad, good[1]])
    assert isinstance(two.error, NotFiniteError) and two.finish_reason == "error"
    assert [one.tokens, three.tokens] == expected
    with Engine(lambda: (model, processor)) as engine:
        requests = [engine.submit(question.prompt, options=SHORT) for question in (good[0], bad, good[1])]
        assert [requests[at].result(60).tokens for at in (0, 2)] == expected
        with pytest.raises(NotFiniteError, match=r"tensor model\.language_model\.embed_tokens\.weight"):
            requests[1].result(60)


def test_an_engine_and_a_chat_go_on(spoil):
    chat = Chat(*loaded(), options=SHORT)
    first = chat.ask("Hello.")
    with Engine(loaded) as engine:
        expected = engine.submit("Hello.", options=SHORT).result(60).tokens
        spoil(TEXT_PART, float("nan"))
        with pytest.raises(NotFiniteError, match=TEXT_PART):
            engine.submit("What is this?", options=SHORT).result(60)
        with pytest.raises(NotFiniteError, match=TEXT_PART):
            chat.ask("And?")
        assert chat.messages[-1]["content"] == first
        spoil(TEXT_PART, 0.0)
        engine.submit("Hello.", options=SHORT).result(60)
        chat.ask("And?")
    assert expected


def test_the_references_generate_raises_too(spoil):
    model, processor = loaded()
    inputs = processor(text="Hello.")
    spoil(TEXT_PART, float("nan"))
    with pytest.raises(NotFiniteError, match=TEXT_PART):
        model.generate(**inputs, max_new_tokens=3)
