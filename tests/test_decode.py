"""The prefill and the decode loop: the reference's greedy tokens, and what must not change them."""

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend, case_ids, logits_of, prompt_of

from mlx_lfm2vl.config import GenerationConfig, Lfm2Config
from mlx_lfm2vl.errors import InputError
from mlx_lfm2vl.generation import chunked_prefill
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill, prefill_in_pieces
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.options import GenerationOptions
from mlx_lfm2vl.generation.sampler import Sampler, UniformSampler
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.layers import Context
from mlx_lfm2vl.models.lfm2 import Lfm2Model
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model

GREEDY = GenerationOptions().resolve(GenerationConfig())


pytestmark = pytest.mark.backends("mlx", "numpy")


@cache_by_backend
def model_of(checkpoint: str) -> Lfm2VlForConditionalGeneration:
    return load_model(GOLDEN / checkpoint)


def decode(
    model: Lfm2VlForConditionalGeneration,
    prompt: Prompt,
    cache_: Cache,
    sampler: Sampler,
    count: int,
) -> Iterator[list[int]]:
    """The next token of every row, so many times."""
    logits = prefill(model, prompt, cache_)
    steps = GenerationBatch(model, cache_, logits, sampler, prompt.padding)
    for step in range(count):
        yield steps.step(last=step + 1 == count)[0]


def greedy(model, prompt: Prompt, count: int) -> np.ndarray:
    """(B, count) greedy tokens."""
    sampler = UniformSampler(GREEDY, count=len(prompt.input_ids))
    cache_ = Cache(model.config.text_config)
    return np.array(list(decode(model, prompt, cache_, sampler, count))).T


@pytest.mark.sampled(24)
@pytest.mark.parametrize("case_id", case_ids(having="generated"))
def test_greedy_tokens_are_the_references(case_id, golden):
    case = golden(case_id)
    expected = case.arrays["generated"]
    ours = greedy(model_of(case.checkpoint), prompt_of(case), expected.shape[1])
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@pytest.mark.parametrize("case_id", ["gen2-several", "gen25-text", "gen2-batch-left"])
def test_a_prompt_in_chunks_equals_the_whole(case_id, chunk, golden, monkeypatch):
    monkeypatch.setattr(chunked_prefill, "prefill_chunk", lambda *_: chunk)
    case = golden(case_id)
    model = model_of(case.checkpoint)
    cache_ = Cache(model.config.text_config)
    result = []

    def pieces():
        result.append((yield from prefill_in_pieces(model, prompt_of(case), cache_)))

    seen = [done for done in pieces() if done]
    (logits,) = result
    whole = np.array(logits_of(model, **case.inputs))[:, -1]
    assert np.abs(np.array(logits) - whole).max() < 2e-5 * np.abs(whole).max()
    length = case.inputs["input_ids"].shape[1]
    assert seen == list(range(chunk, length, chunk))
    assert cache_.offset == length


def test_pictures_may_be_mlx_arrays_of_any_float(golden):
    case = golden("gen2-tiled")  # tiles and a thumbnail: two grids
    model = model_of("gen2")
    prompt = prompt_of(case)
    pixels = mx.array(case.pixel_values)
    half = replace(prompt, pixel_values=pixels.astype(mx.bfloat16))
    assert greedy(model, half, 3).shape == (1, 3)
    whole = replace(prompt, pixel_values=pixels)
    np.testing.assert_array_equal(greedy(model, whole, 6), case.arrays["generated"][:, :6])


def test_prompts_padded_on_the_right_are_refused(golden):
    case = golden("gen2-batch-right")
    with pytest.raises(InputError, match="padding_side='left'"):
        prompt_of(case)


def test_the_loop_makes_no_more_tokens_than_asked(golden):
    case = golden("gen25-text")
    model = model_of("gen25")
    cache_ = Cache(model.config.text_config)
    prompt = prompt_of(case)
    steps = decode(model, prompt, cache_, UniformSampler(GREEDY), 5)
    assert len(list(steps)) == 5
    # the last token is never run through the model
    assert cache_.offset == prompt.input_ids.shape[1] + 4


