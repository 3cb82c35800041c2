"""Adapters of PEFT and mlx-lm in a model: numbers frozen by tools/golden/adapters.py."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, logits_of, read_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mlx_lfm2vl import HubError, Lfm2VlError, OptionError, WeightsError, convert, fuse, load
from mlx_lfm2vl.adapters.adapter import Adapter, LoRAWeights
from mlx_lfm2vl.adapters.layers import LoRALinear
from mlx_lfm2vl.adapters.read import read_adapter
from mlx_lfm2vl.adapters.save import save_adapter
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.weights.names import from_module

ADAPTERS = Path(__file__).parent / "adapters"
CASE = "gen25-batch-right"
Tensors = dict[str, np.ndarray]


def expected(name: str) -> Tensors:
    with np.load(ADAPTERS / name / "expected.npz") as stored:
        return dict(stored)


def changed(
    tmp_path: Path, name: str, config: dict[str, Any] | None = None, tensors: Callable[[Tensors], Tensors] | None = None
) -> Path:
    """A copy of a frozen adapter with other entries of its configuration, or other tensors."""
    folder = Path(shutil.copytree(ADAPTERS / name, tmp_path / "changed"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    if tensors is not None:
        weights = folder / "adapter_model.safetensors"
        save_file({key: np.ascontiguousarray(array) for key, array in tensors(load_file(weights)).items()}, weights)
    return folder


def as_mlx_lm(folder: Path, name: str) -> Path:
    """A frozen adapter as mlx-lm writes them: names, orientation, configuration."""
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    parts = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}
    tensors = {}
    for key, array in load_file(ADAPTERS / name / "adapter_model.safetensors").items():
        path, part = key.removeprefix("base_model.model.model.").split(".lora_")
        path = path.replace("language_model.", "language_model.model.")
        tensors[f"{path}.{parts['lora_' + part]}"] = np.ascontiguousarray(array.T)
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    scale = config["lora_alpha"] / config["r"]
    parameters = {"rank": config["r"], "scale": scale, "dropout": 0.0}
    made = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters, "model": "gen25"}
    (folder / "adapter_config.json").write_text(json.dumps(made))
    return folder


def adapted_logits(model_folder: Path, adapter: Path, golden: Any) -> np.ndarray:
    """(B, L, vocabulary) of the frozen case."""
    model, _ = load(model_folder, adapter=adapter)
    return np.array(logits_of(model, **golden(CASE).inputs))


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_logits_of_a_peft_adapter_are_those_of_peft(name, golden):
    wanted = expected(name)
    logits = adapted_logits(GOLDEN / "gen25", ADAPTERS / name, golden)[tuple(wanted["token_rows"].T)]
    assert np.abs(logits - wanted["logits"]).max() < 2e-5 * np.abs(wanted["logits"]).max()
    model, _ = load(GOLDEN / "gen25")
    plain = np.array(logits_of(model, **golden(CASE).inputs))[tuple(wanted["token_rows"].T)]
    assert np.abs(plain - wanted["logits"]).max() > 0.1  # the adapter does something


@pytest.mark.sampled(4)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("options", [{"q_bits": 8}, {"q_bits": 6, "q_vision": True}, {"q_mode": "mxfp4"}])
def test_an_adapter_over_quantised_weights_is_exact(tmp_path, name, options: dict[str, Any], golden):
    """It gives what it gives over the dense weights that the quantised ones stand for."""
    convert(GOLDEN / "gen25", tmp_path / "q", verify=False, q_group_size=32, **options)
    convert(tmp_path / "q", tmp_path / "dense", dequantize=True)
    quantised, dense = (adapted_logits(tmp_path / part, ADAPTERS / name, golden) for part in ("q", "dense"))
    assert np.abs(quantised - dense).max() < 2e-4 * np.abs(dense).max()


def test_quantised_weights_stay_quantised_beside_an_adapter(tmp_path):
    convert(GOLDEN / "gen25", tmp_path / "q", q_bits=4, q_group_size=32, verify=False)
    model, _ = load(tmp_path / "q", adapter=ADAPTERS / "lora", backend="mlx")
    layer = model.model.language_model.layers[0].feed_forward
    assert isinstance(layer.w1, LoRALinear) and layer.w1.linear.weight.dtype == mx.uint32
    with pytest.raises(OptionError, match=r"with an adapter beside it; `mlx_lfm2vl\.fuse` writes both as one"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_mlx_lm_adapter_is_read_as_pefts_is(tmp_path, golden):
    folder = as_mlx_lm(tmp_path / "adapter", "lora")
    wanted = expected("lora")
    logits = adapted_logits(GOLDEN / "gen25", folder, golden)[tuple(wanted["token_rows"].T)]
    assert np.abs(logits - wanted["logits"]).max() < 2e-5 * np.abs(wanted["logits"]).max()


def test_models_with_other_adapters_have_other_keys(tmp_path):
    """A folder of kept prompts must not be read by another model."""
    keys = {
        load(GOLDEN / "gen25", adapter=adapter)[0].checkpoint_key
        for adapter in (None, ADAPTERS / "lora", ADAPTERS / "dora", changed(tmp_path, "lora", {"lora_alpha": 3}))
    }
    assert len(keys) == 4


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: array for key, array in tensors.items() if part not in key}


def with_(**more: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key.replace("__", "."): array for key, array in more.items()}


def shortened(tensors: Tensors) -> Tensors:
    return {key: array[:, :32] if "v_proj.lora_A" in key else array for key, array in tensors.items()}


ONE = np.ones((2, 2), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors] | None, str]] = {
    "another kind": ({"peft_type": "IA3"}, None, "is an adapter of the kind IA3; LoRA and DoRA are read"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, None, "began with pissa_niter_4, which changes the base model's"),
    "replication": ({"layer_replication": [[0, 2]]}, None, "has layer_replication, which is not read"),
    "bias": ({"lora_bias": True}, None, "has lora_bias, which is not read"),
    "no alpha": ({"lora_alpha": "8"}, None, "lora_alpha is '8', expected a number"),
    "evil pattern": ({"alpha_pattern": {"(a+)+": 1}}, None, r"has '(a+)+', which repeats too much; name the layers"),
    "no pattern": ({"alpha_pattern": {"[": 1}}, None, "alpha_pattern has '[', which is no regular expression"),
    "half": ({}, without("layers.1.conv.in_proj.lora_B"), "layers.1.conv.in_proj has no lora_b; the adapter was not"),
    "nothing": ({}, lambda tensors: {}, "holds no tensor; the adapter was not saved whole"),
    "another model": ({}, with_(transformer__h__0__lora_A__weight=ONE), "has a name that no LFM2-VL layout has"),
    "embeddings": (
        {},
        with_(**{"base_model__model__model__language_model__embed_tokens__lora_embedding_A": ONE}),
        "embed_tokens.lora_embedding_A is of a kind of adapter that is not read",
    ),
    "a missing layer": (
        {},
        with_(
            **{
                f"base_model__model__model__language_model__layers__9__conv__in_proj__lora_{part}__weight": ONE
                for part in "AB"
            }
        ),
        "layers.9.conv.in_proj, which the model does not have; the adapter is of another model (gen25), load it with",
    ),
    "a norm": (
        {},
        with_(
            **{f"base_model__model__model__language_model__embedding_norm__lora_{part}__weight": ONE for part in "AB"}
        ),
        "embedding_norm, which is no linear layer; the adapter is of another model",
    ),
    "another width": ({}, shortened, "v_proj for a weight of [16, 32], the model's has [16, 64]; the adapter is of"),
    "integers": ({}, with_(x=np.ones(2, np.int32)), "tensor x has dtype I32, expected BF16 or F16 or F32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, case):
    config, tensors, said = REFUSED[case]
    with pytest.raises(WeightsError, match=re.escape(said)):
        load(GOLDEN / "gen25", adapter=changed(tmp_path, "lora", config, tensors))


def test_a_saved_module_of_another_shape_is_refused(tmp_path):
    def cut(tensors: Tensors) -> Tensors:
        return {key: array[:3] if key.endswith("linear_2.bias") else array for key, array in tensors.items()}

    with pytest.raises(
        WeightsError, match=re.escape("multi_modal_projector.linear_2.bias of [3], the model's has [64]")
    ):
        load(GOLDEN / "gen25", adapter=changed(tmp_path, "dora", tensors=cut))


def only_a_checkpoint(folder: Path) -> Path:
    (folder / "checkpoint.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent", "no such folder of an adapter"),
        (lambda folder: ADAPTERS / "lora" / "adapter_config.json", "is a file; give the adapter's folder"),
        (lambda folder: folder, "has no adapter_config.json; it is no adapter"),
        (lambda folder: GOLDEN / "gen25", "has no adapter_config.json; it is no adapter"),
        (only_a_checkpoint, "its training has ended before it kept an adapter; run `lora` again"),
        (lambda folder: 7, "adapter is int, expected the name of a folder"),
    ],
)
def test_a_folder_without_an_adapter_is_said_to_be_so(tmp_path, make, said):
    with pytest.raises(Lfm2VlError, match=said):
        load(GOLDEN / "gen25", adapter=make(tmp_path))


def test_an_adapter_without_weights_names_both_files(tmp_path):
    folder = changed(tmp_path, "lora")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(HubError, match=r"has neither adapter_model\.safetensors nor adapters\.safetensors"):
        read_adapter(folder)


LAYERS = [f"model.language_model.layers.{at}.feed_forward.w{part}" for at in (0, 1, 10) for part in (1, 2)]
SHAPES = st.tuples(st.integers(1, 4), st.floats(0.01, 100), st.booleans())


@given(st.dictionaries(st.sampled_from(LAYERS), SHAPES, min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_ranks_and_scales_of_every_layer_are_kept_by_a_folder(tmp_path, layers):
    """Also where one layer's name is the beginning of another's, as that of layers 1 and 10."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> mx.array:
        return mx.array(rng.normal(size=shape).astype(np.float32))

    made = {
        path: LoRAWeights(drawn(5, rank), drawn(rank, 3), scale, drawn(3) if dora else None)
        for path, (rank, scale, dora) in layers.items()
    }
    save_adapter(Adapter(tmp_path, (), made, base="somebody/model"), tmp_path)
    read = read_adapter(tmp_path)
    assert read.layers.keys() == made.keys() and read.base == "somebody/model"
    for path, own in made.items():
        back = read.layers[path]
        assert np.array_equal(back.a, own.a) and np.array_equal(back.b, own.b)
        assert back.scale == pytest.approx(own.scale, rel=1e-12)
        assert (back.magnitude is None) == (own.magnitude is None)


