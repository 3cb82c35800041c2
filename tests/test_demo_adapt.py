"""The demo learns what it never saw: drawings of new things, rows to learn, an adapter that knows them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import GenerationOptions, GenerationRequest, TrainingOptions, finetune, fuse, generate_batch, load
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.evaluation.rows import read_rows
from mlx_lfm2vl.evaluation.scoring import TEXTS
from mlx_lfm2vl.training.rows import read_rows as read_training_rows
from tools.demo import adapt, rows, tasks, vocabulary
from tools.demo.tasks_new import LETTERS, NEW, smooth

seeds = st.integers(0, 2**40)
WORDS = {"word": "BROWN", "shape": "HEART"}


@given(st.sampled_from(sorted(WORDS)), seeds)
@settings(max_examples=40, deadline=None)
def test_a_scene_shows_one_unknown_thing_and_tells_it(name, seed):
    sample = tasks.make(name, "test", seed)
    known = [str(thing) for thing in sample.things[0] if WORDS[name] in (thing.colour, thing.shape)]
    assert len(known) == 1
    told = dict(sample.turns)
    described = next(answer for question, answer in told.items() if question in tasks.DESCRIBE)
    assert known[0] in described and described.count(WORDS[name]) == 1
    assert WORDS[name] in sample.turns[0][1] and WORDS[name] not in sample.turns[0][0]


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_letter_is_written_wholly_in_its_picture(seed):
    sample = tasks.make("letter", "test", seed)
    pixels = np.asarray(sample.images[0]).astype(int)
    ink = np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).max(-1) > 60
    assert ink.any() and not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())
    assert sample.turns == (("Which letter is this?", sample.facts["letter"]),) and sample.facts["letter"] in LETTERS


def test_a_curve_goes_through_all_its_corners():
    corners = np.array([(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)])
    curve = smooth(corners)
    assert all(np.abs(curve - corner).max(1).min() < 1e-12 for corner in corners)


@given(st.sampled_from(NEW), seeds)
@settings(max_examples=40, deadline=None)
def test_new_words_survive_the_tokenizer(name, seed):
    tokenizer = vocabulary.tokenizer()
    for text in (text for turn in tasks.make(name, "test", seed).turns for text in turn):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_rows_to_learn_are_rows_to_evaluate(tmp_path):
    file = tmp_path / "train.jsonl"
    numbers = dict.fromkeys(adapt.NEW_ROWS | adapt.OLD_ROWS, 2)
    rows.write_rows(file, adapt.training_rows(numbers))
    learned, asked = read_training_rows(file), read_rows(file)
    assert len(learned) == len(asked) == 2 * len(numbers)
    for one, other in zip(learned, asked, strict=True):
        assert one.messages[:-1] == other.messages and (one.messages[-1]["content"],) == other.accepted
    assert [row.group for row in asked[::2]] == list(numbers)


def colours(split: str, number: int):
    """Questions for the colour of a brown thing."""
    for seed in range(number):
        sample = tasks.make("word", split, seed, (96, 96), 0.0)
        turn = next(turn for turn in sample.turns if turn[0].startswith("What colour"))
        yield sample, rows.row(replace(sample, turns=(turn,)), 0)


def rate(capsys, file: Path, *words: str) -> list[float]:
    assert main(["evaluate", "demo", "--task", str(file), "--json", *words]) == 0
    return [model["groups"]["word"]["score"] for model in json.loads(capsys.readouterr().out)["models"]]


@pytest.mark.soak
def test_an_adapter_teaches_the_demo_a_word(tmp_path, capsys):
    rows.write_rows(tmp_path / "train.jsonl", colours("train", 40))
    rows.write_rows(tmp_path / "rows.jsonl", colours("test", 30))
    options = TrainingOptions(iters=20, learning_rate=1e-2)
    finetune("demo", tmp_path, tmp_path / "adapter", options=options, dtype="float32")
    before, after = rate(capsys, tmp_path / "rows.jsonl", "--adapter", str(tmp_path / "adapter"))
    assert before < 0.1 and after >= 0.9


@pytest.mark.soak
def test_the_demo_learns_three_things_and_forgets_none(tmp_path, capsys, monkeypatch):
    """The whole of tools/demo/adapt.py. Each old task may lose a point, beside what 500 rows leave uncertain, and all
    together one on average. The folder that is fused gives the tokens of model and adapter."""
    monkeypatch.setattr("sys.argv", ["adapt", str(tmp_path)])
    adapt.main()
    adapter, asked = tmp_path / "adapter", tmp_path / "rows.jsonl"
    capsys.readouterr()
    evaluated = ["evaluate", "demo", "--adapter", str(adapter), "--task", str(asked), "--json"]
    assert main([*evaluated, "--output", str(tmp_path / "answers")]) == 0  # whose answers are there already
    before, after = (model["groups"] for model in json.loads(capsys.readouterr().out)["models"])
    for name in NEW:
        assert before[name]["score"] < 0.1 and after[name]["score"] >= 0.9, name
    change = np.array([after[name]["difference"] for name in rows.SCORED])
    low, high = np.array([after[name]["difference_interval"] for name in rows.SCORED]).T
    error = (high - low) / 2
    assert change.mean() >= -0.01 and (change >= -0.01 - error).all()
    fuse("demo", adapter, tmp_path / "fused")
    requests = [
        GenerationRequest(row.messages, options=GenerationOptions(max_tokens=60, temperature=0))
        for row in read_rows(asked)[::60]
        if row.scoring in TEXTS
    ]
    for backend in ("mlx", "numpy"):
        one, other = (
            [made.tokens for made in generate_batch(*load(name, adapter=own, backend=backend), requests)]
            for name, own in (("demo", adapter), (tmp_path / "fused", None))
        )
        assert len(set(one)) > 20 and one == other
