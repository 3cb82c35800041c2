"""Quantised keys and values: attention by them, answers, caches and files, and the memory that they take."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, logits_of, statistics_of
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import (
    Completion,
    GenerationOptions,
    GenerationRequest,
    Lfm2VlForConditionalGeneration,
    OptionError,
    PromptCache,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.generation.chunked_prefill import token_bytes
from mlx_lfm2vl.models.bounded_states import ConvCache
from mlx_lfm2vl.models.cache import GROWTH_STEP, KV_BITS, QuantizedKeyValueCache
from mlx_lfm2vl.models.layers import Context

pytestmark = pytest.mark.backends("mlx", "numpy")
SCENE = GOLDEN.parent.parent / "examples" / "scene.png"
QUESTION = "What is in this image?"


@cache_by_backend
def loaded(kv_bits: int | None) -> Loaded:
    return load("demo", kv_bits=kv_bits)


def answered(kv_bits: int | None, request: GenerationRequest, prompt_cache: PromptCache | None = None) -> Completion:
    return Completion.of(list(stream_generate(*loaded(kv_bits), request, prompt_cache=prompt_cache)))


@pytest.mark.backends("mlx")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("bits", KV_BITS)
def test_attention_by_quantised_keys_is_that_by_dequantised_ones(bits, length, masked):
    past, batch, heads, kv_heads, depth = 37, 2, 4, 2, 64
    keys, values = mx.random.normal((2, batch, kv_heads, past + length, depth), key=mx.random.key(1))
    queries = mx.random.normal((batch, heads, length, depth), key=mx.random.key(2))
    caches = [QuantizedKeyValueCache(bits, 64) for _ in range(2)]
    for cache in caches:
        cache.update(keys[:, :, :past], values[:, :, :past])
    mask = Context.following(length, past, np.array([0, 5]) if masked else None).attention_mask
    new = keys[:, :, past:], values[:, :, past:]
    ours = caches[0].attend(queries, *new, 0.125, mask)
    dense = caches[1].update(*new)
    wanted = mx.fast.scaled_dot_product_attention(queries, *dense, scale=0.125, mask=mask)
    np.testing.assert_allclose(np.array(ours), np.array(wanted), atol=2e-5)
    assert np.abs(np.array(dense[0]) - np.array(keys)).max() < 8 / (2**bits - 1)


@pytest.mark.parametrize(("bits", "most"), [(8, 1e-4), (4, 2e-2)])
def test_the_next_token_is_as_likely_but_for_little(bits, most):
    """The mean Kullback-Leibler divergence from full precision, over a prompt with a picture and its answer."""
    answer = answered(None, GenerationRequest(QUESTION, SCENE))
    every = []
    for each in (None, bits):
        model, processor = load("demo", dtype="float32", kv_bits=each)
        messages = [
            {"role": "user", "content": [{"type": "image", "image": SCENE}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": answer.text},
        ]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="np")
        logits = logits_of(model, **inputs, past_key_values=model.make_cache())
        every.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    divergence = float(np.array((mx.exp(every[0]) * (every[0] - every[1])).sum(axis=-1)).mean())
    assert 0 < divergence < most


@pytest.mark.parametrize("bits", KV_BITS)
def test_rows_caches_and_drafts_give_the_answer_of_a_single_run(bits):
    hot = GenerationOptions(temperature=0.8, draft="ngram")
    requests = [GenerationRequest(QUESTION, SCENE, options=replace(hot, seed=seed)) for seed in range(3)]
    requests.append(GenerationRequest("Where is the ring?", SCENE))
    alone = [answered(bits, replace(each, options=replace(each.options, draft=None))).tokens for each in requests]
    cache = PromptCache()
    for _ in range(2):  # cold, then warm
        made = list(generate_batch(*loaded(bits), requests, batch_size=3, prompt_cache=cache))
        assert [each.tokens for each in made] == alone
    assert statistics_of(made[0]).cached_tokens == statistics_of(made[0]).prompt_tokens


@pytest.mark.parametrize("bits", KV_BITS)
def test_states_take_the_memory_that_is_calculated(bits):
    model = loaded(bits)[0]
    cache = model.make_cache()
    logits_of(model, np.full((1, 300), 9), past_key_values=cache)
    mx.eval(cache.arrays)
    convolutions = sum(array.nbytes for layer in cache.layers if isinstance(layer, ConvCache) for array in layer.states)
    size = model.model.language_model.embedding_norm.weight.dtype.size
    assert cache.nbytes - convolutions == 2 * GROWTH_STEP * token_bytes(model.config, size, bits)
    assert token_bytes(model.config, size, bits) < token_bytes(model.config, size) * 0.65


def test_states_of_the_first_convolution_stay_exact():
    states = []
    for bits in (None, 4):
        model = loaded(bits)[0]
        cache = model.make_cache()
        logits_of(model, np.arange(30)[None] + 9, past_key_values=cache)
        assert all(mx.issubdtype(array.dtype, mx.floating) for array in cache.layers[0].states)
        states.append(np.stack([np.array(array.astype(mx.float32)) for array in cache.layers[0].states]))
    np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.parametrize("bits", KV_BITS)
def test_a_folder_keeps_quantised_states_for_the_same_bits(bits, tmp_path: Path):
    request = GenerationRequest(QUESTION, SCENE)
    first = answered(bits, request, prompt_cache=PromptCache(folder=tmp_path))
    again = answered(bits, request, prompt_cache=PromptCache(folder=tmp_path))
    assert again.tokens == first.tokens
    assert statistics_of(again).cached_tokens == statistics_of(again).prompt_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in {None, *KV_BITS} - {bits}:
            cold = answered(other, request, prompt_cache=PromptCache(folder=tmp_path / "."))
            assert statistics_of(cold).cached_tokens == 0


@pytest.mark.backends("mlx")
@pytest.mark.parametrize("bits", [0, 3, 16, True, "8"])
def test_other_bits_are_refused(bits):
    for read in (load, Lfm2VlForConditionalGeneration.from_pretrained):
        with pytest.raises(OptionError, match=r"kv_bits is .*, expected 8, 4 or None"):
            read("demo", kv_bits=bits)


@pytest.mark.backends("mlx", "numpy")
def test_from_pretrained_takes_kv_bits():
    model = Lfm2VlForConditionalGeneration.from_pretrained("demo", kv_bits=8)
    processor = loaded(8)[1]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    own = answered(8, GenerationRequest(QUESTION, options=GenerationOptions(max_tokens=8, temperature=0.0)))
    assert model.kv_bits == 8
    assert tuple(np.array(made)[0, inputs["input_ids"].shape[1] :].tolist())[: len(own.tokens)] == own.tokens


@pytest.mark.backends("mlx")
def test_heads_that_no_group_divides_are_refused():
    with pytest.raises(OptionError, match=r"kv_bits needs heads of a multiple of 32, this model's are 16"):
        load(GOLDEN / "gen2", kv_bits=8)


@pytest.mark.backends("numpy")
def test_the_command_line_answers_with_kv_bits(cli):  # noqa: F811
    code, out, err = cli("generate", "--model", "demo", "--image", SCENE, "--prompt", QUESTION, "--kv-bits", 8)
    assert (code, err) == (0, "")
    assert out == "At the left there is a large black ring, and at the bottom right a large pink square.\n"
