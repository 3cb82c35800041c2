"""A small checkpoint as people change it, loaded, and its logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN
from safetensors.numpy import load_file, save_file

from mlx_lfm2vl import load
from mlx_lfm2vl.errors import WeightsError
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.models.outputs import Lfm2VlCausalLMOutputWithPast
from mlx_lfm2vl.weights.load import load_model

IDS = np.array([[1, 6, 500, 501, 502, 503, 7]])
EMBEDDINGS, NORM = "model.language_model.embed_tokens.weight", "model.language_model.embedding_norm.weight"
INDEX = "model.safetensors.index.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 901600000\n"


def edit(folder: Path, change: Callable[[dict], dict | None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file)


def edit_json(file: Path, **changes) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
        if value is ...:
            del section[last]
    file.write_text(json.dumps(data))


def renamed(change: Callable[[str], str]) -> Callable[[dict], dict]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def loaded(folder: Path, **options: Any) -> Lfm2VlForConditionalGeneration:
    model: Lfm2VlForConditionalGeneration = load_model(folder, **options)
    return model


def tensors_of(folder: Path) -> dict[str, mx.array]:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    return tensors


def logits_array(model: Lfm2VlForConditionalGeneration) -> mx.array:
    out = model(IDS, use_cache=False)
    assert isinstance(out, Lfm2VlCausalLMOutputWithPast) and out.logits is not None
    return out.logits


def logits_of(model: Lfm2VlForConditionalGeneration) -> np.ndarray:
    return np.array(logits_array(model).astype(mx.float32))


def logits(folder: Path, **options) -> np.ndarray:
    return logits_of(loaded(folder, **options))


EXPECTED = logits(GOLDEN / "gen2")


def refused(folder: Path, match: str, error: type[Exception] = WeightsError) -> None:
    with pytest.raises(error, match=match) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
