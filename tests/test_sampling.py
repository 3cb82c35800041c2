"""The filters against their definitions, written out plainly in NumPy for one row."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.generation.options import GenerationOptions
from mlx_lfm2vl.generation.sampling import Sampler, SideBySide, keep_likely, penalize

logit_rows = st.lists(st.integers(-40, 40), min_size=2, max_size=40, unique=True).map(lambda xs: np.array(xs) / 4)


def allowed(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Ids that stay, each filter on the renormalised rest of the one before."""
    ids = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        ids = ids[:top_k]
    if top_p < 1:
        p = np.exp(logits[ids] - logits.max())
        p /= p.sum()
        ids = [i for i, before in zip(ids, np.concatenate([[0], np.cumsum(p)[:-1]]), strict=True) if before < top_p]
    if min_p > 0:
        p = np.exp(logits - logits.max())
        ids = [i for i in ids if p[i] >= min_p]
    return set(ids)


@settings(max_examples=200)
@given(
    logit_rows,
    st.integers(0, 45),
    st.sampled_from([1.0, 0.95, 0.71, 0.3, 0.01]),
    st.sampled_from([0.0, 0.07, 0.4, 1.0]),
)
def test_filters(row, top_k, top_p, min_p):
    logits = mx.array(row[None].astype(np.float32))
    kept = np.array(keep_likely(logits, top_k, top_p, min_p))[0]
    ids = set(np.flatnonzero(np.isfinite(kept)).tolist())
    assert ids == allowed(row, top_k, top_p, min_p)
    np.testing.assert_array_equal(kept[sorted(ids)], row[sorted(ids)].astype(np.float32))


def test_rows_of_a_batch_do_not_touch_each_other():
    rows = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
    together = np.array(keep_likely(mx.array(rows), 10, 0.8, 0.05))
    for row, ours in zip(rows, together, strict=True):
        np.testing.assert_array_equal(ours, np.array(keep_likely(mx.array(row[None]), 10, 0.8, 0.05))[0])


def test_a_row_that_two_thousand_others_join_and_leave_is_chosen_as_alone():
    long = SideBySide([(Sampler(GenerationOptions(temperature=1.0, seed=3)), 1)])
    alone = Sampler(GenerationOptions(temperature=1.0, seed=3))
    for _ in range(2000):
        long = SideBySide([(long, 1), (Sampler(GenerationOptions(temperature=0.0)), 1)])
        long.select([0])
    logits = mx.array(np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32))
    assert [long(row[None]).item() for row in logits] == [alone(row[None]).item() for row in logits]


def test_penalty():
    logits = mx.array([[2.0, -2.0, 0.0, 4.0]])
    seen = mx.array([[True, True, True, False]])
    np.testing.assert_allclose(np.array(penalize(logits, seen, 2.0)), [[1.0, -4.0, 0.0, 4.0]])


def test_the_penalty_counts_prompt_and_answer():
    sampler = Sampler(GenerationOptions(repetition_penalty=100.0).resolve(GenerationConfig()))
    logits = mx.array([[5.0, 4.0, 3.0, 2.0]])
    sampler.observe(mx.array([[0, 0]]), 4)
    assert [sampler(logits).item() for _ in range(3)] == [1, 2, 3]


def test_the_smallest_temperature_is_greedy_and_not_garbage():
    sampler = Sampler(GenerationOptions(temperature=1e-40).resolve(GenerationConfig()))
    assert sampler(mx.array([[3.0, 40.0, -2.0]])).item() == 1


def test_samples_follow_the_distribution():
    sampler = Sampler(GenerationOptions(temperature=0.5, seed=3).resolve(GenerationConfig()))
    logits = mx.broadcast_to(mx.log(mx.array([0.5, 0.3, 0.2])), (20_000, 3))
    counts = np.bincount(np.array(sampler(logits)), minlength=3) / 20_000
    np.testing.assert_allclose(counts, np.array([0.25, 0.09, 0.04]) / 0.38, atol=0.015)


def test_options_left_open_take_the_checkpoints_recommendation():
    card = GenerationConfig(do_sample=True, temperature=0.1, min_p=0.15, repetition_penalty=1.05)
    chosen = GenerationOptions(min_p=0.3).resolve(card)
    assert (chosen.temperature, chosen.min_p, chosen.repetition_penalty) == (0.1, 0.3, 1.05)
    assert (chosen.top_p, chosen.top_k) == (1.0, 0)
    assert GenerationOptions().resolve(GenerationConfig()).temperature == 0
    assert GenerationOptions().resolve(GenerationConfig(do_sample=True)).temperature == 1.0
    assert GenerationOptions(temperature=0).resolve(card).temperature == 0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_tokens", 0, "an integer from 1"),
        ("max_tokens", None, "an integer from 1"),
        ("max_tokens", 2.5, "an integer from 1"),
        ("max_tokens", True, "an integer from 1"),
        ("temperature", -0.1, "a number from 0"),
        ("temperature", float("nan"), "a number from 0"),
        ("temperature", "hot", "a number from 0"),
        ("top_p", 0, "a number above 0 to 1"),
        ("top_p", 1.1, "a number above 0 to 1"),
        ("min_p", float("inf"), "a number from 0 to 1"),
        ("top_k", -1, "an integer from 0"),
        ("repetition_penalty", 0, "a number from 0.01 to 100"),
        ("seed", -1, "an integer from 0"),
        ("seed", np.bool_(True), "an integer from 0"),
        ("stop", 3, "texts that are not empty"),
        ("stop", ["a", None], "texts that are not empty"),
    ],
)
def test_options_outside_their_range_are_refused_by_name(name, value, expected):
    with pytest.raises(OptionError, match=f"{name} is .*, expected {expected}"):
        GenerationOptions(**{name: value})


def test_numbers_may_be_numpys_and_no_stop_may_be_none():
    options = GenerationOptions(max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.uint8(7), stop=None)
    assert options == GenerationOptions(max_tokens=3, temperature=0.5, seed=7)
    assert [type(value) for value in (options.max_tokens, options.temperature, options.seed)] == [int, float, int]


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-38, 1e-20])
def test_the_least_temperatures_are_greedy(temperature):
    options = GenerationOptions(temperature=temperature, seed=1).resolve(GenerationConfig(do_sample=True))
    logits = mx.array([[0.5, 3.0, 2.99, -1e4], [7.0, -2.0, 0.0, 6.999]])
    assert Sampler(options)(logits).tolist() == [1, 0]
