"""Filters, choice and state against their definitions, written out plainly in NumPy for one row.

Tests with `device` run twice: as on a CPU, and as on a GPU, where a step is compiled and the largest scores are found
by a tournament. (MLX's CPU back end runs compiled functions too, by a C++ compiler.)
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.errors import OptionError
from mlx_lfm2vl.generation import sampler as sampler_module
from mlx_lfm2vl.generation import sampling
from mlx_lfm2vl.generation.batched_sampler import BatchedSampler
from mlx_lfm2vl.generation.options import GenerationOptions
from mlx_lfm2vl.generation.sampler import NOT_FINITE, Sampler, SamplingKind, UniformSampler, penalize, sample
from mlx_lfm2vl.generation.sampling import filter_logits, gumbel, largest, random_bits

# The sampling that the makers recommend, and others that together use every option
Given = dict[str, Any]  # fields of GenerationOptions
FAMILY: Given = {"temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05}
LARGE: Given = {"temperature": 0.2, "top_k": 50}
NUCLEUS = {"temperature": 0.7, "top_p": 0.9}
EVERYTHING = {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3}
PENALTY = {"temperature": 0.0, "repetition_penalty": 1.2}
GREEDY: Given = {"temperature": 0.0}
ALL = (FAMILY, LARGE, NUCLEUS, EVERYTHING, PENALTY, GREEDY)

both_devices = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
logit_rows = st.lists(st.integers(-40, 40), min_size=2, max_size=40).map(lambda xs: np.array(xs) / 4)
top_ks = st.integers(0, 45)
top_ps = st.sampled_from([1.0, 0.95, 0.71, 0.3, 0.01, 0.0])
min_ps = st.sampled_from([0.0, 0.07, 0.4, 1.0])


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch, tmp_path_factory) -> str:
    monkeypatch.setattr(sampling, "on_gpu", lambda: request.param == "gpu")
    monkeypatch.setattr(sampler_module, "on_gpu", lambda: request.param == "gpu")
    compiled = tmp_path_factory.getbasetemp() / "compiled"  # another process could read what this one is writing
    compiled.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(compiled))
    return request.param


def options(seed: int | None = None, **given: Any) -> GenerationOptions:
    return GenerationOptions(seed=seed, **given).resolve(GenerationConfig(do_sample=True))


def some_logits(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 4)


def tokens_of(sampler: Sampler, logits: mx.array, steps: int) -> list[list[int]]:
    """Tokens (steps, B) for the same logits, which the penalty changes."""
    return [np.array(sampler(logits)).tolist() for _ in range(steps)]


def batched(rows: list[GenerationOptions]) -> BatchedSampler:
    """The sampler of rows that were joined."""
    return BatchedSampler([UniformSampler(row) for row in rows])


# The choice


def allowed(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Ids that stay, the likeliest always; each filter on the renormalised rest of the one before. Equal logits stay or
    go together."""
    p = np.exp(logits - logits.max())
    ids = np.arange(len(logits))
    if top_k:
        ids = ids[logits >= np.sort(logits)[-top_k:][0]]
    if top_p < 1:
        total = p[ids].sum()
        likelier = {i: p[ids][logits[ids] > logits[i]].sum() / total for i in ids}
        ids = np.array([i for i in ids if likelier[i] < top_p or logits[i] == logits.max()])
    return {int(i) for i in ids if p[i] >= min_p}


def kind_and_numbers(top_k: int, top_p: float, min_p: float, temperature: float = 1.0) -> tuple[SamplingKind, dict]:
    given = options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return SamplingKind.of(given), sampler_module.numbers_of(SamplingKind.of(given), [given])


