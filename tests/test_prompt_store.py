"""Prompts that a folder keeps for the next process."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture, read_tensors, statistics_of
from safetensors import safe_open

from mlx_lfm2vl import Chat, Engine, GenerationOptions, KeptFileWarning, PromptCache, load, stream_generate
from mlx_lfm2vl.errors import OptionError, OutputError
from mlx_lfm2vl.generation.prompt_store import FORMAT
from mlx_lfm2vl.models.cache import KeyValueCache

OPTIONS = GenerationOptions(max_tokens=8, logprobs=True)
LONG = "Tell me all that there is in the picture. " * 4


@cache_by_backend
def loaded() -> Loaded:
    return load(GOLDEN / "gen2")


def answer(
    cache: PromptCache | None, text: str = LONG, name: str | None = "landscape", model: Loaded | None = None
) -> tuple[list[int], list[float], int]:
    """Tokens, logprobs, and how many tokens of the prompt needed no run."""
    pictures = None if name is None else picture(name)
    items = list(stream_generate(*(model or loaded()), text, pictures, options=OPTIONS, prompt_cache=cache))
    tokens = [token for item in items for token in item.tokens]
    logprobs = [logprob for item in items for logprob in item.logprobs or ()]
    return tokens, logprobs, statistics_of(items[-1]).cached_tokens


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


@pytest.mark.backends("mlx", "numpy")
def test_the_next_process_answers_without_a_run(tmp_path):
    first = answer(PromptCache(folder=tmp_path / "kept"))
    again = answer(PromptCache(folder=tmp_path / "kept"), model=load(GOLDEN / "gen2"))
    cold = answer(None)
    assert first[:2] == again[:2]
    assert again[0] == cold[0] and np.allclose(again[1], cold[1], atol=1e-4)
    assert first[2] == 0 and again[2] > 60
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_a_conversation_goes_on_in_the_next_process(tmp_path):
    """As in the same process, from behind the last answer."""
    chat = Chat(*load("demo"), prompt_cache=PromptCache(folder=tmp_path / "kept"))
    chat.ask("What is in this image?", "examples/scene.png")
    chat.save(tmp_path / "talk.json")
    later = Chat(*load("demo"), prompt_cache=PromptCache(folder=tmp_path / "kept"))
    later.load(tmp_path / "talk.json")
    warm, same = list(later.stream("How many?")), list(chat.stream("How many?"))
    assert [item.tokens for item in warm] == [item.tokens for item in same]
    statistics = statistics_of(warm[-1])
    assert statistics.cached_tokens == statistics_of(same[-1]).cached_tokens
    assert statistics.prompt_tokens - statistics.cached_tokens < 20


def test_an_engine_keeps_prompts_too(tmp_path):
    for cached in (False, True):
        with Engine(lambda: load(GOLDEN / "gen2"), prompt_cache_folder=tmp_path) as engine:
            completion = engine.submit(LONG, options=OPTIONS).result(60)
            assert (statistics_of(completion).cached_tokens > 0) == cached


def test_other_weights_dtypes_and_folders_find_nothing(tmp_path):
    answer(PromptCache(folder=tmp_path / "kept"))
    other = shutil.copytree(GOLDEN / "gen2", tmp_path / "model")
    os.utime(other / "model.safetensors")  # as if written anew
    for model in (load(other), load(GOLDEN / "gen2", dtype="bfloat16"), load(GOLDEN / "gen25")):
        assert answer(PromptCache(folder=tmp_path / "kept"), model=model)[2] == 0
    assert answer(PromptCache(folder=tmp_path / "kept"))[2] > 0


def rewritten(change):
    """Changes the arrays and the metadata of a file."""

    def damage(file: Path) -> None:
        arrays = read_tensors(file)
        with safe_open(file, "np") as stored:
            said = json.loads(stored.metadata()[FORMAT])
        change(arrays, said)
        mx.save_safetensors(str(file), arrays, {FORMAT: json.dumps(said)})

    return damage


def keys(change):
    """Changes the keys of the first attention layer."""

    def of(arrays, said):
        name = next(name for name in sorted(arrays) if name.endswith(".keys"))
        arrays[name] = change(arrays[name])

    return rewritten(of)


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "no safetensors": lambda file: file.write_bytes(b"x" * 5000),
    "no metadata": lambda file: mx.save_safetensors(str(file), read_tensors(file)),
    "not finite": keys(lambda array: mx.full(array.shape, mx.nan)),
    "other shape": keys(lambda array: array[..., :-1, :]),
    "whole numbers": keys(lambda array: array.astype(mx.int32)),
    "an id too large": rewritten(lambda arrays, _: arrays.update(ids=arrays["ids"] + 10**6)),
    "a tensor more": rewritten(lambda arrays, _: arrays.update(more=mx.zeros(3))),
    "checkpoints behind the end": rewritten(lambda _, said: said.update(ends=[at + 1 for at in said["ends"]])),
    "checkpoints out of order": rewritten(lambda _, said: said.update(ends=said["ends"][::-1])),
    "no checkpoint": rewritten(lambda _, said: said.update(ends=[])),
    "a key that is none": rewritten(lambda _, said: said.update(pictures=[[0, 3, "xyz"]])),
    "pictures that are none": rewritten(lambda _, said: said.update(pictures=7)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_left_out_with_a_warning(damage, tmp_path):
    expected = answer(PromptCache(folder=tmp_path))
    (file,) = files(tmp_path)
    damage(file)
    with pytest.warns(KeptFileWarning, match="is left out"):
        assert answer(PromptCache(folder=tmp_path)) == expected


def test_a_file_that_disappears_is_no_error(tmp_path):
    expected = answer(PromptCache(folder=tmp_path))
    cache = PromptCache(folder=tmp_path)
    cache.bind(loaded()[0])
    files(tmp_path)[0].unlink()
    with pytest.warns(KeptFileWarning, match="is left out"):
        assert answer(cache) == expected


def test_the_oldest_files_go_first(tmp_path):
    sizes: list[int] = []
    for text in ("One? " * 20, "Two? " * 20):
        answer(PromptCache(folder=tmp_path), text, None)
        sizes.append(sum(file.stat().st_size for file in files(tmp_path)) - sum(sizes))
    answer(PromptCache(folder=tmp_path), "One? " * 20, None)  # now used last
    answer(PromptCache(folder=tmp_path, folder_limit=int(sum(sizes) * 1.2)), "Three? " * 20, None)
    kept = {text: answer(PromptCache(folder=tmp_path), f"{text}? " * 20, None)[2] > 0 for text in ("One", "Two")}
    assert kept == {"One": True, "Two": False}


def test_an_entry_too_large_for_memory_drops_no_other(tmp_path):
    answer(PromptCache(folder=tmp_path), "Where? " * 200, None)
    cache = PromptCache(folder=tmp_path)
    answer(cache, "Hello.", None)
    cache.limit = cache.nbytes
    assert answer(cache, "Where? " * 200, None)[2] > 200
    assert len(cache) == 1 and cache.nbytes == cache.limit


def test_a_longer_conversation_takes_the_place_of_a_shorter(tmp_path):
    chat = Chat(*load("demo"), prompt_cache=PromptCache(folder=tmp_path))
    chat.ask("What is in this image?", "examples/scene.png")
    for text in ("How many?", "What colour is it?"):
        chat.ask(text)
    assert len(files(tmp_path)) == 1


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer(PromptCache())
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file, where a folder is wanted"):
        PromptCache(folder=tmp_path / "file")
    with pytest.raises(OutputError, match="file: is a file, where a folder is wanted"):
        Engine("demo", prompt_cache_folder=tmp_path / "file")
    with pytest.raises(OutputError, match="prompts cannot be kept there"):
        answer(PromptCache(folder=tmp_path / "file" / "within"))


def test_a_model_that_is_of_no_files_is_refused(tmp_path):
    model, processor = load(GOLDEN / "gen2")
    model.checkpoint_key = ""
    with pytest.raises(OptionError, match="loaded from files"):
        answer(PromptCache(folder=tmp_path), model=(model, processor))


def test_a_full_disk_costs_a_warning_and_no_answer(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise RuntimeError("[write] Unable to write 1 bytes.")

    expected = answer(None)
    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.warns(KeptFileWarning, match="cannot be kept"):
        assert answer(PromptCache(folder=tmp_path)) == expected
    assert files(tmp_path) == []


def test_kept_states_are_those_that_were_made(tmp_path):
    """To the last digit, whatever was asked in between."""
    cache = PromptCache(folder=tmp_path)
    answer(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later = PromptCache(folder=tmp_path)
        later.bind(loaded()[0])
        assert later._store is not None
        (stored,) = later._store.entries
        (made,), read = cache._entries.values(), later._store.read(stored)
    assert read is not None
    assert np.array_equal(made.ids[: len(read.ids)], read.ids) and made.ends == read.ends
    for one, other in zip(made.cache.copy().layers, read.cache.layers, strict=True):
        if isinstance(one, KeyValueCache):
            assert isinstance(other, KeyValueCache)
            length = len(read.ids)
            for array, its in zip(one.states, other.states, strict=True):
                assert mx.array_equal(array[..., :length, :], its)
