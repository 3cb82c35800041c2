"""Training: the loss and gradients of PEFT, rows to arrays, and runs that go on to the bit."""

import gc
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten
from safetensors.numpy import load_file
from test_adapters import ADAPTERS, CASE, expected

from mlx_lfm2vl import (
    GenerationRequest,
    HubError,
    ImageError,
    Lfm2VlForConditionalGeneration,
    NotFiniteError,
    OptionError,
    OutputError,
    PromptError,
    TrainingOptions,
    TrainingResult,
    WeightsError,
    convert,
    finetune,
    fuse,
    generate,
    load,
)
from mlx_lfm2vl.adapters.layers import DoRALinear, LoRALinear
from mlx_lfm2vl.adapters.read import read_adapter, unfinished
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.training.examples import TrainingBatch, collate, encode_row
from mlx_lfm2vl.training.finetune import order
from mlx_lfm2vl.training.loss import answer_logits, gradients, loss_sum
from mlx_lfm2vl.training.prepare import checkpointed, chosen_modules, prepare, trainable
from mlx_lfm2vl.training.rows import read_rows


def in_training(name: str) -> Lfm2VlForConditionalGeneration:
    """The small checkpoint with a frozen adapter in training, at the values of its file."""
    model, _ = load(GOLDEN / "gen25", backend="mlx")
    model.freeze()
    modules, adapter = dict(model.named_modules()), read_adapter(ADAPTERS / name)
    placed: list[tuple[str, nn.Module]] = []
    for path, own in adapter.layers.items():
        kind = LoRALinear if own.magnitude is None else DoRALinear
        layer = kind(modules[path], own.a, own.b, own.scale)
        if own.magnitude is not None:
            layer.m = own.magnitude
        layer.unfreeze(recurse=False, keys=["lora_a", "lora_b", "m"])
        placed.append((path, layer))
    model.update_modules(tree_unflatten(placed))
    model.load_weights(list(adapter.saved.items()), strict=False)
    for key in adapter.saved:
        modules[key.rpartition(".")[0]].unfreeze()
    return model


def flat(grads: dict[str, Any]) -> dict[str, mx.array]:
    """A tree of gradients by the parameters' names."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(grads)))


def named_as_peft(grads: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gradients by PEFT's names, in its orientation."""
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector.weight"}
    out = {}
    for key, array in flat(grads).items():
        path, _, leaf = key.rpartition(".")
        turned = np.array(array).T if leaf in ("lora_a", "lora_b") else np.array(array)
        saved = f"{path}.modules_to_save.{leaf}"
        out[f"base_model.model.{f'{path}.{names[leaf]}' if leaf in names else saved}"] = turned
    return out


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_loss_and_gradients_of_a_batch_are_those_of_peft(name, again, golden):
    case, wanted = golden(CASE), expected(name)
    model = in_training(name)
    if again:
        for layer in model.model.language_model.layers:
            layer.__class__ = checkpointed(type(layer))
    given = case.inputs
    batch = TrainingBatch(
        *(given["input_ids"], given["attention_mask"], case.arrays["labels"]),
        *(given["pixel_values"], given["spatial_shapes"]),
    )
    loss, grads = gradients(model, [batch])
    assert abs(loss.item() - wanted["loss"]) < 1e-4
    ours = named_as_peft(grads)
    theirs = {key.removeprefix("gradient."): array for key, array in wanted.items() if key.startswith("gradient.")}
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(array).max() for array in theirs.values())
    for key, array in theirs.items():
        assert np.abs(ours[key] - array).max() < 1e-4 * largest, key