def test_a_token_is_read_once_the_next_step_is_dispatched(golden):
    case = golden("gen25-text")
    model, prompt = model_of("gen25"), prompt_of(case)
    cache_ = Cache(model.config.text_config)
    steps = decode(model, prompt, cache_, UniformSampler(GREEDY), 9)
    next(steps)
    assert cache_.offset == prompt.input_ids.shape[1]
    for count in range(2, 9):
        next(steps)
        assert cache_.offset == prompt.input_ids.shape[1] + count  # the token just read has been run already


@pytest.mark.parametrize("before", [0, 3, 11])
def test_rows_that_join_or_leave_a_batch_change_no_other(before, golden):
    model = model_of("gen2")
    prompts = [prompt_of(golden(name)) for name in ("gen2-landscape", "gen2-text", "gen2-small", "gen2-text")]
    alone = [greedy(model, prompt, 30)[0].tolist() for prompt in prompts]

    def begun(prompt: Prompt) -> GenerationBatch:
        cache_ = Cache(model.config.text_config)
        return GenerationBatch(model, cache_, prefill(model, prompt, cache_), UniformSampler(GREEDY))

    made: list[list[int]] = [[]]
    steps = begun(prompts[0])

    def go(count: int, rows: list[int]) -> None:
        for _ in range(count):
            for row, token in zip(rows, steps.step()[0], strict=True):
                made[row].append(token)

    go(before, [0])
    steps.extend(begun(prompts[1]))
    made.append([])
    go(4, [0, 1])
    steps.filter([1])  # the long one has ended
    steps.extend(begun(prompts[2]))
    made.append([])
    go(5, [1, 2])
    two = begun(prompts[3])
    two.extend(begun(prompts[1]))  # several at once
    steps.extend(two)
    made += [[], []]
    go(3, [1, 2, 3, 4])
    for row, prompt in enumerate((0, 1, 2, 3, 1)):
        assert made[row] == alone[prompt][: len(made[row])] and len(made[row]) >= 3
    longest = max(
        p.input_ids.shape[1] + len(m) for p, m in zip([prompts[i] for i in (1, 2, 3, 1)], made[1:], strict=True)
    )
    assert steps._cache.offset == longest  # not the first row's length


def test_logits_are_computed_for_the_last_position_only(golden, monkeypatch):
    case = golden("gen2-several")
    model, prompt = model_of("gen2"), prompt_of(case)
    asked = []
    logits = type(model).logits

    def computing(self, hidden: mx.array) -> mx.array:
        asked.append(hidden.shape)
        return logits(self, hidden)

    monkeypatch.setattr(type(model), "logits", computing)
    greedy(model, prompt, 4)
    assert asked == [(1, 1, model.config.text_config.hidden_size)] * 4


@pytest.mark.backends("mlx")  # whose memory is all MLX's
def test_chunks_keep_the_peak_of_a_long_prompt_low(monkeypatch):
    model = model_of("gen25")
    prompt = Prompt(np.random.default_rng(0).integers(500, 800, (1, 3000)))

    def peak(chunk: int) -> int:
        monkeypatch.setattr(chunked_prefill, "prefill_chunk", lambda *_: chunk)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(prefill(model, prompt, Cache(model.config.text_config)))
        return mx.get_peak_memory() - before

    assert peak(128) < peak(3000) / 4


