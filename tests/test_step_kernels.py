"""Kernels of a whole step of the decode loop, as `GenerationBatch` dispatches it: the model, the sampler, the check
for numbers that are not finite. What counts as a kernel stands in `kernels.py`.

The model is that of LFM2.5-VL-450M with small widths: 195 kernels in 16 bits, 227 with quantised layers, whose products
do not take the residual along. The rest is the choice:

| | greedy | temperature, min-p, penalty | top-k 50 of 65,536 | of 128,000 | top-p |
|---|---|---|---|---|---|
| float32, penalty, NaN if not finite | 1 | 1 | 1 | 1 | 1 |
| largest score (top-k and top-p: sorts and copies) | 1 | 1 | 3 | 5 | 12 |
| the least score that top-p keeps | | | | | 4 |
| random bits | | 1 | 1 | 1 | 1 |
| temperature, filters, noise | | 1 | 1 | 1 | 1 |
| token | 1 | 1 | 1 | 1 | 1 |
| `NOT_FINITE` | 1 | 1 | 1 | 1 | 1 |
| together | 4 | 6 | 8 | 10 | 21 |
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kernels import Count
from test_kernels import NARROW_TEXT, NARROW_VISION, TEXT, VISION, model_of

from mlx_lfm2vl.config import GenerationConfig, Lfm2VlConfig
from mlx_lfm2vl.generation import sampler as sampler_module
from mlx_lfm2vl.generation import sampling
from mlx_lfm2vl.generation.batched_sampler import BatchedSampler
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.options import GenerationOptions
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from tools import roofline

MODEL, QUANTISED = 195, 227
GREEDY = {"temperature": 0.0}
FAMILY = {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}
LARGE = {"temperature": 0.2, "top_k": 50, "repetition_penalty": 1.0}
NUCLEUS = {"temperature": 0.7, "top_p": 0.9}


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """Compiles steps as on a GPU, and anew, so that they are traced while they are counted."""
    monkeypatch.setattr(sampling, "on_gpu", lambda: True)
    monkeypatch.setattr(sampler_module, "on_gpu", lambda: True)
    sampler_module.compiled.cache_clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def narrow(
    vocabulary: int = 65536, quantised: bool = False, layer_types: Sequence[str] | None = None
) -> Lfm2VlForConditionalGeneration:
    text: dict[str, object] = {**TEXT, **NARROW_TEXT, "intermediate_size": 96, "vocab_size": vocabulary}
    if layer_types is not None:
        text |= {"num_hidden_layers": len(layer_types), "layer_types": list(layer_types)}
    model = model_of(text, {**VISION, **NARROW_VISION}, 64)
    model.set_dtype(mx.bfloat16)
    if quantised:
        dense_embedding = lambda _, module: isinstance(module, nn.Linear)  # noqa: E731
        nn.quantize(model.model.language_model, group_size=32, bits=4, class_predicate=dense_embedding)
    mx.eval(model.parameters())
    return model


def step_of(model: Lfm2VlForConditionalGeneration, *given: dict, logprobs: bool = False) -> Count:
    """The third step of rows with these options: the loop is one step ahead then."""
    options = [GenerationOptions(seed=1, **each).resolve(GenerationConfig(do_sample=True)) for each in given]
    sampler = BatchedSampler([UniformSampler(each) for each in options])
    ids = np.array([[1, 2, 3, 4]] * len(given))
    sampler.observe(mx.array(ids), model.config.text_config.vocab_size)
    cache = Cache(model.config.text_config)
    steps = GenerationBatch(
        model, cache, prefill(model, Prompt(ids), cache), sampler, top_logprobs=0 if logprobs else None
    )
    steps.step()
    steps.step()

    def step() -> list[mx.array]:
        tokens, _ = steps.step()
        assert len(tokens) == len(given)
        return []

    sampler_module.compiled.cache_clear()
    return Count(step)


@pytest.mark.parametrize("name", roofline.CHECKPOINTS)
@pytest.mark.parametrize("quantised", [False, True])
def test_a_greedy_step_of_a_checkpoint_has_these_kernels(name, quantised):
    """Those by which docs/performance.md computes the share of the bandwidth that can be reached."""
    text = roofline.CHECKPOINTS[name].text_config
    count = step_of(narrow(text.vocab_size, quantised, text.layer_types), GREEDY)
    assert count.total == roofline.KERNELS[text.num_hidden_layers][quantised], count.kernels


def test_step_with_the_recommended_sampling():
    count = step_of(narrow(), FAMILY)
    assert count.total == MODEL + 6, count.kernels


@pytest.mark.parametrize(
    ("layers", "width", "vocabulary", "given"), [(16, 1024, 65536, FAMILY), (30, 2048, 128_000, LARGE)]
)
def test_these_are_the_recommendations(layers, width, vocabulary, given):
    text = {**TEXT, "hidden_size": width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config = Lfm2VlConfig.from_dict(
        {"model_type": "lfm2_vl", "text_config": {**text, "layer_types": ["conv"] * layers}, "vision_config": VISION}
    )
    card = GenerationConfig().recommended(config.text_config)
    assert card.do_sample and {name: getattr(card, name) for name in given} == given


def test_step_of_a_quantised_model_with_the_recommended_sampling():
    count = step_of(narrow(quantised=True), FAMILY)
    assert count.total == QUANTISED + 6, count.kernels


@pytest.mark.parametrize(("quantised", "body"), [(False, MODEL), (True, QUANTISED)])
def test_step_with_the_50_likeliest_of_128_000(quantised, body):
    """Blocks of 2,000 scores, then of 1,600 of the largest 3,200, then 100: three sorts, two copies between."""
    count = step_of(narrow(128_000, quantised), LARGE)
    assert count.total == body + 10, count.kernels
    assert (count.kernels["Sort"], count.kernels["Contiguous"]) == (3, 2)
    assert "Sort.merge" not in count.kernels


@pytest.mark.parametrize(
    ("given", "choice"),
    [(GREEDY, 4), ({**GREEDY, "repetition_penalty": 1.05}, 4), ({**LARGE, "repetition_penalty": 1.05}, 8)],
    ids=str,
)
def test_step_with_other_options(given, choice):
    count = step_of(narrow(), given)
    assert count.total == MODEL + choice, count.kernels


def test_step_with_top_p_sorts_the_vocabulary():
    """32 blocks, merged in five rounds of two kernels each, and a copy."""
    count = step_of(narrow(), NUCLEUS)
    assert count.kernels["Sort.merge"] == 11
    assert count.total == MODEL + 21, count.kernels


def test_rows_with_different_numbers_are_one_computation():
    rows = [{**FAMILY, "temperature": 0.1 * n, "repetition_penalty": 1 + n / 100} for n in range(1, 9)]
    count = step_of(narrow(), *rows)
    assert count.total == MODEL + 6, count.kernels


def test_rows_of_two_kinds_are_two_computations():
    """Each with its rows of the logits, gathered; their tokens are put together and in order."""
    count = step_of(narrow(), FAMILY, GREEDY, FAMILY)
    assert count.total == MODEL + 6 + 4 + 2 + 2, count.kernels


def test_logprobs_take_four_kernels_more():
    """The logits in float32, the token's own, the logarithm of the sum of their exponentials, and the difference."""
    plain, with_logprobs = (step_of(narrow(), FAMILY, logprobs=logprobs) for logprobs in (False, True))
    assert with_logprobs.total == plain.total + 4, with_logprobs.kernels - plain.kernels
