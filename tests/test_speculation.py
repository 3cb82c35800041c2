"""Drafts change what an answer costs, and not one of its tokens: alone, in batches, with every option."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, case_ids, picture, prompt_of, statistics_of
from drafts import GREEDY, answered, demo, knowing, loaded, requests, same, some
from hypothesis import given
from hypothesis import strategies as st
from servers import serving, settings_of
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import (
    GenerationOptions,
    GenerationRequest,
    GenerationResponse,
    OptionError,
    PromptCache,
    ResponseFormat,
    generate_batch,
)
from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.generation.scheduler import Scheduler
from mlx_lfm2vl.generation.speculation import MOST, Draft
from mlx_lfm2vl.models.bounded_states import ConvCache, WindowCache
from mlx_lfm2vl.models.cache import Cache, KeyValueCache, LayerCache

pytestmark = [pytest.mark.backends("mlx", "numpy"), pytest.mark.usefixtures("by_acceptance_only", "nothing_fails")]


# The batch


@pytest.mark.sampled(24)
@pytest.mark.parametrize("case_id", case_ids(having="generated"))
def test_drafts_give_the_reference_s_tokens(case_id, golden):
    """Rows of a padded batch too, each with drafts of other lengths, right and wrong."""
    case = golden(case_id)
    model = loaded(case.checkpoint)[0]
    prompt = prompt_of(case)
    expected = case.arrays["generated"].tolist()
    cache = Cache(model.config.text_config)
    greedy = UniformSampler(GREEDY.resolve(GenerationConfig()), count=len(prompt.input_ids))
    batch = GenerationBatch(model, cache, prefill(model, prompt, cache), greedy, prompt.padding)
    chance = random.Random(case_id)
    made = [[token] for token in batch.step()[0]]
    while min(map(len, made)) < len(expected[0]) - 8:
        drafts = [
            [token if chance.random() < 0.8 else 3 for token in row[len(own) : len(own) + chance.randint(0, 6)]]
            for row, own in zip(expected, made, strict=True)
        ]
        if not any(drafts):
            continue
        tokens = batch.verify(drafts)[0]
        tokens = [own[: chance.randint(1, len(own))] for own in tokens]  # as where an answer ends within them
        batch.keep(tokens)
        for own, more in zip(made, tokens, strict=True):
            own += more
        if chance.random() < 0.3:  # a step without drafts, which goes ahead, and one that reads it
            for last in (False, True):
                for own, token in zip(made, batch.step(last=last)[0], strict=True):
                    own.append(token)
    for own, row in zip(made, expected, strict=True):
        assert own[: len(row)] == row[: len(own)] and len(own) > len(row) - 9


@pytest.mark.parametrize("rows", [[0], [1], [1, 0], [0, 1, 2]])
@pytest.mark.parametrize("name", ["gen2", "lfm3"])
def test_states_behind_drafts_are_those_of_steps(name, rows):
    """Keys, values, those within a window, and convolutions of every row, whatever was wrong."""
    model = loaded(name)[0]
    ids = np.random.default_rng(1).integers(500, 620, (3, 20))
    padding = np.array([0, 5, 2])

    def begun() -> GenerationBatch:
        cache = Cache(model.config.text_config)
        greedy = UniformSampler(GREEDY.resolve(GenerationConfig()), count=3)
        return GenerationBatch(model, cache, prefill(model, Prompt(ids, padding), cache), greedy, padding)

    batch, plain = begun(), begun()
    every = np.array([plain.step()[0] for _ in range(20)]).T.tolist()
    said = [[token] for token in batch.step()[0]]
    for right in ((3, 1, 0), (0, 2, 4), (1, 1, 1), (2, 0, 1)):
        drafts = [[*row[len(own) : len(own) + n], 9] for row, own, n in zip(every, said, right, strict=True)]
        tokens = batch.verify(drafts)[0]
        assert [len(own) for own in tokens] == [1 + n for n in right]
        batch.keep(tokens)
        for own, more in zip(said, tokens, strict=True):
            own += more
    for last in (False, True):
        for own, token in zip(said, batch.step(last=last)[0], strict=True):
            own.append(token)
    batch.filter(rows)
    for at, row in enumerate(rows):
        tokens_ = np.concatenate([ids[row, padding[row] :], said[row][:-1]])[None]
        wanted = Cache(model.config.text_config)
        mx.eval(prefill(model, Prompt(tokens_), wanted))
        ours = batch.row_cache(at) if len(rows) == 1 else batch._cache.row(at, batch._cache.offset - wanted.offset)
        assert ours.offset == wanted.offset == tokens_.shape[1]
        for layer, other in zip(ours.layers, wanted.layers, strict=True):
            if isinstance(layer, KeyValueCache):
                assert isinstance(other, KeyValueCache) and layer.offset == other.offset
                pairs = [(array[:, :, : layer.offset], its[:, :, : layer.offset]) for array, its in both(layer, other)]
            else:
                assert isinstance(layer, (ConvCache, WindowCache)) and not layer.records
                pairs = both(layer, other)
            for array, its in pairs:
                np.testing.assert_allclose(np.array(array), np.array(its), rtol=1e-3, atol=1e-4)


def both(layer: LayerCache, other: LayerCache) -> list[tuple[mx.array, mx.array]]:
    return list(zip(layer.states, other.states, strict=True))


def test_columns_that_drafts_leave_are_given_up():
    """Rows that part in every step: the batch stays within a step of growth of its longest row."""
    model = loaded()[0]
    cache = Cache(model.config.text_config)
    ids = np.random.default_rng(1).integers(500, 800, (2, 20))
    greedy = UniformSampler(GREEDY.resolve(GenerationConfig()), count=2)
    steps = GenerationBatch(model, cache, prefill(model, Prompt(ids), cache), greedy)
    every = [[token] for token in steps.step()[0]]
    for _ in range(270):
        for own, token in zip(every, steps.step()[0], strict=True):
            own.append(token)
    cache = Cache(model.config.text_config)
    batch = GenerationBatch(model, cache, prefill(model, Prompt(ids), cache), greedy)
    made = [[token] for token in batch.step()[0]]
    for number in range(56):
        right = number % 2
        drafts = [own[len(done) : len(done) + 8] for own, done in zip(every, made, strict=True)]
        drafts[right] = [3]
        tokens = batch.verify(drafts)[0]
        batch.keep(tokens)
        for own, more in zip(made, tokens, strict=True):
            own += more
        assert batch._cache.offset < 20 + max(map(len, made)) + 256
    assert [own[:250] for own in made] == [own[:250] for own in every]
    assert min(map(len, made)) > 250


# Sampling


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 6}, {"temperature": 1.0, "min_p": 0.05}], ids=str
)
def test_drafts_do_not_change_the_distribution(options):
    """Of 20,000 rows: a token that is no draft, or the draft and the token behind it."""
    rows, vocabulary, draft = 20_000, 12, 4
    logits = np.random.default_rng(3).normal(0, 1.5, (2, vocabulary)).astype(np.float32)
    logits[0, draft] += 2
    chosen = GenerationOptions(seed=5, **options).resolve(GenerationConfig(do_sample=True))
    sampler = UniformSampler(chosen, count=rows)
    blocks = np.tile(np.array([[0, draft]], np.int32), (rows, 1))
    tokens = np.array(sampler.verify(mx.broadcast_to(mx.array(logits), (rows, 2, vocabulary)), blocks, [1] * rows))
    first, second = (probabilities(each, chosen) for each in logits)
    counts = np.concatenate([np.bincount(tokens[:, 0], minlength=vocabulary), np.zeros(vocabulary)])
    counts[draft] = 0
    counts[vocabulary:] = np.bincount(tokens[tokens[:, 0] == draft, 1], minlength=vocabulary)
    wanted = rows * np.concatenate([np.where(np.arange(vocabulary) == draft, 0, first), first[draft] * second])
    possible = wanted > 0
    assert not counts[~possible].any()
    statistic = ((counts - wanted)[possible] ** 2 / wanted[possible]).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def probabilities(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """The definition: temperature, then top-k, then min-p."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / (options.temperature or 1.0))
    if options.top_k:
        weights[weights < np.sort(weights)[-options.top_k]] = 0
    weights[weights < (options.min_p or 0.0)] = 0
    return weights / weights.sum()


