"""LFM3-VL: every stage against the reference's frozen numbers, greedy tokens, caches, batches, the window."""

import re
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, case_ids, picture
from servers import EXAMPLES, about, serving, settings_of
from videos import write_video

from mlx_lfm2vl import (
    AutoProcessor,
    Chat,
    Completion,
    Engine,
    GenerationOptions,
    GenerationRequest,
    Lfm3VlProcessor,
    PromptCache,
    explain,
    generate,
    generate_batch,
    load,
    load_video,
    stream_generate,
)
from mlx_lfm2vl.config import Lfm3Config
from mlx_lfm2vl.errors import OptionError, PromptError
from mlx_lfm2vl.generation.chunked_prefill import key_bytes
from mlx_lfm2vl.models.cache import Cache

FOLDER = GOLDEN / "lfm3"
CLOSE = 2e-5  # of the largest number of an array
PICTURES = case_ids("lfm3", having="pictures")
GENERATED = case_ids("lfm3", having="generated")
GREEDY = GenerationOptions(max_tokens=24, temperature=0)
POLICY = ("size", "min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens")

pytestmark = pytest.mark.backends("mlx", "numpy")


@cache_by_backend
def loaded() -> Loaded:
    return load(FOLDER)


def assert_close(ours: Any, reference: np.ndarray, what: str) -> None:
    ours = np.array(ours)
    assert ours.shape == reference.shape, what
    error = np.abs(ours - reference).max() / np.abs(reference).max()
    assert error < CLOSE, f"{what}: relative error {error:.1e}"


def answers(requests: list[GenerationRequest], **caches: Any) -> list[list[int]]:
    model, processor = loaded()
    made = generate_batch(model, processor, requests, batch_size=len(requests), **caches)
    return [list(answer.tokens) for answer in made]


# The reference's numbers


@pytest.mark.parametrize("case_id", case_ids("lfm3"))
def test_ids_and_pixels_are_the_references(case_id, golden):
    case = golden(case_id)
    made = loaded()[1].apply_chat_template(
        case.conversations, tokenize=True, add_generation_prompt=True, return_dict=True, **case.call_options
    )
    assert made.keys() == case.inputs.keys()
    for name, expected in case.inputs.items():
        np.testing.assert_array_equal(made[name], expected, err_msg=name)


@pytest.mark.parametrize("case_id", PICTURES)
def test_vision_stages(case_id, golden):
    case = golden(case_id)
    body = loaded()[0].model
    patches = mx.array(case.inputs["pixel_values"])
    features = body.get_image_features(patches, case.inputs["image_grid_thw"])
    grids = [(h, w) for _, h, w in case.arrays["image_grid_thw"].tolist()]
    states: list[mx.array] = []
    output = body.vision_tower(patches[None], grids, states)
    rows = case.arrays["patch_rows"]
    for index, expected in enumerate(case.arrays["vision_hidden_states"]):
        assert_close(states[index][0, mx.array(rows)], expected, f"vision layer {index}")
    assert_close(output[0, mx.array(rows)], case.arrays["vision_output"], "vision output")
    tokens = mx.concatenate(features.pooler_output)[mx.array(case.arrays["feature_rows"])]
    assert_close(tokens, case.arrays["image_features"], "projector")


@pytest.mark.parametrize("case_id", case_ids("lfm3"))
def test_language_stages_logits_and_loss(case_id, golden):
    case = golden(case_id)
    out: Any = loaded()[0](**case.inputs, labels=case.arrays["labels"], output_hidden_states=True)
    prompts, positions = case.arrays["token_rows"].T
    for index, (ours, expected) in enumerate(zip(out.hidden_states, case.arrays["hidden_states"], strict=True)):
        assert_close(np.array(ours)[prompts, positions], expected, f"layer {index}")
    assert_close(np.array(out.logits)[prompts, positions], case.arrays["logits"], "logits")
    assert_close(out.loss, case.arrays["loss"], "loss")