def test_the_tower_s_buffers_are_freed_before_the_text(golden, monkeypatch):
    """What MLX holds when the text begins, beside the weights: the image tokens, and no buffers to reuse."""
    case = golden("gen25-tiled")
    model, prompt = model_of(case.checkpoint), prompt_of(case)
    held: list[tuple[int, int]] = []
    embed = type(model.model).embed

    def embedding(*given):
        held.append((mx.get_active_memory() - before, mx.get_cache_memory()))
        return embed(*given)

    monkeypatch.setattr(type(model.model), "embed", embedding)
    for _ in range(2):  # the first run leaves buffers for reuse
        mx.synchronize()
        before = mx.get_active_memory()
        prefill(model, prompt, Cache(model.config.text_config))
    tokens = int((prompt.input_ids == model.config.image_token_id).sum())
    active, kept = held[-1]
    assert kept == 0
    assert 0 < active <= 1.1 * tokens * model.config.text_config.hidden_size * 4
    assert mx.get_peak_memory() - before > 5 * active, "which is little beside what the tower takes"


def test_the_cache_grows_in_steps_and_stays_small(golden):
    case = golden("gen2-landscape")
    model = model_of("gen2")
    cache_ = Cache(model.config.text_config)
    prompt = prompt_of(case)
    assert len(list(decode(model, prompt, cache_, UniformSampler(GREEDY), 200))) == 200
    tokens, config = 512, model.config.text_config  # 86 + 200 in steps of 256
    attention = config.layer_types.count("full_attention")
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    convolutions = config.layer_types.count("conv") * 2 * config.hidden_size * 4
    assert cache_.nbytes == attention * tokens * per_token + convolutions


def test_sampling_is_repeatable_with_a_seed_and_differs_without(golden):
    case = golden("gen2-text")
    model = model_of("gen2")
    prompt = prompt_of(case)

    def sampled(**options) -> list:
        sampler = UniformSampler(GenerationOptions(temperature=1.5, **options).resolve(GenerationConfig()))
        cache_ = Cache(model.config.text_config)
        return list(decode(model, prompt, cache_, sampler, 30))

    mx.random.seed(1)  # the global state plays no part
    first = sampled(seed=5)
    mx.random.seed(2)
    assert sampled(seed=5) == first
    assert sampled(seed=6) != first
    assert sampled() != sampled()


def test_a_likeliest_of_one_is_greedy(golden):
    case = golden("gen2-small")
    model = model_of("gen2")
    prompt = prompt_of(case)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0}, {"min_p": 1.0}):
        sampler = UniformSampler(GenerationOptions(temperature=2.0, **options).resolve(GenerationConfig()))
        cache_ = Cache(model.config.text_config)
        tokens = list(decode(model, prompt, cache_, sampler, 24))
        np.testing.assert_array_equal(np.array(tokens).T, case.arrays["generated"])


@pytest.mark.parametrize("padding", [None, (0, 3)])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 30])
@pytest.mark.parametrize("taps", [3, 4])
@pytest.mark.parametrize("kinds", ["ca", "cac", "acacc", "cc", "aaccc"])
def test_the_last_row_alone_and_the_caches_are_those_of_all_rows(kinds, taps, length, padding):
    layers = ["conv" if kind == "c" else "full_attention" for kind in kinds]
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = Lfm2Config.from_dict(
        {**sizes, "layer_types": layers, "num_hidden_layers": len(layers), "vocab_size": 7, "conv_L_cache": taps}
    )
    body = Lfm2Model(config)
    embeds = mx.random.normal((2, 9 + length, 32), key=mx.random.key(3))
    made = []
    for last_only in (False, True):
        cache_ = Cache(config)
        for part in (embeds[:, :9], embeds[:, 9:]):
            shift = None if padding is None else np.array(padding)
            hidden = body(part, Context.following(part.shape[1], cache_.offset, shift), cache_, last_only=last_only)
        made.append((hidden, cache_.arrays))
    assert made[1][0].shape == (2, 1, 32)
    np.testing.assert_allclose(np.array(made[1][0]), np.array(made[0][0][:, -1:]), rtol=1e-4, atol=1e-5)
    for ours, wanted in zip(made[1][1], made[0][1], strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(wanted), rtol=1e-4, atol=1e-5)
