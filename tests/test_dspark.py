"""DSpark drafters: mlx-vlm's numbers, and answers that are those without, alone and in batches, with every option."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, case_ids, picture, prompt_of, statistics_of
from drafts import GREEDY, answered, requests, same, some
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import (
    ConfigError,
    DSparkDraftModel,
    GenerationOptions,
    GenerationRequest,
    OptionError,
    OutOfMemoryError,
    PromptCache,
    WeightsError,
    generate_batch,
    load,
    load_draft,
)
from mlx_lfm2vl.config import DSparkConfig, GenerationConfig
from mlx_lfm2vl.generation import chunked_prefill
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill, question_bytes
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.models.layers import Context

pytestmark = [pytest.mark.backends("mlx", "numpy"), pytest.mark.usefixtures("by_acceptance_only", "nothing_fails")]
FOLDER = Path(__file__).parent / "dspark"


@cache_by_backend
def gen25() -> Loaded:
    return load(GOLDEN / "gen25")


def drafter(**changes: Any) -> DSparkDraftModel:
    """The random drafter; with `changes` of its configuration, drawn anew."""
    made = load_draft(FOLDER)
    assert isinstance(made, DSparkDraftModel)
    if not changes:
        return made
    made = DSparkDraftModel(replace(made.config, **changes))
    mx.eval(made.parameters())
    return made


def knowing(request: GenerationRequest, **changes: Any) -> DSparkDraftModel:
    """A drafter that has learned which token follows which in the answer: wrong where one follows another only at
    times."""
    model, processor = gen25()
    plain = answered(request, gen25())
    ids = [int(encode(model, processor, request).ids[-1]), *plain.tokens]
    made = drafter(markov_rank=128, enable_confidence_head=False, **changes)
    drawn = np.random.default_rng(1)
    codes = drawn.choice([-1.0, 1.0], (848, 128)).astype(np.float32)
    after = np.zeros((848, 128), np.float32)
    for one, other in pairwise(ids):
        after[other] += codes[one]
    made.markov_head.markov_w1.weight, made.markov_head.markov_w2.weight = mx.array(codes), mx.array(after)
    return made


# The network


def test_blocks_are_mlx_vlm_s():
    """Tokens and confidence of two blocks, one behind the other, of two rows."""
    ours, embeds = drafter(), gen25()[0].model.language_model
    with np.load(FOLDER / "expected.npz") as stored:
        wanted = dict(stored)
    states, start = ours.empty(), 0
    for number, length in enumerate(wanted["lengths"].tolist()):
        results = [mx.array(each[:, start : start + length]) for each in wanted["results"]]
        ours.remember(results, Context.following(length, start), states)
        start += length
        ids = mx.array(wanted[f"ids.{number}"])
        made = ours.propose(ids, embeds.embed, gen25()[0].logits, 9, Context(9, start), states)
        np.testing.assert_array_equal(np.array(made[0]), wanted[f"tokens.{number}"])
        np.testing.assert_allclose(np.array(made[1]), wanted[f"confidence.{number}"], atol=1e-5)


@pytest.mark.parametrize("read", [(0,), (2, 3), (1, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_drafter_reads_all_tokens_of_the_target_layers(read, chunk, monkeypatch):
    """In whole prompts and in chunks, of which only the last token is wanted; the logits stay the same."""
    if chunk is not None:
        monkeypatch.setattr(chunked_prefill, "prefill_chunk", lambda *_: chunk)
    model = gen25()[0]
    own, other = drafter(target_layer_ids=read), model.make_cache()
    ids = np.random.default_rng(1).integers(500, 800, (1, 30))
    cache = model.make_cache()
    cache.follow(own)
    logits = prefill(model, Prompt(ids), cache)
    np.testing.assert_allclose(np.array(logits), np.array(prefill(model, Prompt(ids), other)), rtol=1e-4, atol=1e-5)
    made = model.model(input_ids=ids, output_hidden_states=True)
    assert not isinstance(made, tuple) and made.hidden_states is not None
    states = made.hidden_states
    last: list[mx.array] = []
    layer = model.model.language_model.layers[4]
    wanted = own.empty()
    for at in read:
        if at < 4:
            last.append(states[at + 1])
        else:  # the reference's last hidden state is normed
            last.append(layer(states[4], Context.following(30, 0)))
    own.remember(last, Context.following(30, 0), wanted)
    for ours, theirs in zip(cache.draft_layers, wanted, strict=True):
        for array, its in zip(ours.states, theirs.states, strict=True):
            np.testing.assert_allclose(np.array(array[:, :, :30]), np.array(its[:, :, :30]), rtol=1e-3, atol=1e-4)


def test_rows_of_a_batch_are_drafted_as_if_alone():
    """Behind padding, and behind drafts of which the rows took other numbers."""
    model, own = gen25()[0], drafter()
    lengths, drawn = (20, 15, 18), np.random.default_rng(2)
    rows = [drawn.integers(500, 800, length) for length in lengths]

    def begun(rows: list[np.ndarray]) -> GenerationBatch:
        longest = max(map(len, rows))
        ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
        padding = longest - np.array([len(row) for row in rows])
        cache = model.make_cache()
        cache.follow(own)
        prompt = Prompt(ids, padding if padding.any() else None)
        greedy = UniformSampler(GREEDY.resolve(GenerationConfig()), count=len(rows))
        batch = GenerationBatch(model, cache, prefill(model, prompt, cache), greedy, prompt.padding)
        batch.step(last=True)
        return batch

    together, alone = begun(rows), [begun([row]) for row in rows]
    for taken in (2, 1, 3):
        tokens, confidence = together.draft()
        for at, batch in enumerate(alone):
            its, sure = batch.draft()
            assert tokens[at] == its[0]
            np.testing.assert_allclose(confidence[at], sure[0], atol=1e-4)
        plain = [batch.verify([[3, 3, 3]])[0][0][:1] for batch in alone]
        for batch, first in zip(alone, plain, strict=True):
            batch.keep([first])
        others = together.verify([[3] * taken for _ in rows])[0]
        together.keep([own[:1] for own in others])
        assert [own[:1] for own in others] == plain
    together.filter([2, 0])
    assert together.draft()[0] == [alone[at].draft()[0][0] for at in (2, 0)]


# Answers


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case_id", case_ids("gen25", having="generated"))
def test_a_drafter_gives_the_reference_s_tokens(case_id, golden):
    case = golden(case_id)
    model, own = gen25()[0], drafter()
    prompt = prompt_of(case)
    expected = case.arrays["generated"].tolist()
    cache = model.make_cache()
    cache.follow(own)
    greedy = UniformSampler(GREEDY.resolve(GenerationConfig()), count=len(prompt.input_ids))
    batch = GenerationBatch(model, cache, prefill(model, prompt, cache), greedy, prompt.padding)
    made = [[token] for token in batch.step(last=True)[0]]
    while min(map(len, made)) < len(expected[0]):
        tokens = batch.verify(batch.draft()[0])[0]
        batch.keep(tokens)
        for row, more in zip(made, tokens, strict=True):
            row += more
    for row, wanted in zip(made, expected, strict=True):
        assert row[: len(wanted)] == wanted


@some(5)
@given(requests(), st.booleans())
def test_an_answer_with_a_drafter_is_the_one_without(request_, right):
    plain = answered(request_, gen25())
    own = knowing(request_) if right else drafter()
    same(answered(replace(request_, options=replace(request_.options, draft=own)), gen25()), plain)


@pytest.mark.soak
@some(500)
@given(requests(), st.booleans())
def test_500_answers_with_a_drafter_are_those_without(request_, right):
    plain = answered(request_, gen25())
    own = knowing(request_) if right else drafter()
    same(answered(replace(request_, options=replace(request_.options, draft=own)), gen25()), plain)


@some(3)
@given(st.lists(st.tuples(requests(), st.booleans()), min_size=2, max_size=6), st.integers(2, 4), st.booleans())
def test_rows_with_a_drafter_and_without_answer_as_if_alone(rows, batch_size, cached):
    plain = [answered(request, gen25()) for request, _ in rows]
    own = knowing(rows[0][0])
    drafting = [
        replace(request, options=replace(request.options, draft=own)) if drafts else request for request, drafts in rows
    ]
    cache = PromptCache() if cached else None
    for made, wanted in zip(
        generate_batch(*gen25(), drafting, batch_size=batch_size, prompt_cache=cache), plain, strict=True
    ):
        assert made.error is None
        same(made, wanted)


@pytest.mark.parametrize(
    "given", [{"temperature": 0.0}, {"temperature": 0.7, "seed": 1}, {"temperature": 0.0, "repetition_penalty": 1.3}]
)
def test_a_right_drafter_takes_fewer_steps(given):
    request = GenerationRequest("Hi", picture("landscape"), options=GenerationOptions(max_tokens=80, **given))
    plain = answered(request, gen25())
    made = answered(replace(request, options=replace(request.options, draft=knowing(request))), gen25())
    same(made, plain)
    statistics = statistics_of(made)
    assert 0 < statistics.accepted_tokens <= statistics.drafted_tokens
    assert 3 * statistics.model_steps <= 2 * statistics_of(plain).model_steps  # some tokens stand in several places


def test_a_doubted_block_is_not_run():
    """The confidence head says when to stop."""
    request = GenerationRequest("Hi", options=GREEDY)
    own = drafter()
    own.confidence_head.proj.bias = mx.array([-30.0])
    made = answered(replace(request, options=replace(GREEDY, draft=own)), gen25())
    same(made, answered(request, gen25()))
    assert statistics_of(made).drafted_tokens == 0


def test_the_next_turn_begins_where_the_drafter_has_read():
    """And a beginning that was run without it is run again."""
    own, cache = drafter(), PromptCache()
    request = GenerationRequest("Why? " * 40, options=replace(GREEDY, max_tokens=8))
    drafting = replace(request, options=replace(request.options, draft=own))
    plain = answered(request, gen25(), prompt_cache=cache)
    first = answered(drafting, gen25(), prompt_cache=cache)
    again = answered(drafting, gen25(), prompt_cache=cache)
    without = answered(request, gen25(), prompt_cache=cache)
    for made, cached in ((first, False), (again, True), (without, True)):
        same(made, plain)
        assert bool(statistics_of(made).cached_tokens) == cached


def test_memory_for_a_drafter_s_states_is_asked_for(monkeypatch):
    """Which is what they take; a question that would not fit with them is refused before it runs."""
    own, model = drafter(), gen25()[0]
    cache = model.make_cache()
    cache.follow(own)
    mx.eval(prefill(model, Prompt(np.random.default_rng(1).integers(500, 800, (1, 256))), cache))
    assert sum(array.nbytes for layer in cache.draft_layers for array in layer.states) == 256 * own.token_bytes
    request = GenerationRequest("Hi", options=GREEDY)
    needed = question_bytes(model.config, 4, len(encode(*gen25(), request).ids), 60)
    monkeypatch.setattr("mlx_lfm2vl.generation.chunked_prefill.free_memory", lambda: needed)
    answered(request, gen25())
    with pytest.raises(OutOfMemoryError):
        answered(replace(request, options=replace(GREEDY, draft=own)), gen25())


def test_drafters_side_by_side_are_one():
    rows = [GenerationRequest("Hi", options=replace(GREEDY, max_tokens=4, draft=drafter())) for _ in range(2)]
    first, second = generate_batch(*gen25(), rows)
    assert first.error is None and isinstance(second.error, OptionError) and "one DSpark drafter" in str(second.error)


# Folders


def test_a_folder_is_recognised_by_its_config(cli, tmp_path):  # noqa: F811
    words = ("generate", "--model", GOLDEN / "gen25", "--prompt", "Hi", "--temp", 0, "--max-tokens", 20, "--json")
    code, out, err = cli(*words, "--draft-model", FOLDER)
    assert (code, err) == (0, "")
    assert json.loads(out)["text"] == json.loads(cli(*words)[1])["text"]
    code, _, err = cli("generate", "--model", FOLDER, "--prompt", "Hi")
    assert code == 2 and "is a DSpark drafter" in err and err.count("\n") == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_drafter_is_read(bits, tmp_path):
    own = drafter()
    nn.quantize(own, 32, bits, class_predicate=lambda path, module: hasattr(module, "to_quantized") and ".mlp." in path)
    arrays = {f"model.{name}": array for name, array in dict(tree_flatten(own.parameters())).items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    shutil.copy(FOLDER / "config.json", tmp_path)
    read = load_draft(tmp_path)
    assert isinstance(read, DSparkDraftModel)
    for name, array in dict(tree_flatten(read.parameters())).items():
        assert mx.array_equal(array, arrays[f"model.{name}"]), name


def test_the_published_configuration_is_read():
    """That of LFM2.5-VL-3B-DSpark, with as many numbers as are published of its weights."""
    published = {
        "architectures": ["Lfm2DSparkDraftModel"],
        **{"model_type": "qwen3", "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 6144, "rms_norm_eps": 1e-5},
        **{"vocab_size": 128000, "rope_theta": 10000000.0, "max_position_embeddings": 128000, "block_size": 9},
        "layer_types": ["full_attention"] * 4,
        "dflash_config": {"mask_token_id": 125017, "target_layer_ids": [2, 9, 17, 21, 27], "num_target_layers": 30},
        **{"markov_rank": 256, "rope_is_neox_style": False, "enable_confidence_head": True},
    }
    made = DSparkDraftModel(DSparkConfig.from_dict(published))
    assert sum(array.size for array in dict(tree_flatten(made.parameters())).values()) == 279_468_801


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        del config["dflash_config"][name]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("mask_token_id"), "mask_token_id is -1"),
        (without("target_layer_ids"), "target_layer_ids is None"),
        (lambda config: config["dflash_config"].update(target_layer_ids=[3, 2]), "ascending layer numbers below 5"),
        (lambda config: config["dflash_config"].update(target_layer_ids=[5]), "ascending layer numbers below 5"),
        (lambda config: config.update(markov_head_type="gated"), "markov_head_type is 'gated'"),
        (lambda config: config.update(layer_types=["sliding_attention"] * 2), "'full_attention' for every layer"),
        (lambda config: config.update(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'"),
        (lambda config: config.update(num_key_value_heads=3), "a divisor of 4 heads"),
        (lambda config: config.update(block_size=0), "block_size is 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, said, tmp_path):
    config = json.loads((FOLDER / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(FOLDER / "model.safetensors", tmp_path)
    with pytest.raises(ConfigError, match=said):
        load_draft(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("fc.weight"), "fc.weight is missing"),
        (lambda arrays: arrays.update(extra=mx.zeros((2,))), "extra has no place"),
        (lambda arrays: arrays.update({"norm.weight": mx.zeros((65,))}), "norm.weight has shape"),
        (lambda arrays: arrays.update({"model.norm.weight": mx.zeros((64,))}), "norm.weight twice"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, said, tmp_path):
    arrays: Any = mx.load(str(FOLDER / "model.safetensors"))
    change(arrays)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    shutil.copy(FOLDER / "config.json", tmp_path)
    with pytest.raises(WeightsError, match=said):
        load_draft(tmp_path)


def test_a_drafter_of_another_model_is_refused():
    with pytest.raises(OptionError, match="the drafter is for a model with vocab_size 848, this model has 832"):
        answered(GenerationRequest("Hi", options=replace(GREEDY, draft=drafter())))
