"""What will not fit into memory is refused before the work starts, with what would fit; what fits is never refused."""

import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from test_cli import ROOT
from test_convert import large_folder

from mlx_lfm2vl.backends import memory
from mlx_lfm2vl.config import Lfm2VlConfig
from mlx_lfm2vl.errors import Lfm2VlError, OutOfMemoryError
from mlx_lfm2vl.generation import chunked_prefill
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.models.cache import Cache
from mlx_lfm2vl.weights import fit
from mlx_lfm2vl.weights.load import load_model, open_model

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")


@pytest.fixture(scope="module")
def model():
    return load_model(GOLDEN / "gen25", dtype="auto")


def with_free(monkeypatch, size: float | None) -> None:
    for module in (fit, chunked_prefill):
        monkeypatch.setattr(module, "free_memory", lambda: None if size is None else int(size))


def test_the_bytes_of_the_weights_are_those_that_mlx_holds():
    program = f"""
import mlx.core as mx
from pathlib import Path
from mlx_lfm2vl.weights import fit
from mlx_lfm2vl.weights.load import load_model, open_model
for dtype in (None, mx.float16):
    _, stored = open_model(Path({str(GOLDEN / "gen25")!r}))
    model = load_model(Path({str(GOLDEN / "gen25")!r}), dtype="auto" if dtype is None else dtype)
    print(fit.weight_bytes(stored.infos, dtype), mx.get_active_memory())
    del model
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    for line in run.stdout.splitlines():
        counted, held = map(int, line.split())
        assert held == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("length", [600, 3000])
def test_a_question_is_counted_below_what_it_takes(model, length, monkeypatch):
    ids = np.full((1, length), 500)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(prefill(model, Prompt(ids), Cache(model.config.text_config)))
    taken = mx.get_peak_memory() - before
    counted = chunked_prefill.question_bytes(model.config, 4, length, 0)
    assert counted < taken


def test_weights_that_do_not_fit_are_refused_with_the_widths_that_do(monkeypatch):
    _, stored = open_model(GOLDEN / "gen2")
    needed = fit.weight_bytes(stored.infos)
    with_free(monkeypatch, needed)
    fit.check_weights("here", stored.infos)
    with_free(monkeypatch, fit.quantised_bytes(stored.infos, 6))
    with pytest.raises(
        OutOfMemoryError, match=r"here: its weights take .* GB and .* GB of memory are free; converted to 6 bits"
    ):
        fit.check_weights("here", stored.infos)
    with_free(monkeypatch, 0.9 * needed)
    with pytest.raises(
        OutOfMemoryError, match=r"converted to 8 bits they take .* \(mlx-lfm2vl convert -q --q-bits 8\)"
    ):
        fit.check_weights("here", stored.infos)
    with_free(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="free memory, or choose a smaller model"):
        fit.check_weights("here", stored.infos)
    with_free(monkeypatch, None)
    fit.check_weights("here", stored.infos)
    infos = {name: fit.TensorInfo(info.file, "BF16", info.shape) for name, info in stored.infos.items()}
    with_free(monkeypatch, 0.75 * needed)
    with pytest.raises(OutOfMemoryError, match=r"as they are stored, .* they would fit \(dtype 'auto'\)"):
        fit.check_weights("here", infos, mx.float32)


def test_a_quantised_size_is_that_of_a_conversion(tmp_path):
    from mlx_lfm2vl.conversion.convert import convert

    large_folder(tmp_path / "source")
    _, stored = open_model(tmp_path / "source")
    for bits in (8, 4):
        out = convert(tmp_path / "source", tmp_path / str(bits), q_bits=bits, verify=False, dtype="float16")
        made = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        _, half = open_model(out)
        dense = sum(info.nbytes for name, info in stored.infos.items() if len(info.shape) != 2)
        assert fit.quantised_bytes(stored.infos, bits) == pytest.approx(made, rel=0.1, abs=2 * dense)
        assert fit.weight_bytes(half.infos) == pytest.approx(made, rel=0.01)


def test_a_question_that_does_not_fit_names_the_tokens_that_would(model, monkeypatch):
    config = model.config
    with_free(monkeypatch, chunked_prefill.question_bytes(config, 4, 5000, 1000, 1024))
    chunked_prefill.check_question(config, mx.float32, 5000, 1000, 1024)
    with pytest.raises(
        OutOfMemoryError, match=r"a prompt of 5,000 tokens with an answer of 9,000 takes .*; use"
    ) as caught:
        chunked_prefill.check_question(config, mx.float32, 5000, 9000, 1024)
    assert "; use fewer or smaller pictures, fewer frames of videos (fps), a smaller max" in str(caught.value)
    said = int(str(caught.value).split("enough for about ")[1].split(" tokens")[0].replace(",", ""))
    chunked_prefill.check_question(config, mx.float32, said - chunked_prefill.LONGEST_CHUNK - 256, 0, 1024)
    with pytest.raises(OutOfMemoryError) as text:
        chunked_prefill.check_question(config, mx.float32, 5000, 1000, 0, rows=2)
    assert "pictures" not in str(text.value)


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_run(model, monkeypatch):
    with_free(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="a prompt of 40 tokens"):
        prefill(model, Prompt(np.full((1, 40), 500)), Cache(model.config.text_config))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed buffer"
        ),
        RuntimeError("[malloc_or_wait] Unable to allocate 99 bytes."),
        RuntimeError("cudaMallocManaged(&data, size) failed: out of memory"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_is_the_same_error(error):
    with (
        pytest.raises(OutOfMemoryError, match=r"the work: memory ran out.*videos \(fps\), or .*quantisation") as caught,
        memory.allocations("the work"),
    ):
        raise error
    assert isinstance(caught.value, (Lfm2VlError, MemoryError))
    with pytest.raises(RuntimeError, match="other"), memory.allocations("the work"):
        raise RuntimeError("other")


def generate(folder: Path, *words: str, room: int) -> subprocess.CompletedProcess[str]:
    """Runs `generate` in a process that may take `room` bytes more than its libraries."""
    program = f"""
