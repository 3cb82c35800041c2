"""Text models, LFM2 and LFM3, without vision: the reference's numbers, pictures refused, every command."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, case_ids, picture, read_tensors
from servers import serving, settings_of

from mlx_lfm2vl import (
    AutoConfig,
    AutoProcessor,
    Chat,
    Engine,
    GenerationOptions,
    GenerationRequest,
    convert,
    finetune,
    generate,
    generate_batch,
    load,
)
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.config import CausalLMConfig, Lfm3Config
from mlx_lfm2vl.errors import ConfigError, ImageError, OptionError

NAMES = ("lfm2_text", "lfm3_text")
CLOSE = 2e-5  # of the largest number of an array
GREEDY = GenerationOptions(max_tokens=24, temperature=0)
REFUSAL = "this model reads text alone; for pictures and videos load LFM2-VL or LFM3-VL"


@cache_by_backend
def loaded(name: str) -> Loaded:
    return load(GOLDEN / name)


def assert_close(ours: Any, reference: np.ndarray, what: str) -> None:
    error = np.abs(np.array(ours) - reference).max() / np.abs(reference).max()
    assert error < CLOSE, f"{what}: relative error {error:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_of_pictures_that_a_text_model_has_not(name):
    assert loaded(name)[1].notes == ()


# The reference's numbers


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("case_id", case_ids(*NAMES))
def test_stages_logits_and_loss_are_the_references(case_id, golden):
    case = golden(case_id)
    out: Any = loaded(case.checkpoint)[0](**case.inputs, labels=case.arrays["labels"], output_hidden_states=True)
    prompts, positions = case.arrays["token_rows"].T
    for index, (ours, expected) in enumerate(zip(out.hidden_states, case.arrays["hidden_states"], strict=True)):
        assert_close(np.array(ours)[prompts, positions], expected, f"layer {index}")
    assert_close(np.array(out.logits)[prompts, positions], case.arrays["logits"], "logits")
    assert_close(out.loss, case.arrays["loss"], "loss")


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_of_all_cases_are_the_references(name, golden):
    cases = [golden(case_id) for case_id in case_ids(name)]
    requests = [GenerationRequest(turns, options=GREEDY) for case in cases for turns in case.conversations]
    made = iter(generate_batch(*loaded(name), requests, batch_size=len(requests)))
    ours = {case.id: [list(next(made).tokens) for _ in case.conversations] for case in cases}
    assert ours == {case.id: case.arrays["generated"].tolist() for case in cases}


@pytest.mark.parametrize("case_id", case_ids(*NAMES))
def test_prompts_and_ids_are_the_references(case_id, golden):
    case = golden(case_id)
    processor = AutoProcessor.from_pretrained(case.folder)
    assert processor.apply_chat_template(case.messages, add_generation_prompt=True) == case.prompts
    made = processor.apply_chat_template(
        case.messages, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, padding_side="left"
    )
    np.testing.assert_array_equal(made["input_ids"], case.arrays["input_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_a_text_in_items_is_a_text(name, golden):
    case = golden(f"{name}-turns")
    turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in case.messages[0]]
    assert generate(*loaded(name), turns, options=GREEDY) == case.generated_text[0]


# Pictures


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", ["images", "videos"])
def test_pictures_and_videos_are_refused_everywhere(name, given):
    model, processor = loaded(name)
    source: dict[str, Any] = {given: picture("small") if given == "images" else GOLDEN / "videos" / "clip.png"}
    item = {"type": given[:-1], given[:-1]: source[given]}
    with Engine(GOLDEN / name) as engine:
        for ask in (
            lambda: generate(model, processor, "What?", **source),
            lambda: generate(model, processor, [{"role": "user", "content": [item]}]),
            lambda: Chat(model, processor).ask("What?", **source),
            lambda: engine.generate("What?", **source),
            lambda: processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True),
        ):
            with pytest.raises(ImageError, match=REFUSAL):
                ask()


def test_the_tokens_of_pictures_are_text_here():
    model, processor = loaded("lfm2_text")
    assert generate(model, processor, "Is <image> a <|image_pad|>?", max_tokens=2) is not None
    with pytest.raises(ImageError, match=REFUSAL):
        processor(picture("small"), "<image> What?")


# Commands


@pytest.mark.parametrize("name", NAMES)
def test_generate_chat_and_batch_take_text_models(name, golden, capsys, tmp_path, monkeypatch):
    short = golden(f"{name}-short")
    question, folder = short.messages[0][0]["content"], str(GOLDEN / name)
    words = ["--model", folder, "--max-tokens", "24"]
    assert main(["generate", *words, "--prompt", question]) == 0
    first = capsys.readouterr().out
    (tmp_path / "said").write_text(question + "\n")
    with open(tmp_path / "said") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["chat", *words]) == 0
    assert capsys.readouterr().out == first and first.startswith(short.generated_text[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": question}) + "\n" + json.dumps({"image": "a.png"}))
    (tmp_path / "a.png").write_bytes((GOLDEN / "pictures" / "small.png").read_bytes())
    output = tmp_path / "out.jsonl"
    assert main(["batch", str(tmp_path / "rows.jsonl"), *words, "--output", str(output)]) == 1
    text, refused = (json.loads(line) for line in output.read_text().splitlines())
    assert text["text"] == short.generated_text[0] and refused["error"] == REFUSAL
    assert main(["generate", *words, "--image", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.endswith(f"error: {REFUSAL}\n")


def test_a_server_answers_with_a_text_model(golden):
    short = golden("lfm3_text-short")
    with serving(settings_of(GOLDEN / "lfm3_text")) as server:
        ask: dict[str, Any] = {"model": "lfm3_text", "max_tokens": 24, "temperature": 0}
        made = server.openai().chat.completions.create(**ask, messages=short.messages[0])
        assert made.choices[0].message.content == short.generated_text[0]
        url = "data:image/png;base64,iVBORw0KGgo="
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body = json.dumps({**ask, "messages": [{"role": "user", "content": content}]})
        status, _, answer = server.raw("POST", "/v1/chat/completions", body, content_type="application/json")
        assert (status, answer["error"]["message"]) == (400, REFUSAL)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_text_model_answers_and_is_measured(name, bits, tmp_path):
    folder = convert(GOLDEN / name, tmp_path / "q", q_bits=bits, q_group_size=32, q_overrides=[("*.0.*.w1", 8)])
    model, processor = load(folder)
    assert generate(model, processor, "How many?", max_tokens=4)
    report = json.loads((folder / "quantization_report.json").read_text())
    assert report["questions"] > 0
    assert {path.name for path in folder.iterdir()} & {"processor_config.json", "preprocessor_config.json"} == set()
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "--image" not in card
    names = read_tensors(folder / "model.safetensors")
    assert all(name.startswith(("model.layers.", "model.embed", "lm_head.")) for name in names)  # as mlx-lm has them
    record = json.loads((folder / "config.json").read_text())["quantization"]
    assert all(key in ("group_size", "bits", "mode") or key.startswith(("model.", "lm_head")) for key in record)


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_folder_in_the_makers_layout_answers_alike(name, tmp_path, golden):
    short = golden(f"{name}-short")
    folder = convert(GOLDEN / name, tmp_path / "hub", layout="hub")
    assert generate(*load(folder), short.messages[0], options=GREEDY) == short.generated_text[0]
    stored, ours = (read_tensors(each / "model.safetensors") for each in (GOLDEN / name, folder))
    assert stored.keys() == ours.keys()
    assert all(np.array_equal(stored[key], ours[key]) for key in stored)
    model, _ = loaded(name)
    model.save_pretrained(tmp_path / "saved", hf=True)
    assert read_tensors(tmp_path / "saved" / "model.safetensors").keys() == stored.keys()


def test_training_of_a_text_model_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    with pytest.raises(OptionError, match="lfm2_text: is a text model; adapters are trained here for models with pict"):
        finetune(GOLDEN / "lfm2_text", tmp_path / "rows.jsonl", tmp_path / "out")


# Configuration


@pytest.mark.parametrize("name", NAMES)
def test_config_json_round_trips(name):
    config = AutoConfig.from_pretrained(GOLDEN / name)
    assert isinstance(config, CausalLMConfig)
    assert type(config).from_dict(config.to_dict()) == config
    assert config.architectures == [f"{name[:4].capitalize()}ForCausalLM"]


def test_a_backbone_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="text_config is Lfm3Config, expected Lfm2Config of 'lfm2'"):
        CausalLMConfig(text_config=Lfm3Config())
    with pytest.raises(ConfigError, match="model_type is 'lfm2_moe'; expected 'lfm2' or 'lfm3'"):
        CausalLMConfig(model_type="lfm2_moe")
