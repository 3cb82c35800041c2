"""compat's models beside transformers' own, on random checkpoints: forward, generate, saving. Needs the extra
`reference`."""

import importlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend, picture

from mlx_lfm2vl import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    Lfm2VlConfig,
    Lfm2VlModel,
)
from mlx_lfm2vl.compat.stopping import stop_strings

torch = pytest.importorskip("torch", reason="torch is not installed")
importlib.import_module("tools.reference_shim")  # before transformers
transformers = importlib.import_module("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

FOLDERS = ("gen2", "gen25", "untied")
ATOL = 2e-4  # of the largest number


@cache
def theirs(name: str = "gen2") -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(GOLDEN / name, dtype=torch.float32).eval()


@cache_by_backend
def ours(name: str = "gen2") -> Any:
    return AutoModelForImageTextToText.from_pretrained(GOLDEN / name, dtype="float32")


@cache
def inputs(name: str = "gen2", rows: int = 2) -> dict[str, Any]:
    """Two padded rows with pictures; or one."""
    pictures, texts = [["landscape"], ["small", "photo"]], ["<image>What is it?", "a<image>b<image> Compare."]
    made = AutoProcessor.from_pretrained(GOLDEN / name)(
        images=[[picture(each) for each in row] for row in pictures[:rows]],
        text=texts[:rows],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        max_image_tokens=64,
        min_image_tokens=16,
        do_image_splitting=False,
    )
    return dict(made)


def close(found: Any, expected: Any, where: str = "") -> None:
    """Tensors of torch with equal shapes and nearly equal numbers."""
    assert isinstance(found, torch.Tensor), f"{where}: {type(found)}"
    assert found.dtype == expected.dtype and found.shape == expected.shape, (where, found.shape, expected.shape)
    expected = expected.detach()
    np.testing.assert_allclose(found, expected, atol=ATOL * max(1.0, float(expected.abs().max())), err_msg=where)


def real(array: Any, mask: Any) -> Any:
    """(B, L, ...) without padded positions, whose numbers mean nothing."""
    return array[mask.bool()]


def as_torch(array: Any) -> Any:
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))


@torch.no_grad()
def called(model: Any, **call: Any) -> Any:
    return model(**call)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("folder", FOLDERS)
def test_forward_gives_the_same_numbers(folder):
    given = inputs(folder)
    # no label for the first token of a row, whose logits are those of padding
    labels = given["input_ids"].masked_fill(given["attention_mask"].cumsum(dim=1) <= 1, -100)
    call = {**given, "labels": labels, "output_hidden_states": True}
    found, expected = ours(folder)(**call), called(theirs(folder), **call)
    mask = given["attention_mask"]
    close(real(found.logits, mask), real(expected.logits, mask), "logits")
    close(found.loss, expected.loss, "loss")
    assert len(found.hidden_states) == len(expected.hidden_states)
    for number, (one, other) in enumerate(zip(found.hidden_states, expected.hidden_states, strict=True)):
        close(real(one, mask), real(other, mask), f"hidden state {number}")
    close(found.image_hidden_states, expected.image_hidden_states, "image_hidden_states")
    close(torch.cat(list(found.image_outputs.pooler_output)), expected.image_hidden_states, "image_outputs")
    assert found.cache is found.past_key_values is not None
    assert list(found.keys()) == list(expected.keys())


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("folder", FOLDERS)
def test_embeddings_of_ids_stand_in_for_ids(folder):
    ids = inputs(folder, rows=1)["input_ids"]
    tables = ours(folder).get_input_embeddings(), theirs(folder).get_input_embeddings()
    found, expected = tables[0](ids), tables[1](ids)
    close(found, expected, "embeddings")
    assert (tables[0].num_embeddings, tables[0].embedding_dim) == (tables[1].num_embeddings, tables[1].embedding_dim)
    with torch.no_grad():
        hidden = theirs(folder).model(inputs_embeds=expected).last_hidden_state
        close(ours(folder).lm_head(hidden), theirs(folder).lm_head(hidden), "head")
    call = {"inputs_embeds": expected.detach(), "max_new_tokens": 5}
    close(ours(folder)(inputs_embeds=expected).logits, called(theirs(folder), inputs_embeds=expected).logits, "logits")
    for more in ({}, {"input_ids": ids}):
        answers = [model.generate(**call, **more) for model in (ours(folder), theirs(folder))]
        assert isinstance(answers[0], torch.Tensor) and torch.equal(*answers)


