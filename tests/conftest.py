"""Reads tests/golden/, the reference implementation's numbers (tools/golden/make.py makes and describes them), makes
the engine that tests share, and chooses the backend of each test.

Models run on the backend mlx, as on a Mac; tests marked `backends` run on those that they name. The summary counts the
tests whose process ran a decoder layer on each.

from conftest import case_ids

@pytest.mark.parametrize("case_id", case_ids("gen2", having="generated"))
def test_greedy(case_id, golden):
    case = golden(case_id)
    model, processor = load(case.folder)
    ...
"""

import copy
import functools
import gc
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # some GPUs multiply float32 with 10 bits of mantissa otherwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from matrix.web import Server, response
from PIL import Image

from mlx_lfm2vl import (
    Completion,
    Engine,
    GenerationResponse,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    Statistics,
    backends,
    load,
)
from mlx_lfm2vl.backends.cpu.layers import CpuDecoderLayer
from mlx_lfm2vl.compat.prompts import left_padding
from mlx_lfm2vl.generation.chunked_prefill import Prompt
from mlx_lfm2vl.generation.options import generation_config
from mlx_lfm2vl.models.lfm2 import Lfm2DecoderLayer
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration as Base
from mlx_lfm2vl.models.lfm3 import Lfm3DecoderLayer
from mlx_lfm2vl.models.outputs import Lfm2VlCausalLMOutputWithPast
from mlx_lfm2vl.processing.load_image import DEFAULT_POLICY, SourcePolicy, load_image

# On a busy machine a case takes longer. The same cases are drawn each time, in the soak new ones.
settings.register_profile(
    "the same cases", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("new cases", deadline=None, suppress_health_check=[HealthCheck.too_slow])

BACKENDS = ("mlx", "numpy")
GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = ("gen2", "gen25", "untied")  # of LFM2-VL; "lfm3" is LFM3-VL's
LFM3_INPUTS = (
    ("pixel_values", "pixel_deltas", "image_grid_thw"),
    ("pixel_values_videos", "video_deltas", "video_grid_thw"),
)
Loaded = tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]
_MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
_ENTRIES: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in _MANIFEST["cases"]}


