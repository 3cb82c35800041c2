"""What MLX holds: aliases of caches, outgrown buffers, errors of allocators, free memory and the wired limit."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import cycle
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import Chat, Engine, GenerationOptions, GenerationRequest, PromptCache, generate, generate_batch, load
from mlx_lfm2vl import stream_generate as stream
from mlx_lfm2vl.backends import memory
from mlx_lfm2vl.backends.memory import wired_limit
from mlx_lfm2vl.config import GenerationConfig, Lfm2Config, Lfm2VlConfig
from mlx_lfm2vl.errors import OutOfMemoryError, WeightsError
from mlx_lfm2vl.generation import decode as decoding
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.models.bounded_states import ConvCache
from mlx_lfm2vl.models.cache import Cache, KeyValueCache
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.files import reading
from mlx_lfm2vl.weights.load import load_model

SHORT = GenerationOptions(max_tokens=4)
LITTLE = 100_000  # bytes: handles, counters, what a graph holds


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


# Aliases

CONFIG = Lfm2Config.from_dict(
    {
        **{"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 4},
        **{"layer_types": ["conv", "full_attention"] * 2, "vocab_size": 8, "intermediate_size": 8},
    }
)
PAST = 1000  # tokens, in buffers of 1,024


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def append(cache: Cache, length: int, seed: int) -> None:
    """Tokens as the layers write them: keys and values into buffers, convolutions' inputs cut from a longer array."""
    for at, layer in enumerate(cache.layers):
        if isinstance(layer, ConvCache):
            taps = random(1, length + 2, 1024, seed=seed + at)
            layer.states = (taps[:, -2:-1], taps[:, -1:])
        else:
            layer.update(random(1, 8, length, 64, seed=seed + at), random(1, 8, length, 64, seed=seed - at))
    cache.offset += length
    mx.eval(cache.arrays)


def large_cache() -> Cache:
    """Of 8 MiB, and the arrays that the taps are cut from."""
    append(cache := Cache(CONFIG), PAST, seed=100)
    return cache