import resource, sys
import mlx.core as mx, jinja2, tokenizers, PIL.Image
import mlx_lfm2vl.generation.stream, mlx_lfm2vl.pretrained
from mlx_lfm2vl.cli import main
mx.eval(mx.ones(8) + 1)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + {room}
resource.setrlimit(resource.RLIMIT_AS, (now, now))
sys.exit(main(["generate", "--model", {str(folder)!r}, *{words!r}]))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)


@LINUX
def test_a_process_that_may_take_little_is_told_instead_of_ended(tmp_path):
    large_folder(tmp_path / "large")
    refused = generate(tmp_path / "large", "--prompt", "Hi", "--max-tokens", "2", room=60_000_000)
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr[-500:]
    assert "large: its weights take 0.1" in refused.stderr and "of memory are free" in refused.stderr
    accepted = generate(tmp_path / "large", "--prompt", "Hi", "--max-tokens", "2", room=3_000_000_000)
    assert accepted.returncode == 0, accepted.stderr[-500:]


@pytest.mark.sampled(2)
@LINUX
@pytest.mark.parametrize("room", [140_000_000, 300_000_000, 450_000_000, 800_000_000])
def test_a_limit_that_would_be_met_half_way_is_told_before(tmp_path, room):
    """MLX's CPU back end ends the process where the system refuses it memory."""
    large_folder(tmp_path / "large")
    words = ["--image", str(ROOT / "examples" / "large.png"), "--prompt", "word " * 600, "--max-tokens", "2"]
    done = generate(tmp_path / "large", *words, room=room)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-500:]
    assert "of memory are free" in done.stderr


@LINUX
def test_free_memory_is_what_the_tightest_limit_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 7)
    machine = memory.free_memory()
    assert machine is not None and machine > 50_000_000
    for name, content in {
        "memory.max": "30000000\n",
        "memory.current": "20000000\n",
        "memory.stat": "anon 5\ninactive_file 600000\nactive_file 400000\n",
        "memory.swap.max": "3000\n",
        "memory.swap.current": "1000\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert memory._groups(tmp_path, tmp_path / "none") == (tmp_path,) and memory._group(tmp_path) == 11_002_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group(tmp_path) is None and memory._group(tmp_path / "none") is None
    old = tmp_path / "memory" / "user" / "mine"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("5000000\n")
    (old / "memory.usage_in_bytes").write_text("4000000\n")
    (old / "memory.stat").write_text("cache 9\ninactive_file 1\ntotal_inactive_file 300000\n")
    (tmp_path / "own").write_text("3:cpu,cpuacct:/user/mine/job\n2:memory:/user/mine/job\n0::/\n")
    groups = memory._groups(tmp_path, tmp_path / "own")
    assert [memory._group(folder) for folder in groups] == [1_300_000]
    monkeypatch.setattr(memory, "_groups", lambda: groups)
    assert memory.free_memory() == 1_300_007
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**40, 2**40))
    room = memory._process()
    assert room is not None and 2**39 < room < 2**40 - memory.RESERVED


def test_published_sizes():
    """The makers' 3B with all its positions: 8 attention layers of 8 heads of 64 in bfloat16, 16 kB a token."""
    config = Lfm2VlConfig.from_dict(
        {
            "model_type": "lfm2_vl",
            "text_config": {
                "hidden_size": 2048,
                "num_hidden_layers": 30,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128000,
                "intermediate_size": 10752,
                "block_auto_adjust_ff_dim": False,
                "full_attn_idxs": [2, 5, 9, 13, 17, 21, 24, 27],
            },
        }
    )
    assert chunked_prefill.token_bytes(config, 2) == 16384
    assert chunked_prefill.question_bytes(config, 2, 30_000, 2_768) == pytest.approx(0.54e9 + 0.12e9 + 0.04e9, rel=0.05)