@both_devices
@given(logit_rows, top_ks, top_ps, min_ps, st.sampled_from([1.0, 0.5, 1.7]))
def test_filters(device, row, top_k, top_p, min_p, temperature):
    kind, numbers = kind_and_numbers(top_k, top_p, min_p, temperature)
    filtered, top = filter_logits(mx.array(row[None].astype(np.float32)), numbers, kind.within(len(row)).top_k)
    kept = np.array(filtered)[0]
    ids = set(np.flatnonzero(np.isfinite(kept)).tolist())
    scaled = (row - row.max()) / temperature
    assert ids == allowed(scaled, top_k, top_p, min_p)
    assert top.item() == row.max()
    np.testing.assert_allclose(kept[sorted(ids)], scaled[sorted(ids)], rtol=1e-6)


def test_tokens_as_likely_as_the_last_of_top_k_count_for_top_p(device):
    """Of six that stay, the first has e / (e + 5) = 35%, less than half; of two it would have 73%."""
    kind, numbers = kind_and_numbers(2, 0.5, 0.0)
    filtered, _ = filter_logits(mx.array([[1.0, 0, 0, 0, 0, 0, -9]]), numbers, kind.top_k)
    assert np.isfinite(np.array(filtered)).tolist() == [[True] * 6 + [False]]


def test_filters_of_a_row_do_not_depend_on_the_others(device):
    kind, numbers = kind_and_numbers(10, 0.8, 0.05)
    rows = some_logits(5, 30)
    together = np.array(filter_logits(rows, numbers, kind.top_k)[0])
    for row, ours in zip(rows, together, strict=True):
        np.testing.assert_array_equal(ours, np.array(filter_logits(row[None], numbers, kind.top_k)[0])[0])


@both_devices
@given(
    logit_rows,
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.1, 1.0]),
            "top_k": top_ks,
            "top_p": top_ps,
            "min_p": min_ps,
            "repetition_penalty": st.sampled_from([1.0, 1.05, 0.5]),
        }
    ),
    st.lists(st.integers(0, 100), max_size=5),
    st.integers(0, 2**64 - 1),
)
def test_the_token_is_that_of_the_definition(device, row, given_, seen_ids, key):
    given = options(**given_)
    kind = SamplingKind.of(given)
    seen = np.isin(np.arange(len(row)), seen_ids)
    scores = row.astype(np.float32)  # in which a penalised score may equal another
    if kind.penalty:
        penalty = np.float32(given_["repetition_penalty"])
        scores = np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)
    scores = scores.astype(np.float64)
    keys = mx.array(np.array([key], np.uint64).view(np.uint32)[None])
    if kind.greedy:
        expected = int(scores.argmax())
    else:
        noise = np.array(gumbel(random_bits(keys, len(row))))[0].astype(np.float64)
        scaled = (scores - scores.max()) / given_["temperature"]
        ids = sorted(allowed(scaled, given_["top_k"], given_["top_p"], given_["min_p"]))
        expected = ids[int((scaled + noise)[ids].argmax())]
    tokens, history = sample_on(device)(
        kind,
        mx.array(row[None].astype(np.float32)),
        sampler_module.numbers_of(kind, [given]),
        {} if kind.greedy else {"keys": keys},
        {"seen": mx.array(seen[None]), "last": mx.array([NOT_FINITE])} if kind.penalty else {},
    )
    assert tokens.tolist() == [expected] and tokens.dtype == mx.int32
    if kind.penalty:
        np.testing.assert_array_equal(np.array(history["seen"])[0], seen)


def sample_on(device: str) -> Callable[..., tuple[mx.array, dict[str, mx.array]]]:
    return sample if device == "cpu" else lambda kind, *arrays: sampler_module.compiled(kind)(*arrays)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("given", ALL, ids=str)