def stored(folder: Path) -> Tensors:
    return {
        name: np.array(array) for file in folder.glob("*.safetensors") for name, array in read_tensors(file).items()
    }


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_fused_folder_gives_what_the_adapter_gives(tmp_path, name, golden):
    fuse(GOLDEN / "gen25", ADAPTERS / name, tmp_path / "fused")
    assert "Fused with an adapter from a local checkpoint" in (tmp_path / "fused" / "README.md").read_text()
    model, _ = load(tmp_path / "fused")
    fused = np.array(logits_of(model, **golden(CASE).inputs))
    assert np.array_equal(fused, adapted_logits(GOLDEN / "gen25", ADAPTERS / name, golden))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_quantised_folder_is_fused_in_its_own_widths(tmp_path, name):
    """What the adapter does not change stays bit for bit; what it changes is rounded once."""
    notes: list[str] = []
    convert(GOLDEN / "gen25", tmp_path / "q", q_bits=8, q_group_size=32, q_overrides=[("*.w1", 4)], verify=False)
    fuse(tmp_path / "q", ADAPTERS / name, tmp_path / "fused", on_note=notes.append)
    fuse(tmp_path / "q", ADAPTERS / name, tmp_path / "dense", dequantize=True)
    convert(tmp_path / "dense", tmp_path / "again", q_bits=8, q_group_size=32, q_overrides=[("*.w1", 4)], verify=False)
    before, fused, again = (stored(tmp_path / part) for part in ("q", "fused", "again"))
    touched = read_adapter(ADAPTERS / name)
    paths = {from_module(path, "mlx") for path in (*touched.layers, *(key[: key.rindex(".")] for key in touched.saved))}
    assert fused.keys() == before.keys() and any("rounds the adapter too" in note for note in notes)
    for key, array in fused.items():
        wanted = again if key.rpartition(".")[0] in paths else before
        assert np.array_equal(array, wanted[key]), key
    config, old = (json.loads((tmp_path / part / "config.json").read_text()) for part in ("fused", "q"))
    assert config["quantization"] == old["quantization"]


