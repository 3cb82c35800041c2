"""The models of a server: loaded when they are asked for, let go of for others, visible while they come."""

import json
import shutil
import threading
import time
from dataclasses import replace
from typing import Any

import openai
import pytest
from conftest import GOLDEN
from hub_server import HubServer, Repository
from servers import ANSWER, about, serving, settings_of, until

from mlx_lfm2vl import DraftModel, Engine, OptionError, demo, load, load_draft
from mlx_lfm2vl.generation.pace import Pace

TEXT: Any = [{"role": "user", "content": "Hi"}]


def ask(server, model, **more) -> Any:
    return server.openai().chat.completions.create(model=model, messages=TEXT, **{"max_tokens": 1} | more)


def states(server):
    return {model.id: model.state for model in server.openai().models.list()}


def with_models(*models, **changes):
    """Settings with these changes of what holds for all models."""
    settings = settings_of(*models)
    return replace(settings, model_settings=replace(settings.model_settings, **changes))


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_model_is_loaded_when_it_is_first_asked_for():
    with serving(settings_of("demo", GOLDEN / "gen2")) as server:
        assert states(server) == {"demo": "unloaded", "gen2": "unloaded"}
        ask(server, "gen2")
        assert states(server) == {"demo": "unloaded", "gen2": "loaded"}
        ask(server, "demo")
        assert set(states(server).values()) == {"loaded"}
        assert server.raw("GET", "/health")[2]["models"] == states(server)


def test_a_loaded_model_tells_how_long_its_context_is():
    with serving(settings_of("demo")) as server:
        assert "max_context_length" not in server.openai().models.retrieve("demo").to_dict()
        ask(server, "demo")
        length = load("demo")[0].config.text_config.max_position_embeddings
        assert server.openai().models.retrieve("demo").to_dict()["max_context_length"] == length
        assert server.anthropic().models.retrieve("demo").max_input_tokens == length


def test_the_model_that_was_used_least_recently_goes_first():
    folders = [GOLDEN / name for name in ("gen2", "gen25", "untied")]
    budget = sum(map(size, folders)) - 1
    with serving(with_models(*folders, memory_budget=budget)) as server:
        for name in ("gen2", "gen25", "gen2", "untied"):
            ask(server, name)
        assert states(server) == {"gen2": "loaded", "gen25": "unloaded", "untied": "loaded"}
        first = ask(server, "gen25", max_tokens=4).choices[0].message.content
        assert states(server) == {"gen2": "unloaded", "gen25": "loaded", "untied": "loaded"}
    with serving(settings_of(folders[1])) as server:
        assert ask(server, "gen25", max_tokens=4).choices[0].message.content == first


def test_a_model_waits_for_the_answers_of_the_one_in_its_place(endless):
    folders = [endless, GOLDEN / "gen2"]
    with serving(with_models(*folders, memory_budget=max(map(size, folders)))) as server:
        ask(server, "model")
        long = server.openai().chat.completions.create(model="model", messages=TEXT, stream=True, max_tokens=600)
        chunks = iter(long)
        next(chunks)
        other = threading.Thread(target=ask, args=(server, "gen2"))
        other.start()
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] == "length" and len(reasons) > 3
        other.join(30)
        assert states(server) == {"model": "unloaded", "gen2": "loaded"}


