"""Training: the loss and gradients of PEFT, rows to arrays, and runs that go on to the bit."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import GOLDEN
from mlx.utils import tree_flatten, tree_unflatten
from test_adapters import ADAPTERS, CASE, expected

from mlx_lfm2vl import Lfm2VlForConditionalGeneration, load
from mlx_lfm2vl.adapters.layers import DoRALinear, LoRALinear
from mlx_lfm2vl.adapters.read import read_adapter
from mlx_lfm2vl.training.examples import TrainingBatch
from mlx_lfm2vl.training.loss import gradients
from mlx_lfm2vl.training.prepare import CheckpointedDecoderLayer


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


def named_as_peft(grads: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gradients by PEFT's names, in its orientation."""
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector.weight"}
    out = {}
    for key, array in tree_flatten(grads):
        path, _, leaf = key.rpartition(".")
        turned = np.array(array).T if leaf in ("lora_a", "lora_b") else np.array(array)
        saved = f"{path}.modules_to_save.{leaf}"
        out[f"base_model.model.{f'{path}.{names[leaf]}' if leaf in names else saved}"] = turned
    return out


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_loss_and_gradients_of_a_batch_are_those_of_peft(name, checkpointed, golden):
    case, wanted = golden(CASE), expected(name)
    model = in_training(name)
    if checkpointed:
        for layer in model.model.language_model.layers:
            layer.__class__ = CheckpointedDecoderLayer
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
