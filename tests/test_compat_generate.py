"""`generate` of transformers' classes: its settings against the reference's frozen answers, and what callers give."""

import json
import queue
import threading
import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend

from mlx_lfm2vl import GenerationConfig, TextIteratorStreamer, TextStreamer, load
from mlx_lfm2vl.compat.generation_config import _ONLY
from mlx_lfm2vl.compat.stopping import stop_strings
from mlx_lfm2vl.errors import InputError, OptionError

FROZEN = json.loads((GOLDEN / "generate.json").read_text())
CALLS = {call["name"]: call for call in FROZEN["calls"]}


@cache_by_backend
def loaded():
    return load(GOLDEN / "gen2")


@pytest.fixture
def inputs(golden):
    return golden(FROZEN["case"]).inputs


def answer(given, **settings):
    """The new tokens, as lists."""
    settings = {"max_new_tokens": 6, **settings}
    out = np.array(loaded()[0].generate(**given, **settings))
    return out[:, given["input_ids"].shape[1] :].tolist()


def greedy(count=8):
    return [row[:count] for row in CALLS["max_length"]["tokens"]]


@pytest.mark.sampled(20)
@pytest.mark.backends("mlx", "numpy")
@pytest.mark.filterwarnings("ignore:generate ends after 20 tokens")
@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if "tokens" in call])
def test_settings_give_the_references_tokens(name, inputs):
    model, processor = loaded()
    settings = dict(CALLS[name]["settings"])
    if "stop_strings" in settings:
        settings["tokenizer"] = processor.tokenizer
    out = np.array(model.generate(**inputs, **settings))
    assert out[:, inputs["input_ids"].shape[1] :].tolist() == CALLS[name]["tokens"]


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if "kept" in call])
def test_sampling_draws_from_the_references_scores(name, inputs):
    out = loaded()[0].generate(
        **inputs, **CALLS[name]["settings"], max_new_tokens=1, return_dict_in_generate=True, output_scores=True
    )
    scores = np.array(out.scores[0])
    assert np.isfinite(scores).sum(axis=1).tolist() == CALLS[name]["kept"]
    largest = np.sort(scores, axis=1)[:, ::-1][:, : len(CALLS[name]["largest"][0])]
    np.testing.assert_allclose(largest, CALLS[name]["largest"], rtol=2e-4, atol=2e-4)


def test_a_setting_of_the_call_wins_over_the_configuration(inputs):
    model, _ = loaded()
    assert answer(inputs, generation_config=GenerationConfig(eos_token_id=536), max_new_tokens=8)[0][4:] == [
        536,
        0,
        0,
        0,
    ]
    assert answer(inputs, generation_config={"eos_token_id": 536}, eos_token_id=7, max_new_tokens=8) == greedy()
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=[710], pad_token_id=9)
        out = np.array(model.generate(**inputs))[:, -3:].tolist()
        assert out == [[16, 710, 9], [362, 341, 2]]
        model.generation_config.max_new_tokens = 2
        assert np.array(model.generate(**inputs))[:, -2:].tolist() == [[16, 710], [362, 341]]
    finally:
        model.generation_config = before


@pytest.mark.parametrize("ends", [536, [536], (536,), np.array([536]), np.int64(536), mx.array([536])], ids=repr)
def test_end_tokens_come_as_numbers_lists_and_arrays(ends, inputs):
    assert answer(inputs, eos_token_id=ends, max_new_tokens=24) == CALLS["an end token"]["tokens"]


def test_without_a_length_twenty_tokens_are_made_with_a_warning(inputs):
    with pytest.warns(UserWarning, match="ends after 20 tokens, as transformers does; pass max_new_tokens"):
        out = loaded()[0].generate(**inputs)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 20


def test_sampling_settings_without_sampling_warn(inputs):
    with pytest.warns(UserWarning, match="temperature, top_p: without effect unless do_sample=True"):
        assert answer(inputs, temperature=0.5, top_p=0.9, max_new_tokens=8) == greedy()