def test_a_dequantised_fused_folder_is_the_adapter_exactly(tmp_path, golden):
    convert(GOLDEN / "gen25", tmp_path / "q", q_bits=4, q_group_size=32, verify=False)
    fuse(tmp_path / "q", ADAPTERS / "lora", tmp_path / "fused", dequantize=True)
    model, _ = load(tmp_path / "fused")
    fused = np.array(logits_of(model, **golden(CASE).inputs))
    adapted = adapted_logits(tmp_path / "q", ADAPTERS / "lora", golden)
    assert np.abs(fused - adapted).max() < 1e-4 * np.abs(fused).max()


def test_what_cannot_be_fused_is_said_before_anything_is_written(tmp_path):
    convert(GOLDEN / "gen25", tmp_path / "q", q_bits=8, q_group_size=32, verify=False)
    before = sorted(tmp_path.iterdir())
    for source, options, said in (
        (GOLDEN / "gen25", {"dequantize": True}, "is not quantised; there is nothing to dequantise"),
        (tmp_path / "q", {"layout": "hub"}, "this layout is for dense models; add --dequantize"),
        (GOLDEN / "gen25", {"layout": "gguf"}, "layout is 'gguf', expected one of mlx, hub"),
        (GOLDEN / "gen2", {}, "the adapter is of another model (gen25), load it with that one"),
    ):
        with pytest.raises(Lfm2VlError, match=re.escape(said)):
            fuse(source, ADAPTERS / "lora", tmp_path / "fused", **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["lora", "dora", "mlx-lm"])
