"""Pictures that a folder keeps for the next process."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import openai
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, read_tensors
from test_cli import cli  # noqa: F401

from mlx_lfm2vl import Engine, GenerationOptions, KeptFileWarning, VisionCache, generate, load
from mlx_lfm2vl.errors import OptionError, OutputError
from mlx_lfm2vl.generation import chunked_prefill as encoding
from mlx_lfm2vl.server.run import Server

OPTIONS = GenerationOptions(max_tokens=6, temperature=0.0)


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The views of each pass of the vision tower."""
    seen: list[int] = []
    whole = encoding._encode_pass

    def counted(model, pixels, shapes):
        seen.append(len(shapes))
        return whole(model, pixels, shapes)

    monkeypatch.setattr(encoding, "_encode_pass", counted)
    return seen


def answer(folder: Path | None, name: str = "landscape", model: Loaded | None = None, limit: int = 2**30) -> str:
    cache = None if folder is None else VisionCache(folder=folder, folder_limit=limit)
    return generate(*(model or loaded()), "What is it?", picture(name), options=OPTIONS, vision_cache=cache)


@pytest.mark.backends("mlx", "numpy")
def test_the_next_process_encodes_no_picture_again(tmp_path, encoded):
    first = answer(tmp_path / "kept")
    views = sum(encoded)
    again = answer(tmp_path / "kept", model=load(GOLDEN / "gen2"))
    assert views > 0 and sum(encoded) == views
    assert first == again == answer(None)
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_what_other_weights_and_dtypes_made_is_not_read(tmp_path, encoded):
    answer(tmp_path)
    other = shutil.copytree(GOLDEN / "gen2", tmp_path / "model")
    os.utime(other / "model.safetensors")  # as if written anew
    for model in (load(other), load(GOLDEN / "gen2", dtype="bfloat16")):
        before = sum(encoded)
        answer(tmp_path, model=model)
        assert sum(encoded) > before


def changed(change):
    def damage(file: Path) -> None:
        mx.save_safetensors(str(file), {name: change(array) for name, array in read_tensors(file).items()})

    return damage


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "no safetensors": lambda file: file.write_bytes(b"x" * 5000),
    "not finite": changed(lambda array: mx.full(array.shape, mx.nan)),
    "fewer tokens": changed(lambda array: array[:-1]),
    "narrower": changed(lambda array: array[:, :-1]),
    "whole numbers": changed(lambda array: array.astype(mx.int32)),
    "another name": lambda file: mx.save_safetensors(str(file), {"other": mx.zeros((2, 2))}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_left_out_with_a_warning(damage, tmp_path, encoded):
    expected = answer(tmp_path)
    for file in tmp_path.glob("*"):
        damage(file)
    views = sum(encoded)
    with pytest.warns(KeptFileWarning, match="is left out"):
        assert answer(tmp_path) == expected
    assert sum(encoded) == 2 * views
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(tmp_path) == expected  # it was written anew
    assert sum(encoded) == 2 * views


def test_the_oldest_files_go_first_and_no_others(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10**6)
    (tmp_path / "my-view-1.safetensors").write_bytes(b"x" * 10**6)
    answer(tmp_path)
    first = {file.name for file in tmp_path.glob("*-view-*")}
    size = sum(file.stat().st_size for file in tmp_path.glob("*-view-*") if file.name != "my-view-1.safetensors")
    answer(tmp_path, "portrait", limit=size)
    left = {file.name for file in tmp_path.glob("*")}
    assert {"model.safetensors", "my-view-1.safetensors"} < left and not first <= left
    kept = sum(file.stat().st_size for file in tmp_path.glob("*-view-*") if file.name != "my-view-1.safetensors")
    assert 0 < kept <= size


def test_files_that_another_process_deletes_are_no_error(tmp_path, monkeypatch, encoded):
    expected = answer(tmp_path / "kept")
    views = sum(encoded)
    gone = tmp_path / "kept" / f"{'0' * 16}-view-{'0' * 32}.safetensors"
    gone.symlink_to(tmp_path / "nothing")  # is listed, and is not there
    monkeypatch.setattr(os, "utime", lambda file: file.unlink())  # as another process might, just then
    assert answer(tmp_path / "kept") == expected
    assert sum(encoded) == views


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file, where a folder is wanted"):
        VisionCache(folder=tmp_path / "file")
    with pytest.raises(OptionError, match="folder_limit"):
        VisionCache(folder=tmp_path, folder_limit=-1)


@pytest.mark.backends("mlx", "numpy")
def test_an_engine_keeps_pictures_in_a_folder(tmp_path, encoded):
    made = []
    for _ in range(2):
        with Engine(lambda: load(GOLDEN / "gen2"), vision_cache_folder=tmp_path) as engine:
            text = engine.generate("What is it?", picture("landscape"), options=OPTIONS)
        made.append((sum(encoded), text))
    assert made[0][0] > 0 and made[0] == made[1] and text == answer(None)


@pytest.mark.parametrize("command", ["generate", "generate -n 2", "chat", "batch", "serve"])
def test_the_next_run_of_a_command_encodes_no_picture(cli, tmp_path, encoded, monkeypatch, command):  # noqa: F811
    file = GOLDEN / "pictures" / "landscape.png"
    options = ["--vision-cache", tmp_path / "kept"]
    if command != "serve":
        options += ["--model", GOLDEN / "gen2", "--max-tokens", 4]
    words: list[object] = [*command.split(), *options, "--image", file, "--prompt", "What?"]
    if command == "chat":
        words = ["chat", *options, "--image", file]
    elif command == "batch":
        words = ["batch", file, *options, "--prompt", "What?", "--output", tmp_path / "made.jsonl", "--overwrite"]
    elif command == "serve":
        words = ["serve", GOLDEN / "gen2", *options, "--port", 0]
        monkeypatch.setattr(Server, "run", asking(file, Server.run))
    made = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
        code, out, err = cli(*words)
        assert code == 0, err
        made.append((sum(encoded), out))
    assert made[0][0] > 0 and made[0] == made[1]
    assert list((tmp_path / "kept").glob("*-view-*"))


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_command_tells_of_a_broken_file_in_a_line(cli, tmp_path, monkeypatch, command):  # noqa: F811
    file = GOLDEN / "pictures" / "landscape.png"
    words = ["generate", "--model", GOLDEN / "gen2", "--max-tokens", 1, "--image", file, "--prompt", "What?"]
    assert cli(*words, "--vision-cache", tmp_path)[0] == 0
    for kept in (files := list(tmp_path.glob("*-view-*"))):
        kept.write_bytes(b"broken")
    if command == "serve":
        words = ["serve", GOLDEN / "gen2", "--port", 0]
        monkeypatch.setattr(Server, "run", asking(file, Server.run))
    code, _, err = cli(*words, "--vision-cache", tmp_path)
    told = [line for line in err.splitlines() if "Warning" in line or "is left out" in line or "warn" in line]
    assert code == 0 and len(told) == len(files) > 0, err
    assert all(re.fullmatch(r"mlx-lfm2vl: \S+: is no kept picture and is left out \(.+\)", line) for line in told)


def asking(file: Path, run):
    """`Server.run` that ends once a question about a picture is answered."""

    def answered(self):
        thread = threading.Thread(target=run, args=(self,))
        thread.start()
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)
        url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        messages: Any = [{"role": "user", "content": content}]
        try:
            client.chat.completions.create(model="gen2", messages=messages, max_tokens=4)
        finally:
            self.stop()
            thread.join(60)

    return answered