def test_scores_and_logits_are_those_of_each_new_token(inputs):
    model, _ = loaded()
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = model.generate(**inputs, max_new_tokens=4, **wanted)
    length = inputs["input_ids"].shape[1]
    assert list(out) == ["sequences", "scores", "logits", "past_key_values"]
    assert len(out.scores) == len(out.logits) == 4 and out.cache.get_seq_length() == length + 3
    assert np.argmax(np.array(mx.stack(out.logits, axis=1)), axis=-1).tolist() == np.array(out[0])[:, length:].tolist()
    banned = model.generate(**inputs, max_new_tokens=1, suppress_tokens=[16], **wanted)
    assert np.array(banned.scores[0])[0, 16] == -np.inf and np.array(banned.logits[0])[0, 16] > 0
    chosen = np.array(model.compute_transition_scores(out.sequences, out.scores))
    np.testing.assert_allclose(chosen, np.array(mx.stack(out.scores, axis=1)).max(axis=-1))
    normal = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert (np.array(normal) < 0).all()
    assert model.generate(**inputs, max_new_tokens=2, use_cache=False, **wanted).past_key_values is None


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_an_earlier_calls_cache_is_continued(name, masked, inputs, golden):
    model, _ = loaded()
    given = inputs if masked else golden("gen2-landscape").inputs
    whole = np.array(model.generate(**given, max_new_tokens=9))
    out = model.generate(**given, max_new_tokens=4, return_dict_in_generate=True)
    text = {"input_ids": out.sequences}
    if masked:
        more = np.ones((2, out.sequences.shape[1] - given["attention_mask"].shape[1]), np.int64)
        text["attention_mask"] = np.concatenate([given["attention_mask"], more], axis=1)
    cache = out.past_key_values
    np.testing.assert_array_equal(np.array(model.generate(**text, **{name: cache}, max_new_tokens=5)), whole)
    assert cache.get_seq_length() == whole.shape[1] - 1
    with pytest.raises(InputError, match=r"past_key_values hold \d+ tokens, and the prompt has no more"):
        model.generate(**text, **{name: cache}, max_new_tokens=5)


def test_only_the_new_tokens_may_be_given_with_a_mask_for_all(golden):
    model, _ = loaded()
    given = golden("gen2-landscape").inputs
    whole = np.array(model.generate(**given, max_new_tokens=9))
    out = model.generate(**given, max_new_tokens=4, return_dict_in_generate=True)
    new, mask = out.sequences[:, -1:], np.ones((1, out.sequences.shape[1]), np.int64)
    rest = model.generate(new, attention_mask=mask, past_key_values=out.past_key_values, max_new_tokens=5)
    assert np.array(rest).tolist() == whole[:, -6:].tolist()


def test_embeddings_stand_in_for_ids(inputs):
    model, _ = loaded()
    embeds = model.get_input_embeddings()(mx.array(inputs["input_ids"]))
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert np.array(model.generate(inputs_embeds=embeds, **others, max_new_tokens=8)).tolist() == greedy()
    both = np.array(model.generate(inputs["input_ids"], inputs_embeds=embeds, **others, max_new_tokens=8))
    assert both.tolist() == np.array(model.generate(**inputs, max_new_tokens=8)).tolist()


@pytest.mark.parametrize("more", [-10, 0, 3, 4, 7])
@pytest.mark.parametrize("cached", [0, 20])
def test_lengths_count_embeddings_as_tokens(cached, more):
    model, _ = loaded()
    ids = np.arange(100, 130)[None]
    embeds, length = model.get_input_embeddings()(mx.array(ids)), ids.shape[1]
    end = int(np.array(model.generate(ids, max_new_tokens=4))[0, -1])
    settings = {"eos_token_id": end, "min_length": length + more, "max_length": length + 8}
    past = {"past_key_values": model(ids[:, :cached]).past_key_values} if cached else {}
    expected = np.array(model.generate(ids, **settings))[:, length:]
    assert (expected.shape[1] == 4) == (more < 4)
    assert np.array(model.generate(inputs_embeds=embeds, **past, **settings)).tolist() == expected.tolist()


def test_pictures_that_were_encoded_before_stand_in_for_pixels(inputs):
    model, _ = loaded()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    features = model.get_image_features(
        inputs["pixel_values"], inputs["spatial_shapes"], inputs["pixel_attention_mask"], return_dict=True
    )
    assert answer({**text, "mm_encoder_outputs": {"image": features}}, max_new_tokens=8) == greedy()