@some(10)
@given(requests(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 9))
def test_an_answer_with_drafts_is_the_one_without(request_, wrong, seed):
    plain = answered(request_)
    same(answered(knowing(request_, plain, wrong, seed)), plain)


@pytest.mark.soak
@some(1000)
@given(requests(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 9))
def test_a_thousand_answers_with_drafts_are_those_without(request_, wrong, seed):
    plain = answered(request_)
    same(answered(knowing(request_, plain, wrong, seed)), plain)


@some(4)
@given(
    st.lists(st.tuples(requests(), st.sampled_from([None, 0.0, 0.3, 1.0])), min_size=2, max_size=6), st.integers(2, 4)
)
def test_rows_with_drafts_and_without_answer_as_if_alone(rows, batch_size):
    plain = [answered(request) for request, _ in rows]
    drafting = [
        request if wrong is None else knowing(request, own, wrong, seed)
        for seed, ((request, wrong), own) in enumerate(zip(rows, plain, strict=True))
    ]
    for made, own in zip(generate_batch(*loaded(), drafting, batch_size=batch_size), plain, strict=True):
        assert made.error is None
        same(made, own)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 1, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 1.5, "seed": 2, "frequency_penalty": 0.5, "top_logprobs": 2},
        {"temperature": 1.0, "seed": 3, "response_format": ResponseFormat.regex("[a-z]{200}"), "logprobs": True},
    ],
    ids=["greedy", "sampled", "counted", "formed"],
)
def test_right_drafts_take_the_fewest_steps(given):
    """The first token, a draft of 4 and the token behind it, then of 8."""
    request = GenerationRequest("Hi", options=GenerationOptions(max_tokens=60, **given))
    plain = answered(request)
    made = answered(knowing(request, plain, 0.0, None))
    same(made, plain)
    statistics = statistics_of(made)
    assert (len(made.tokens), statistics.model_steps) == (60, 1 + 1 + 6)
    assert statistics.drafted_tokens == statistics.accepted_tokens == 60 - 8
    assert statistics_of(plain).model_steps == 60 and statistics_of(plain).drafted_tokens == 0