@pytest.mark.parametrize("case_id", ["lfm3-text", "lfm3-small", "lfm3-strip"])  # prompts of at most 48 tokens
def test_attention_weights(case_id, golden):
    case = golden(case_id)
    out: Any = loaded()[0](**case.inputs, output_attentions=True)
    real = case.arrays["attention_mask"].astype(bool)
    for ours, expected in zip(out.attentions, case.arrays["attentions"], strict=True):
        for row, keep in enumerate(real):
            assert_close(np.array(ours)[row][:, keep], expected[row][:, keep], "attention weights")


def test_greedy_tokens_of_a_batch_of_all_are_the_references(golden):
    cases = [golden(case_id) for case_id in GENERATED]
    requests = [
        GenerationRequest(turns, options=GREEDY, image_overrides=case.options)
        for case in cases
        for turns in case.conversations
    ]
    made = iter(answers(requests))
    ours = {case.id: [next(made) for _ in case.conversations] for case in cases}
    assert ours == {case.id: case.arrays["generated"].tolist() for case in cases}


@pytest.mark.parametrize("case_id", ["lfm3-batch-left", "lfm3-batch-text", "lfm3-batch-video", "lfm3-videos"])
def test_transformers_generate_gives_the_references_tokens(case_id, golden):
    case = golden(case_id)
    model, _ = loaded()
    made = np.array(model.generate(**case.inputs, max_new_tokens=24, do_sample=False))
    np.testing.assert_array_equal(made[:, case.arrays["input_ids"].shape[1] :], case.arrays["generated"])


@pytest.mark.parametrize("sampled", [False, True])
def test_the_processors_call_takes_videos_as_the_reference(sampled, golden):
    case = golden("lfm3-videos")
    _, processor = loaded()
    videos, metadata = [], []
    for name in ("slow", "odd"):
        video = load_video(GOLDEN / "videos" / f"{name}.png")
        indices = video.indices(2, 4, 24) if sampled else range(video.count)
        videos.append(np.stack([np.asarray(frame) for frame in video.read(indices)]))
        metadata.append({"fps": video.frame_rate, "total_num_frames": video.count, "frames_indices": indices})
    made = processor(
        *(case.pictures[0], case.prompts, videos),
        video_metadata=metadata,
        videos_kwargs={"do_sample_frames": not sampled},
        return_mm_token_type_ids=True,
    )
    for name, expected in case.inputs.items():
        np.testing.assert_array_equal(made[name], expected, err_msg=name)
    kinds = np.select([made["input_ids"] == id for id in processor.placeholder_ids], [1, 2])
    np.testing.assert_array_equal(made["mm_token_type_ids"], kinds)


def test_options_of_videos_reach_those_in_messages(golden):
    _, processor = loaded()
    turns = golden("lfm3-video").conversations[0]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True}
    counts = [
        int(processor.apply_chat_template(turns, **options, **more)["video_grid_thw"][0, 0])
        for more in ({}, {"fps": 4}, {"num_frames": 2}, {"processor_kwargs": {"videos_kwargs": {"fps": 8}}})
    ]
    assert counts == [3, 6, 1, 12]


def test_the_sampling_of_a_video_item_is_obeyed(golden):
    _, processor = loaded()
    for sampling, groups in (({"fps": 4}, 6), ({"num_frames": 2}, 1), ({}, 3)):
        item = {"type": "video", "video": GOLDEN / "videos" / "clip.png", **sampling}
        made = processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True, return_dict=True)
        assert made["video_grid_thw"][0, 0] == groups