def test_padding_without_a_mask_is_found_by_its_token():
    model, _ = loaded()
    rows = np.array([[0, 0, 500, 501, 502], [1, 500, 501, 502, 503]])
    alone = np.array(model.generate(rows[:1, 2:], max_new_tokens=6))
    assert np.array(model.generate(rows, max_new_tokens=6))[0, 5:].tolist() == alone[0, 3:].tolist()
    with pytest.raises(InputError, match="pads on the right; generation needs padding_side='left'"):
        model.generate(rows, attention_mask=np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), max_new_tokens=2)
    with pytest.raises(InputError, match=r"attention_mask has shape \(2, 4\), input_ids \(2, 5\)"):
        model.generate(rows, attention_mask=np.ones((2, 4)), max_new_tokens=2)


def test_the_prompt_may_be_left_out():
    out = np.array(loaded()[0].generate(max_new_tokens=3))
    assert out.shape == (1, 4) and out[0, 0] == 1


def test_stop_strings_are_found_in_bytes_of_several_tokens():
    tokenizer = loaded()[1].tokenizer
    row = tokenizer.encode("Café", add_special_tokens=False)
    assert tokenizer.decode(row[-1:]) == "�"
    for stop, ends in (("é", True), ("afé", True), ("�", False), ("Caf", False)):
        assert stop_strings(stop, tokenizer)(np.array([row])).tolist() == [ends]
        assert stop_strings("é", tokenizer)(np.array([row[:-1]])).tolist() == [False]
    assert stop_strings(["x", "�"], tokenizer)(np.array([tokenizer.encode("a�")])).tolist() == [True]


def test_functions_of_the_caller_see_ids_and_scores(inputs):
    seen = []

    def only_the_second_best(ids, scores):
        seen.append(ids.shape)
        return mx.where(scores == scores.max(axis=-1, keepdims=True), -mx.inf, scores)

    def ends(ids, scores):
        return ids[:, -1] == 341

    length = inputs["input_ids"].shape[1]
    tokens = answer(inputs, logits_processor=[only_the_second_best], max_new_tokens=3)
    assert seen == [(2, length), (2, length + 1), (2, length + 2)]
    assert tokens[0][0] != 16 and tokens[1][0] != 362
    assert answer(inputs, stopping_criteria=[ends], max_new_tokens=8) == [[*greedy()[0]], [362, 341, 0, 0, 0, 0, 0, 0]]
    assert answer(inputs, stopping_criteria=[lambda ids, scores: ids.shape[1] > length + 2]) == greedy(3)
    allowed = answer(inputs, prefix_allowed_tokens_fn=lambda row, ids: [5 + row], max_new_tokens=2)
    assert allowed == [[5, 5], [6, 6]]
    with pytest.raises(OptionError, match="prefix_allowed_tokens_fn allows no token in row 0"):
        answer(inputs, prefix_allowed_tokens_fn=lambda row, ids: [])


def test_several_answers_are_drawn_for_each_row(inputs):
    drawn = {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0}
    rows = answer(inputs, seed=5, **drawn)
    assert len(rows) == 6 and len({tuple(row) for row in rows}) == 6
    assert answer(inputs, seed=5, **drawn) == rows != answer(inputs, seed=6, **drawn)
    alone = answer(inputs, do_sample=True, temperature=1e-4, num_return_sequences=2)
    assert alone == [row for row in greedy(6) for _ in range(2)]


def test_a_limit_of_time_ends_all_rows(inputs):
    assert answer(inputs, max_time=0.0) == greedy(1)


def test_a_streamer_gets_the_prompt_and_then_each_token(inputs):
    class Streamer(list):
        put = list.append

        def end(self):
            self.append(None)

    got = Streamer()
    answer(inputs, streamer=got, max_new_tokens=2)
    assert [None if value is None else value.tolist() for value in got] == [
        inputs["input_ids"].tolist(),
        [16, 362],
        [710, 341],
        None,
    ]