PICTURES = GOLDEN / "pictures"
ROWS: list[dict[str, Any]] = [
    {"image": "small.png", "prompt": "What is it?", "answer": "a blue frog"},
    {"prompt": "Hello", "system": "Be kind.", "answer": "Good day."},
    {"image": ["strip.png", "small.png"], "prompt": "Two?", "text": "yes, two", "finish_reason": "stop"},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "<|im_end|> is text"},
        ],
        "images": ["small.png"],
    },
]
FEW: dict[str, Any] = {"max_image_tokens": 16, "min_image_tokens": 4}
SMALL = TrainingOptions(rank=2, iters=6, batch_size=2, learning_rate=1e-2, steps_per_eval=3, save_every=2, dropout=0.1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of rows with their pictures: four to train on, two of them to validate on."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("small", "strip"):
        shutil.copyfile(PICTURES / f"{name}.png", folder / f"{name}.png")
    write(folder / "train.jsonl", ROWS)
    write(folder / "valid.jsonl", ROWS[:2])
    return folder


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_only_answers_are_learned_behind_the_prompt_of_inference(data, number):
    """The ids before each answer are those that a model is asked with, the answer ends with its end token."""
    model, processor = load(GOLDEN / "gen25", **FEW)
    row = read_rows(data / "train.jsonl")[number]
    example = encode_row(model, processor, row)
    learned = example.labels != -100
    assert np.array_equal(example.labels[learned], example.ids[learned])
    at, said = 0, []
    for turn, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        asked = encode(model, processor, GenerationRequest(row.messages[:turn]))
        before = example.ids[: len(asked.ids)]
        assert np.array_equal(before, asked.ids) and not learned[at : len(before)].any()
        end = len(before) + learned[len(before) :].tolist().index(False) if not learned[len(before) :].all() else None
        said.append(processor.decode(example.ids[len(before) : end]))
        at = len(before) if end is None else end
    assert said == [f"{m['content']}<|im_end|>" for m in row.messages if m["role"] == "assistant"]
    assert example.ids[-1] == processor.tokenizer.eos_token_id


def test_a_batch_gives_the_gradients_of_its_rows(data):
    """Padding, mixed pictures and accumulation change nothing: a mean over all answers' tokens."""
    model, processor = load(GOLDEN / "gen25", backend="mlx", **FEW)
    prepare(model, replace(SMALL, dropout=0.0, modules=("language_model.*", "vision_tower.*"), projector=True))
    for name, array in trainable(model).items():
        model.load_weights([(name, array + 0.01 * mx.random.normal(array.shape))], strict=False)
    examples = [encode_row(model, processor, row) for row in read_rows(data / "train.jsonl")]
    whole = gradients(model, [collate(examples, 0)])
    parts = gradients(model, [collate(examples[:1], 0), collate(examples[1:], 0)])
    alone = gradients(model, [collate([example], 0) for example in examples])
    assert sum(name.startswith("model.vision_tower") for name in trainable(model)) > 4
    for loss, grads in (parts, alone):
        assert abs(float(loss) - float(whole[0])) < 2e-5
        for name, wanted in flat(whole[1]).items():
            array = flat(grads)[name]
            assert mx.abs(wanted - array).max() < 1e-4 * max(float(mx.abs(wanted).max()), 1e-2), name


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def test_the_loss_of_kept_rows_is_their_divergence_from_before(data):
    """Kullback and Leibler's, of the whole vocabulary, times its weight; with rows that are learned the mean over all
    answers' tokens."""
    plain, processor = load(GOLDEN / "gen25", backend="mlx", **FEW)
    model, _ = load(GOLDEN / "gen25", backend="mlx", **FEW)
    untrained = prepare(model, replace(SMALL, dropout=0.0, projector=True, modules=("language_model.*",)))
    rows = read_rows(data / "train.jsonl", kept=True)[:2] + read_rows(data / "train.jsonl")[2:]
    batch = collate([encode_row(model, processor, row) for row in rows], 0)
    kept = collate([encode_row(model, processor, row) for row in rows[:2]], 0)
    loss, grads = gradients(model, [kept], untrained)
    assert abs(float(loss)) < 1e-6 and max(float(mx.abs(array).max()) for array in flat(grads).values()) < 1e-5
    for name, array in trainable(model).items():
        model.load_weights([(name, array + 0.05 * mx.random.normal(array.shape))], strict=False)
    before, after = (log_probabilities(np.array(answer_logits(each, batch))) for each in (plain, model))
    assert np.abs(before - after).max() > 0.1
    divergence = (np.exp(before) * (before - after)).sum(-1)
    learned = -after[np.arange(len(after)), batch.targets]
    chosen = np.repeat([True, True, False, False], [(labels[1:] != -100).sum() for labels in batch.labels])
    halves = [kept, collate([encode_row(model, processor, row) for row in rows[2:]], 0)]
    for parts, weight in (([batch], 1.0), (halves, 1.0), (halves, 2.5)):
        loss, grads = gradients(model, parts, untrained, weight)
        assert abs(float(loss) - np.where(chosen, weight * divergence, learned).mean()) < 1e-5
        assert min(float(mx.abs(array).max()) for array in flat(grads).values()) > 0
    after_all = log_probabilities(np.array(answer_logits(model, batch)))
    assert np.array_equal(after, after_all)  # what was learned is back in its place


@pytest.mark.parametrize("how", ["in the folder", "named"])
def test_kept_rows_are_answered_as_before(data, tmp_path, how):
    """An answer that the other rows would change stays as probable as it was."""
    kept = [{"prompt": "Hello", "answer": "I am here."}]
    write(data / "train.jsonl", [{"prompt": "Good day", "answer": "I was there."}])
    (data / "valid.jsonl").unlink()
    options = replace(SMALL, iters=10, dropout=0.0, rank=8)
    finetune(GOLDEN / "gen25", data, tmp_path / "without", options=options)
    write(tmp_path / "kept.jsonl" if how == "named" else data / "keep.jsonl", kept)
    given = {"keep": tmp_path / "kept.jsonl"} if how == "named" else {}
    finetune(GOLDEN / "gen25", data, tmp_path / "with", options=options, **given)
    (row,) = read_rows(tmp_path / "kept.jsonl" if how == "named" else data / "keep.jsonl")
    said = []
    for adapter in (None, tmp_path / "without", tmp_path / "with"):
        model, processor = load(GOLDEN / "gen25", adapter=adapter, backend="mlx")
        batch = collate([encode_row(model, processor, row)], 0)
        said.append(log_probabilities(np.array(answer_logits(model, batch))))
    away = [np.abs(np.exp(each) - np.exp(said[0])).max() for each in said[1:]]
    assert away[1] < 0.3 * away[0] and away[0] > 0.2


def losses(result: TrainingResult) -> list[tuple[float, float | None]]:
    return [(entry["loss"], entry.get("valid_loss")) for entry in result.log]


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_trained_adapter_is_what_load_gives(data, tmp_path, dora):
    write(data / "train.jsonl", ROWS[:1])
    write(data / "valid.jsonl", ROWS[:1])
    options = replace(SMALL, dora=dora, iters=20, dropout=0.0, projector=True, rank=8, batch_size=1, steps_per_eval=20)
    result = finetune(GOLDEN / "gen25", data, tmp_path / "out", options=options, **FEW)
    assert result.finished and result.log[-1]["loss"] < 0.5 < 3 < result.log[0]["loss"]
    model, processor = load(GOLDEN / "gen25", adapter=tmp_path / "out", **FEW)
    said = generate(model, processor, "What is it?", images=[data / "small.png"], max_tokens=12)
    assert said == "a blue frog"
    assert [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()] == [*result.log]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["adapter_config.json", "adapter_model.safetensors", "checkpoint.safetensors", "log.jsonl", "loss.png"]
    )