def test_metadata_may_say_the_rate_alone():
    processor: Any = loaded()[1]
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    made = processor(text=processor.video_token, videos=[frames], video_metadata={"fps": 8})
    messages = [{"role": "user", "content": [{"type": "video", "video": frames}]}]
    other = processor.apply_chat_template(messages, tokenize=True, return_dict=True, video_metadata={"fps": 8})
    assert made["video_grid_thw"][0, 0] == other["video_grid_thw"][0, 0] == 2
    assert "<0.3 seconds>" in processor.decode(other["input_ids"][0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"video_metadata": [{"fps": 8}] * 2}, "video_metadata has 2 entries for 1 videos"),
        ({"video_metadata": [8]}, "video_metadata holds int, expected a mapping"),
        (
            {"processor_kwargs": {"videos_kwargs": {"num_frame": 1}}},
            "'num_frame' is neither .*; did you mean num_frames",
        ),
        ({"processor_kwargs": {"videos_kwargs": [1]}}, "videos_kwargs is list, expected a mapping"),
        ({"return_metadata": True}, "return_metadata is True, which is not offered; a video of"),
        ({"processor_kwargs": {"videos_kwargs": {"return_metadata": True}}}, "return_metadata is True, which is not"),
    ],
)
def test_options_of_videos_that_say_nothing_are_refused(options, says):
    _, processor = loaded()
    messages = [{"role": "user", "content": [{"type": "video", "video": GOLDEN / "videos" / "clip.png"}]}]
    with pytest.raises(OptionError, match=says):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


@pytest.mark.parametrize(
    "videos", ["channels first", "an array of both", "a list a text", "files"], ids=lambda name: name.replace(" ", "-")
)
def test_videos_are_the_same_however_their_arrays_lie(videos, golden, tmp_path):
    processor: Any = loaded()[1]
    clip = np.stack([np.asarray(each) for each in load_video(GOLDEN / "videos" / "clip.png").read(range(8))])
    said = {"fps": 4}
    texts, given = [processor.video_token] * 2, list[Any]([clip, clip[::-1]])
    if videos == "files":
        given = [write_video(tmp_path / f"{at}.mp4", each, 4) for at, each in enumerate(given)]
    expected = processor(text=texts, videos=given, video_metadata=[said] * 2)
    other, metadata = {
        "channels first": lambda: ([each.transpose(0, 3, 1, 2) for each in given], [said] * 2),
        "an array of both": lambda: (np.stack(given), [said] * 2),
        "a list a text": lambda: ([[each] for each in given], [[said]] * 2),
        "files": lambda: ([[str(each)] for each in given], [[said]] * 2),
    }[videos]()
    made = processor(text=texts, videos=other, video_metadata=metadata)
    for name, value in expected.items():
        np.testing.assert_array_equal(made[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, [3, 6, 10]),
        ({"max_frames": 2}, [1, 6, 10]),
        ({"videos_kwargs": {"min_frames": 8}}, [4, 4, 8]),
        ({"min_frames": 8, "max_frames": 4}, [2, 6, 10]),
        ({"videos_kwargs": {"size": {"shortest_edge": 1024, "longest_edge": 6 * 4096}}}, [3, 2, 4]),
        ({"size": {"shortest_edge": 1024, "longest_edge": 6 * 4096}}, [3, 2, 4]),
        ({"cap_pixels_per_frame": True, "max_video_tokens": 4}, [3, 4, 6]),
    ],
)
def test_a_call_may_set_fields_of_the_video_policy(options, grid):
    processor: Any = AutoProcessor.from_pretrained(FOLDER)
    video = load_video(GOLDEN / "videos" / "clip.png")
    made = processor(text=processor.video_token, videos=video, **options)
    assert made["video_grid_thw"].tolist() == [grid]
    flat = {name: value for name, value in (options | options.get("videos_kwargs", {})).items() if name in POLICY}
    for name, value in flat.items():
        setattr(processor.video_processor, name, value)
    assert processor(text=processor.video_token, videos=video)["video_grid_thw"].tolist() == [grid]


def test_a_processor_is_made_of_its_parts():
    whole, fewer = (Lfm3VlProcessor.from_pretrained(FOLDER) for _ in range(2))
    fewer.video_processor.max_frames = 2
    parts = (whole.image_processor, whole.tokenizer, fewer.video_processor)
    made = Lfm3VlProcessor(*parts, chat_template=whole.chat_template)
    video = load_video(GOLDEN / "videos" / "clip.png")
    asked = {"text": made.video_token, "videos": video}
    assert made(**asked)["video_grid_thw"].tolist() == fewer(**asked)["video_grid_thw"].tolist() == [[1, 6, 10]]
    assert made.chat_template == whole.chat_template


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fps", 0, "fps"),
        ("frames", 4, "no option 'frames'"),
        ("size", {"height": 4}, "an object of shortest_edge and longest_edge"),
        ("patch_size", 8, "patch_size"),
    ],
)
def test_a_video_policy_refuses_what_makes_no_sense(name, value, says):
    processor: Any = AutoProcessor.from_pretrained(FOLDER)
    with pytest.raises(OptionError, match=says):
        setattr(processor.video_processor, name, value)