def test_compiled_steps_choose_the_same_tokens(given, dtype, monkeypatch, tmp_path_factory):
    logits = some_logits(3, 5000).astype(dtype)
    answers = []
    for gpu in (False, True):
        monkeypatch.setattr(sampling, "on_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(sampler_module, "on_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setenv("TMPDIR", str(tmp_path_factory.getbasetemp()))
        sampler = UniformSampler(options(3, **given), count=3)
        sampler.observe(mx.array([[1, 2], [3, 4], [5, 5]]), 5000)
        answers.append(tokens_of(sampler, logits, 6))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("given", ALL, ids=str)
def test_a_row_that_is_not_finite_hurts_no_neighbour(given, value, device):
    good = np.array(some_logits(1, 5000))
    for place in (0, 2500, 4999):
        bad = good.copy()
        bad[0, place] = value
        both = [batched([options(1, **given), options(2, **given)]) for _ in range(2)]
        expected = both[0](mx.array(np.concatenate([good, good])))
        assert both[1](mx.array(np.concatenate([good, bad]))).tolist() == [expected[0].item(), NOT_FINITE]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_logits_of_16_bits_are_penalised_in_32(dtype, device):
    """As transformers does. 1.05 is 1.047 in bfloat16, and 10.5 / 1.05 has few bits."""
    sampler = UniformSampler(options(temperature=0.0, repetition_penalty=1.05))
    sampler.observe(mx.array([[0, 1]]), 3)
    assert sampler(mx.array([[10.5, 2.0, 9.9375]]).astype(dtype)).item() == 0
    sampler = UniformSampler(options(temperature=0.0, repetition_penalty=1.05))
    sampler.observe(mx.array([[0, 1]]), 3)
    assert sampler(mx.array([[10.5, 2.0, 10.0625]]).astype(dtype)).item() == 2


# The largest scores


@both_devices
@given(st.data())
def test_the_largest_scores_are_those_of_a_sort(device, data):
    size = data.draw(st.integers(1, 400))
    count = data.draw(st.integers(1, size))
    values = data.draw(st.integers(1, 2000))  # few of them have ties
    seed = data.draw(st.integers(0, 2**32 - 1))
    block = data.draw(st.sampled_from([16, 64, 2048]))
    shift = data.draw(st.sampled_from([-values, 0]))
    scores = np.random.default_rng(seed).integers(-values, values, (2, size)).astype(np.float32) + shift
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BLOCK", block)
        found = np.array(largest(mx.array(scores), count))
    np.testing.assert_array_equal(found, np.sort(scores)[:, -count:])


@pytest.mark.parametrize(("size", "count"), [(65536, 50), (128000, 50), (64400, 1000), (49999, 64), (65536, 1200)])
def test_the_largest_scores_of_real_vocabularies(size, count, device, monkeypatch):
    sizes: list[int] = []
    sort = mx.sort

    def sorting(x: mx.array, axis: int) -> mx.array:
        sizes.append(x.shape[axis])
        return sort(x, axis=axis)

    monkeypatch.setattr(mx, "sort", sorting)
    scores = some_logits(2, size)
    np.testing.assert_array_equal(np.array(largest(scores, count)), np.sort(np.array(scores))[:, -count:])
    if device == "gpu" and count < 1000:  # else blocks hardly shrink
        assert max(sizes) <= sampling.BLOCK


# Randomness


def test_noise_is_finite_whatever_the_bits():
    noise = np.array(gumbel(mx.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], mx.uint32)))
    assert np.isfinite(noise).all() and (np.diff(noise) >= 0).all()
    np.testing.assert_allclose(noise[[0, 2]], [-np.log(33 * np.log(2)), -np.log(np.log(2))], rtol=1e-6)


def test_noise_follows_gumbels_distribution():
    keys = mx.array(np.arange(8, dtype=np.uint32).reshape(4, 2))
    noise = np.sort(np.array(gumbel(random_bits(keys, 50_001))), axis=None)
    expected = np.exp(-np.exp(-noise))
    assert np.abs(np.arange(1, noise.size + 1) / noise.size - expected).max() < 1.63 / noise.size**0.5  # Kolmogorov


def test_random_bits_of_a_key_do_not_depend_on_the_others():
    keys = mx.array(np.random.default_rng(0).integers(0, 2**32, (3, 2), np.uint32))
    for size in (6, 7):
        together = random_bits(keys, size)
        assert together.shape == (3, size)
        for row, key in zip(together, keys, strict=True):
            assert row.tolist() == random_bits(key[None], size)[0].tolist()