def test_a_folder_has_one_training_at_a_time(data, tmp_path):
    """The second is refused; one that is refused for its rows leaves no folder."""
    out = tmp_path / "out"

    def again(entry: Mapping[str, Any]) -> None:
        if entry["step"] == 1:
            with pytest.raises(OutputError, match="another run writes it; wait for its end, or give another folder"):
                finetune(GOLDEN / "gen25", data, out, options=SMALL, **FEW)

    assert finetune(GOLDEN / "gen25", data, out, options=SMALL, on_report=again, **FEW).finished
    write(data / "train.jsonl", [{"image": "none.png", "prompt": "What is it?", "answer": "A frog."}])
    with pytest.raises(ImageError, match=r"none\.png"):
        finetune(GOLDEN / "gen25", data, tmp_path / "other", options=SMALL, **FEW)
    assert not (tmp_path / "other").exists()


def test_the_best_adapter_of_a_validation_is_the_one_kept(data, tmp_path):
    """Rows that contradict those trained on: the loss on them rises, so the first adapter stays."""
    write(data / "valid.jsonl", [{**ROWS[1], "answer": "Quiet!"}])
    write(data / "train.jsonl", [ROWS[1]])
    options = replace(SMALL, iters=12, dropout=0.0, rank=8, batch_size=1)
    result = finetune(GOLDEN / "gen25", data, tmp_path / "out", options=options, **FEW)
    valid = {entry["step"]: entry["valid_loss"] for entry in result.log if "valid_loss" in entry}
    assert result.best_step == min(valid, key=lambda step: valid[step]) < 12
    model, processor = load(GOLDEN / "gen25", adapter=tmp_path / "out", **FEW)
    batch = collate([encode_row(model, processor, row) for row in read_rows(data / "valid.jsonl")], 0)
    assert abs(float(loss_sum(model, batch)) / len(batch.targets) - min(valid.values())) < 1e-4


