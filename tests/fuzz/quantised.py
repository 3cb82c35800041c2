"""config.json of quantised folders: its records of quantisation, and what is read and computed by them."""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
from pathlib import Path

import mlx.core as mx

from mlx_lfm2vl import convert
from mlx_lfm2vl.errors import ConfigError, WeightsError
from mlx_lfm2vl.models.lfm2_vl import Lfm2VlForConditionalGeneration
from mlx_lfm2vl.weights.load import load_model

from .folders import GOLDEN, ODD, FolderEntrance, change_json, folder, place

MODULES = ("language_model.model.embed_tokens", "language_model.model.layers.0.feed_forward.w1", "lm_head", "*")
WIDTHS = (0, 1, 2, 3, 4, 5, 6, 8, 16, 32, -4, 2**31, 2**63)
GROUPS = (0, 1, 8, 16, 32, 64, 128, 256, -32, 2**31)
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4", "gptq", "")


@functools.cache
def quantised() -> Path:
    """A model of which layers have 4 bits, the embeddings 8, by groups of 32 and 64, and some none."""
    out = folder("quantised-source") / "model"
    return convert(
        GOLDEN / "gen25",
        out,
        q_bits=4,
        q_group_size=32,
        q_overrides=[("language_model.*.w1", 8), ("language_model.*.out_proj", "dense")],
        verify=False,
    )


@functools.cache
def seeds() -> dict[str, bytes]:
    return {"mixed": (quantised() / "config.json").read_bytes()}


def change(data: bytes, rng: random.Random) -> bytes:
    """Mostly in the records, which are a small part of all that is there."""
    if rng.random() < 0.3:
        return change_json(data, rng)
    config = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice(("quantization", "quantization_config"))
        record = config.get(key)
        kind = rng.randrange(6)
        if kind == 0:
            config[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 1:
            config.pop(key, None)
        elif isinstance(record, dict):
            names = [*record, *MODULES]
            entry = record.get(rng.choice(names))
            at = entry if isinstance(entry, dict) and rng.random() < 0.5 else record
            if kind == 2:
                at[rng.choice(names)] = copy.deepcopy(rng.choice((*ODD, True, False, {"bits": 4, "group_size": 32})))
            else:
                name, values = rng.choice((("bits", WIDTHS), ("group_size", GROUPS), ("mode", MODES)))
                at[name] = copy.deepcopy(rng.choice((*values, *values, *ODD)))
    return json.dumps(config).encode("utf-8", "surrogatepass")


def run(data: bytes) -> int:
    made = place("quantised", "config.json", data)
    for file in quantised().glob("*.safetensors*"):
        if not (made / file.name).exists():
            shutil.copy(file, made)
    try:
        model: Lfm2VlForConditionalGeneration = load_model(made)
    except (ConfigError, WeightsError) as error:
        text = str(error)
        assert text.isprintable() and len(text) < 1500, text
        raise
    logits = model(mx.array([[1, 2]]))[0]
    mx.eval(logits)
    return int(logits.size)


ENTRANCE = FolderEntrance("quantised", seeds, run, (ConfigError, WeightsError), change=change)