def test_an_adapter_that_is_saved_is_the_one_that_was_read(tmp_path, name, golden):
    adapter = as_mlx_lm(tmp_path / "a", "lora") if name == "mlx-lm" else ADAPTERS / name
    save_adapter(read_adapter(adapter), tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before, after = (adapted_logits(GOLDEN / "gen25", folder, golden) for folder in (adapter, tmp_path / "saved"))
    assert np.array_equal(before, after)


@pytest.mark.backends("mlx", "numpy")
def test_commands_answer_with_an_adapter_as_with_its_fused_folder(tmp_path, capsys):
    fuse(GOLDEN / "gen25", ADAPTERS / "lora", tmp_path / "fused")

    def said(*arguments: object) -> str:
        picture = GOLDEN / "pictures" / "small.png"
        command = ["generate", "--prompt", "What?", "--image", picture, "--max-tokens", 12, *arguments]
        assert main([str(each) for each in command]) == 0
        return capsys.readouterr().out

    adapted = said("--model", GOLDEN / "gen25", "--adapter", ADAPTERS / "lora")
    assert adapted == said("--model", tmp_path / "fused") != said("--model", GOLDEN / "gen25")


def test_a_batch_does_not_go_on_with_another_adapter(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    command = ["batch", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--max-tokens", "2"]
    command += ["--model", str(GOLDEN / "gen25"), "--adapter"]
    assert main([*command, str(ADAPTERS / "lora")]) == 0
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Ho"}\n')
    assert main([*command, str(ADAPTERS / "dora")]) == 2
    assert "out.jsonl" in capsys.readouterr().err
    assert main([*command, str(ADAPTERS / "lora")]) == 0
