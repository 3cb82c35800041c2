"""Answers as text: pieces, end, statistics, and what is refused."""

import json
import shutil
import sys
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, case_ids, picture, statistics_of

from mlx_lfm2vl import (
    Chat,
    Engine,
    GenerationOptions,
    GenerationRequest,
    Lfm2VlImageProcessor,
    generate,
    generate_batch,
    load,
    stream_generate,
)
from mlx_lfm2vl.errors import ImageError, OptionError, OutputError, PromptError, TemplateError
from mlx_lfm2vl.generation.options import generation_config


@cache_by_backend
def loaded(checkpoint: str) -> Loaded:
    return load(GOLDEN / checkpoint)


OPTIONS = GenerationOptions(max_tokens=24)


@pytest.mark.sampled(24)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("case_id", [i for i in case_ids(having="generated") if "batch" not in i])
def test_from_conversation_to_the_references_text(case_id, golden):
    """Everything at once: pictures read and resized here, template, tokens, vision, prefill, decode, text."""
    case = golden(case_id)
    model, processor = loaded(case.checkpoint)
    pieces = list(stream_generate(model, processor, case.conversations[0], options=OPTIONS, **case.options))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(piece.text for piece in pieces) == processor.decode(tokens, skip_special_tokens=True)
    assert tokens == case.arrays["generated"][0].tolist()
    assert "".join(piece.text for piece in pieces) == case.generated_text[0]


def test_the_last_piece_tells_how_it_went():
    model, processor = loaded("gen2")
    pieces = list(stream_generate(model, processor, "What?", picture("landscape"), options=OPTIONS))
    assert all(piece.finish_reason is None and piece.statistics is None for piece in pieces[:-1])
    last = pieces[-1]
    assert last.finish_reason == "length"
    statistics = statistics_of(last)
    assert statistics.generated_tokens == 24 == sum(len(piece.tokens) for piece in pieces)
    assert statistics.image_tokens == 60
    assert statistics.prompt_tokens > 60
    assert 0 < statistics.time_to_first_token < 60 and statistics.tokens_per_second > 0
    assert statistics.prompt_tokens_per_second == pytest.approx(
        statistics.prompt_tokens / statistics.time_to_first_token
    )
    assert statistics.peak_memory > 0


def test_the_end_token_stops_and_is_not_part_of_the_text():
    model, processor = loaded("gen2")
    free = list(stream_generate(model, processor, "Hello.", options=OPTIONS))
    tokens = [token for piece in free for token in piece.tokens]
    at = next(i for i in range(3, 24) if tokens[i] not in tokens[:i])
    config = model.generation_config
    try:
        model.generation_config = replace(generation_config(model), eos_token_ids=(7, tokens[at]))
        pieces = list(stream_generate(model, processor, "Hello.", options=OPTIONS))
    finally:
        model.generation_config = config
    assert pieces[-1].finish_reason == "stop"
    assert [token for piece in pieces for token in piece.tokens] == tokens[:at]
    assert statistics_of(pieces[-1]).generated_tokens == at + 1


def test_generate_is_the_whole_stream():
    model, processor = loaded("gen25")
    pictures = [picture("small"), np.asarray(picture("landscape"))]
    text = generate(model, processor, "Compare.", pictures, system="Be brief.", options=OPTIONS)
    pieces = stream_generate(model, processor, "Compare.", pictures, system="Be brief.", options=OPTIONS)
    assert text == "".join(piece.text for piece in pieces)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": p} for p in pictures] + [{"type": "text", "text": "Compare."}],
        },
    ]
    assert generate(model, processor, messages, options=OPTIONS) == text


def test_overrides_reach_the_pictures():
    model, processor = loaded("gen2")

    def image_tokens(**overrides) -> int:
        options = GenerationOptions(max_tokens=1)
        *_, last = stream_generate(model, processor, "?", picture("photo"), options=options, **overrides)
        return statistics_of(last).image_tokens

    assert image_tokens(do_image_splitting=False) < image_tokens(use_thumbnail=False) < image_tokens()


