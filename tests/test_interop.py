"""Folders across programs: ours in mlx-vlm and mlx-lm's form, mlx-vlm's here, ours back in transformers."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, logits_of

from mlx_lfm2vl import GenerationOptions, demo, load, load_draft
from mlx_lfm2vl import convert as convert_and_measure
from mlx_lfm2vl.config import GenerationConfig
from mlx_lfm2vl.generation.chunked_prefill import Prompt, prefill
from mlx_lfm2vl.generation.decode import GenerationBatch
from mlx_lfm2vl.generation.sampler import UniformSampler
from mlx_lfm2vl.models.dspark import DSparkDraftModel

mlx_vlm = pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
convert = partial(convert_and_measure, verify=False)
TOKENS = 24
SCENE = Path(__file__).parent.parent / "examples" / "scene.png"
WIDTHS: dict[str, dict[str, Any]] = {
    "dense": {},
    "8 bits": {"q_bits": 8, "q_group_size": 32},
    "4 bits": {"q_bits": 4, "q_group_size": 32},
    "mixed, with vision": {"q_recipe": "mixed_4_8", "q_group_size": 32, "q_vision": True},
    "mxfp8": {"q_mode": "mxfp8"},
    "dense layers": {"q_bits": 4, "q_group_size": 32, "q_overrides": [("*.layers.1.*", "dense")]},
}


def inputs_for(processor, picture: Path, question: str = "What is it?") -> dict:
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )


def ours(model, inputs) -> list[int]:
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.0, eos_token_id=[])
    return np.array(out)[0, np.array(inputs["input_ids"]).shape[1] :].tolist()


def theirs(model, inputs) -> list[int]:
    """Greedy decoding with mlx-vlm's model classes and cache."""
    cache = model.language_model.make_cache()
    pictures = {name: mx.array(np.array(inputs[name])) for name in ("spatial_shapes", "pixel_attention_mask")}
    ids, pixels = mx.array(np.array(inputs["input_ids"])), mx.array(np.array(inputs["pixel_values"]))
    out = model(ids, pixel_values=pixels, mask=None, cache=cache, **pictures)
    tokens: list[int] = []
    for _ in range(TOKENS):
        tokens.append(int(mx.argmax(out.logits[0, -1])))
        out = model.language_model(mx.array([[tokens[-1]]]), cache=cache)
    return tokens


def source(name: str) -> Path:
    return demo.path() if name == "demo" else GOLDEN / name


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["gen2", "gen25", "demo"])
def test_our_folders_give_the_same_tokens_in_mlx_vlm(name, width, tmp_path):
    from mlx_vlm.utils import load_model

    out = convert(source(name), tmp_path / "out", **WIDTHS[width])
    model, processor = load(out)
    # Of what the demo has not learned the likeliest tokens lie closer together than bfloat16, theirs, rounds.
    asked = (SCENE, "What is in this image?") if name == "demo" else (GOLDEN / "pictures" / "landscape.png",)
    inputs = inputs_for(processor, *asked)
    assert theirs(load_model(out), inputs) == ours(model, inputs)


@pytest.mark.parametrize("name", ["gen2", "gen25"])
def test_mlx_vlm_asks_our_folders_as_we_do(name, tmp_path):
    """Through its own processor and chat template: the same prompt, the same views."""
    from mlx_vlm.prompt_utils import apply_chat_template
    from mlx_vlm.utils import prepare_inputs

    out = convert(GOLDEN / name, tmp_path / "out", q_bits=8, q_group_size=32)
    model, processor = mlx_vlm.load(str(out))
    picture = GOLDEN / "pictures" / "landscape.png"
    prompt = apply_chat_template(processor, model.config, "What is it?", num_images=1)
    found = prepare_inputs(
        processor, images=[str(picture)], prompts=[prompt], image_token_index=model.config.image_token_index
    )
    our_model, our_processor = load(out)
    inputs = inputs_for(our_processor, picture)
    np.testing.assert_array_equal(np.array(found["input_ids"]), inputs["input_ids"])
    np.testing.assert_array_equal(np.array(found["spatial_shapes"]), inputs["spatial_shapes"])
    assert theirs(model, found) == ours(our_model, inputs)


# The configurations of the public checkpoints: folder with the weights, keys of config.json and of its text_config that
# change (None: left out). mlx-vlm cannot load one whose block_dim and conv_dim are left out and are not the 450M's.
_WIDTHS_SPELLED_OUT = {"block_dim": 64, "conv_dim": 64, "conv_dim_out": 64, "block_use_swiglu": True}
LAYOUTS: dict[str, tuple[str, dict, dict]] = {
    "LFM2-VL, first release": (
        "gen2",
        {"model_type": "lfm2-vl", "image_token_id": None, "image_token_index": 396, "vision_feature_layer": -1},
        {},
    ),
    "LFM2-VL": ("gen2", {}, {}),
    "LFM2.5-VL-450M and 1.6B": (
        "gen25",
        {"eos_token_id": None},
        # 88 is what is adjusted to; both spellings of the width
        {"block_auto_adjust_ff_dim": True, "block_multiple_of": 8, "block_ff_dim": 132, "intermediate_size": 132}
        | _WIDTHS_SPELLED_OUT,
    ),
    "LFM2.5-VL-3B": ("gen25", {}, _WIDTHS_SPELLED_OUT),
}
THEIR_WIDTHS = {
    "dense": {},
    "4 bits": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "8 bits": {"quantize": True, "q_bits": 8, "q_group_size": 32},
}


