"""A model that several ranks share: the tokens of one process, a part of its memory in each."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from launched import ended, free_ports, start, start_ranks
from test_cli import ROOT, cli  # noqa: F401

from mlx_lfm2vl import GenerationOptions, GenerationRequest, OptionError, convert, generate, generate_batch, load
from mlx_lfm2vl.distributed.links import Came, Link
from mlx_lfm2vl.generation.lockstep import Lead, follow
from mlx_lfm2vl.weights.files import read_header, read_part

PROGRAM = Path(__file__).parent / "ranks_program.py"
ADAPTERS = Path(__file__).parent / "adapters"
SMALL = GOLDEN / "pictures" / "small.png"


def answers(folder: Path, ranks: int, model: object) -> list[dict[str, Any]]:
    processes = start(folder, ranks, [sys.executable, PROGRAM, model, SMALL])
    return [json.loads(out) if code == 0 else pytest.fail(err) for code, out, err in ended(processes)]


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("demo", 2),
        *(pytest.param(*row, marks=pytest.mark.soak) for row in (("gen25", 2), ("gen25", 4), ("demo, 8 bits", 2))),
    ],
)
def test_ranks_give_the_tokens_of_one_process(tmp_path, name, ranks):
    """Greedy and sampled, about a picture; what does not divide by the ranks is whole in each."""
    model: object = GOLDEN / name if name.startswith("gen") else name
    if name == "demo, 8 bits":
        convert("demo", tmp_path / "model", quantize=True, q_bits=8, q_group_size=32)
        model = tmp_path / "model"
    (alone,), shared = answers(tmp_path, 1, model), answers(tmp_path, ranks, model)
    close = 0.2 if name.startswith("demo") else 1e-4  # the demo is of bfloat16
    for rank in shared:
        assert rank["tokens"] == alone["tokens"] and not rank["errors"]
        np.testing.assert_allclose(rank["logits"], alone["logits"], atol=close)
        assert rank["logits"] == shared[0]["logits"]
        if ranks == 2:
            assert rank["peak"] <= 0.6 * alone["peak"]


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
    with pytest.raises(OptionError, match="ranks share models of LFM2-VL only"):
        load(GOLDEN / "lfm3", backend="mlx", group=group)
    with pytest.raises(OptionError, match="an adapter that is fused"):
        load(GOLDEN / "gen25", backend="mlx", adapter=next(ADAPTERS.glob("*/adapter_config.json")).parent, group=group)


@pytest.mark.backends("mlx", "numpy")
def test_a_batch_goes_on_after_another_answer_came_between():
    """Its scheduler has no rows while the other one begins."""
    (leading, processor), (following, _) = load(GOLDEN / "gen25"), load(GOLDEN / "gen25")
    options = GenerationOptions(max_tokens=3, temperature=0.0)
    requests = [GenerationRequest(prompt, options=options) for prompt in ("Why?", "And how?")]
    alone = [answer.tokens for answer in generate_batch(leading, processor, requests)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, (far, _) = socket.create_connection(server.getsockname()), server.accept()
    came = Came()
    leading.lead = lead = Lead([Link(1, near, Came())])
    Link(0, far, came)
    with ThreadPoolExecutor(1) as other:
        followed = other.submit(follow, following, processor, came)
        batch = generate_batch(leading, processor, requests, batch_size=1)
        answers = [next(batch)]
        generate(leading, processor, "Who?", options=options)
        answers += batch
        lead.close()
        followed.result(60)
    assert [answer.tokens for answer in answers] == alone


WORDS = ("--model", "demo", "--max-tokens", 12)


def test_generate_answers_as_one_process(tmp_path, monkeypatch, cli):  # noqa: F811
    """Only rank 0 reads the picture and prints."""
    monkeypatch.setenv("MLX_LFM2VL_BACKEND", "mlx")
    words = ("generate", *WORDS, "--prompt", "What is this?", "--temp", 0.7, "--seed", 5, "--image")
    _, alone, _ = cli(*words, SMALL)
    picture = tmp_path / "a" / "small.png"
    picture.parent.mkdir()
    shutil.copy(SMALL, picture)
    first, second = ended(start_ranks(tmp_path, 2, *words, "small.png", folders=[picture.parent, tmp_path]))
    assert first[:2] == (0, alone) and second == (0, "", ""), (first, second)


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


@pytest.mark.soak
def test_a_server_answers_and_names_a_lost_rank(tmp_path):
    (port,) = free_ports(1)
    ranks = start_ranks(tmp_path, 2, "serve", "demo", "--port", port)
    try:
        asked = {"model": "demo", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8, "temperature": 0}
        body = json.dumps(asked)
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        post = functools.partial(urllib.request.Request, url, body.encode(), {"Content-Type": "application/json"})
        limit = time.monotonic() + 300
        while True:
            try:
                answer = json.loads(urllib.request.urlopen(post(), timeout=300).read())
                break
            except urllib.error.URLError as error:  # it does not listen yet
                assert not isinstance(error, urllib.error.HTTPError), error.read()
                assert time.monotonic() < limit and ranks[0].poll() is None, (error, ended(ranks, 1))
                time.sleep(0.2)
        options = GenerationOptions(max_tokens=8, temperature=0)
        alone = generate(*load("demo", backend="mlx"), "Why?", options=options)
        assert answer["choices"][0]["message"]["content"] == alone
        ranks[1].kill()
        ranks[1].wait()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(post(), timeout=60)
    finally:
        ranks[0].kill()
        ended(ranks)