@dataclass(frozen=True)
class GoldenCase:
    """One frozen call of the reference; tools/golden/stages.py describes the keys of `arrays`."""

    id: str
    checkpoint: str
    options: dict[str, Any]  # keyword arguments of the processor's call, without padding
    padding_side: str | None  # "left" or "right" where there are several prompts
    picture_names: list[list[str]]  # a list a prompt
    prompts: list[str]  # as the chat template renders them, with one <image> a picture
    generated_text: list[str]  # of arrays["generated"], without special tokens; empty where nothing was generated
    messages: list[list[dict[str, Any]]]  # with {"type": "image", "picture": name}
    arrays: dict[str, np.ndarray]

    @property
    def folder(self) -> Path:
        """The checkpoint, in Hugging Face format."""
        return GOLDEN / self.checkpoint

    @cached_property
    def pictures(self) -> list[list[Image.Image]]:
        """RGB pictures, a list a prompt."""
        return [[picture(name) for name in names] for names in self.picture_names]

    @cached_property
    def conversations(self) -> list[list[dict[str, Any]]]:
        """The messages with the pictures themselves under "image", as `apply_chat_template` takes them."""
        conversations = copy.deepcopy(self.messages)
        for turn in (turn for turns in conversations for turn in turns):
            for part in turn["content"] if isinstance(turn["content"], list) else []:
                if part["type"] == "image":
                    part["image"] = picture(part.pop("picture"))
                if part["type"] == "video":
                    part["path"] = GOLDEN / "videos" / f"{part.pop('clip')}.png"
        return conversations

    @cached_property
    def call_options(self) -> dict[str, Any]:
        """`options`, and padding where there are several prompts."""
        return self.options | ({"padding": True, "padding_side": self.padding_side} if self.padding_side else {})

    @cached_property
    def levels(self) -> np.ndarray:
        """(patches of all views, 768) uint8: the resized pictures, without padding."""
        down = np.cumsum(self.arrays["pixel_deltas"], axis=1, dtype=np.uint8)
        return np.cumsum(down, axis=2, dtype=np.uint8).reshape(-1, 768)

    @cached_property
    def pixel_values(self) -> np.ndarray:
        """(views, max_num_patches, 768) float32: the reference's, bit for bit."""
        mask = self.arrays["pixel_attention_mask"]
        values = np.zeros((*mask.shape, 768), np.float32)
        values[mask == 1] = (self.levels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
        return values

    def flat_patches(self, name: str) -> np.ndarray:
        """(patches of all pictures or videos, 1536) float32: the reference's for LFM3-VL, bit for bit."""
        across = np.cumsum(self.arrays[name], axis=3, dtype=np.uint8)
        levels = np.cumsum(across, axis=4, dtype=np.uint8).reshape(-1, 1536)
        return (levels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What the reference's processor returned, ready for a model: exact, whatever resizes pictures here."""
        inputs = {key: self.arrays[key] for key in ("input_ids", "attention_mask")}
        if self.checkpoint == "lfm3":
            for patches, deltas, grids in LFM3_INPUTS:
                if grids in self.arrays:
                    inputs |= {patches: self.flat_patches(deltas), grids: self.arrays[grids]}
        elif self.has_pictures:
            inputs["pixel_values"] = self.pixel_values
            inputs |= {key: self.arrays[key] for key in ("spatial_shapes", "pixel_attention_mask")}
        return inputs

    @property
    def has_pictures(self) -> bool:
        return any(self.picture_names)


def jsonl(folder: Path, *rows: object) -> Path:
    """A file of rows, of which those that are text stand in it as they are."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def picture(name: str) -> Image.Image:
    """The picture tests/golden/pictures/NAME.png."""
    with Image.open(GOLDEN / "pictures" / f"{name}.png") as stored:
        return stored.convert("RGB")


def load_array(picture: Any, policy: SourcePolicy = DEFAULT_POLICY) -> np.ndarray:
    """The pixels of `load_image`, (height, width, 3) uint8."""
    return np.array(load_image(picture, policy))


def case_ids(*checkpoints: str, having: str | None = None) -> list[str]:
    """Ids of the frozen cases, of some checkpoints or all of `CHECKPOINTS`, for parametrisation.

    `having` keeps those with: "pictures"; "generated" (greedy tokens); "padding" (several prompts).
    """
    keep: dict[str | None, Callable[[dict[str, Any]], bool]] = {
        None: lambda entry: True,
        "pictures": lambda entry: any(entry["pictures"]),
        "generated": lambda entry: "generated_text" in entry,
        "padding": lambda entry: entry["padding_side"] is not None,
    }
    wanted = checkpoints or CHECKPOINTS
    return [id_ for id_, entry in _ENTRIES.items() if entry["checkpoint"] in wanted and keep[having](entry)]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], GoldenCase]:
    """Gives the frozen case of an id, e.g. golden("gen2-tiled")."""

    def load_case(case_id: str) -> GoldenCase:
        entry = _ENTRIES[case_id]
        with np.load(GOLDEN / "cases" / f"{case_id}.npz") as stored:
            arrays = dict(stored)
        return GoldenCase(
            id=case_id,
            checkpoint=entry["checkpoint"],
            options=entry["options"],
            padding_side=entry["padding_side"],
            picture_names=entry["pictures"],
            prompts=entry["prompts"],
            generated_text=entry.get("generated_text", []),
            messages=entry["conversations"],
            arrays=arrays,
        )

    return load_case


@pytest.fixture(scope="session")
def golden_folder() -> Callable[[str], Path]:
    """Gives the folder of a small checkpoint: golden_folder("gen2"), "gen25" or "untied"."""

    def folder(name: str) -> Path:
        if name not in CHECKPOINTS:
            raise KeyError(name)
        return GOLDEN / name

    return folder


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], Any]:
    """Gives the content of tests/golden/NAME.json: "geometry", "templates" or "tokens"."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose answers end only where tokens do: its end token is none that it knows."""
    folder = Path(shutil.copytree(GOLDEN / "gen25", tmp_path_factory.mktemp("endless") / "model"))
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):  # end tokens of all files add up
        file = folder / name
        made = json.loads(file.read_text())
        for part in (made, made.get("text_config", {})):
            part.pop("eos_token", None)
            if "eos_token_id" in part:
                part["eos_token_id"] = 16_000_000
        file.write_text(json.dumps(made))
    return folder


def statistics_of(response: GenerationResponse | Completion) -> Statistics:
    """Those of a last response or of a whole answer, which has them."""
    assert response.statistics is not None
    return response.statistics


def prompt_of(case: GoldenCase) -> Prompt:
    """The arrays of a frozen case."""
    mask, pixels, shapes = map(case.inputs.get, ("attention_mask", "pixel_values", "spatial_shapes"))
    return Prompt(case.inputs["input_ids"], None if mask is None else left_padding(mask), pixels, shapes)


def logits_of(model: Base, *arguments: Any, **named: Any) -> mx.array:
    """(B, L, vocabulary): those of a call with these arguments."""
    output = model(*arguments, **named)
    assert isinstance(output, Lfm2VlCausalLMOutputWithPast) and output.logits is not None
    return output.logits


def read_tensors(file: Path) -> dict[str, mx.array]:
    """The tensors of a safetensors file."""
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    return tensors


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """MLX computes on the CPU, whatever else the machine has."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


# The engine


def endless_model() -> Loaded:
    """A model that never ends by itself."""
    model, processor = load(GOLDEN / "gen2")
    model.generation_config = replace(generation_config(model), eos_token_ids=())
    return model, processor


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine of `endless_model`, for all tests of a file."""
    with Engine(endless_model) as made:
        yield made


class SlowPath(os.PathLike[str]):
    """A picture's path that tells when it is asked for, and comes when it is let."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.release = path, threading.Event(), threading.Event()

    def __fspath__(self) -> str:
        self.asked.set()
        assert self.release.wait(60)
        return str(self.path)


@pytest.fixture
def slow_path(tmp_path: Path) -> Iterator[SlowPath]:
    """The path of the picture "small", which does not come until it is let."""
    picture("small").save(tmp_path / "small.png")
    made = SlowPath(tmp_path / "small.png")
    yield made
    made.release.set()


# Backends

P = ParamSpec("P")
T = TypeVar("T")
_ran: set[str] = set()  # backends whose decoder layers the running test has called
_counts: Counter[str] = Counter()


def cache_by_backend(function: Callable[P, T]) -> Callable[P, T]:
    """`functools.cache` for functions that load models: a result for each backend."""
    cached: Callable[..., T] = functools.cache(lambda backend, *arguments, **named: function(*arguments, **named))

    @functools.wraps(function)
    def for_backend(*arguments: P.args, **named: P.kwargs) -> T:
        return cached(os.environ[backends.VARIABLE], *arguments, **named)

    return for_backend


def _count_calls(layer: type, backend: str | None = None) -> None:
    """Counts the calls of a layer of one backend, or of the test's."""
    call = layer.__call__

    @functools.wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        _ran.add(backend or os.environ[backends.VARIABLE])
        return call(*arguments, **named)

    layer.__call__ = counted  # type: ignore[method-assign]


_count_calls(Lfm2DecoderLayer, "mlx")
_count_calls(CpuDecoderLayer, "numpy")
_count_calls(Lfm3DecoderLayer)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("backends")
    if marker is not None:
        metafunc.parametrize("backend", marker.args, indirect=True)


@pytest.hookimpl(tryfirst=True)  # before those are chosen that `-m` names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the rows of a test that is marked `sampled(n)`, n, evenly chosen, run as it says, the others in the soak."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in tests.values():
        if (marker := rows[0].get_closest_marker("sampled")) is not None:
            kept = {len(rows) * number // marker.args[0] for number in range(marker.args[0])}
            for at, row in enumerate(rows):
                if at not in kept:
                    row.add_marker(pytest.mark.soak)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where tests collect garbage, or look through all objects, those of the session itself are left out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The backend of models that the test loads, here and in other processes."""
    name: str = getattr(request, "param", os.environ.get(backends.VARIABLE, "mlx"))
    monkeypatch.setenv(backends.VARIABLE, name)
    if name == "numpy":
        request.getfixturevalue("on_cpu")
    _ran.clear()
    yield name
    request.node.user_properties.append(("backends", sorted(_ran)))


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("new cases" if "hypothesis" in config.option.markexpr else "the same cases")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes start, and each would compile all modules
    sys.dont_write_bytecode = False
    os.environ.setdefault(backends.VARIABLE, "mlx")
    os.environ.pop("MLX_LFM2VL_MODEL", None)  # a developer's own default model is none of the tests'
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="mlx-lfm2vl-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["XDG_CONFIG_HOME"], ignore_errors=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        properties: dict[str, Any] = dict(report.user_properties)
        _counts.update(properties.get("backends", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran = ", ".join(f"{_counts[name]} on {name}" for name in BACKENDS)
    terminalreporter.write_line(f"tests that ran a decoder layer: {ran}")


@pytest.fixture
def by_acceptance_only(monkeypatch):
    """Steps are counted here: no clock ends drafts."""
    monkeypatch.setattr("mlx_lfm2vl.generation.pace.Pace.pays", lambda self, rows: True)


@pytest.fixture
def nothing_fails(monkeypatch):
    """A row that begins again would hide an error: it gives the same tokens."""

    def fail(self: object, rows: object, error: Exception) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr("mlx_lfm2vl.generation.scheduler.Scheduler._failed", fail)


@pytest.fixture(scope="module")
def server():
    """A server of the demo model. Files that need another one have a fixture of this name."""
    from servers import serving, settings_of

    with serving(settings_of()) as running:
        yield running


@pytest.fixture
def client(server):
    """OpenAI's client of the server."""
    return server.openai()


class HeldPicture:
    """A picture's address: not there, or there but not until `reply` says so."""

    def __init__(self) -> None:
        self.reply, self.released = "404 Not Found", threading.Event()
        self.server = Server({"/held.png": self.answer})
        self.url = f"{self.server.url}/held.png"

    def answer(self, connection: socket.socket) -> None:
        if self.reply == "":
            self.released.wait(60)
        else:
            connection.sendall(response(self.reply, (GOLDEN / "pictures" / "small.png").read_bytes()))


@pytest.fixture
def held_picture() -> Iterator[HeldPicture]:
    held = HeldPicture()
    yield held
    held.released.set()
    held.server.close()
