"""A model that several ranks share: the tokens of one process, a part of its memory in each."""

import argparse
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import edit_json
from conftest import GOLDEN, statistics_of
from hypothesis import given
from hypothesis import strategies as st
from launched import ended, free_ports, start, start_ranks, without_waits
from test_cli import ROOT, cli  # noqa: F401

from mlx_lfm2vl import (
    Chat,
    GenerationOptions,
    GenerationRequest,
    OptionError,
    PromptCache,
    VisionCache,
    convert,
    generate,
    generate_batch,
    load,
)
from mlx_lfm2vl.cli.arguments import chosen_draft
from mlx_lfm2vl.distributed.links import SILENCE, Came, Link
from mlx_lfm2vl.errors import DistributedError, OutOfMemoryError
from mlx_lfm2vl.generation.lockstep import Follower, Lead
from mlx_lfm2vl.weights.files import read_header, read_part

PROGRAM = Path(__file__).parent / "ranks_program.py"
FAILING = Path(__file__).parent / "failing_rank.py"
ADAPTERS = Path(__file__).parent / "adapters"
SMALL = GOLDEN / "pictures" / "small.png"


Model = tuple[object, object, int | None]  # its folder, an adapter's, and the bytes that the last rank has left


def answers(folder: Path, ranks: int, *models: Model) -> list[list[dict[str, Any]]]:
    """Of each rank, what `ranks_program.py` prints of each model."""
    words = json.dumps(models, default=str)
    processes = start(folder, ranks, [sys.executable, PROGRAM, words, SMALL])
    return [json.loads(out) if code == 0 else pytest.fail(err) for code, out, err in ended(processes, 600)]


def check_same(alone: dict[str, Any], shared: list[dict[str, Any]], close: float = 1e-4) -> None:
    """Tokens greedy and sampled, about a picture, and logits."""
    for rank in shared:
        assert rank["tokens"] == alone["tokens"] and not rank["errors"]
        np.testing.assert_allclose(rank["logits"], alone["logits"], atol=close)
        assert rank["logits"] == shared[0]["logits"]


def quantised(folder: Path, name: str | Path, dtype: str | None = None) -> Path:
    convert(name, folder, dtype=dtype, quantize=True, q_bits=8, q_group_size=32)
    return folder


def test_ranks_give_the_tokens_of_one_process(tmp_path):
    """Of both families, dense and quantised, with adapters; what does not divide by the ranks is whole in each."""
    models: list[Model] = [
        ("demo", None, None),
        (GOLDEN / "lfm3", None, None),
        (GOLDEN / "gen25", ADAPTERS / "lora", None),
        (quantised(tmp_path / "gen25", GOLDEN / "gen25"), ADAPTERS / "dora", None),
    ]
    (alone,) = answers(tmp_path, 1, *models)
    for (name, *_), expected, *shared in zip(models, alone, *answers(tmp_path, 2, *models), strict=True):
        check_same(expected, shared, 0.2 if name == "demo" else 1e-4)  # the demo is of bfloat16
        if name == "demo":
            assert all(rank["peak"] <= 0.6 * expected["peak"] for rank in shared)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["gen25", "lfm3", "demo"])