def test_a_model_beyond_the_budget_is_refused():
    with (
        serving(with_models(GOLDEN / "gen2", memory_budget=1000)) as server,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        ask(server, "gen2")
    assert refused.value.status_code == 503 and str(GOLDEN) not in str(refused.value)


def test_a_model_that_nobody_asks_for_is_let_go_of():
    with serving(with_models("demo", keep_alive=0.3)) as server:
        ask(server, "demo")
        until(lambda: states(server) == {"demo": "unloaded"})
        ask(server, "demo")
        assert any("model demo is unloaded" in line for line in server.lines)


def test_a_model_whose_engine_has_ended_keeps_no_other_one_loaded(monkeypatch):
    engines: dict[str, Any] = {}

    class Kept(Engine):
        def __init__(self, *given: Any, **more: Any):
            super().__init__(*given, **more)
            engines[f"engine {len(engines)}"] = self

    monkeypatch.setattr("mlx_lfm2vl.server.models.Engine", Kept)
    with serving(with_models(GOLDEN / "gen2", "demo", keep_alive=1.0)) as server:
        ask(server, "gen2")
        engines["engine 0"].close()
        ask(server, "demo")
        until(lambda: set(states(server).values()) == {"unloaded"})
        assert ask(server, "gen2").usage.completion_tokens == 1


def test_the_deadline_of_an_answer_counts_the_load_of_its_model(monkeypatch):
    go_on, waited = threading.Event(), []

    def slow(*given: Any, **more: Any) -> Any:
        waited.append(go_on.wait(60))
        return load(*given, **more)

    monkeypatch.setattr("mlx_lfm2vl.server.models.load", slow)
    with serving(settings_of(GOLDEN / "gen2")) as server:
        with pytest.raises(openai.InternalServerError) as late:
            ask(server, "gen2", extra_body={"deadline": 0.5})
        go_on.set()
        assert late.value.status_code == 504
        assert ask(server, "gen2").usage.completion_tokens == 1
    assert waited == [True]


def test_a_damaged_model_is_told_in_the_log_and_tried_again(tmp_path):
    folder = shutil.copytree(GOLDEN / "gen2", tmp_path / "mended")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with serving(settings_of(folder, "demo")) as server:
        with pytest.raises(openai.InternalServerError) as refused:
            ask(server, "mended")
        assert refused.value.code == "model_not_loaded" and refused.value.status_code == 503
        assert "its weight files are missing or damaged, or do not fit its configuration" in str(refused.value)
        assert str(tmp_path) not in str(refused.value)
        assert any("model mended cannot be loaded" in line and str(tmp_path) in line for line in server.lines)
        ask(server, "demo")
        (folder / "model.safetensors").write_bytes(weights)
        assert ask(server, "mended").usage.completion_tokens == 1


@pytest.mark.parametrize("name", ["nope", "./no/such/folder", "a/b/c/d"])
def test_a_name_that_can_never_be_loaded_is_refused_at_once(name):
    with pytest.raises(OptionError, match="no such folder, and not a hub repository name"):
        settings_of(name)


def test_the_progress_of_a_download_is_visible(tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in demo.path().iterdir() if path.is_file()}
    with HubServer({"owner/name": Repository(files)}, pace=2_000_000) as hub:
        hub.be_the_hub(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # of a model that is small
        with serving(settings_of("owner/name")) as server:
            asking = threading.Thread(target=ask, args=(server, "owner/name"))
            asking.start()
            seen = []
            while asking.is_alive():
                seen.append(server.raw("GET", "/v1/models/owner/name")[2])
                time.sleep(0.05)
            asking.join()
            assert server.raw("GET", "/v1/models/owner/name")[2]["state"] == "loaded"
    downloads = [model["progress"] for model in seen if model["state"] == "downloading" and "progress" in model]
    counts = [each["done"] for each in downloads if each["what"] == "download"]
    assert counts == sorted(counts) and len(set(counts)) > 1, json.dumps(seen[-3:])


def test_a_model_that_failed_says_why_and_is_tried_again(tmp_path):
    folder = shutil.copytree(demo.path(), tmp_path / "broken")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text("{")
    with serving(settings_of(folder)) as server:
        with pytest.raises(openai.InternalServerError, match="its JSON files are missing, damaged") as refused:
            ask(server, "broken")
        assert refused.value.status_code == 503 and refused.value.code == "model_not_loaded"
        shown = server.raw("GET", "/v1/models/broken")[2]
        assert (
            shown["state"] == "failed"
            and shown["error"].startswith("its JSON files")
            and str(tmp_path) not in json.dumps(shown)
        )
        (folder / "config.json").write_text(config)
        assert ask(server, "broken").usage.completion_tokens == 1
        shown = server.raw("GET", "/v1/models/broken")[2]
        assert shown["state"] == "loaded" and "error" not in shown


def test_two_models_of_one_name_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "gen2", tmp_path / "gen2")
    with pytest.raises(OptionError, match="same name"):
        settings_of(GOLDEN / "gen2", tmp_path / "gen2")


@pytest.mark.backends("mlx", "numpy")
def test_a_draft_model_proposes_the_tokens_of_answers(monkeypatch):
    drafts: list[int] = []
    propose = DraftModel.__call__

    def counted(self, tokens, count):
        drafts.append(count)
        return propose(self, tokens, count)

    monkeypatch.setattr(DraftModel, "__call__", counted)
    monkeypatch.setattr(Pace, "pays", lambda self, rows: True)  # no clock ends drafts
    with serving(with_models("demo", draft=load_draft("demo"))) as server:
        for _ in range(2):
            made = server.openai().chat.completions.create(model="demo", messages=about("scene"))
            assert made.choices[0].message.content == ANSWER
            assert drafts
            drafts.clear()


def test_a_draft_model_of_other_tokens_is_said_when_the_model_loads():
    with serving(with_models("demo", draft=load_draft(GOLDEN / "gen2"))) as server:
        with pytest.raises(openai.InternalServerError, match="an option of the server does not fit it"):
            server.openai().chat.completions.create(model="demo", messages=about("scene"))
        assert any("the draft model has vocab_size" in line for line in server.lines)