def test_a_stopped_training_goes_on_to_the_bit(data, tmp_path):
    whole = finetune(GOLDEN / "gen25", data, tmp_path / "whole", options=SMALL, **FEW)
    seen: list[int] = []
    for stop in (1, 3, 9):  # the second and third calls go on
        last = finetune(
            GOLDEN / "gen25",
            data,
            tmp_path / "parts",
            options=SMALL,
            **FEW,
            on_report=lambda entry: seen.append(entry["step"]),
            stop=lambda: bool(seen) and seen[-1] >= stop,  # noqa: B023
        )
        assert last.step == min(stop, 6)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert losses(last) == losses(whole)
    for name in ("adapter_model.safetensors", "checkpoint.safetensors"):
        one, other = (load_file(tmp_path / part / name) for part in ("whole", "parts"))
        assert all(np.array_equal(one[key], other[key]) for key in one) and one.keys() == other.keys()


def test_fusing_says_that_a_training_was_stopped(data, tmp_path):
    """And so does the card; a training that is done, or says nothing of its steps, is no matter."""
    (data / "valid.jsonl").unlink()  # else the first adapter is written with the first validation
    out, seen, notes = tmp_path / "out", list[Any](), list[str]()
    finetune(GOLDEN / "gen25", data, out, options=SMALL, on_report=seen.append, stop=lambda: bool(seen), **FEW)
    fuse(GOLDEN / "gen25", out, tmp_path / "early", on_note=notes.append)
    said = "training was stopped after 1 of 6 steps"
    assert f"{out}: the adapter's {said}; the command that began it goes on with it" in notes
    assert f"The adapter's {said}." in (tmp_path / "early" / "README.md").read_text()
    (out / "checkpoint.safetensors").write_bytes(b"damaged")
    assert unfinished(out) == unfinished(tmp_path) == ""
    finetune(GOLDEN / "gen25", data, out, options=replace(SMALL, iters=1), overwrite=True, **FEW)
    assert unfinished(out) == ""
    finetune(GOLDEN / "gen25", data, out, options=SMALL, overwrite=True, stop=lambda: True, **FEW)
    assert (out / "adapter_model.safetensors").is_file() and unfinished(out) == ""  # that adapter was done


def test_an_older_checkpoint_goes_on_and_one_of_another_kind_is_refused(data, tmp_path):
    """Older ones do not say of how many steps they are."""
    (data / "valid.jsonl").unlink()
    out, seen = tmp_path / "out", list[Any]()
    finetune(GOLDEN / "gen25", data, out, options=SMALL, on_report=seen.append, stop=lambda: bool(seen), **FEW)
    file = out / "checkpoint.safetensors"
    read: Any = mx.load(str(file), return_metadata=True)
    tensors, metadata = read
    mx.eval(tensors)
    state = json.loads(metadata["state"])
    assert state.pop("steps") == 6

    mx.save_safetensors(str(file), tensors, {**metadata, "state": json.dumps({**state, "epochs": 2})})
    with pytest.raises(WeightsError, match=r"checkpoint\.safetensors: is no checkpoint of a training"):
        finetune(GOLDEN / "gen25", data, out, options=SMALL, **FEW)
    mx.save_safetensors(str(file), tensors, {**metadata, "state": json.dumps(state)})
    assert unfinished(out) == "the adapter's training was stopped after 1 of 6 steps"
    assert finetune(GOLDEN / "gen25", data, out, options=SMALL, **FEW).finished
    assert unfinished(out) == ""