@pytest.mark.parametrize("folder", FOLDERS)
def test_parameters_have_the_same_names_and_shapes(folder):
    found, expected = ours(folder).state_dict(), theirs(folder).state_dict()
    assert {name: tuple(array.shape) for name, array in found.items()} == {
        name: tuple(array.shape) for name, array in expected.items()
    }
    for name, array in found.items():
        np.testing.assert_array_equal(np.array(array), expected[name].numpy(), err_msg=name)
    named = [[name for name, _ in model.named_parameters()] for model in (ours(folder), theirs(folder))]
    assert sorted(named[0]) == sorted(named[1])


@pytest.mark.parametrize("folder", FOLDERS)
def test_image_features_have_both_names(folder):
    given = {name: inputs(folder)[name] for name in ("pixel_values", "spatial_shapes", "pixel_attention_mask")}
    with torch.no_grad():
        expected = theirs(folder).get_image_features(**given, return_dict=True)
    for model in (ours(folder), ours(folder).model):
        found = model.get_image_features(**given, return_dict=True)
        assert len(found.pooler_output) == len(expected.pooler_output)
        for number, (one, other) in enumerate(zip(found.pooler_output, expected.pooler_output, strict=True)):
            close(one, other, f"view {number}")
        for view, states in zip(found.last_hidden_state, expected.last_hidden_state, strict=True):
            close(view, states[: len(view)], "tower")


@pytest.mark.parametrize(
    "call",
    [
        {"logits_to_keep": 1},
        {"logits_to_keep": torch.tensor([0, 3])},
        {"use_cache": False},
        {"output_attentions": True},
        {"return_dict": False, "use_cache": False},
    ],
    ids=str,
)
def test_forward_takes_the_same_keywords(call):
    model = theirs()
    model.set_attn_implementation("eager" if "output_attentions" in call else "sdpa")
    try:
        expected = called(model, **inputs(rows=1), **call)
    finally:
        model.set_attn_implementation("sdpa")
    found = ours()(**inputs(rows=1), **call)
    if call.get("return_dict") is False:
        assert isinstance(found, tuple) and len(found) == len(expected)
        close(found[0], expected[0])
        return
    close(found.logits, expected.logits)
    assert (found.past_key_values is None) == (expected.past_key_values is None)
    if "output_attentions" in call:
        assert len(found.attentions) == len(expected.attentions)
        for one, other in zip(found.attentions, expected.attentions, strict=True):
            close(one, other, "attentions")


def test_a_cache_is_continued_the_same():
    given = inputs(rows=1)
    more = torch.tensor([[501, 502, 503]])
    mask = torch.ones((1, given["input_ids"].shape[1] + 3), dtype=torch.int64)
    made = []
    for model in (ours(), theirs()):
        first = called(model, **given, use_cache=True)
        then = called(model, input_ids=more, attention_mask=mask, past_key_values=first.past_key_values)
        made.append(then.logits)
        assert first.past_key_values.get_seq_length() == mask.shape[1]
    close(made[0], made[1])


def test_embeddings_and_encoded_pictures_stand_in_the_same():
    given, made = inputs(rows=1), []
    pixels = {name: given[name] for name in ("pixel_values", "spatial_shapes", "pixel_attention_mask")}
    for model in (ours(), theirs()):
        with torch.no_grad():
            ids = given["input_ids"] if model is theirs() else mx.array(given["input_ids"].numpy())
            embeds = model.get_input_embeddings()(ids)  # a module, which takes arrays of its own kind
            features = model.get_image_features(**pixels, return_dict=True)
        made.append(
            [
                called(model, inputs_embeds=as_torch(embeds), attention_mask=given["attention_mask"], **pixels).logits,
                called(model, input_ids=given["input_ids"], mm_encoder_outputs={"image": features}).logits,
            ]
        )
    close(made[0][0], made[1][0], "inputs_embeds")
    close(made[0][1], made[1][1], "mm_encoder_outputs")


@pytest.mark.parametrize("folder", FOLDERS)
def test_models_say_the_same_of_themselves(folder):
    our, their = ours(folder), theirs(folder)
    assert our.num_parameters() == their.num_parameters()
    assert our.num_parameters(exclude_embeddings=True) == their.num_parameters(exclude_embeddings=True)
    assert our.num_parameters(only_trainable=True) == their.num_parameters(only_trainable=True)
    table = np.array(our.get_input_embeddings().weight)
    np.testing.assert_array_equal(table, their.get_input_embeddings().weight.detach())
    head = np.array(our.get_output_embeddings().weight)
    np.testing.assert_array_equal(head, their.get_output_embeddings().weight.detach())
    assert str(our.dtype).rpartition(".")[2] == str(their.dtype).rpartition(".")[2]
    assert str(our.config.dtype) == str(their.config.dtype).rpartition(".")[2]
    assert type(our.base_model).__name__ == type(their.base_model).__name__
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(our.generation_config, name) == getattr(their.generation_config, name), name