def test_a_seed_repeats_itself_and_differs_from_others(device):
    logits = some_logits(2, 300) / 8
    answers = [
        tokens_of(UniformSampler(options(seed, temperature=1.0), count=2), logits, 10)
        for seed in (5, 5, 6, 2**64 - 1, None)
    ]
    assert answers[0] == answers[1]
    assert len({str(answer) for answer in answers}) == 4
    first, second = zip(*answers[0], strict=True)
    assert first != tuple(tokens_of(UniformSampler(options(5, temperature=1.0)), logits[1:], 10)) and first != second


def test_rows_sampled_alike_differ():
    """A batch of one prompt has as many answers as rows."""
    logits = mx.broadcast_to(some_logits(1, 300) / 8, (4, 300))
    rows = list(zip(*tokens_of(UniformSampler(options(5, temperature=1.0), count=4), logits, 10), strict=True))
    assert len(set(rows)) == 4


# Batches


def alone(given: list[GenerationOptions], prompts: list[list[int]], logits: list[np.ndarray]) -> list[list[int]]:
    """What each row chooses by itself, its logits (B, vocabulary) a step."""
    rows = []
    for row, (each, prompt) in enumerate(zip(given, prompts, strict=True)):
        sampler = UniformSampler(each)
        sampler.observe(mx.array([prompt]), logits[0].shape[1])
        rows.append([int(sampler(mx.array(step[row : row + 1]))) for step in logits])
    return rows


def test_a_row_of_a_batch_chooses_what_it_would_choose_alone(device):
    """Rows of all kinds that join, leave and change places."""
    rng = np.random.default_rng(0)
    given = [options(seed, **{**each, "temperature": each["temperature"] * (1 + seed / 10)})
             for seed, each in enumerate(ALL * 2)]  # fmt: skip
    prompts = rng.integers(0, 60, (12, 4)).tolist()
    logits = [(rng.normal(size=(12, 60)) * 3).astype(np.float32) for _ in range(12)]
    expected = alone(given, prompts, logits)

    def begun(rows: list[int]) -> Sampler:
        part = batched([given[row] for row in rows])
        part.observe(mx.array([prompts[row] for row in rows]), 60)
        return part

    done = [0] * 12  # tokens of each row

    def step(batch: Sampler, rows: list[int]) -> None:
        tokens = batch(mx.array(np.stack([logits[done[row]][row] for row in rows]))).tolist()
        assert tokens == [expected[row][done[row]] for row in rows]
        for row in rows:
            done[row] += 1

    first, second = begun([3, 0, 1, 2]), begun([4, 5, 6])
    step(first, [3, 0, 1, 2])
    for _ in range(2):
        step(second, [4, 5, 6])
    batch, rows = BatchedSampler([first, second]), [3, 0, 1, 2, 4, 5, 6]
    step(batch, rows)
    batch.filter([6, 1, 5, 0, 2])
    rows = [6, 0, 5, 3, 1]
    for _ in range(3):
        step(batch, rows)
    batch = BatchedSampler([batch, begun([7]), begun([8, 9, 10, 11])])
    rows += [7, 8, 9, 10, 11]
    for _ in range(3):
        step(batch, rows)
    batch.filter([9, 3])
    rows = [11, 3]
    step(batch, rows)
    batch.filter([1])
    step(batch, [3])


def test_a_caller_s_top_k_makes_no_more_than_some_compiled_steps(monkeypatch):
    monkeypatch.setattr(sampler_module, "on_gpu", lambda: True)
    assert sampler_module.compiled.cache_info().maxsize is not None
    kinds = []

    def compiled(kind):
        kinds.append(kind)
        return partial(sampler_module.sample, kind)

    monkeypatch.setattr(sampler_module, "compiled", compiled)
    for top_k in (3, 0, 30, 31, 2**31):
        UniformSampler(options(temperature=1.0, top_k=top_k))(mx.zeros((1, 30)))
    assert [kind.top_k for kind in kinds] == [3, 0, 0, 0, 0]