@pytest.mark.soak
def test_a_killed_training_goes_on_to_the_bit(data, tmp_path):
    """kill -9 between two saves; the same command afterwards ends as a run that nobody disturbed."""
    command = [sys.executable, "-m", "mlx_lfm2vl", "lora", "--model", str(GOLDEN / "gen25"), "--data", str(data)]
    command += ["--iters", "14", "--batch-size", "2", "--rank", "2", "--save-every", "5", "--steps-per-eval", "4"]
    command += ["--max-image-tokens", "16", "--min-image-tokens", "4", "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    killed = subprocess.Popen([*command, str(tmp_path / "parts")], stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "step 7:" in line or "step 8:" in line:
            killed.kill()
            break
    assert killed.wait(60) == -signal.SIGKILL
    again = subprocess.run([*command, str(tmp_path / "parts")], check=True, capture_output=True, text=True, timeout=300)
    assert "5 of 14 steps are there already" in again.stderr and again.stdout.strip() == str(tmp_path / "parts")
    logs = [(tmp_path / part / "log.jsonl").read_text() for part in ("whole", "parts")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 14


@pytest.mark.soak
def test_a_quantised_model_is_trained_as_it_is(data, tmp_path):
    convert(GOLDEN / "gen25", tmp_path / "q", q_bits=4, q_group_size=32, verify=False)
    write(data / "train.jsonl", [ROWS[1]])
    options = replace(SMALL, iters=25, rank=8, dropout=0.0)
    result = finetune(tmp_path / "q", data, tmp_path / "out", options=options, **FEW)
    assert result.log[-1]["loss"] < 0.5 < 3 < result.log[0]["loss"]
    model, processor = load(tmp_path / "q", adapter=tmp_path / "out", **FEW)
    assert generate(model, processor, "Hello", system="Be kind.", max_tokens=16) == "Good day."


@given(st.integers(1, 7), st.integers(0, 5), st.integers(0, 40))
def test_rows_come_in_one_order_from_wherever_a_run_begins(rows, seed, start):
    """Each pass has every row once; a run that goes on has the rows of one that nobody stopped."""
    whole = list(itertools.islice(order(rows, seed, 0), start + 3 * rows))
    assert list(itertools.islice(order(rows, seed, start), 3 * rows)) == whole[start:]
    passes = [whole[at : at + rows] for at in range(0, len(whole) - rows, rows)]
    assert all(sorted(each) == list(range(rows)) for each in passes)


CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SHOWN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("nonsense", "line 2: is not JSON (Expecting value, column 1)"),
        ("[]", "line 2: is not an object"),
        ({"prompt": "Hi"}, 'line 2: has no "answer" to learn'),
        ({"prompt": "Hi", "answer": " "}, 'line 2: has no "answer" to learn'),
        ({"prompt": "Hi", "answer": 3}, 'line 2: "answer" must be a text'),
        ({"answer": "Ho"}, "line 2: prompt is empty and there is no picture"),
        ({"prompt": 3, "answer": "Ho"}, 'line 2: "prompt" must be a string'),
        ({"prompt": "Hi", "anwser": "Ho"}, 'line 2: "anwser" is not read; call it "answer"'),
        ({"image": "a.png", "images": ["b.png"], "answer": "Ho"}, 'line 2: has both "image" and "images"'),
        ({"image": "a.png", "mask": "b.png", "prompt": "Hi", "answer": "Ho"}, '"mask" names a picture and is not read'),
        ({"image": "a.png", "question": "Hi", "answer": "Ho"}, '"question" is not read; call it "prompt"'),
        ({"photo": "a.png", "prompt": "Hi", "answer": "Ho"}, '"photo" names a picture and is not read'),
        ({"image": [3], "answer": "Ho"}, '"image" must be a path, a URL, a data URI or a list of them'),
        ({"messages": CONVERSATION, "answer": "Ho"}, 'has "messages" and "answer"; give one of them'),
        ({"messages": CONVERSATION[:1]}, "its last message is not the assistant's; the answer to learn comes last"),
        ({"messages": "Hi"}, '"messages" must be a list'),
        ({"messages": [*CONVERSATION[:1], {"role": "assistant", "content": ""}]}, "is empty or holds a picture"),
        ({"messages": [SHOWN, CONVERSATION[1]]}, "has more image items than pictures"),
        ({"messages": CONVERSATION, "images": ["a.png"]}, "has 1 pictures beside its messages, 1 more than items"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named_by_its_line(tmp_path, row, said):
    text = row if isinstance(row, str) else json.dumps(row)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "answer": "Ho"}) + "\n" + text + "\n")
    with pytest.raises(PromptError, match=re.escape(said)):
        read_rows(file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank is 0, expected an integer of at least 1"),
        ({"batch_size": True}, "batch_size is True, expected an integer of at least 1"),
        ({"iters": 1.5}, r"iters is 1\.5, expected an integer of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a number above 0"),
        ({"keep_weight": 0}, "keep_weight is 0, expected a number above 0"),
        ({"dropout": 1}, "dropout is 1, expected a number from 0 to below 1"),
        ({"dropout": 0.1, "grad_checkpoint": True}, "dropout and grad_checkpoint exclude each other"),
        ({"modules": ()}, "modules is empty and projector is false; nothing would be trained"),
        ({"modules": "*"}, r"modules is '\*', expected a tuple of patterns"),
    ],
)
def test_options_outside_their_range_are_refused_by_name(given, said):
    with pytest.raises(OptionError, match=said):
        TrainingOptions(**given)


