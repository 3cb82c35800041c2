"""`mlx-lfm2vl serve` as a process: how it starts, ends, and refuses what makes no sense."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import openai
import pytest
from conftest import GOLDEN
from openai.types.responses import ResponseErrorEvent
from servers import ANSWER, about

from mlx_lfm2vl import DraftModel
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.server.run import Server

TEXT: Any = [{"role": "user", "content": "Tell me everything."}]


class Process:
    """A server of its own."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "mlx_lfm2vl", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        found = re.search(r"at (http://\S+)/v1", self.first)
        self.url = found[1] if found else ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def openai(self, **more: Any):
        options: dict[str, Any] = {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0} | more
        return openai.OpenAI(**options)

    def end(self, *signals):
        """The exit code and what is left of stderr, after these signals."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.2)
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, self.first + rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_and_ends_at_a_signal(number):
    with Process("--port", 0) as server:
        assert f"serving demo at {server.url}/v1, with a page for people at {server.url}/ " in server.first
        made = server.openai().chat.completions.create(model="demo", messages=about("scene"))
        assert made.choices[0].message.content == ANSWER
        code, log = server.end(number)
    assert code == 0 and "Traceback" not in log and log.count("\n") == 4
    assert re.search(r"POST /v1/chat/completions 200 \d+\.\d+s req_\w+ model=demo prompt=33", log)


def test_running_answers_may_end_after_sigterm(endless):
    with Process(endless, "--port", 0, "--shutdown-seconds", 30) as server:
        ask = {"model": "model", "messages": TEXT, "max_tokens": 300, "stream": True}
        chunks = iter(server.openai().chat.completions.create(**ask))
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] == "length"
        with pytest.raises(openai.APIConnectionError):
            server.openai().chat.completions.create(**ask)
        code, log = server.end()
    assert code == 0 and "Traceback" not in log


def test_answers_that_go_on_are_cut_after_a_time(endless):
    with Process(endless, "--port", 0, "--shutdown-seconds", 0.5) as server:
        chunks = iter(server.openai().chat.completions.create(model="model", messages=TEXT, stream=True))
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        with pytest.raises(openai.APIError, match="about to stop"):
            list(chunks)
        code, log = server.end()
    assert time.monotonic() - started < 20 and code == 0 and "Traceback" not in log
    assert re.search(r"POST /v1/chat/completions 200 \S+s req_\w+ cut=503 model=model prompt=\d+ .*answer=[1-9]", log)


def test_a_stream_of_a_response_that_is_cut_says_so(endless):
    with Process(endless, "--port", 0, "--shutdown-seconds", 0.5) as server:
        stream = server.openai().responses.create(model="model", input="Hi", stream=True)
        assert stream.response.headers["x-accel-buffering"] == "no"
        events = [next(iter(stream))]
        server.process.send_signal(signal.SIGTERM)
        events += stream
        server.end()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert isinstance(last, ResponseErrorEvent) and "about to stop" in last.message
    assert last.to_dict().keys() == {"type", "sequence_number", "code", "message", "param"}


def test_a_second_signal_ends_a_server_at_once(endless):
    with Process(endless, "--port", 0, "--shutdown-seconds", 600) as server:
        chunks = iter(server.openai().chat.completions.create(model="model", messages=TEXT, stream=True))
        next(chunks)
        started = time.monotonic()
        code, log = server.end(signal.SIGTERM, signal.SIGTERM)
    assert time.monotonic() - started < 20 and code == 0 and "Traceback" not in log


def test_a_key_comes_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_text("secret\n")
    for arguments, environment in ((("--api-key-file", file), {}), ((), {"MLX_LFM2VL_API_KEY": "secret"})):
        with Process("--port", 0, "--host", "0.0.0.0", *arguments, **environment) as server:
            assert server.url.startswith("http://127.0.0.1:") and "all addresses of this machine" in server.first
            with pytest.raises(openai.AuthenticationError):
                server.openai().models.list()
            assert server.openai(api_key="secret").models.list().data[0].id == "demo"


REFUSED = [
    (("--host", "0.0.0.0"), "needs an API key"),
    (("--host", "example.org", "--no-api-key"), "is no IP address"),
    (("--host", "192.0.2.1", "--no-api-key"), "is no IP address of this machine"),
    (("--allow-origin", "foo"), "such as https://app.example"),
    (("--port", "70000"), "is not a whole number from 0 to 65535"),
    (("--api-key-file", "/nowhere"), "/nowhere: cannot be read"),
    (("demo", "demo"), "have the same name"),
    (("--max-tokens", "5"), "unrecognized arguments"),
    (("--adapter", "/nope"), "/nope: no such folder of an adapter"),
    (("--adapter", str(GOLDEN)), "has no adapter_config.json"),
    (("demo", str(GOLDEN / "gen2"), "--draft-model", "demo"), "--draft-model is for one model"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_makes_no_sense_is_one_line_and_exit_code_2(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lfm2vl", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_port_in_use_is_named():
    with Process("--port", 0) as server:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lfm2vl", "serve", "--port", server.url.rpartition(":")[2]],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (
        done.returncode == 2 and "cannot be listened at (Address already in use); choose another --port" in done.stderr
    )


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_the_install_line_is_named(missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom mlx_lfm2vl.cli import main\nsys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"mlx-lfm2vl: error: serve needs {missing}; pip install starlette uvicorn h11\n"


def test_a_log_that_nobody_reads_holds_no_answer_up():
    with Process("--port", 0) as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=60)
        for _ in range(300):  # a pipe holds 64 KiB, a line two hundred letters of the path
            connection.request("GET", "/" + "a" * 300)
            assert connection.getresponse().read()
        assert server.openai().models.list().data[0].id == "demo"


def test_a_folder_s_path_is_not_told():
    with Process(GOLDEN / "gen2", "--port", 0) as server:
        assert [model.id for model in server.openai().models.list()] == ["gen2"]


@pytest.mark.parametrize(("pictures", "pages"), [("7", 7), ("0", 1)])
def test_a_document_has_no_more_pages_than_a_request_may_have_pictures(monkeypatch, pictures, pages):
    given: list[int] = []

    class Noted:
        url = "http://127.0.0.1"

        def __init__(self, settings, _):
            policy = settings.model_settings.load["source_policy"]
            given.extend((policy.max_pages, policy.max_pictures))

        def run(self):
            pass

    monkeypatch.setattr("mlx_lfm2vl.server.run.Server", Noted)
    assert main(["serve", "demo", "--max-pictures", pictures]) == 0 and given == [pages, pages]


def test_a_draft_model_that_is_named_is_given_to_all_answers(monkeypatch):
    given: list[object] = []
    monkeypatch.setattr(Server, "run", lambda self: given.append(self._settings.model_settings.draft))
    assert main(["serve", "demo", "--port", "0", "--draft-model", "demo"]) == 0
    assert main(["serve", "demo", "--port", "0", "--draft", "auto"]) == 0
    assert isinstance(given[0], DraftModel) and given[1:] == ["auto"]
