"""The public classes: the reference's documentation with its imports changed, batches, saving, loading by name."""

import inspect
import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, logits_of, picture

from mlx_lfm2vl import Lfm2VlForConditionalGeneration, Lfm2VlModel, Lfm2VlProcessor, load
from mlx_lfm2vl.errors import ConfigError, HubError, InputError, LoadCancelledError, OptionError, OutputError
from mlx_lfm2vl.weights.names import parameters


@cache_by_backend
def loaded(checkpoint: str) -> Loaded:
    return load(GOLDEN / checkpoint)


def test_the_example_of_the_references_documentation():
    """From the docstring of transformers' Lfm2VlForConditionalGeneration.forward; only imports, model id and
    return_tensors differ (and the picture, which there comes from the network)."""
    from mlx_lfm2vl import Lfm2VlForConditionalGeneration as AutoModelForImageTextToText
    from mlx_lfm2vl import Lfm2VlProcessor as AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        GOLDEN / "gen2",
    )
    processor = AutoProcessor.from_pretrained(
        GOLDEN / "gen2",
    )

    image = picture("landscape")

    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "text", "text": "What is in this picture?"},
            ],
        },
    ]

    inputs = processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )

    # Generate
    outputs = model.generate(**inputs, max_new_tokens=64)
    text = processor.batch_decode(outputs, skip_special_tokens=True)[0]

    assert text.startswith("user\nWhat is in this picture?\nassistant\n")
    assert outputs.shape == (1, inputs["input_ids"].shape[1] + 64)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize(
    "case_id", ["gen2-tiled", "gen2-batch-left", "gen2-batch-text", "gen2-batch-tiled", "gen25-turns"]
)
def test_generate_gives_the_references_tokens_batches_included(case_id, golden):
    case = golden(case_id)
    model, _ = loaded(case.checkpoint)
    expected = case.arrays["generated"]
    out = np.array(model.generate(**case.inputs, max_new_tokens=expected.shape[1], do_sample=False))
    np.testing.assert_array_equal(out[:, : case.inputs["input_ids"].shape[1]], case.inputs["input_ids"])
    np.testing.assert_array_equal(out[:, case.inputs["input_ids"].shape[1] :], expected)


def test_rows_that_have_ended_are_filled_with_padding(golden):
    case = golden("gen2-batch-left")
    model, _ = loaded("gen2")
    expected = case.arrays["generated"]
    row, end = next((r, int(t)) for r in (0, 1) for t in expected[r][2:10] if t not in expected[1 - r])
    out = np.array(model.generate(**case.inputs, max_new_tokens=24, eos_token_id=end))
    out = out[:, case.inputs["input_ids"].shape[1] :]
    at = expected[row].tolist().index(end)
    assert out[row].tolist() == [*expected[row][: at + 1].tolist(), *[0] * (23 - at)]
    np.testing.assert_array_equal(out[1 - row], expected[1 - row])
    both = np.array(model.generate(**case.inputs, max_new_tokens=24, eos_token_id=expected[:, 3].tolist()))
    assert both.shape[1] <= case.inputs["input_ids"].shape[1] + 4


def test_save_and_load_are_identical(tmp_path):
    model, processor = loaded("untied")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load(tmp_path)
    assert again.config == model.config
    assert again.generation_config == model.generation_config
    arrays = parameters(again)
    for name, array in parameters(model).items():
        assert mx.array_equal(array, arrays[name]).item(), name
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture("photo")}, {"type": "text", "text": "?"}]}
    ]
    ours, theirs = (
        p.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="np", add_generation_prompt=True
        )
        for p in (processor, processor_again)
    )
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_model_without_its_head():
    whole, _ = loaded("untied")
    body = Lfm2VlModel.from_pretrained(GOLDEN / "untied")
    ids = np.array([[1, 6, 500, 501]])
    hidden = body(ids)[0]
    np.testing.assert_array_equal(np.array(whole.logits(hidden)), np.array(logits_of(whole, ids)))


def test_dtype_by_name():
    model = Lfm2VlForConditionalGeneration.from_pretrained(GOLDEN / "gen25", dtype="bfloat16")
    assert logits_of(model, np.array([[1, 2, 3]])).dtype == mx.bfloat16


def test_forward_takes_the_arguments_of_the_reference():
    wanted = re.findall(
        r"\w+",
        "input_ids attention_mask position_ids pixel_values spatial_shapes pixel_attention_mask past_key_values "
        "inputs_embeds use_cache cache_position output_hidden_states output_attentions return_dict",
    )
    assert set(wanted) <= set(inspect.signature(Lfm2VlModel.__call__).parameters)
    assert {*wanted, "labels", "logits_to_keep"} <= set(
        inspect.signature(Lfm2VlForConditionalGeneration.__call__).parameters
    )


def test_end_tokens_come_from_where_the_checkpoint_has_them(tmp_path):
    model, processor = loaded("gen25")
    assert model.generation_config.eos_token_ids == (7,)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert load(tmp_path)[0].generation_config.eos_token_ids == (7,)


def test_model_and_processor_must_agree(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "gen2", tmp_path / "model"))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "image_token_id": 397}))
    with pytest.raises(ConfigError, match=r"the image token's id is 397 in config.json, 396 in the processor's files"):
        load(folder)
    with pytest.raises(ConfigError, match=r"the downsample factor is 2 in config\.json, 1 in"):
        load(GOLDEN / "gen2", downsample_factor=1)


def test_saving_over_an_older_model_replaces_its_shards(tmp_path):
    model, processor = loaded("gen2")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load(tmp_path)[0].config == model.config
    blocked = tmp_path / "file"
    blocked.write_text("")
    for saved in (model, processor):
        with pytest.raises(OutputError, match="is a file, where a folder is wanted"):
            saved.save_pretrained(blocked)


def test_what_is_refused(tmp_path):
    model, _ = loaded("gen2")
    with pytest.raises(HubError, match="no such folder"):
        load("models/nowhere/at/all")
    with pytest.raises(HubError, match=r"has no config.json"):
        load(tmp_path)
    with pytest.raises(HubError, match="name is empty"):
        Lfm2VlProcessor.from_pretrained("")
    with pytest.raises(InputError, match="input_ids has shape"):
        model.generate(np.array([1, 2, 3]))
    with pytest.raises(OptionError, match="max_new_tokens is 0"):
        model.generate(np.array([[1, 2, 3]]), max_new_tokens=0)


def test_progress_counts_the_bytes_of_the_weights():
    told: list[tuple[str, int, int]] = []
    model, _ = load("demo", progress=lambda *at: told.append(at))
    size = sum(array.nbytes for array in parameters(model).values())
    assert {what for what, _, _ in told} == {"weights"} and {total for _, _, total in told} == {size}
    done = [count for _, count, _ in told]
    assert done == sorted(done) and done[-1] == size and len(done) > 10


@pytest.mark.backends("mlx", "numpy")
def test_a_load_ends_between_tensors_once_its_stop_says_so():
    told: list[int] = []
    with pytest.raises(LoadCancelledError, match=r"^demo: loading was stopped before the model was whole$"):
        load("demo", progress=lambda what, done, total: told.append(done), stop=lambda: len(told) == 3)
    assert len(told) == 3


def test_what_a_stop_raises_arrives_as_itself_and_no_function_is_refused():
    error = OSError("mine")

    def stop() -> bool:
        raise error

    with pytest.raises(OSError) as raised:
        load("demo", stop=stop)
    assert raised.value is error
    with pytest.raises(OptionError, match="stop is 3, expected a function"):
        load("demo", stop=3)  # type: ignore[arg-type]