def test_a_weight_of_rows_to_keep_needs_such_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "answer": "Ho"}) + "\n")
    with pytest.raises(OptionError, match="keep_weight is of rows to keep, and there are none"):
        finetune("demo", file, tmp_path / "o", options=TrainingOptions(keep_weight=2.0))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules": ("*.nothing",)}, r"modules '\*\.nothing' matches no linear layer; there are language_model"),
        ({"modules": ("*.fc1",)}, r"modules '\*\.fc1' matches no linear layer"),  # of the tower, which is not named
        ({"modules": ("multi_modal_projector.*",), "projector": True}, "trains .*linear_. whole, and modules names it"),
    ],
)
def test_patterns_that_train_nothing_or_twice_are_refused(options, said):
    model, _ = load(GOLDEN / "gen25", backend="mlx")
    with pytest.raises(OptionError, match=said):
        prepare(model, replace(SMALL, **options))


def test_patterns_choose_the_layers_and_the_tower_only_by_name():
    model, _ = load(GOLDEN / "gen25", backend="mlx")
    assert [path.rpartition(".")[2] for path in chosen_modules(model, ("*.layers.0.*", "*.v_proj"))] == [
        *("in_proj", "out_proj", "w1", "w2", "w3", "v_proj", "v_proj"),
    ]
    assert len(chosen_modules(model, ("vision_tower.*.fc?",))) == 4