def test_text_is_streamed_to_stdout_and_to_another_thread(capsys):
    model, processor = load("demo")
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "Describe the image."}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    settings: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None}
    out = model.generate(**inputs, **settings)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.generate(**inputs, **settings, streamer=TextStreamer(processor, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out == text + "\n"
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == text and len(pieces) > 3
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(processor, timeout=0.01))
    with pytest.raises(InputError, match="a TextStreamer takes one answer"):
        TextStreamer(processor).put(np.zeros((2, 3), np.int64))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("two words", ["two ", "words"]),
        ("a\nb c", ["a\n", "b ", "c"]),
        ("한국어 단어", ["한국어 ", "단어"]),
        ("图中有猫。", ["图", "中", "有", "猫", "。"]),
        ("猫がいる、ネコー", ["猫", "が", "い", "る", "、", "ネ", "コ", "ー"]),
        ("แมว", ["แ", "ม", "ว"]),
        ("a 猫 is b", ["a ", "猫", " ", "is ", "b"]),
        ("𠀀豈", ["𠀀", "豈"]),
    ],
)
def test_text_is_streamed_by_words_or_by_characters(text, pieces):
    tokenizer = loaded()[1].tokenizer
    got = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            got.append(text)

    streamer = Streamer(tokenizer)
    for id in tokenizer.encode(text, add_special_tokens=False):
        streamer.put(np.array([id]))
    streamer.end()
    assert [piece for piece in got if piece] == pieces


@pytest.mark.parametrize("name", sorted(_ONLY))
def test_what_is_not_offered_is_one_error_with_the_way_out(name, inputs):
    allowed, way_out = _ONLY[name]
    for value in allowed:
        assert answer(inputs, **{name: value}, max_new_tokens=1) == greedy(1)
    with pytest.raises(OptionError) as caught:
        answer(inputs, **{name: 4})
    assert str(caught.value) == f"{name} is 4, which is not offered; {way_out}"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"max_new_token": 3}, OptionError, "generate has no argument 'max_new_token'"),
        ({"assistant_model": 1}, OptionError, "assistant_model is given, which is not offered; leave it out"),
        ({"max_new_tokens": None, "max_length": 9}, InputError, "has 126 tokens, but max_length is 9; pass max_new"),
        ({"num_return_sequences": 2}, OptionError, "num_return_sequences needs do_sample=True"),
        ({"stop_strings": ["a"]}, OptionError, r"needs the tokenizer: generate\(..., tokenizer=processor.tokenizer\)"),
        ({"do_sample": True, "temperature": 0.0}, OptionError, "expected a number above 0; do_sample=False is greedy"),
        ({"do_sample": True, "top_p": 1.5}, OptionError, "top_p is 1.5, expected a number up to 1"),
        ({"eos_token_id": "end"}, OptionError, "eos_token_id is 'end', expected a token id or a list"),
        ({"max_new_tokens": 2.5}, OptionError, "max_new_tokens is 2.5, expected a whole number from 0"),
        ({"min_length": -1}, OptionError, "min_length is -1, expected a whole number from 0"),
        ({"no_repeat_ngram_size": "2"}, OptionError, "no_repeat_ngram_size is '2', expected a whole number from 0"),
        ({"num_return_sequences": 0}, OptionError, "num_return_sequences is 0, expected at least 1"),
        ({"max_time": "abc"}, OptionError, "max_time is 'abc', expected a number"),
        ({"max_time": float("nan")}, OptionError, "max_time is nan, expected a number"),
        ({"typical_p": [0.5]}, OptionError, r"typical_p is \[0.5\], expected a number"),
        ({"exponential_decay_length_penalty": (1,)}, OptionError, r"penalty is \(1,\), expected a number of tokens"),
        ({"exponential_decay_length_penalty": (1.5, 2)}, OptionError, "penalty is 1.5, expected a whole number from 0"),
        ({"exponential_decay_length_penalty": (1, "2")}, OptionError, "penalty is '2', expected a number"),
        ({"position_ids": np.zeros((2, 126))}, OptionError, "leave them out of generate"),
        ({"past_key_values": ()}, InputError, "past_key_values is tuple, expected a Cache"),
        ({"inputs": np.zeros((1, 2), np.int64)}, InputError, "the prompt is given twice"),
        ({"generation_config": 3}, OptionError, "generation_config is int, expected a GenerationConfig"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, words, inputs):
    with pytest.raises(error, match=words):
        answer(inputs, **settings)