def laid_out(layout: str, folder: Path) -> Path:
    """A folder in the layout of a public checkpoint."""
    name, top, text = LAYOUTS[layout]
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    for part, changes in ((config, top), (config["text_config"], text)):
        part.update(changes)
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("width", THEIR_WIDTHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_mlx_vlm_load_here(layout, width, tmp_path):
    """What its convert writes gives its tokens here, and what is converted of that gives them in both."""
    from mlx_vlm.convert import convert as their_convert
    from mlx_vlm.utils import load_model

    source, out = laid_out(layout, tmp_path / "source"), tmp_path / "out"
    their_convert(str(source), str(out), trust_remote_code=False, **THEIR_WIDTHS[width])
    assert ("quantization" in json.loads((out / "config.json").read_text())) == (width != "dense")
    model, processor = load(out)
    inputs = inputs_for(processor, GOLDEN / "pictures" / "landscape.png")
    expected = theirs(load_model(out), inputs)
    assert ours(model, inputs) == expected
    again = convert(out, tmp_path / "again")
    assert ours(load(again)[0], inputs) == theirs(load_model(again), inputs) == expected


@pytest.mark.parametrize("width", ["dense", "4 bits", "8 bits"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_folders_of_every_layout_give_the_same_tokens_in_mlx_vlm(layout, width, tmp_path):
    from mlx_vlm.utils import load_model

    out = convert(laid_out(layout, tmp_path / "source"), tmp_path / "out", **WIDTHS[width])
    model, processor = load(out)
    inputs = inputs_for(processor, GOLDEN / "pictures" / "landscape.png")
    assert theirs(load_model(out), inputs) == ours(model, inputs)


@pytest.mark.parametrize("width", ["dense", "mixed, with vision", "dense layers"])
def test_the_language_model_loads_in_mlx_lm(width, tmp_path):
    """mlx-lm runs the text part of LFM2-VL folders, but knows them by their first model type only."""
    from mlx_lm.utils import load_model as load_text

    out = convert(GOLDEN / "gen2", tmp_path / "out", **WIDTHS[width])
    ids = np.array([[1, 6, 500, 501, 502, 503, 7]])
    expected = np.array(logits_of(load(out)[0], ids, use_cache=False))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "model_type": "lfm2-vl"}))
    found = np.array(load_text(out)[0](mx.array(ids)))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


REFERENCE = Path(os.environ.get("LFM2VL_REFERENCE_PYTHON", sys.executable))
PROGRAM = """
import json, sys, torch
import tools.reference_shim  # torchvision beside a CPU build of torch
from transformers import Lfm2VlForConditionalGeneration
model, info = Lfm2VlForConditionalGeneration.from_pretrained(sys.argv[1], output_loading_info=True, dtype=torch.float32)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
with torch.no_grad():
    print(json.dumps(model(input_ids=torch.tensor([[1, 6, 500, 501, 502, 503, 7]])).logits[0, -1].tolist()))
"""


@pytest.mark.parametrize("name", ["gen2", "gen25", "untied"])
def test_the_way_back_to_transformers(name, tmp_path):
    """MLX folder, then the makers' names: transformers loads every tensor and computes the same.

    LFM2VL_REFERENCE_PYTHON names an interpreter with torch and transformers, if this one has none.
    """
    probe = subprocess.run([REFERENCE, "-c", "import torch, transformers"], capture_output=True)
    if probe.returncode:
        pytest.skip("torch and transformers are not installed (LFM2VL_REFERENCE_PYTHON)")
    back = convert(convert(GOLDEN / name, tmp_path / "mlx"), tmp_path / "back", layout="hub")
    run = subprocess.run([REFERENCE, "-c", PROGRAM, back], capture_output=True, text=True, cwd=GOLDEN.parent.parent)
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.array(json.loads(run.stdout.splitlines()[-1]))
    ids = np.array([[1, 6, 500, 501, 502, 503, 7]])
    expected = np.array(logits_of(load(GOLDEN / name)[0], ids, use_cache=False))[0, -1]
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())


def test_a_dspark_drafter_proposes_what_it_does_in_mlx_vlm(tmp_path):
    """Its own loader, its own LFM2-VL; behind a prompt and behind tokens that follow it."""
    from mlx_vlm.speculative.drafters import load_drafter
    from mlx_vlm.utils import load_model

    folder = Path(__file__).parent / "dspark"
    out = convert(laid_out("LFM2.5-VL-3B", tmp_path / "source"), tmp_path / "out")
    their_model, (their_drafter, _) = load_model(out), load_drafter(str(folder))
    their_drafter.bind(their_model)
    language, states = their_model.language_model, their_model.language_model.make_cache()
    model, _ = load(out)
    cache = model.make_cache()
    drafter = load_draft(folder)
    assert isinstance(drafter, DSparkDraftModel)
    cache.follow(drafter)
    ids = np.random.default_rng(4).integers(500, 800, (1, 20))
    greedy = UniformSampler(GenerationOptions(temperature=0.0).resolve(GenerationConfig()))
    batch = GenerationBatch(model, cache, prefill(model, Prompt(ids), cache), greedy)
    batch.step(last=True)
    drafts, new = their_drafter.make_cache(), mx.array(ids)
    for _ in range(4):
        made = language(new, cache=states, capture_layer_ids=their_drafter.config.target_layer_ids)
        chosen = int(mx.argmax(made.logits[0, -1]))
        hidden = mx.concatenate(made.hidden_states, axis=-1)
        block = their_drafter.draft_block(chosen, hidden, drafts, 10, lambda logits: mx.argmax(logits, axis=-1))
        assert batch.draft()[0] == np.array(block).tolist()
        (tokens,) = batch.verify([[9]])[0]  # a wrong draft: one token is taken
        batch.keep([tokens[:1]])
        new = mx.array([[chosen]])