@pytest.mark.parametrize("folder", ["gen2", "untied"])
@pytest.mark.parametrize("arguments", [(900,), (720, 64), (None, 64)], ids=str)
def test_embeddings_are_resized_the_same(folder, arguments):
    our = AutoModelForImageTextToText.from_pretrained(GOLDEN / folder, dtype="float32")
    their = transformers.AutoModelForImageTextToText.from_pretrained(GOLDEN / folder, dtype=torch.float32)
    for model in (our, their):
        model.resize_token_embeddings(*arguments)
    old = min(len(our.get_input_embeddings().weight), theirs(folder).config.text_config.vocab_size)
    parts: tuple[tuple[Any, Any], ...] = (
        (our.get_input_embeddings(), their.get_input_embeddings()),
        (our.get_output_embeddings(), their.get_output_embeddings()),
    )
    for one, other in parts:
        assert one.weight.shape == tuple(other.weight.shape)
        np.testing.assert_array_equal(np.array(one.weight)[:old], other.weight.detach()[:old])
    assert our.config.text_config.vocab_size == their.config.text_config.vocab_size
    ids = torch.tensor([[1, 500, 501]])
    found, expected = our(ids).logits, called(their.eval(), input_ids=ids).logits
    close(found[..., :old], expected[..., :old])


GREEDY: dict[str, dict[str, Any]] = {
    "greedy": {},
    "do_sample off": {"do_sample": False, "num_beams": 1},
    "min_new_tokens": {"eos_token_id": [16, 341], "min_new_tokens": 5},
    "end tokens of torch": {"eos_token_id": torch.tensor([710, 2])},
    "max_length": {"max_new_tokens": None, "max_length": 140},
    "min_length": {"eos_token_id": 341, "min_length": 130},
    "pad_token_id": {"eos_token_id": [710], "pad_token_id": 9},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[16], [362, 341]]},
    "sequence_bias": {"sequence_bias": [[[16], -20.0], [[5], 8.0]]},
    "suppress_tokens": {"suppress_tokens": list(range(300))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(600))},
    "forced_bos_token_id": {"forced_bos_token_id": 5},
    "forced_eos_token_id": {"forced_eos_token_id": [7]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 1.5)},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "use_cache": {"use_cache": False},
    "no-op sampling": {"top_k": 50, "top_p": 1.0, "temperature": 1.0, "length_penalty": 1.0},
    "a configuration": {"generation_config": {"max_new_tokens": 4, "repetition_penalty": 1.5}, "max_new_tokens": ...},
}


def generated(model: Any, name: str, **more: Any) -> Any:
    call = {"max_new_tokens": 10, **GREEDY[name], **more}
    call = {key: value for key, value in call.items() if value is not ...}
    if "generation_config" in call:
        kind = GenerationConfig if model is not theirs() else transformers.GenerationConfig
        call["generation_config"] = kind(**call["generation_config"])
    return model.generate(**inputs(), **call)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", GREEDY)
