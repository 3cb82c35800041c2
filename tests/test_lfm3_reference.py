"""LFM3-VL's processor and models beside transformers' own, on videos of a seed. Needs the extra `reference`."""

import copy
import importlib
import os
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

import mlx_lfm2vl

torch = pytest.importorskip("torch", reason="torch is not installed")
importlib.import_module("tools.reference_shim")  # before transformers
transformers = importlib.import_module("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

FOLDER = GOLDEN / "lfm3"
SEED = int(os.environ.get("MLX_LFM2VL_SEED", "0"))
RNG = np.random.default_rng(SEED)
CLIP = RNG.integers(0, 255, (11, 64, 96, 3), np.uint8)
SHORT = RNG.integers(0, 255, (5, 100, 60, 3), np.uint8)
FRAMES = [Image.fromarray(frame) for frame in CLIP]
PICTURE = Image.fromarray(RNG.integers(0, 255, (90, 70, 3), np.uint8))
VIDEO_TOKENS = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE_TOKENS = "<|vision_start|><|image_pad|><|vision_end|>"
SAID, SAID_SHORT = {"total_num_frames": 11, "fps": 4}, {"total_num_frames": 5, "fps": 2}
ASKED: dict[str, Any] = {"text": [f"{VIDEO_TOKENS}What moves?"], "videos": [CLIP], "video_metadata": [SAID]}
TWO: dict[str, Any] = {"text": [VIDEO_TOKENS, f"a {VIDEO_TOKENS}"], "padding": True}
SIZE = {"shortest_edge": 8192, "longest_edge": 32768}
CALLS: dict[str, dict[str, Any]] = {
    "metadata": ASKED,
    "no metadata": ASKED | {"video_metadata": None},
    "metadata that is no list": ASKED | {"video_metadata": SAID},
    "metadata as an object": ASKED
    | {"video_metadata": [transformers.video_utils.VideoMetadata(total_num_frames=11, fps=4)]},
    "a text and a video": {"text": VIDEO_TOKENS, "videos": CLIP},
    "fps": ASKED | {"fps": 1},
    "more fps than there are": ASKED | {"fps": 30},
    "all frames": ASKED | {"do_sample_frames": False, "video_metadata": None},
    "frames that were sampled": ASKED
    | {"do_sample_frames": False}
    | {"video_metadata": [{"total_num_frames": 100, "fps": 25, "frames_indices": list(range(0, 99, 9))}]},
    "frames": ASKED | {"videos": [FRAMES]},
    "frames without another list": ASKED | {"videos": FRAMES},
    "a tensor": ASKED | {"videos": [torch.from_numpy(CLIP)]},
    "a tensor of channels first": ASKED | {"videos": [torch.from_numpy(CLIP).permute(0, 3, 1, 2)]},
    "an array of channels first": ASKED | {"videos": [CLIP.transpose(0, 3, 1, 2)]},
    "a batch in an array": TWO | {"videos": np.stack([CLIP, CLIP[::-1]]), "video_metadata": [SAID] * 2},
    "several in a text": ASKED
    | {"text": [VIDEO_TOKENS * 2], "videos": [CLIP, SHORT], "video_metadata": [SAID, SAID_SHORT]},
    "a list a text": TWO | {"videos": [[CLIP], [SHORT]], "video_metadata": [[SAID], [SAID_SHORT]]},
    "a picture, too": ASKED | {"text": [f"{IMAGE_TOKENS} and {VIDEO_TOKENS}"], "images": [PICTURE]},
    "token types": ASKED | {"return_mm_token_type_ids": True},
    "size": ASKED | {"videos_kwargs": {"size": SIZE}},
    "a size for both": ASKED | {"text": [IMAGE_TOKENS + VIDEO_TOKENS], "images": [PICTURE], "size": SIZE},
    "a cap for each frame": ASKED | {"cap_pixels_per_frame": True},
    "plain pixels": ASKED | {"videos_kwargs": {"do_normalize": False}},
}


@cache
def processors() -> tuple[Any, Any]:
    return mlx_lfm2vl.Lfm3VlProcessor.from_pretrained(FOLDER), transformers.Lfm3VlProcessor.from_pretrained(FOLDER)


def inputs(**call: Any) -> Any:
    return processors()[1](**(ASKED | call), return_tensors="pt")


def assert_same(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_videos(name):
    ours, theirs = (each(**CALLS[name], return_tensors="pt") for each in processors())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fps": 1},
        {"processor_kwargs": {"video_metadata": [SAID]}},
        {"processor_kwargs": {"do_sample_frames": False}},
    ],
    ids=str,
)
@pytest.mark.parametrize("video", [CLIP, FRAMES], ids=["array", "frames"])
def test_messages_with_videos(video, options):
    if "video_metadata" in options.get("processor_kwargs", {}) and video is FRAMES:
        pytest.skip("the reference takes no metadata of a list of frames")
    turns = [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": "What?"}]}]
    asked = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    assert_same(*(each.apply_chat_template(turns, **asked, **copy.deepcopy(options)) for each in processors()))


@pytest.mark.parametrize("name", ["size", "fps", "min_frames", "max_frames"])
def test_the_video_processor_obeys_what_is_set(name):
    value = {"size": SIZE, "fps": 1, "min_frames": 8, "max_frames": 2}[name]
    made = []
    for kind in (mlx_lfm2vl.AutoProcessor, transformers.AutoProcessor):
        processor: Any = kind.from_pretrained(FOLDER)
        setattr(processor.video_processor, name, value)
        made.append(processor(**ASKED, return_tensors="pt"))
    assert_same(*made)


def test_a_processor_of_parts_is_the_references():
    made = []
    for package, whole in zip((mlx_lfm2vl, transformers), processors(), strict=True):
        parts = {name: getattr(whole, name) for name in ("image_processor", "tokenizer", "video_processor")}
        made.append(package.Lfm3VlProcessor(**parts, chat_template=whole.chat_template))
    assert_same(*(each(**ASKED, return_tensors="pt") for each in made))
    assert made[0].chat_template == made[1].chat_template


def test_names_of_the_processor_are_the_references():
    ours, theirs = processors()
    kinds = ("image", "video", "vision_start", "vision_end")
    for name in [*(f"{kind}_token" for kind in kinds), *(f"{kind}_token_id" for kind in kinds), "model_input_names"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("patch_size", "merge_size", "temporal_patch_size", "fps", "min_frames", "max_frames", "num_frames"):
        assert getattr(ours.video_processor, name) == getattr(theirs.video_processor, name), name
    for name in ("do_sample_frames", "do_resize", "do_rescale", "do_normalize", "resample", "model_input_names"):
        assert getattr(ours.video_processor, name) == getattr(theirs.video_processor, name), name
    assert dict(ours.video_processor.size) == dict(theirs.video_processor.size)
    assert list(ours.video_processor.image_mean) == list(theirs.video_processor.image_mean)


@cache
def models(name: str) -> tuple[Any, Any]:
    return (
        getattr(mlx_lfm2vl, name).from_pretrained(FOLDER, dtype="float32"),
        getattr(transformers, name).from_pretrained(FOLDER, dtype=torch.float32).eval(),
    )


def assert_close(ours: Any, theirs: Any) -> None:
    found, expected = np.array(ours), theirs.detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=4e-5 * np.abs(expected).max())  # of pictures that are noise


@torch.no_grad()
@pytest.mark.parametrize("call", [{}, CALLS["a picture, too"], CALLS["a list a text"] | {"padding_side": "left"}])
@pytest.mark.parametrize("name", ["AutoModelForImageTextToText", "Lfm3VlForConditionalGeneration"])
def test_a_model_answers_about_videos(name, call):
    (ours, theirs), asked = models(name), inputs(**call)
    real = asked["attention_mask"].numpy().astype(bool)
    assert_close(np.array(ours(**asked).logits)[real], theirs(**asked).logits[real])
    greedy = {"max_new_tokens": 12, "do_sample": False}
    np.testing.assert_array_equal(ours.generate(**asked, **greedy), theirs.generate(**asked, **greedy))


@torch.no_grad()
def test_features_are_the_references():
    (ours, theirs), asked = models("Lfm3VlModel"), inputs(**CALLS["a picture, too"])
    assert_close(ours(**asked).last_hidden_state, theirs(**asked).last_hidden_state)
    for method, names in (
        ("get_image_features", ("pixel_values", "image_grid_thw")),
        ("get_video_features", ("pixel_values_videos", "video_grid_thw")),
    ):
        found, expected = (getattr(each, method)(**{name: asked[name] for name in names}) for each in (ours, theirs))
        assert_close(found.last_hidden_state, expected.last_hidden_state)
        assert len(found.pooler_output) == len(expected.pooler_output)
        for one, other in zip(found.pooler_output, expected.pooler_output, strict=True):
            assert_close(one, other)


def test_configurations_are_the_references():
    ours, theirs = (each.Lfm3VlConfig(text_config={"num_hidden_layers": 6}) for each in (mlx_lfm2vl, transformers))
    assert list(ours.text_config.layer_types) == theirs.text_config.layer_types
    for part in ("text_config", "vision_config"):
        other = getattr(theirs, part).to_dict()
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "model_type"):
            assert getattr(ours, part).to_dict()[name] == other[name], name
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "model_type"):
        assert getattr(ours, name) == getattr(theirs, name), name
