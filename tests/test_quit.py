"""Leaving a model that is being loaded or downloaded: by `Engine.close`, at Ctrl-C, at the end of the process.

Programs run against hubs on loopback that send little at a time, or nothing more. What they print last is when they
began to leave.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from test_exit import BEGINNING, CODE, SECONDS
from test_hub import surroundings
from test_xet import NAME, publish
from xet_server import XetHubServer, _XetHandler

from mlx_lfm2vl import EngineClosedError, load
from mlx_lfm2vl.conversion.convert import convert
from mlx_lfm2vl.engine.engine import Engine

BIG = {file.name: file.read_bytes() for file in (GOLDEN / "gen25").iterdir()} | {"more.safetensors": bytes(40 * 2**20)}
BEGUN = "print('begun', flush=True); sys.stdin.readline(); print(time.time(), flush=True)\n"
WAYS = {
    "close": f"engine = Engine({NAME!r}); {BEGUN}engine.close(); assert not engine._worker.thread.is_alive()",
    "exit": f"engine = Engine({NAME!r}); {BEGUN}",
    "reload": f"engine = Engine({NAME!r}); {BEGUN}engine.reload('demo'); assert engine.generate('Hi', options=few)",
    "stop": f"""
event, raised = threading.Event(), []
def work():
    try:
        load({NAME!r}, stop=event.is_set)
    except LoadCancelledError as error:
        raised.append(str(error))
thread = run(work)
{BEGUN}event.set(); thread.join(); assert raised == ["{NAME}: loading was stopped before the model was whole"]
""",
    "a daemon's exit": f"run(load, args=({NAME!r},), daemon=True); {BEGUN}",
    "Ctrl-C": f"""
print('begun', flush=True)
try:
    load({NAME!r})
except KeyboardInterrupt:
    print(time.time(), flush=True)
""",
}


def leaves(hub: HubServer, home: Path, way: str) -> None:
    """Runs a program and lets it leave the download in the middle."""
    words = [sys.executable, "-c", f"{BEGINNING}{WAYS[way]}\nsys.exit({CODE})"]
    pipe = subprocess.PIPE
    environment = surroundings(hub, home)
    with subprocess.Popen(words, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "begun\n"
            end = time.monotonic() + 60
            while not any(r.method == "GET" and ("safetensors" in r.path or "/xorbs/" in r.path) for r in hub.requests):
                assert time.monotonic() < end and program.poll() is None
                time.sleep(0.05)
            time.sleep(0.3)
            if way == "Ctrl-C":
                program.send_signal(signal.SIGINT)
            begun = time.time()
            out, err = program.communicate("\n", timeout=60)
        finally:
            program.kill()  # unless it has ended
        assert (program.returncode, err) == (CODE, "")
        assert time.time() - begun < SECONDS and float(out) - begun < SECONDS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", ["paced", "silent"])
@pytest.mark.parametrize("way", WAYS)
def test_a_download_is_left_at_once(way, how, tmp_path):
    with HubServer({NAME: Repository(dict(BIG))}) as hub:
        if how == "paced":
            hub.pace = 2**20
        else:
            hub.stalls |= {"more.safetensors": [2**20] * 99}
        leaves(hub, tmp_path, way)


class SilentXetServer(XetHubServer):
    silent = False

    def handler(self) -> type[_XetHandler]:
        hub = self

        class Handler(super().handler()):  # type: ignore[misc]
            def do_GET(self) -> None:
                if hub.silent and self.path.startswith("/cas/xorbs"):
                    self.log()
                    hub.ended.wait(60)
                else:
                    super().do_GET()

        return Handler


@pytest.fixture(scope="module")
def xet_hub(tmp_path_factory) -> Iterator[SilentXetServer]:
    pytest.importorskip("hf_xet", reason="hf_xet is not installed")
    home = tmp_path_factory.mktemp("xet")
    folder = convert(GOLDEN / "gen25", home / "tiny", q_bits=8, q_group_size=32, verify=False)
    hub = SilentXetServer({}, large=(".safetensors", "tokenizer.json"))
    with hub:
        assert publish(hub, home, folder).returncode == 0
        hub.silent = True
        yield hub


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS)
def test_a_download_through_xet_is_left_at_once(way, xet_hub, tmp_path):
    xet_hub.requests.clear()
    leaves(xet_hub, tmp_path, way)


def program(hub: HubServer, home: Path, text: str) -> None:
    done = subprocess.run([sys.executable, "-c", text], env=surroundings(hub, home), timeout=120, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_was_left_is_taken_up_by_the_next_download(tmp_path):
    with HubServer({NAME: Repository(dict(BIG))}, pace=2**20) as hub:
        leaves(hub, tmp_path, "Ctrl-C")
        hub.pace = 0
        size = len(BIG["more.safetensors"])
        again = f"from mlx_lfm2vl import hub; folder = hub.resolve({NAME!r})"
        program(hub, tmp_path, f"{again}\nassert (folder / 'more.safetensors').stat().st_size == {size}")


def test_what_progress_raises_in_a_download_arrives_as_itself(tmp_path):
    text = f"""
from mlx_lfm2vl import HubError, load
for error in OSError("mine"), RuntimeError("mine"), KeyboardInterrupt(), HubError("mine"):
    def progress(what, done, total):
        raise error
    try:
        load({NAME!r}, progress=progress)
    except BaseException as raised:
        assert raised is error, raised
    else:
        raise AssertionError(error)
"""
    with HubServer({NAME: Repository(dict(BIG))}) as hub:
        program(hub, tmp_path, text)


@pytest.mark.parametrize("way", ["close", "unload"])
def test_a_model_that_is_being_loaded_is_left_between_tensors(way):
    begun = threading.Event()
    told: list[tuple[int, int]] = []

    def slowly(what: str, done: int, total: int) -> None:
        told.append((done, total))
        begun.set()
        time.sleep(0.2)

    with Engine(lambda: load(GOLDEN / "gen25", progress=slowly)) as engine:
        waiting = engine.submit("Hello.")
        assert begun.wait(60)
        getattr(engine, way)(timeout=60)
        done, total = told[-1]
        assert done < total
        if way == "unload":
            assert waiting.result(1).finish_reason == "cancelled" and not engine.ready
            return
        assert engine.closed and not engine._worker.thread.is_alive()
        with pytest.raises(EngineClosedError, match="before the request began"):
            waiting.result(1)
        with pytest.raises(EngineClosedError, match="the engine is closed"):
            engine.wait_until_ready()