def test_a_token_without_a_video_is_refused():
    processor: Any = loaded()[1]
    tokens = re.escape(f"{processor.image_token} or {processor.video_token}")
    with pytest.raises(PromptError, match=f"1 {tokens} placeholder for 0 pictures and videos; one each"):
        processor(text=processor.video_token)


def test_more_arrays_than_tokens_of_pictures_are_refused():
    _, processor = loaded()
    with pytest.raises(PromptError, match="than the 2 pictures and 0 videos"):
        processor([np.zeros((32, 32, 3), np.uint8)] * 2, processor.image_token, videos=[])


def test_a_saved_processor_is_the_same(tmp_path, golden):
    _, processor = loaded()
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor) and again.image_processor.config == processor.image_processor.config
    turns = golden("lfm3-videos").conversations
    ids = [each.apply_chat_template(turns, tokenize=True) for each in (again, processor)]
    np.testing.assert_array_equal(*ids)


# Caches


@pytest.mark.parametrize("case_id", ["lfm3-long", "lfm3-several"])
def test_a_warm_prompt_is_answered_as_a_cold_one(case_id, golden):
    case = golden(case_id)
    model, processor = loaded()
    cache = PromptCache()
    turns = case.conversations[0]
    for _ in range(2):
        responses = list(stream_generate(model, processor, turns, max_tokens=24, temperature=0, prompt_cache=cache))
        answer = Completion.of(responses)
        assert list(answer.tokens) == case.arrays["generated"][0].tolist()
    assert answer.statistics is not None
    assert answer.statistics.cached_tokens == case.arrays["input_ids"].shape[1]


def test_a_kept_prompt_continues_in_another_cache(tmp_path, golden):
    case = golden("lfm3-long")
    model, processor = loaded()
    for expected in (0, case.arrays["input_ids"].shape[1]):
        cache = PromptCache(folder=tmp_path)
        responses = stream_generate(
            model, processor, case.conversations[0], max_tokens=24, temperature=0, prompt_cache=cache
        )
        answer = Completion.of(list(responses))
        assert answer.statistics is not None
        assert list(answer.tokens) == case.arrays["generated"][0].tolist()
        assert answer.statistics.cached_tokens == expected


def test_a_rewound_cache_continues_as_if_nothing_had_followed(golden):
    ids = golden("lfm3-long").arrays["input_ids"]
    model, _ = loaded()
    for at in (5, 23, 24, 25, 60):  # before, at and behind the window's length
        cache = Cache(model.config.text_config)
        model(ids[:, :at], past_key_values=cache)
        point = cache.checkpoint()
        model(ids[:, at + 3 : at + 60], past_key_values=cache)
        cache.rewind(point)
        again: Any = model(ids[:, at : at + 40], past_key_values=cache)
        whole: Any = model(ids[:, : at + 40], use_cache=False)
        assert_close(again.logits, np.array(whole.logits[:, at:]), f"behind {at} tokens")


def test_the_window_keeps_no_more_than_its_length(golden):
    ids = golden("lfm3-long").arrays["input_ids"]
    model, _ = loaded()
    cache = Cache(model.config.text_config)
    for at in range(0, 96, 12):
        model(ids[:, at : at + 12], past_key_values=cache)
        for kind, layer in zip(model.config.text_config.layer_types, cache.layers, strict=True):
            if kind == "sliding_attention":
                assert [array.shape[2] for array in layer.states] == [min(at + 12, 23)] * 2