def test_rows_of_one_kind_are_one_computation():
    given = [
        options(seed, **{**FAMILY, "temperature": 0.1 + seed / 10, "min_p": 0.01 * (seed + 1)}) for seed in range(9)
    ]
    batch = batched(given)
    assert isinstance(batch, BatchedSampler) and len(batch._parts) == 1
    mixed = batched([*given, options(**GREEDY), options(**LARGE), options(**GREEDY)])
    assert isinstance(mixed, BatchedSampler) and [rows for _, rows in mixed._parts] == [list(range(9)), [9, 11], [10]]


def test_a_row_beside_two_thousand_others_is_sampled_as_alone():
    long = BatchedSampler([UniformSampler(GenerationOptions(temperature=1.0, seed=3))])
    alone = UniformSampler(GenerationOptions(temperature=1.0, seed=3))
    for _ in range(2000):
        long = BatchedSampler([long, UniformSampler(GenerationOptions(temperature=0.0))])
        long.filter([0])
    logits = mx.array(np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32))
    assert [long(row[None]).item() for row in logits] == [alone(row[None]).item() for row in logits]


# Threads


@pytest.mark.parametrize("evaluated", [True, False], ids=["state", "tokens"])
def test_every_step_may_run_in_another_thread(device, evaluated):
    """With what the loop evaluates after a step: the state too, or only the tokens, which depend on it."""
    logits = [some_logits(3, 200, seed=seed) for seed in range(7)]
    given = [options(seed, **FAMILY) for seed in range(2)]

    def run() -> Iterator[list[int]]:
        batch = batched(given)
        batch.observe(mx.array([[1, 2], [3, 4]]), 200)
        yield []
        for n, step in enumerate(logits):
            if n == 3:
                other = UniformSampler(options(7, **EVERYTHING))
                other.observe(mx.array([[5]]), 200)
                yield []
                mx.eval(other(step[2:]))
                yield []
                batch = BatchedSampler([batch, other])
                mx.eval(batch.state)
                yield []
            if n == 5:
                batch.filter([2, 0])
                mx.eval(batch.state)
                yield []
            tokens = batch(step[: 2 if n < 3 or n > 4 else 3])
            mx.eval(tokens, batch.state if evaluated else [])
            yield np.array(tokens).tolist()

    expected = list(run())
    steps, found, errors = run(), [], []

    def advance() -> None:
        try:
            found.append(next(steps))
        except Exception as error:
            errors.append(error)

    for _ in expected:
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join()
    assert not errors
    assert found == expected


def test_a_samplers_state_is_what_it_has_seen():
    sampler = UniformSampler(options(**FAMILY))
    assert sampler.state == []
    sampler.observe(mx.array([[1, 2]]), 50)
    sampler(some_logits(1, 50))
    assert [(array.shape, array.dtype) for array in sampler.state] == [((1, 50), mx.bool_), ((1,), mx.int32)]
    assert UniformSampler(options(**LARGE)).state == []


# Penalty and options


def test_penalty():
    logits = mx.array([[2.0, -2.0, 0.0, 4.0]])
    seen = mx.array([[True, True, True, False]])
    np.testing.assert_allclose(np.array(penalize(logits, seen, 2.0)), [[1.0, -4.0, 0.0, 4.0]])


def test_the_penalty_counts_prompt_and_answer():
    sampler = UniformSampler(GenerationOptions(repetition_penalty=100.0).resolve(GenerationConfig()))
    logits = mx.array([[5.0, 4.0, 3.0, 2.0]])
    sampler.observe(mx.array([[0, 0]]), 4)
    assert [sampler(logits).item() for _ in range(3)] == [1, 2, 3]