def test_wrong_drafts_are_soon_given_up():
    request = GenerationRequest("Hi", options=replace(GREEDY, max_tokens=150))
    plain = answered(request)
    made = answered(knowing(request, plain, 1.0, None))
    same(made, plain)
    statistics = statistics_of(made)
    assert statistics.accepted_tokens == 0 and 4 <= statistics.drafted_tokens <= 4 + 2 * 7
    assert statistics.model_steps == 150


@pytest.mark.parametrize("at", range(2, 9, 2))
def test_an_answer_is_cancelled_within_drafts(at):
    request = GenerationRequest("Hi", options=GREEDY)
    plain = answered(request)
    cache = PromptCache()
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > at

    made = answered(knowing(request, plain, 0.2, 3), stop=stop, prompt_cache=cache)
    assert made.finish_reason == "cancelled" and made.tokens == plain.tokens[: len(made.tokens)]
    again = answered(request, prompt_cache=cache)
    same(again, plain)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [None, "landscape"])
@pytest.mark.parametrize("length", [1, 5, 6, 12])
def test_the_next_turn_begins_behind_an_answer_with_drafts(length, name):
    """Warm as cold, and no more of the prompt is run than behind an answer without drafts."""
    pictures = None if name is None else picture(name)
    options = replace(GREEDY, max_tokens=length)
    request = GenerationRequest("Tell me.", pictures, options=options)
    plain = answered(request)
    cache, cold = PromptCache(), PromptCache()
    same(answered(knowing(request, plain, 0.0, None), prompt_cache=cache), plain)
    answered(request, prompt_cache=cold)
    content = [{"type": "text", "text": "Tell me."}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": ([{"type": "image", "image": pictures}] if name else []) + content},
        {"role": "assistant", "content": plain.text},
        {"role": "user", "content": "Go on."},
    ]
    turn = GenerationRequest(messages, options=GREEDY)
    warm = answered(turn, prompt_cache=cache)
    same(warm, answered(turn))
    assert statistics_of(warm).cached_tokens >= statistics_of(answered(turn, prompt_cache=cold)).cached_tokens - 1