def test_four_ranks_give_the_tokens_of_one_process(tmp_path, name):
    """The demo in 8 bits, and computed in float32: in 16 bits sums of parts round otherwise."""
    model: Model = (quantised(tmp_path / "model", "demo", "float32") if name == "demo" else GOLDEN / name, None, None)
    ((alone,),) = answers(tmp_path, 1, model)
    check_same(alone, [rank for (rank,) in answers(tmp_path, 4, model)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's memory is limited as Linux does")
def test_a_question_too_large_for_one_rank_fails_in_all(tmp_path):
    """The others of its batch are answered."""
    model = Path(shutil.copytree(GOLDEN / "gen25", tmp_path / "model"))
    edit_json(model / "config.json", text_config__max_position_embeddings=500_000)
    ((alone,),) = answers(tmp_path, 1, (model, None, None))
    for (rank,) in answers(tmp_path, 2, (model, None, 2**26)):
        assert len(rank["errors"]) == 1, rank["errors"]
        first, none, last = rank["tokens"]
        assert [first, last] == alone["tokens"] and none == []
        (error,) = rank["errors"]
        assert error.startswith("rank 1: a prompt of ") and "of memory are free" in error, error


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([0, -1]),
    st.sampled_from([mx.float32, mx.bfloat16, mx.float16, mx.uint32, mx.uint8]),
)
def test_a_part_of_a_tensor_is_read_by_rank(ranks, segments, shape, axis, dtype):
    sides = [side * (ranks * segments if place == axis % 2 else 1) for place, side in enumerate(shape)]
    whole = mx.arange(sides[0] * sides[1]).reshape(sides).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        mx.save_safetensors(f"{folder}/a.safetensors", {"before": mx.zeros((3,), mx.uint8), "x": whole})
        info = read_header(Path(folder) / "a.safetensors")["x"]
        parts = [read_part(info, axis, segments, rank, ranks) for rank in range(ranks)]
    cut = [mx.split(segment, ranks, axis) for segment in mx.split(whole, segments, axis)]
    for rank, part in enumerate(parts):
        expected = mx.concatenate([segment[rank] for segment in cut], axis)
        assert part.dtype == dtype and mx.array_equal(part, expected)


def test_what_ranks_cannot_share_is_refused(tmp_path):
    group = mx.distributed.init()
    with pytest.raises(OptionError, match="needs the backend mlx"):
        load(GOLDEN / "gen25", backend="numpy", group=group)
    model, processor = load(GOLDEN / "gen25", backend="mlx", group=group)
    kept: dict[str, Any] = {"prompt_cache": PromptCache(folder=tmp_path), "vision_cache": VisionCache(folder=tmp_path)}
    for name, cache in kept.items():
        with pytest.raises(OptionError, match=f"{name} has a folder, which ranks that share a model do not keep"):
            generate(model, processor, "Why?", **{name: cache})
    model.lead = Lead([], Came())
    with pytest.raises(OptionError, match="draft 'auto' goes by the clock"):
        generate(model, processor, "Why?", draft="auto")
    with pytest.raises(OptionError, match="takes no functions and draft models"):
        generate(model, processor, "Why?", logits_processors=[lambda ids, logits: logits])


@pytest.mark.parametrize(("draft", "model"), [("auto", None), (None, "demo")])
def test_drafts_that_ranks_cannot_have_are_refused_at_once(draft, model):
    """Before a model is loaded."""
    args = argparse.Namespace(draft=draft, draft_model=model, group=mx.distributed.init())
    with pytest.raises(OptionError, match="--draft auto goes by the clock" if draft else "--draft-model: ranks"):
        chosen_draft(args)
    args.draft, args.draft_model = "ngram", None
    assert chosen_draft(args) == "ngram"


@contextmanager
def led(leading: Any, following: Any, processor: Any) -> Iterator[tuple[Follower, Future[None], Came]]:
    """A model whose schedulers another one of this process follows; the follower, its work, and what it says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, (far, _) = socket.create_connection(server.getsockname()), server.accept()
    heard, came = Came(), Came()
    leading.lead = lead = Lead([Link(1, near, heard)], heard)
    follower = Follower(following, processor, Link(0, far, came), came)
    with near, far, ThreadPoolExecutor(1) as other:
        followed = other.submit(follower.run)
        try:
            yield follower, followed, heard
        finally:
            lead.close()


SHORT = GenerationOptions(max_tokens=3, temperature=0.0)
REQUESTS = [GenerationRequest(prompt, options=SHORT) for prompt in ("Why?", "And how?", "Where?")]


@pytest.mark.backends("mlx", "numpy")
def test_a_batch_goes_on_after_another_answer_came_between():
    """Its scheduler has no rows while the other one begins."""
    (leading, processor), (following, _) = load(GOLDEN / "gen25"), load(GOLDEN / "gen25")
    alone = [answer.tokens for answer in generate_batch(leading, processor, REQUESTS)]
    with led(leading, following, processor) as (_, followed, _):
        batch = generate_batch(leading, processor, REQUESTS, batch_size=1)
        answers = [next(batch)]
        generate(leading, processor, "Who?", options=SHORT)
        answers += batch
    followed.result(60)
    assert [answer.tokens for answer in answers] == alone


@pytest.mark.backends("mlx", "numpy")
def test_ranks_keep_and_clear_the_same_beginnings():
    (leading, processor), (following, _) = load(GOLDEN / "gen25"), load(GOLDEN / "gen25")

    def held(*caches: Any) -> list[tuple[int, int]]:
        return [(len(cache), cache.nbytes) for cache in caches]

    with led(leading, following, processor) as (follower, followed, _):

        def ask(chat: Chat, text: str, picture: object = None) -> int:
            *_, last = chat.stream(text, picture, options=SHORT)
            limit, caches = time.monotonic() + 60, (chat.vision_cache, chat.prompt_cache)
            while held(*caches) != held(*follower._caches.values()):  # it may be in its last step
                assert time.monotonic() < limit, (held(*caches), held(*follower._caches.values()))
                time.sleep(0.01)
            return statistics_of(last).cached_tokens

        chat = Chat(leading, processor)
        assert ask(chat, "What is this?", SMALL) == 0
        assert ask(chat, "And what else?") > 50
        chat.prompt_cache.clear()
        assert ask(chat, "Who?") == 0
        assert ask(chat, "Why?") > 50
    followed.result(60)


def second(model: Any, work: Callable[[], None]) -> None:
    """Does some work as the second prompt begins."""
    make_cache, calls = model.make_cache, itertools.count(1)

    def made() -> Any:
        if next(calls) == 2:
            work()
        return make_cache()

    model.make_cache = made


def no_memory() -> NoReturn:
    raise OutOfMemoryError("no memory")


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("where", ["both", "rank 0", "rank 0, behind the other", "rank 1"])
def test_an_error_of_all_ends_an_answer_of_one_ends_all(where, monkeypatch):
    monkeypatch.setenv(SILENCE, "600" if where == "both" else "3")
    (leading, processor), (following, _) = load(GOLDEN / "gen25"), load(GOLDEN / "gen25")
    alone = [answer.tokens for answer in generate_batch(leading, processor, REQUESTS)]
    if where in ("both", "rank 0"):
        second(leading, no_memory)
    if where in ("both", "rank 1"):
        second(following, no_memory)
    if where == "rank 0, behind the other":
        begun, done, own = threading.Event(), threading.Event(), Follower._step

        def follow(self: Follower, *given: Any) -> None:
            own(self, *given)
            if begun.is_set():
                done.set()

        def behind() -> None:
            assert done.wait(60)
            no_memory()

        monkeypatch.setattr(Follower, "_step", follow)
        second(following, begun.set)
        second(leading, behind)
    with led(leading, following, processor) as (_, followed, heard):
        if where == "rank 1":  # ranks that share a model do not run ahead

            def wait() -> None:
                limit = time.monotonic() + 60
                while heard.empty():
                    assert time.monotonic() < limit
                    time.sleep(0.01)

            second(leading, wait)
        batch = generate_batch(leading, processor, REQUESTS, batch_size=1)
        assert next(batch).tokens == alone[0]
        if where == "both":
            failed, last = batch
            assert str(failed.error) == "no memory" and last.tokens == alone[2]
        else:
            of_one = "rank 1 has failed .no memory" if where == "rank 1" else "no memory; rank 1 does not have this"
            with pytest.raises(DistributedError, match=f"{of_one}.*start the command again"):
                list(batch)
    if where == "both":
        followed.result(60)
    else:
        with pytest.raises(DistributedError, match=r"no memory.*start the command again"):
            followed.result(60)


def only_line(err: str) -> str:
    """The line of the program, beside MLX's own."""
    (line,) = [line for line in without_waits(err).splitlines() if not line.startswith("[ring]")]
    return line


@pytest.mark.sampled(1)
@pytest.mark.parametrize("where", ["layer", "step", "prompt"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_each_with_a_line(tmp_path, rank, where):
    """The traceback of one that the program does not expect is its own rank's."""
    words = [sys.executable, FAILING, rank, where, "generate", "--model", "demo", "--prompt", "Why?", "--temp", 0]
    ends = ended(start(tmp_path, 2, words), 300)
    (code, _, err), (other_code, _, other_err) = ends[rank], ends[1 - rank]
    assert other_code == 2 and only_line(other_err).endswith("start the command again"), other_err
    if where == "layer":
        assert code == 2 and "memory ran out ([metal::malloc] no memory)" in only_line(err), err
    else:
        assert code == 1 and "RuntimeError: [metal::malloc] no memory" in err, err
    if (rank, where) == (0, "prompt"):
        assert "error: rank 0 has failed (RuntimeError: [metal::malloc] no memory); " in other_err, other_err


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", ["killed", "silent", "rank 0 killed"])
def test_a_rank_that_is_lost_amid_an_answer_ends_the_others(tmp_path, endless, what):
    """Within the time of silence, and some seconds."""
    words = ("generate", "--model", endless, "--prompt", "Why?", "--max-tokens", 100_000)
    ranks = start_ranks(tmp_path, 2, *words, environment={SILENCE: "10"})
    try:
        assert ranks[0].stdout is not None and ranks[0].stdout.read(1)
        victim, other = (0, 1) if what == "rank 0 killed" else (1, 0)
        ranks[victim].send_signal(signal.SIGSTOP if what == "silent" else signal.SIGKILL)
        if what == "killed":  # as mlx.launch does
            ranks[other].send_signal(signal.SIGTERM)
        _, err = ranks[other].communicate(timeout=120)
        assert ranks[other].returncode == 2
        line = only_line(err)
        assert f"error: rank {victim} is lost" in line and "start the command again" in line
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


WORDS = ("--model", "demo", "--max-tokens", 12)


def test_generate_answers_as_one_process(tmp_path, monkeypatch, cli):  # noqa: F811
    """Only rank 0 reads the picture and prints."""
    monkeypatch.setenv("MLX_LFM2VL_BACKEND", "mlx")
    words = ("generate", *WORDS, "--verbose", "--prompt", "What is this?", "--temp", 0.7, "--seed", 5, "--image")
    _, alone, _ = cli(*words, SMALL)
    picture = tmp_path / "a" / "small.png"
    picture.parent.mkdir()
    shutil.copy(SMALL, picture)
    first, second = ended(start_ranks(tmp_path, 2, *words, "small.png", folders=[picture.parent, tmp_path]))
    assert first[:2] == (0, alone) and second == (0, "", ""), (first, second)


def test_a_stdin_that_does_not_end_is_not_read(tmp_path, cli):  # noqa: F811
    """As `mlx.launch` gives one to its ranks."""
    first, second = ended(start_ranks(tmp_path, 2, "generate", *WORDS, "--image", SMALL, stdin=subprocess.PIPE))
    assert first[0] == 0 and first[1] and second == (0, "", ""), (first, second)
    for words in (("--image", "-"), ("--image", SMALL, "--prompt", "-"), ("--prompt-file", "-")):
        for code, out, err in ended(start_ranks(tmp_path, 2, "generate", *WORDS, *words, stdin=subprocess.PIPE)):
            assert (code, out) == (2, "") and "-: mlx.launch does not end what it gives" in only_line(err)


def test_a_user_s_error_is_told_by_rank_0_alone(tmp_path):
    first, second = ended(start_ranks(tmp_path, 2, "generate", *WORDS, "--image", "nowhere.png"))
    assert first[0] == 2 and only_line(first[2]) == "mlx-lfm2vl: error: nowhere.png: no such picture"
    assert second == (0, "", "")


@pytest.mark.soak
def test_chat_answers_as_one_process(tmp_path):
    said = "Why?\nAnd how?\n"
    words = [sys.executable, "-m", "mlx_lfm2vl", "chat", *map(str, WORDS)]
    environment = {**os.environ, "MLX_LFM2VL_BACKEND": "mlx"}
    alone = subprocess.run(words, input=said, cwd=ROOT, env=environment, capture_output=True, text=True)
    ranks = start_ranks(tmp_path, 2, "chat", *WORDS, stdin=subprocess.PIPE)
    assert ranks[0].stdin is not None
    ranks[0].stdin.write(said)
    (code, out, err), second = ended(ranks)
    assert (code, out) == (0, alone.stdout) and second == (0, "", ""), (err, second)


ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8, "temperature": 0}


def asked_of(port: int, ranks: list[subprocess.Popen[str]], **more: object) -> Any:
    """What the server answers, once it listens."""
    url, body = f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps({**ASKED, **more}).encode()
    limit = time.monotonic() + 300
    while True:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            return json.loads(urllib.request.urlopen(request, timeout=300).read())
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or ranks[0].poll() is not None:
                raise
            assert time.monotonic() < limit, ended(ranks, 1)
            time.sleep(0.2)


@pytest.mark.soak
def test_a_server_answers_and_ends_with_a_lost_rank(tmp_path):
    (port,) = free_ports(1)
    ranks = start_ranks(tmp_path, 2, "serve", "demo", "--port", port)
    try:
        answer = asked_of(port, ranks)
        options = GenerationOptions(max_tokens=8, temperature=0)
        alone = generate(*load("demo", backend="mlx"), "Why?", options=options)
        assert answer["choices"][0]["message"]["content"] == alone
        assert asked_of(port, ranks)["usage"]["prompt_tokens_details"] == {
            "cached_tokens": answer["usage"]["prompt_tokens"]
        }
        ranks[1].kill()
        ranks[1].wait()
        with pytest.raises(urllib.error.URLError):
            asked_of(port, ranks)
        _, err = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 2 and "error: rank 1 is lost, and its part of the model" in err, err
    finally:
        ranks[0].kill()
        ended(ranks)


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_server_ends_with_an_error_of_one_rank(tmp_path, rank):
    """It does not live on beside a rank that waits for it."""
    (port,) = free_ports(1)
    ranks = start(tmp_path, 2, [sys.executable, FAILING, rank, "layer", "serve", "demo", "--port", port])
    try:
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            asked_of(port, ranks, max_tokens=60)
    finally:
        ends = ended(ranks, 300)
    assert [code for code, *_ in ends] == [2, 2] and "memory ran out ([metal::malloc] no memory)" in ends[rank][2], ends
    assert all("start the command again\n" in err for *_, err in ends), ends