def test_generate_gives_the_same_tokens(name):
    found, expected = generated(ours(), name), generated(theirs(), name)
    assert isinstance(found, torch.Tensor) and found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "setting", [{}, {"repetition_penalty": 1.7}, {"do_sample": True, "top_k": 9, "temperature": 0.7, "top_p": 0.9}]
)
def test_generate_gives_the_same_scores(setting):
    call = {
        **inputs(),
        **setting,
        "max_new_tokens": 1 if "do_sample" in setting else 5,
        "return_dict_in_generate": True,
    }
    call |= {"output_scores": True, "output_logits": True}
    found, expected = ours().generate(**call), theirs().generate(**call)
    if not setting:
        assert found.sequences.tolist() == expected.sequences.tolist()
        scores = [
            model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
            for model, out in ((ours(), found), (theirs(), expected))
        ]
        close(scores[0], scores[1], "transition scores")
    for name in ("scores", "logits"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert torch.equal(one.isinf(), other.isinf()), name
            close(one[~one.isinf()], other[~other.isinf()], name)


STOPS = ["_row_", "Th", " ", "\n", "e", "�", "a�", "��", "en", "ing", "<|im_end|>", ["zzz", "�"], "é"]


@pytest.mark.parametrize("stop", STOPS, ids=repr)
def test_stop_strings_end_at_the_same_tokens(stop):
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    call = {**inputs(), "max_new_tokens": 24, "stop_strings": stop, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs().generate(**call, tokenizer=tokenizer)
    found = ours().generate(**call, tokenizer=AutoTokenizer.from_pretrained(GOLDEN / "gen2"))
    assert found.tolist() == expected.tolist()


def test_stop_strings_are_found_in_the_same_bytes():
    their = transformers.AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    our = AutoTokenizer.from_pretrained(GOLDEN / "gen2")
    rows = [our.encode(text) for text in ("Café au lait, 東京 <|im_end|>\n", "� and naïve 🙂", "\n\n  end.")]
    for stop in ("é", "東", "�", "🙂", "ï", " <|im_end|>", "\n", ["京", "end"], "fé au"):
        criterion = transformers.StopStringCriteria(their, stop)
        for row in rows:
            for end in range(1, len(row) + 1):
                expected = criterion(torch.tensor([row[:end]]), None).tolist()
                assert stop_strings(stop, our)(np.array([row[:end]])).tolist() == expected, (stop, row[:end])


def test_functions_of_callers_get_the_same():
    seen: list[list[Any]] = []

    def processor(ids: Any, scores: Any) -> Any:
        seen[-1].append((type(ids), tuple(ids.shape), tuple(scores.shape)))
        return scores - 30 * (torch.arange(scores.shape[1]) % 2)

    def criterion(ids: Any, scores: Any, **others: Any) -> Any:
        return ids[:, -1] == 2

    class Streamer:
        def put(self, ids: Any) -> None:
            seen[-1].append(ids.tolist())

        def end(self) -> None:
            seen[-1].append("end")

    made = []
    for model in (ours(), theirs()):
        seen.append([])
        out = model.generate(
            **inputs(rows=1),
            max_new_tokens=6,
            logits_processor=[processor],
            stopping_criteria=[criterion],
            streamer=Streamer(),
            prefix_allowed_tokens_fn=lambda row, ids: list(range(400)),
        )
        made.append(out.tolist())
    assert made[0] == made[1] and seen[0] == seen[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_saved_models_load_in_the_other_program(folder, tmp_path):
    ours(folder).save_pretrained(tmp_path / "hub", hf=True)
    ours(folder).save_pretrained(tmp_path / "mlx")
    theirs(folder).save_pretrained(tmp_path / "theirs")
    expected = called(theirs(folder), **inputs(folder, 1)).logits
    back, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hub", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    close(called(back.eval(), **inputs(folder, 1)).logits, expected, "hf=True")
    assert back.generation_config.eos_token_id == theirs(folder).generation_config.eos_token_id
    for saved in ("hub", "mlx", "theirs"):
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / saved, dtype="float32")
        close(again(**inputs(folder, 1)).logits, expected, saved)
        assert again.config == ours(folder).config
    body = Lfm2VlModel.from_pretrained(tmp_path / "theirs", dtype="float32")(**inputs(folder, 1))[0]
    with torch.no_grad():
        close(body, theirs(folder).model(**inputs(folder, 1))[0], "without its head")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_saved_models_keep_their_dtype(dtype, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN / "gen2", dtype=dtype)
    model.save_pretrained(tmp_path, hf=True)
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    assert back.dtype == getattr(torch, dtype)
    table = np.array(model.get_input_embeddings().weight.astype(mx.float32))
    np.testing.assert_array_equal(table, back.get_input_embeddings().weight.detach().float())


def test_a_model_of_a_configuration_has_the_same_shapes():
    config = json.loads((GOLDEN / "gen2" / "config.json").read_text())
    our = AutoModelForImageTextToText.from_config(Lfm2VlConfig.from_dict(config))
    their = transformers.AutoModelForImageTextToText.from_config(
        transformers.AutoConfig.from_pretrained(GOLDEN / "gen2")
    )
    assert our.num_parameters() == their.num_parameters()


def test_the_documentations_example_gives_the_same_text(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "gen25", tmp_path / "model"))
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture("landscape")}, {"type": "text", "text": "What is it?"}],
        }
    ]
    texts = []
    for model_class, processor_class in (
        (AutoModelForImageTextToText, AutoProcessor),
        (transformers.AutoModelForImageTextToText, transformers.AutoProcessor),
    ):
        model = model_class.from_pretrained(folder, dtype="float32")
        processor = processor_class.from_pretrained(folder)
        given = processor.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True, tokenize=True
        ).to(model.device)
        outputs = model.generate(**given, max_new_tokens=16)
        texts.append(processor.batch_decode(outputs, skip_special_tokens=True)[0])
    assert texts[0] == texts[1]