@pytest.mark.parametrize("way", ["one", "batch", "chat", "engine"])
def test_pixels_are_let_go_before_the_first_token(way, monkeypatch):
    """They may be many times what is kept of them."""
    model, processor = loaded("gen2")
    made: list[weakref.ref] = []
    encode = Lfm2VlImageProcessor.encode

    def watched(self, *arguments, **keywords):
        output, plans = encode(self, *arguments, **keywords)
        made.append(weakref.ref(output["pixel_values"]))
        return output, plans

    monkeypatch.setattr(Lfm2VlImageProcessor, "encode", watched)
    forever = GenerationOptions(max_tokens=10_000)
    questions = [GenerationRequest("What?", picture(name), options=forever) for name in ("landscape", "small")]
    alive: list[int] = []

    def stop() -> bool:  # also asked after the first token
        alive.append(sum(reference() is not None for reference in made))
        return len(alive) > 400

    if way == "one":
        list(stream_generate(model, processor, "What?", picture("landscape"), options=forever, stop=stop))
    elif way == "batch":
        list(generate_batch(model, processor, questions, stop=stop))
    elif way == "chat":
        list(Chat(model, processor, options=forever).stream("What?", picture("landscape"), stop=stop))
    else:
        with Engine(lambda: (model, processor)) as engine:
            pieces = engine.stream("What?", picture("landscape"), options=forever)
            next(pieces)
            alive += [1, sum(reference() is not None for reference in made)]
    assert made and alive[-1] == 0
    assert alive[0] > 0 or way == "batch"  # whose pixels are copied side by side first


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "prompt is NoneType, expected text or a list of messages"),
        (b"Hello", "prompt is bytes"),
        ({"role": "user", "content": "Hi"}, "prompt is dict"),
        ([], "prompt is a conversation without a message"),
        (["Hi"], r"prompt\[0\] is str, expected a message with 'role' and 'content'"),
        ([{"content": "Hi"}], r"prompt\[0\] has the role None"),
        ([{"role": 3, "content": "Hi"}], r"prompt\[0\] has the role 3"),
        ([{"role": "user"}], r"prompt\[0\] has the content NoneType, expected text or a list of items"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 3}], r"prompt\[1\] has the content int"),
        ([{"role": "user", "content": ["Hi"]}], "item 0 of its content, is str, expected a mapping with 'type'"),
        ([{"role": "user", "content": [{"text": "Hi"}]}], "item 0 of its content, has the type None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "has the type 'audio', expected one of text, image"),
        ([{"role": "user", "content": [{"type": "video"}]}], "is of type 'video' and has no 'video' or 'url'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "is of type 'image' and has no 'image' or 'url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "is of type 'text' and has no 'text'"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "has a text that is int"),
    ],
)
def test_conversations_of_wrong_shapes_are_refused(prompt, words):
    model, processor = loaded("gen2")
    with pytest.raises(PromptError, match=words):
        generate(model, processor, prompt)
    (answer,) = generate_batch(model, processor, [GenerationRequest(prompt)])
    assert isinstance(answer.error, PromptError)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"options": {"max_tokens": 3}}, OptionError, "options is dict, expected GenerationOptions"),
        ({"system": 3}, PromptError, "system is int, expected text"),
        ({"tools": 3}, OptionError, "tools must be a list of JSON schemas"),
        ({"tools": ["f"]}, OptionError, "tools must be a list of JSON schemas"),
        ({"images": 3}, ImageError, "a picture of type int cannot be read"),
        ({"anything": 3}, OptionError, "'anything' is neither a variable of the chat template"),
        ({"max_tokens": 0}, OptionError, r"max_tokens is 0, expected an integer from 1"),
    ],
)
def test_arguments_of_wrong_types_are_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        generate(*loaded("gen2"), "?", **arguments)


DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    "answer",
    [
        lambda model, processor: generate(model, processor, "?", tools=[DEEP]),
        lambda model, processor: generate(model, processor, [{"role": "user", "content": "?", "more": DEEP}]),
        lambda model, processor: generate(
            model,
            processor,
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}],
        ),
        lambda model, processor: Chat(model, processor, tools=[DEEP]).ask("?"),
    ],
    ids=["tools", "message", "arguments", "tools of a chat"],
)
def test_what_is_nested_too_deeply_is_refused(answer):
    with pytest.raises((PromptError, TemplateError), match="nested too deeply"):
        answer(*loaded("gen2"))


def test_a_question_takes_its_way_past_compat():
    """Its classes only name attributes and tokenise there."""
    model, processor = loaded("gen2")
    entered: set[tuple[str, str]] = set()

    def note(frame, event, _):
        if event == "call":
            entered.add((Path(frame.f_code.co_filename).parent.name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        generate(model, processor, "What?", picture("large"), max_tokens=2)
    finally:
        sys.setprofile(None)
    assert {"processing", "generation", "models"} <= {folder for folder, _ in entered}
    assert {name for folder, name in entered if folder == "compat"} <= {"__getattr__", "encode"}


def test_a_question_is_a_question():
    model, processor = loaded("gen2")
    (answer,) = generate_batch(model, processor, ["Hello."])  # type: ignore[list-item]
    assert (
        isinstance(answer.error, PromptError) and str(answer.error) == "a request is str, expected a GenerationRequest"
    )
    for wrong in (None, "Hello.", GenerationRequest("Hello.")):
        with pytest.raises(OptionError, match="expected several GenerationRequests"):
            next(generate_batch(model, processor, wrong))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="role is 3, expected 'user' or 'tool'"):
        Chat(model, processor).ask("Hello.", role=3)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="3 is no path to write to"):
        Chat(model, processor).save(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"options": {}}, "options is dict, expected GenerationOptions"),
        ({"stop": 3}, "stop is 3, expected a function"),
        ({"stop": "ring"}, r"stop is 'ring', expected a function; texts that end .* GenerationOptions\(stop=\)"),
        ({"progress": 3}, "progress is 3, expected a function"),
        ({"vision_cache": 3}, "vision_cache is int, expected a VisionCache"),
        ({"prompt_cache": 3}, "prompt_cache is int, expected a PromptCache"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(arguments, words):
    with pytest.raises(OptionError, match=words):
        generate(*loaded("gen2"), "Hello.", **arguments)


def test_a_progress_that_is_no_function_is_refused_before_loading():
    with pytest.raises(OptionError, match="progress is 3, expected a function"):
        load(GOLDEN / "gen2", progress=3)  # type: ignore[arg-type]


def test_closing_the_stream_stops_the_work():
    model, processor = loaded("gen2")
    stream = stream_generate(model, processor, "Hello.", options=GenerationOptions(max_tokens=10_000))
    with closing(stream):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_generation_ends_where_the_positions_end():
    model, processor = loaded("gen2")
    text_config = model.config.text_config
    *_, short = stream_generate(model, processor, "Hello.", options=GenerationOptions(max_tokens=1))
    limit = statistics_of(short).prompt_tokens + 5
    config = model.config
    try:
        model.config = replace(config, text_config=replace(text_config, max_position_embeddings=limit))
        *_, last = stream_generate(model, processor, "Hello.", options=OPTIONS)
        assert (last.finish_reason, statistics_of(last).generated_tokens) == ("length", 5)
        refused = rf"the prompt has \d+ tokens, but the model has {limit} positions"
        with pytest.raises(PromptError, match=rf"{refused}; shorten the text"):
            generate(model, processor, "Hello." * 50, options=OPTIONS)
        with pytest.raises(
            PromptError,
            match=rf"{refused}; use fewer or smaller pictures, fewer frames",
        ):
            generate(model, processor, "Hello.", picture("tall"), options=OPTIONS)
    finally:
        model.config = config


def test_what_is_refused(tmp_path):
    model, processor = loaded("gen2")
    with pytest.raises(PromptError, match="prompt is empty"):
        generate(model, processor, "")
    with pytest.raises(PromptError, match="prompt is a conversation"):
        generate(model, processor, [{"role": "user", "content": "Hi"}], picture("small"))
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        generate(model, processor, "?", tmp_path / "nowhere.png")
    with pytest.raises(OptionError, match="max_tokens"):
        generate(model, processor, "?", options=GenerationOptions(max_tokens=0))


def test_model_and_processor_in_the_wrong_order_are_told_apart():
    model, processor = load("demo")
    wrong = "model is Lfm2VlProcessor, expected Lfm2VlForConditionalGeneration; `load` returns model and processor"
    with pytest.raises(OptionError, match=wrong):
        generate(processor, model, "Hello.")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=wrong):
        Chat(processor, model)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="processor is NoneType, expected Lfm2VlProcessor"):
        list(generate_batch(model, None, [GenerationRequest("Hello.")]))  # type: ignore[arg-type]