@pytest.mark.parametrize("token", [-1, 832, 10**7])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bad_words_ids", lambda token: {"bad_words_ids": [[token]]}),
        ("bad_words_ids", lambda token: {"bad_words_ids": [[5, token]]}),
        ("sequence_bias", lambda token: {"sequence_bias": {(token,): 2.0}}),
        ("sequence_bias", lambda token: {"sequence_bias": [[[token, 5], 2.0]]}),
        ("forced_bos_token_id", lambda token: {"forced_bos_token_id": token}),
        ("forced_eos_token_id", lambda token: {"forced_eos_token_id": [2, token]}),
        ("eos_token_id", lambda token: {"eos_token_id": token, "exponential_decay_length_penalty": (1, 1.5)}),
        ("pad_token_id", lambda token: {"pad_token_id": token}),
        ("prefix_allowed_tokens_fn", lambda token: {"prefix_allowed_tokens_fn": lambda row, ids: [5, token]}),
    ],
)
def test_tokens_that_the_model_lacks_are_refused_by_name(name, settings, token, inputs):
    with pytest.raises(OptionError, match=f"^{name} holds {token}; the model's vocabulary has ids 0 to 831$"):
        answer(inputs, **settings(token))


@pytest.mark.parametrize("token", [-1, 832, 10**7])
@pytest.mark.parametrize("embedded", [True, False])
def test_prompts_of_tokens_that_the_model_lacks_are_refused(embedded, token):
    model, _ = loaded()
    given = {"inputs_embeds": model.get_input_embeddings()(mx.array([[1, 2]]))} if embedded else {}
    with pytest.raises(InputError, match=f"input_ids holds {token}; the model's vocabulary has ids 0 to 831"):
        model.generate(np.array([[1, token]]), **given, repetition_penalty=1.3, max_new_tokens=2)


def test_end_and_banned_tokens_that_the_model_lacks_never_come(inputs):
    assert answer(inputs, eos_token_id=[-1, 10**7], min_new_tokens=3, suppress_tokens=[-1, 10**7]) == greedy(6)


def test_a_nucleus_of_nothing_is_the_likeliest_token(inputs):
    for top_p in (0, 0.0):
        assert answer(inputs, top_p=top_p, do_sample=True, temperature=9.0, max_new_tokens=8) == greedy()


def test_misspelt_arguments_are_refused_with_what_is_meant(inputs):
    for wrong, meant in {"max_new_token": "max_new_tokens", "temp": "temperature", "stream": "streamer"}.items():
        with pytest.raises(OptionError, match=rf"no argument {wrong!r} that this model uses; did you mean {meant}\?"):
            answer(inputs, **{wrong: 1})


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, mx.array], ids=str)
def test_numbers_of_every_kind_are_taken(kind, inputs):
    given = {name: kind(count) for name, count in (("num_return_sequences", 2), ("max_new_tokens", 3))}
    decay = (kind(1), np.float32(1.5))
    drawn = answer(inputs, **given, do_sample=True, seed=1, exponential_decay_length_penalty=decay)
    assert len(drawn) == 4 and len(drawn[0]) == 3
    assert answer(inputs, exponential_decay_length_penalty=np.array([1, 1.5])) == answer(
        inputs, exponential_decay_length_penalty=decay
    )


def test_a_generation_configuration_is_saved_updated_and_compared(tmp_path):
    made = GenerationConfig(max_new_tokens=5, top_k=np.int64(3), own="kept")
    assert made.update(temperature=0.5, anything=1) == {"anything": 1}
    made.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path, top_p=0.5)
    assert again.to_dict() == {"max_new_tokens": 5, "own": "kept", "temperature": 0.5, "top_k": 3, "top_p": 0.5}
    assert again != made and json.loads(made.to_json_string()) == made.to_dict()
    assert GenerationConfig().do_sample is None and GenerationConfig(eos_token_id=7).eos_token_ids == (7,)


def test_nothing_is_warned_of_in_a_plain_call(inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(inputs, do_sample=False)