@pytest.mark.parametrize("rows", [1, 2])
def test_each_step_with_drafts_may_be_in_another_thread(rows):
    request = GenerationRequest("Hi", options=replace(GREEDY, temperature=0.7, seed=1, repetition_penalty=1.1))
    plain = answered(request)
    drafting = [knowing(request, plain, 0.2, seed) for seed in range(rows)]
    model, processor = loaded()
    scheduler, tokens = Scheduler(model, processor.tokenizer), dict[int, list[int]]()
    for each in drafting:
        tokens[scheduler.add(encode(model, processor, each), started=0.0).id] = []
    while len(scheduler):
        with ThreadPoolExecutor(1) as pool:
            for id, item in pool.submit(scheduler.step).result():
                assert isinstance(item, GenerationResponse)
                tokens[id] += item.tokens
    assert list(tokens.values()) == [list(plain.tokens)] * rows


# N-grams


def test_a_question_that_is_asked_again_takes_half_the_steps():
    """The answer stands in the prompt."""
    scene, question = GOLDEN.parent.parent / "examples" / "scene.png", "What is in this image?"
    first = answered(GenerationRequest(question, scene), demo())
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": scene}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": question},
    ]
    for options in (GenerationOptions(), GenerationOptions(temperature=0.5, seed=1, repetition_penalty=1.05)):
        plain = answered(GenerationRequest(messages, options=options), demo())
        made = answered(GenerationRequest(messages, options=replace(options, draft="ngram")), demo())
        same(made, plain)
        assert len(made.tokens) > 15
        assert 2 * statistics_of(made).model_steps <= statistics_of(plain).model_steps


def test_answers_to_like_pictures_are_drafts_of_each_other():
    scene = GOLDEN.parent.parent / "examples" / "scene.png"
    options = GenerationOptions(temperature=0.3, seed=1, draft="ngram")
    asked = GenerationRequest("What is in this image?", scene, options=options).repeat(6)
    made = list(generate_batch(*demo(), asked, batch_size=2))
    for answer, request in zip(made, asked, strict=True):
        plain = answered(replace(request, options=replace(request.options, draft=None)), demo())
        assert answer.tokens == plain.tokens
    steps = [statistics_of(answer).model_steps for answer in made[2:]]
    assert 2 * sum(steps) <= sum(len(answer.tokens) + 1 for answer in made[2:])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--draft-model", "demo"), " proposed tokens were right; 4 runs of the model\n"),
        (("--draft", "auto", "--max-tokens", 4), "drafts: none were proposed"),
        (("--max-tokens", 4), None),
    ],
    ids=["model", "none", "unwanted"],
)
def test_verbose_says_what_became_of_drafts(cli, words, told):  # noqa: F811
    scene = GOLDEN.parent.parent / "examples" / "scene.png"
    asked = ("--model", "demo", "--image", scene, "--prompt", "What is in this image?", "--temp", 0, "--verbose")
    code, _, err = cli("generate", *asked, *words)
    assert code == 0
    assert told in err if told else "drafts" not in err