@pytest.mark.parametrize("right", [0, 1, 3, 8])
def test_drafts_change_no_answer_across_the_window(right, golden):
    case = golden("lfm3-long")
    model, processor = loaded()
    expected, prompt = case.arrays["generated"][0].tolist(), case.arrays["input_ids"].shape[1]

    def draft(tokens: Sequence[int], count: int) -> list[int]:
        """The right tokens, of which those behind the first `right` are made wrong."""
        following = expected[len(tokens) - prompt :][:count]
        return [token if at < right else (token + 1) % 600 for at, token in enumerate(following)]

    options = GenerationOptions(max_tokens=24, temperature=0, draft=draft)
    answer = Completion.of(list(stream_generate(model, processor, case.conversations[0], options=options)))
    assert answer.statistics is not None
    assert list(answer.tokens) == expected
    assert (answer.statistics.model_steps < 24) == (right > 0)


def test_a_chat_answers_each_turn_as_the_whole_conversation():
    model, processor = loaded()
    chat = Chat(model, processor, options=GREEDY)
    for text, images in (
        ("What is this?", [picture("small")]),
        ("And now? " * 20, []),
        ("And here?", [picture("tall")]),
    ):
        asked = [*chat.messages, {"role": "user", "content": [{"type": "image", "image": each} for each in images]}]
        asked[-1]["content"] += [{"type": "text", "text": text}]
        cold = Completion.of(list(stream_generate(model, processor, asked, options=GREEDY)))
        warm = Completion.of(list(chat.stream(text, images=images)))
        assert warm.tokens == cold.tokens


def test_an_engine_answers_as_the_reference(golden):
    cases = [golden(name) for name in ("lfm3-long", "lfm3-several", "lfm3-text")]
    with Engine(loaded) as engine:
        requests = [engine.submit(case.conversations[0], options=GREEDY) for case in cases]
        for case, request in zip(cases, requests, strict=True):
            assert list(request.result().tokens) == case.arrays["generated"][0].tolist()


def test_the_memory_of_a_long_context_is_as_the_page_says():
    text = Lfm3Config()
    assert text.keys_kept(32768) * key_bytes(text, 2) == 405_274_624
    assert "| 0.41 GB (2B: 6 layers of 4 heads of 128" in (FOLDER.parents[2] / "docs" / "checkpoints.md").read_text()


def test_a_server_answers_as_the_library():
    model, processor = loaded()
    with serving(settings_of(FOLDER)) as server:
        create = server.openai().chat.completions.create
        least = {"max_image_tokens": 4, "min_image_tokens": 4}
        policies: tuple[tuple[str, dict[str, Any]], ...] = (("auto", {}), ("low", least), ("high", {}))
        for detail, overrides in policies:
            asked = about("scene", "What?", detail=detail)
            made = create(model="lfm3", messages=asked, max_tokens=8, temperature=0)
            scene = EXAMPLES / "scene.png"
            expected = generate(model, processor, "What?", scene, max_tokens=8, temperature=0, **overrides)
            assert made.choices[0].message.content == expected


def test_an_explanation_shows_every_attention_layer(golden):
    case = golden("lfm3-several")
    model, processor = loaded()
    made = explain(model, processor, case.conversations[0], max_tokens=6, temperature=0, per_head=True)
    ids = np.concatenate([case.arrays["input_ids"][0], made.tokens])[None]
    out: Any = model(**{**case.inputs, "input_ids": ids, "attention_mask": None}, output_attentions=True)
    assert made.layers == (1, 3, 4) and len(out.attentions) == 3
    image = np.flatnonzero(ids[0] == model.config.image_token_id)
    asked = slice(case.arrays["input_ids"].shape[1] - 1, ids.shape[1] - 1)
    for layer, weights in enumerate(out.attentions):
        expected = np.array(weights)[0, :, asked][..., image]
        ours = np.concatenate([each[layer].reshape(*each.shape[1:3], -1) for each in made.attention], axis=-1)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        unseen = (expected == 0).all(axis=(0, 1))
        assert unseen.any() == (made.layers[layer] != 3)  # most of the pictures lie before the windows