def content(cache: Cache) -> list[np.ndarray]:
    """What the layers remember, without the room behind it."""
    return [
        np.array(array[..., : layer.offset, :] if isinstance(layer, KeyValueCache) else array)
        for layer in cache.layers
        for array in layer.states
    ]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def taken(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and how many bytes more MLX holds with it."""
    mx.synchronize()
    before = mx.get_active_memory()
    result = work()
    mx.synchronize()
    return result, mx.get_active_memory() - before


def test_a_copy_of_a_cache_takes_no_memory():
    cache = large_cache()
    assert cache.nbytes > 8 * 2**20
    twins, more = taken(lambda: [cache.copy() for _ in range(5)])
    assert more <= LITTLE and all(same(content(twin), content(cache)) for twin in twins)
    _, more = taken(lambda: [copy.copy() for copy in twins])
    assert more <= LITTLE


def test_a_point_that_is_not_detached_takes_no_memory(monkeypatch):
    cache = large_cache()

    def fail(*_: Any) -> None:
        raise AssertionError("something is computed")

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", fail)
        points, more = taken(lambda: [cache.checkpoint(detach=False) for _ in range(5)])
    assert more <= LITTLE and points[0].offset == PAST


@pytest.mark.parametrize("writer", ["the copy", "the original"])
@pytest.mark.parametrize("length", [1, 50, 300])  # within the buffers and beyond
def test_who_writes_changes_nothing_for_the_other(writer, length):
    cache = large_cache()
    before, twin = content(cache), cache.copy()
    writing, other = (twin, cache) if writer == "the copy" else (cache, twin)
    append(writing, length, seed=200)
    assert same(content(other), before) and other.offset == PAST
    assert writing.offset == PAST + length and not same(content(writing), before)
    append(other, length, seed=300)  # both go on
    fresh = large_cache()
    append(fresh, length, seed=200)
    assert same(content(writing), content(fresh))


def test_a_cache_without_copies_is_written_in_place():
    cache = large_cache()
    append(cache, 1, seed=200)  # gives up what the taps of the prompt are cut from
    cache.copy()  # and dropped
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    append(cache, 1, seed=300)
    assert mx.get_peak_memory() - before < cache.nbytes / 20


def test_a_cache_with_a_copy_is_copied_when_it_is_written():
    """Once: the next tokens are written in place again."""
    cache = large_cache()
    append(cache, 1, seed=200)
    twin = cache.copy()
    _, more = taken(lambda: append(cache, 1, seed=300))
    assert more >= 8 * 2**20
    _, more = taken(lambda: append(cache, 1, seed=400))
    assert more <= LITTLE and twin.offset == PAST + 1


@pytest.mark.parametrize("detach", [False, True])
def test_a_rewound_cache_holds_what_it_held(detach):
    cache = large_cache()
    before, point = content(cache), cache.checkpoint(detach=detach)
    append(cache, 300, seed=200)
    cache.rewind(point)
    assert cache.offset == point.offset == PAST and same(content(cache), before)


# Outgrown buffers


@pytest.fixture
def roomy() -> Iterator[None]:
    """MLX may keep 16 GiB for reuse, as on a Mac with much memory."""
    mx.clear_cache()
    before = mx.set_cache_limit(2**34)
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


def model_of(layers: int, kv_heads: int, head_dim: int) -> Lfm2VlForConditionalGeneration:
    """Keys and values of these sizes, and little else."""
    text: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads,
        "head_dim": head_dim,
    }
    text |= {"num_key_value_heads": kv_heads, "vocab_size": 16, "intermediate_size": 8}
    text |= {"block_auto_adjust_ff_dim": False, "layer_types": ["full_attention"] * layers}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = {"model_type": "lfm2_vl", "image_token_id": 3, "projector_hidden_size": 8}
    model = Lfm2VlForConditionalGeneration(
        Lfm2VlConfig.from_dict({**config, "text_config": text, "vision_config": vision})
    )
    mx.eval(model.parameters())
    return model


def kept_while_decoding(tokens: int) -> tuple[list[int], int]:
    """What MLX keeps for reuse after each token, and the bytes of the KV cache in the end."""
    model = model_of(2, 2, 32)
    cache = Cache(model.config.text_config)
    prompt = Prompt(np.array([[1, 2, 4]]))
    greedy = UniformSampler(GenerationOptions(temperature=0.0).resolve(GenerationConfig()))
    kept = []
    steps = GenerationBatch(model, cache, prefill(model, prompt, cache), greedy)
    for step in range(tokens):
        steps.step(last=step + 1 == tokens)
        kept.append(mx.get_cache_memory())
    return kept, cache.nbytes


@pytest.mark.soak
def test_what_is_kept_for_reuse_stays_a_multiple_of_the_kv_cache(roomy, capfd):
    """Twice: attention on a CPU copies keys and values, each time of another size. A GPU's copies nothing."""
    kept, held = kept_while_decoding(2300)
    assert max(kept) < 3 * held
    assert capfd.readouterr() == ("", "")


@pytest.mark.soak
def test_without_clearing_what_is_kept_would_grow_as_the_square(roomy, monkeypatch):
    monkeypatch.setattr(decoding, "clear_outgrown", lambda *_: None)
    kept, held = kept_while_decoding(2300)
    assert kept[-1] > 3.5 * held, "where attention copies nothing; here it is 13 times as much"
    assert kept[2200] > 3 * kept[1100], "twice the tokens, four times the memory"


# Errors of allocators

REFUSALS = [
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "[METAL] Command buffer execution failed: Insufficient Memory (IOAF code 8)",
    "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed buffer size of 9 bytes.",
    "Attempting to allocate 99 bytes which is greater than the maximum allowed buffer size of 9 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[malloc] Unable to allocate 99 bytes.",
    "[malloc_or_wait] Unable to allocate 99 bytes.",
    "cudaMallocAsync(&p, size, stream) failed: out of memory",
    "cudaErrorOutOfMemory",
    "std::bad_alloc",
]
OTHERS = [
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    "[matmul] Last dimension of first input with shape (1,2) must match second to last dimension of second input",
    "cudaLaunchKernel failed: invalid argument",
]
PLACES = ["loading", "vision", "a prompt", "a token"]


@pytest.fixture
def fail(monkeypatch):
    """Lets the computation at a place raise an error."""
    body = type(loaded()[0].model.language_model)
    encoder = type(loaded()[0].model.vision_tower.encoder)
    run = body.__call__

    def at(place: str, error: BaseException) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise error

        def broken_from(length: Callable[[int], bool], self: Any, embeds: mx.array, *others: Any, **named: Any) -> Any:
            if length(embeds.shape[1]):
                raise error
            return run(self, embeds, *others, **named)

        if place == "loading":
            monkeypatch.setattr(mx, "eval", broken)
        elif place == "vision":
            monkeypatch.setattr(encoder, "__call__", broken)
        else:
            wanted = (lambda length: length == 1) if place == "a token" else (lambda length: length > 1)
            method = lambda self, *given, **named: broken_from(wanted, self, *given, **named)  # noqa: E731
            monkeypatch.setattr(body, "__call__", method)

    return at


def work_at(place: str) -> None:
    """Comes by the place."""
    if place == "loading":
        load_model(GOLDEN / "gen2")
    else:
        generate(*loaded(), "What is this?", picture("small"), options=SHORT)


@pytest.mark.parametrize("text", REFUSALS, ids=lambda text: text[:40])
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_is_one_error_at_every_place(place, text, fail):
    fail(place, RuntimeError(text))
    with pytest.raises(OutOfMemoryError, match=r"memory ran out \(.*\); ") as caught:
        work_at(place)
    assert text[:60] in str(caught.value) and isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("place", PLACES)
def test_pythons_own_memory_error_is_that_error_too(place, fail):
    fail(place, MemoryError())
    with pytest.raises(OutOfMemoryError, match="memory ran out; "):
        work_at(place)


@pytest.mark.parametrize("text", OTHERS, ids=lambda text: text[:40])
@pytest.mark.parametrize("place", PLACES)
def test_other_errors_of_a_device_stay_themselves(place, text, fail):
    error = RuntimeError(text)
    fail(place, error)
    with pytest.raises(RuntimeError) as caught:
        work_at(place)
    assert caught.value is error


@pytest.mark.parametrize("words", memory.OUT_OF_MEMORY)
def test_every_word_for_it_is_known_in_any_case(words):
    for text in (words, f"[eval] {words.upper()} 99"):
        assert memory.is_out_of_memory(RuntimeError(text))
        assert not memory.is_out_of_memory(ValueError(text))
        with pytest.raises(OutOfMemoryError, match="folder: the weights: memory ran out"), reading("folder"):
            raise RuntimeError(text)


@pytest.mark.parametrize(
    "text", ["[read] Unable to read 99 bytes from file.", "[load_safetensors] Invalid json header length", "[load] x"]
)
def test_files_that_cannot_be_read_are_an_error_of_weights(text, fail):
    fail("loading", RuntimeError(text))
    with pytest.raises(WeightsError, match="gen2: the weights cannot be read") as caught:
        work_at("loading")
    assert not isinstance(caught.value, MemoryError)


def one_answer() -> None:
    generate(*loaded(), "What?", [picture("photo"), picture("small")], options=SHORT, prompt_cache=PromptCache())


def a_batch() -> None:
    """Each row on its own is answered where the whole is refused; one that is alone is not."""
    begin = "Look well. " * 20
    images = [None, picture("landscape"), picture("landscape")]
    questions = [GenerationRequest("Why?", image, begin, options=SHORT) for image in images]
    for answer in generate_batch(*loaded(), questions):
        if answer.error is not None:
            raise answer.error


def conversations() -> None:
    """Two that begin alike, with second turns and a retry."""
    shared = PromptCache()
    for text in ("What?", "Why?"):
        chat = Chat(*loaded(), options=SHORT, prompt_cache=shared, system="Look well. " * 20)
        chat.ask(text, picture("landscape"))
        chat.ask("And?")
    list(chat.retry())
    chat.fork().ask("Really?")


def the_references_generate() -> None:
    model, processor = loaded()
    model.generate(**processor(text="<image>What?", images=[picture("small")]), max_new_tokens=3)


class Refusal:
    """Memory that runs out once, at the evaluation that `left` counts down to."""

    left = 0

    def evaluate(self, evaluation: Callable[..., None], *arrays: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError(REFUSALS[-1])
        evaluation(*arrays)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("eval", "async_eval"):
            patch.setattr(mx, name, partial(self.evaluate, getattr(mx, name)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "work",
    [lambda: load_model(GOLDEN / "gen2"), one_answer, a_batch, conversations, the_references_generate],
    ids=["loading", "one answer", "a batch", "conversations", "the reference's generate"],
)
def test_memory_may_run_out_at_any_evaluation(work, monkeypatch):
    """Whichever it is, of those that wait and those that do not: it is the typed error, or the work goes on."""
    loaded()
    done, count, refusal = False, 0, Refusal()
    while not done:
        count += 1
        refusal.left = count
        with monkeypatch.context() as patch:
            refusal.install(patch)
            try:
                work()
                done = refusal.left > 0
            except OutOfMemoryError as error:
                assert "memory ran out" in str(error)
    assert count > 5


def test_an_engine_goes_on_wherever_memory_runs_out(monkeypatch):
    """Of three requests that are answered together, each is answered or gets the typed error; the next is answered."""
    done, count, refusal = False, 0, Refusal()
    refusal.install(monkeypatch)
    while not done:
        count += 1
        with Engine(loaded) as engine, ThreadPoolExecutor(1) as thread:
            gate = threading.Event()
            thread.submit(engine.call, lambda *_, gate=gate: gate.wait(60))
            requests = [engine.submit("What?", options=GenerationOptions(max_tokens=3 * n)) for n in (1, 2, 3)]
            time.sleep(0.05)  # so that all of them are read and wait
            refusal.left = count
            gate.set()
            for request in requests:
                try:
                    assert request.result(60).finish_reason in ("stop", "length")
                except OutOfMemoryError as error:
                    assert "memory ran out" in str(error)
            done, refusal.left = refusal.left > 0, 0
            assert engine.submit("Hello?", options=SHORT).result(60).finish_reason in ("stop", "length")
    assert count > 10


# Free memory of a GPU


@pytest.fixture
def gpu(monkeypatch):
    """MLX's device is a GPU that says so much of itself."""

    def with_info(**info: int | str) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        monkeypatch.setattr(mx, "device_info", lambda: info)

    monkeypatch.setattr(mx, "get_active_memory", lambda: 300)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 50)
    return with_info


def test_on_metal_the_working_set_less_what_is_held_is_free(gpu):
    """What is kept for reuse is free."""
    gpu(max_recommended_working_set_size=1000, memory_size=4000, max_buffer_length=900)
    assert memory.free_memory() == 700
    gpu(max_recommended_working_set_size=200)
    assert memory.free_memory() == 0


def test_on_cuda_what_the_device_has_left_and_keeps_is_free(gpu):
    gpu(free_memory=500, total_memory=4000, device_name="H200")
    assert memory.free_memory() == 550
    gpu(device_name="H200")
    assert memory.free_memory() is None


# The wired limit

MOST, BEFORE = 1000, 77


class Mac:
    """Stands in for a Mac: the process's limit, and what was called."""

    def __init__(self) -> None:
        self.limit = BEFORE
        self.calls: list[str | int] = []

    def set(self, limit: int) -> int:
        before, self.limit = self.limit, limit
        self.calls.append(limit)
        return before

    def synchronize(self) -> None:
        self.calls.append("wait")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(mx.metal, "is_available", lambda: True)
        patch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": MOST})
        patch.setattr(mx, "set_wired_limit", self.set)
        patch.setattr(mx, "synchronize", self.synchronize)


@pytest.fixture
def mac(monkeypatch) -> Mac:
    (made := Mac()).install(monkeypatch)
    return made


LIMITS = st.one_of(st.none(), st.just(0), st.integers(0, 2 * MOST))
STEPS = st.lists(st.tuples(st.integers(0, 1), st.one_of(st.just("close"), LIMITS)), max_size=25)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_blocks_of_two_threads_open_and_close_in_any_order(steps):
    """The largest of those that are open counts; the last one that ends sets back what was before the first."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        (mac := Mac()).install(patch)
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)]
        open_blocks: list[list[tuple[AbstractContextManager[None], int]]] = [[], []]

        def check() -> None:
            assert mac.limit == max([own for blocks in open_blocks for _, own in blocks], default=BEFORE)

        def close(thread: int) -> None:
            block, _ = open_blocks[thread].pop()
            threads[thread].submit(block.__exit__, None, None, None).result()
            assert mac.calls[-2] == "wait" and mac.calls[-1] == mac.limit
            check()

        for thread, what in steps:
            if what == "close":
                if open_blocks[thread]:
                    close(thread)
                continue
            around = [own for blocks in open_blocks for _, own in blocks]
            own = max(around, default=MOST) if what is None else min(what, MOST)
            block = wired_limit(what)
            threads[thread].submit(block.__enter__).result()
            open_blocks[thread].append((block, own))
            check()
        for thread in (0, 1):
            while open_blocks[thread]:
                close(thread)
        assert mac.limit == BEFORE


def test_blocks_of_many_threads_leave_the_limit_as_it_was(mac, monkeypatch):
    barrier, pauses = threading.Barrier(8), cycle([2e-3, 0, 1e-4])

    def slow(limit: int) -> int:
        time.sleep(next(pauses))
        return mac.set(limit)

    monkeypatch.setattr(mx, "set_wired_limit", slow)

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(10):
            with wired_limit(number * 10 + turn), wired_limit(None if turn % 2 else turn):
                assert mac.limit >= number * 10 + turn

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert mac.limit == BEFORE


def test_an_answer_wires_what_is_recommended_until_work_has_ended(mac):
    generate(*loaded(), "What?", options=SHORT)
    assert mac.calls[0] == MOST and mac.calls[-2:] == ["wait", BEFORE]
    mac.calls.clear()
    pieces = stream(*loaded(), "What?", options=SHORT)
    next(pieces)
    assert mac.limit == MOST
    pieces.close()
    assert mac.calls[-2:] == ["wait", BEFORE]


def test_the_limit_is_set_back_where_an_answer_fails(mac, fail):
    fail("a token", RuntimeError(REFUSALS[0]))
    with pytest.raises(OutOfMemoryError):
        generate(*loaded(), "What?", options=SHORT)
    assert mac.calls[-2:] == ["wait", BEFORE]


def test_a_device_that_fails_gives_its_limit_back(mac, monkeypatch):
    def broken() -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(mx, "synchronize", broken)
        with pytest.raises(RuntimeError, match="the device is gone"), wired_limit():
            pass
    assert mac.limit == BEFORE
    with wired_limit(5):
        assert mac.limit == 5, "nothing is held any longer"


@pytest.mark.parametrize(("asked", "limit"), [(0, 0), (10, 10), (2 * MOST, MOST)])
def test_an_engines_limit_holds_for_answers_within_it(mac, asked, limit):
    with Engine(loaded, wired_limit=asked) as engine:
        assert engine.submit("What?", options=SHORT).result(60).tokens
        engine.call(lambda model, processor: generate(model, processor, "What?", options=SHORT))
        engine.chat(options=SHORT).ask("What?")
    assert {call for call in mac.calls[:-1] if call != "wait"} == {limit}
    assert mac.calls[-2:] == ["wait", BEFORE]


def test_where_there_is_no_metal_nothing_is_set(monkeypatch):
    mac = Mac()
    mac.install(monkeypatch)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with wired_limit(), wired_limit(5):
        pass
    assert mac.calls == []