def test_the_command_line_answers_with_drafts(cli, tmp_path):  # noqa: F811
    scene, question = GOLDEN.parent.parent / "examples" / "scene.png", "What is in this image?"
    said = "At the left there is a large black ring, and at the bottom right a large pink square."
    asked = ("--model", "demo", "--image", scene, "--prompt", question)
    code, out, err = cli("generate", *asked, "--draft-model", "demo", "--temp", 0, "--json")
    made = json.loads(out)
    assert (code, err, made["text"]) == (0, "", said)
    assert made["model_steps"] == 4 and made["accepted_tokens"] >= 17
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": question, "image": str(scene)}) + "\n" for _ in range(3)))
    output = tmp_path / "out.jsonl"
    words = ("batch", rows, "--model", "demo", "--output", output, "--batch-size", 1, "--temp", 0)
    assert cli(*words, "--draft", "ngram")[0] == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [said] * 3
    assert "all 3 rows are there already" in cli(*words)[2]  # answers do not depend on drafts


def test_a_server_answers_with_drafts(monkeypatch):
    """The same text; an answer that was given before is a draft of the next."""
    verified, verify = [], GenerationBatch.verify

    def counted(self: GenerationBatch, drafts: Sequence[Sequence[int]]) -> Any:
        verified.append(drafts)
        return verify(self, drafts)

    monkeypatch.setattr(GenerationBatch, "verify", counted)
    texts, counts = [], []
    for draft in (None, "ngram"):
        base = settings_of()
        with serving(replace(base, model_settings=replace(base.model_settings, draft=draft))) as running:
            for _ in range(2):
                asked: Any = [{"role": "user", "content": "Where is the ring?"}]
                made = running.openai().chat.completions.create(model="demo", messages=asked, temperature=0)
                texts.append(made.choices[0].message.content)
        counts.append(len(verified))
    assert len(set(texts)) == 1 and counts[0] == 0 < counts[1]


# What is refused


@pytest.mark.parametrize("draft", ["n-gram", 3, ["ngram"]])
def test_a_draft_that_is_none_is_refused(draft):
    with pytest.raises(OptionError, match=r'draft is .*, expected "ngram", "auto", a model \(load_draft\('):
        GenerationOptions(draft=draft)


@pytest.mark.parametrize("option", ["draft", "logits_processors"])
def test_a_loaded_pair_as_an_option_is_refused_in_a_line(option):
    """Which is what `load` gives."""
    value: Any = {"draft": demo(), "logits_processors": [demo()]}[option]
    with pytest.raises(OptionError, match=f"{option} is .*Lfm2VlForConditionalGeneration") as refused:
        GenerationOptions(**{option: value})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("token", [-1, 832, 10**9])
def test_a_draft_of_unknown_tokens_ends_its_own_row(token, monkeypatch):
    monkeypatch.undo()  # rows begin again
    draft: Draft = partial(proposed, token)
    options = replace(GREEDY, max_tokens=9)
    rows = [GenerationRequest("Hi", options=replace(options, draft=draft)), GenerationRequest("Hi", options=options)]
    wrong, right = generate_batch(*loaded(), rows)
    assert isinstance(wrong.error, OptionError) and f"token {token}, but the model has 832" in str(wrong.error)
    assert right.tokens == answered(rows[1]).tokens


def proposed(token: int, tokens: Sequence[int], count: int) -> list[int]:
    return [token]


def test_a_draft_may_be_longer_than_asked_for():
    """What is too much is left out: no answer is longer than its options say."""
    request = GenerationRequest("Hi", options=replace(GREEDY, max_tokens=5))
    long = answered(GenerationRequest("Hi", options=GREEDY))
    prompt = len(encode(*loaded(), request).ids)

    def draft(tokens: Sequence[int], count: int) -> Sequence[int]:
        assert 1 <= count <= MOST
        return long.tokens[len(tokens) - prompt :]

    made = answered(replace(request, options=replace(request.options, draft=draft)))
    same(made, answered(request))