def test_fields_of_the_options_go_as_keywords_too():
    model, processor = loaded("gen2")
    options = GenerationOptions(max_tokens=9, temperature=1.5, seed=4)
    expected = generate(model, processor, "Hello.", options=options)
    assert generate(model, processor, "Hello.", max_tokens=9, temperature=1.5, seed=4) == expected
    longer = GenerationOptions(max_tokens=30, temperature=1.5, seed=4)
    assert generate(model, processor, "Hello.", options=longer, max_tokens=9) == expected
    pictured = generate(model, processor, "Hello.", picture("small"), max_tokens=3, max_image_tokens=64)
    assert pictured == generate(
        model, processor, "Hello.", picture("small"), options=GenerationOptions(max_tokens=3), max_image_tokens=64
    )


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        *(("temp", "temperature"), ("image", "images"), ("max_new_tokens", "max_tokens"), ("tool", "tools")),
        *(("max_image_token", "max_image_tokens"), ("max_length", None), ("system_prompt", None), ("padding", None)),
    ],
)
def test_misspelt_keywords_are_refused_with_what_is_meant(wrong, meant):
    model, processor = loaded("gen2")
    with pytest.raises(
        OptionError, match=rf"^{wrong!r} is neither a variable .* processor(; did you mean .*)?$"
    ) as said:
        generate(model, processor, "Hello.", **{wrong: 1})  # type: ignore[arg-type]
    assert meant is None or str(said.value).endswith(f"; did you mean {meant}?")


@pytest.mark.backends("mlx", "numpy")
def test_a_request_is_taken_in_place_of_a_prompt():
    model, processor = loaded("gen2")
    options = GenerationOptions(max_tokens=5)
    request = GenerationRequest("Hello.", picture("small"), "Be brief.", options=options)
    expected = generate(model, processor, "Hello.", picture("small"), system="Be brief.", options=options)
    assert generate(model, processor, request) == expected
    assert "".join(piece.text for piece in stream_generate(model, processor, request)) == expected
    beside: dict[str, Any] = {"images": np.zeros((9, 9, 3), np.uint8), "system": "x", "tools": [], "options": options}
    for name, value in {**beside, "control_tokens": True, "max_tokens": 3, "max_image_tokens": 64}.items():
        with pytest.raises(OptionError, match=f"^{name} is given beside a GenerationRequest; put it into the request$"):
            generate(model, processor, request, **{name: value})  # type: ignore[arg-type]


def test_without_a_limit_an_answer_goes_to_the_end_of_the_context(endless, tmp_path):
    folder = Path(shutil.copytree(endless, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 60
    (folder / "config.json").write_text(json.dumps(config))
    *_, last = stream_generate(*load(folder), "Hello.", max_tokens=None)
    assert last.finish_reason == "length" and last.statistics is not None
    assert last.statistics.prompt_tokens + last.statistics.generated_tokens == 60