def test_a_training_of_other_settings_or_rows_is_refused(data, tmp_path):
    finetune(GOLDEN / "gen25", data, tmp_path / "out", options=replace(SMALL, iters=1), **FEW)
    once = replace(SMALL, iters=1)
    for options, said in ((replace(once, rank=3), "rank 2, not 3"), (replace(once, seed=1), "seed 0, not 1")):
        with pytest.raises(OptionError, match=f"holds a training with {said}; give another folder, or begin it anew"):
            finetune(GOLDEN / "gen25", data, tmp_path / "out", options=options, **FEW)
    (data / "valid.jsonl").rename(data / "keep.jsonl")  # the same rows, for something else
    with pytest.raises(OptionError, match="holds a training with keep rows None, not"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", options=once, **FEW)
    (data / "keep.jsonl").rename(data / "valid.jsonl")
    write(data / "train.jsonl", ROWS[:3])
    with pytest.raises(OptionError, match="holds a training with train rows"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", options=once, **FEW)
    again = finetune(GOLDEN / "gen25", data, tmp_path / "out", options=replace(SMALL, iters=1), overwrite=True, **FEW)
    assert again.finished


def test_files_and_folders_that_do_not_fit_are_refused(data, tmp_path):
    for files, said in (
        ((tmp_path / "absent.jsonl", None), "no such file of rows"),
        ((tmp_path, None), r"train\.jsonl: no such file of rows; give a \.jsonl file, or a folder with train\.jsonl"),
        ((data, tmp_path / "absent.jsonl"), "no such file of rows"),
    ):
        with pytest.raises(OptionError, match=said):
            finetune(GOLDEN / "gen25", files[0], tmp_path / "out", valid=files[1])
    with pytest.raises(OptionError, match=r"kept\.jsonl: no such file of rows"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", keep=tmp_path / "kept.jsonl")
    with pytest.raises(OutputError, match="holds a model; give another folder"):
        finetune(GOLDEN / "gen25", data, shutil.copytree(GOLDEN / "gen25", tmp_path / "model"))
    write(data / "train.jsonl", [ROWS[1], {**ROWS[0], "image": "absent.png"}])
    with pytest.raises(ImageError, match=r"train\.jsonl, line 2: .*absent\.png: no such picture"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out")


def test_a_loss_that_is_no_number_ends_the_training(data, tmp_path):
    with pytest.raises(NotFiniteError, match=r"the loss of step . is nan; use a lower learning_rate"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", options=replace(SMALL, learning_rate=1e38), **FEW)


def test_the_memory_that_is_said_is_about_what_is_taken(data, tmp_path):
    """Said 4 to 0.5 times the peak: allocations of the device come in steps."""
    notes: list[str] = []
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    others = mx.get_active_memory()  # models of other tests
    finetune("demo", data, tmp_path / "out", options=replace(SMALL, iters=2, rank=16), on_note=notes.append)
    said = next(float(found[1]) for note in notes if (found := re.search(r"about ([\d.e-]+) GB", note)))
    assert 0.5 < said * 1e9 / (mx.get_peak_memory() - others) < 4


def test_the_other_family_is_trained_too(data, tmp_path):
    """Its layers are checkpointed, and its tower's may be named."""
    chosen = ("language_model.model.layers.*", "vision_tower.*")
    options = replace(SMALL, iters=2, dropout=0.0, grad_checkpoint=True, modules=chosen)
    made = finetune(GOLDEN / "lfm3", data, tmp_path / "out", options=options)
    assert made.steps == 2 and np.isfinite(made.log[-1]["loss"])
    load(GOLDEN / "lfm3", adapter=tmp_path / "out")


def test_an_adapter_of_somebody_else_is_not_replaced(data, tmp_path):
    other = tmp_path / "out"
    shutil.copytree(ADAPTERS / "lora", other)
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    with pytest.raises(OutputError, match="out: holds an adapter of another training; give another folder"):
        finetune(GOLDEN / "gen25", data, other, options=SMALL)
    with pytest.raises(HubError):
        finetune(tmp_path / "nothing", data, other, options=SMALL, overwrite=True)
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before


def test_a_file_where_the_folder_should_be_is_named(data, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out: is a file, where a folder is wanted; name another one"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", options=SMALL, **FEW)


def test_other_settings_of_pictures_do_not_go_on(data, tmp_path):
    finetune(GOLDEN / "gen25", data, tmp_path / "out", options=replace(SMALL, iters=2), dtype="float32", **FEW)
    with pytest.raises(OptionError, match="max_image_tokens"):
        finetune(GOLDEN / "gen25", data, tmp_path / "out", options=replace(SMALL, iters=2), dtype=mx.float32)


def test_an_answer_that_was_cut_off_is_not_learned(tmp_path):
    write(tmp_path / "rows.jsonl", [{"prompt": "Hi", "text": "Hello th", "finish_reason": "length"}])
    with pytest.raises(PromptError, match='line 1: its "text" was not written to its end; leave the row out'):
        finetune(GOLDEN / "gen25", tmp_path / "rows.jsonl", tmp_path / "out", options=SMALL)


def test_a_seed_is_one_of_31_bits():
    with pytest.raises(OptionError, match="seed is 4294967296, expected an integer of at least 0, at most 2147483647"):
        TrainingOptions(seed=2**32)