def test_the_smallest_temperature_is_greedy_and_not_garbage():
    sampler = UniformSampler(GenerationOptions(temperature=1e-40).resolve(GenerationConfig()))
    assert sampler(mx.array([[3.0, 40.0, -2.0]])).item() == 1


def test_samples_follow_the_distribution():
    sampler = UniformSampler(GenerationOptions(temperature=0.5, seed=3).resolve(GenerationConfig()), count=20_000)
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
        ("max_tokens", 2.5, "an integer from 1"),
        ("max_tokens", True, "an integer from 1"),
        ("temperature", -0.1, "a number from 0"),
        ("temperature", float("nan"), "a number from 0"),
        ("temperature", "hot", "a number from 0"),
        ("top_p", -0.1, "a number from 0 to 1"),
        ("top_p", 1.1, "a number from 0 to 1"),
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
    numbers: dict[str, Any] = {"max_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.uint8(7)}
    options = GenerationOptions(**numbers, stop=None)  # type: ignore[arg-type]
    assert options == GenerationOptions(max_tokens=3, temperature=0.5, seed=7)
    assert [type(value) for value in (options.max_tokens, options.temperature, options.seed)] == [int, float, int]


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-38, 1e-20])
def test_the_least_temperatures_are_greedy(temperature):
    options = GenerationOptions(temperature=temperature, seed=1).resolve(GenerationConfig(do_sample=True))
    logits = mx.array([[0.5, 3.0, 2.99, -1e4], [7.0, -2.0, 0.0, 6.999]])
    assert UniformSampler(options, count=2)(logits).tolist() == [1, 0]


def test_rows_may_be_kept_in_another_order():
    """Each goes on with its own seed."""
    each = [options(temperature=1.5, seed=seed) for seed in range(3)]
    logits = mx.array(np.random.default_rng(0).normal(size=(1, 500)).astype(np.float32))
    expected = []
    for one in each:
        own = UniformSampler(one)
        expected.append([own(logits).item() for _ in range(4)])
    sampler = batched(each)
    first = sampler(mx.repeat(logits, 3, axis=0)).tolist()
    sampler.filter([2, 0])
    rest = [sampler(mx.repeat(logits, 2, axis=0)).tolist() for _ in range(3)]
    assert first == [tokens[0] for tokens in expected]
    assert rest == [[expected[2][step], expected[0][step]] for step in (1, 2, 3)]


def test_rows_that_stay_keep_the_tokens_they_have_seen(device):
    """Wherever they stand then: those of their own prompt, and of their own answer."""
    sampler = batched([options(temperature=0.0, repetition_penalty=100.0)] * 3)
    sampler.observe(mx.array([[0], [1], [2]]), 6)
    logits = mx.broadcast_to(mx.array([6.0, 5, 4, 3, 2, 1]), (3, 6))
    assert sampler(logits).tolist() == [1, 0, 0]
    sampler.filter([2, 0])
    assert tokens_of(sampler, logits[:2], 2) == [[1, 2], [3, 3]]


def test_rows_that_join_keep_their_own_numbers():
    logits = mx.array(np.random.default_rng(3).normal(0, 3, (1, 50)).astype(np.float32))

    def begun(temperature: float, seed: int) -> UniformSampler:
        sampler = UniformSampler(options(temperature=temperature, seed=seed))
        sampler(logits)
        return sampler

    alone, together = (begun(0.2, 1), begun(3.0, 2)), begun(0.2, 1)
    together.extend(begun(3.0, 2))
    for _ in range(20):
        expected = [sampler(logits).item() for sampler in alone]
        assert together(mx.concatenate([logits, logits])).tolist() == expected


def test_tokens_before_count_for_the_penalties_of_an_answer():
    logits = mx.array([[0.0, 1.0, 3.0]])
    for answer, expected in (([], 2), ([2], 2), ([2, 2], 1)):
        sampler = UniformSampler(options(temperature=0.0, frequency_penalty=1.5), answer)
        assert sampler(logits).item() == expected
