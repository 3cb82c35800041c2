"""Videos: files, animations, lists and arrays of frames; frames that are seen; models without video tokens."""

import base64
import functools
import io
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, cache_by_backend, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from videos import CLIP, clip_uri, write_video

from mlx_lfm2vl import (
    Chat,
    Engine,
    GenerationOptions,
    GenerationRequest,
    SourcePolicy,
    detect,
    explain,
    generate,
    load,
    load_image,
    load_video,
)
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.config import Lfm3VlVideoProcessorConfig
from mlx_lfm2vl.errors import ImageError, ImageWarning, OptionError, PromptError
from mlx_lfm2vl.generation.request import encode
from mlx_lfm2vl.processing import video as video_module
from mlx_lfm2vl.processing import video_file
from mlx_lfm2vl.processing.lfm3_geometry import video_plan
from mlx_lfm2vl.processing.video import Video

GREEDY = GenerationOptions(max_tokens=16, temperature=0)
SAMPLING = (2.0, 4, 768)
PNG = base64.b64encode((GOLDEN / "pictures" / "small.png").read_bytes()).decode()


@cache_by_backend
def loaded(checkpoint: str) -> Any:
    return load(GOLDEN / checkpoint)


def frames_of(video: Video) -> list[np.ndarray]:
    return [np.asarray(frame) for frame in video.read(range(video.count))]


# Sources


def test_an_animation_has_its_frames_and_their_rate():
    video = load_video(CLIP)
    assert (video.count, video.frame_rate) == (24, 8.0)
    frames = frames_of(video)
    assert {frame.shape for frame in frames} == {(96, 160, 3)}
    np.testing.assert_array_equal(frames[0], np.asarray(picture("photo"))[:96, :160])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_in_memory_are_read(kind):
    frames = [Image.new("RGB", (40, 30), (20 * n, 0, 0)) for n in range(5)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=250, lossless=True)
    video = load_video(file.getvalue())
    assert (video.count, video.frame_rate) == (5, 4.0)
    assert [frame[0, 0, 0] // 20 for frame in frames_of(video)] == [0, 1, 2, 3, 4]


def test_a_file_gives_its_frames_in_order(tmp_path):
    frames = [np.full((48, 64, 3), 30 * n, np.uint8) for n in range(8)]
    video = load_video(write_video(tmp_path / "a.mp4", frames, 4))
    assert (video.count, video.frame_rate) == (8, 4.0)
    assert [round(frame.mean() / 30) for frame in frames_of(video)] == list(range(8))
    assert [round(np.asarray(frame).mean() / 30) for frame in video.read([1, 6])] == [1, 6]


def test_lists_and_arrays_of_frames_are_videos():
    frames = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    for source in (frames, list(frames), [Image.fromarray(frame) for frame in frames]):
        video = load_video(source, frame_rate=3)
        assert (video.count, video.frame_rate) == (6, 3)
        np.testing.assert_array_equal(np.stack(frames_of(video)), frames)


def test_frames_without_a_rate_are_taken_for_24_a_second():
    with pytest.warns(ImageWarning, match="24 frames a second are assumed"):
        assert load_video(np.zeros((6, 20, 30, 3), np.uint8)).frame_rate == 24


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((6, 20, 30), np.uint8), r"expected \(frames, height, width, 3\)"),
        ([], "the list of frames: has no frames"),
        ("nowhere.mp4", "nowhere.mp4: no such video"),
        (b"GIF89a broken", "is no animation that can be read"),
        (3, "of type int cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::mlx_lfm2vl.ImageWarning")
def test_what_is_no_video_is_refused(source, words):
    with pytest.raises(ImageError, match=words):
        load_video(source)


def test_a_damaged_file_is_refused(tmp_path):
    file = write_video(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8, 4)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"a\.mp4: is no video that can be read"):
        load_video(file)


def test_a_file_without_pictures_says_so(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match=r"a\.mp4: has no pictures that move; give a video file$"):
        load_video(tmp_path / "a.mp4")


def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch):
    write_video(tmp_path / "other.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8, 4)
    monkeypatch.chdir(tmp_path)  # in which FFmpeg would look
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n"
    for source in (playlist, "ffconcat version 1.0\nfile other.mp4\n"):
        with pytest.raises(ImageError, match="is no video that can be read"):
            load_video(source.encode())


def test_an_animation_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(video_module, "MOST_PIXELS", 24 * 160 * 96 - 1)
    with pytest.raises(ImageError, match="its 24 frames have more than 368,639 pixels together"):
        load_video(CLIP)


def test_a_policy_forbids_paths_and_bounds_frames():
    with pytest.raises(ImageError, match="local paths are not allowed here"):
        load_video(CLIP, policy=SourcePolicy(allow_paths=False))
    with pytest.raises(ImageError, match="160x96"):
        load_video(CLIP, policy=SourcePolicy(max_pixels=1000))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": True}, "fps is True"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"fps": 1, "num_frames": 4}, "exclude each other"),
        ({"frame_rate": float("nan")}, "frame_rate is nan"),
    ],
)
def test_numbers_that_are_none_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        load_video(CLIP, **options)


# Frames that are seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 5, 9, 14, 18, 23]),  # 3 seconds, 2 of each
        ({"fps": 1}, [0, 8, 15, 23]),  # the least is 4
        ({"num_frames": 3}, [0, 12, 23]),
        ({"fps": 100}, list(range(24))),
    ],
)
def test_frames_are_sampled_evenly_in_time(options, expected):
    assert load_video(CLIP, **options).indices(*SAMPLING) == expected


@given(st.integers(1, 5000), st.floats(0.5, 240), st.floats(0.1, 60), st.integers(1, 768))
def test_sampled_frames_rise_and_reach_both_ends(count, rate, fps, most):
    chosen = Video("v", count, rate).indices(fps, 1, most)
    assert chosen == sorted(chosen) and len(chosen) <= min(most, count)
    assert not chosen or (chosen[0] == 0 and (len(chosen) == 1 or chosen[-1] == count - 1))


@given(st.integers(2, 768), st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_a_plan_keeps_to_its_budget_and_covers_all_frames(frames, height, width, capped):
    config = Lfm3VlVideoProcessorConfig(cap_pixels_per_frame=capped)
    try:
        plan = video_plan([n / 30 for n in range(frames)], height, width, config)
    except ImageError:
        assert max(height, width) > 190 * min(height, width)
        return
    assert plan.height % 32 == plan.width % 32 == 0
    if not capped and min(plan.height, plan.width) > 32:
        assert frames * plan.height * plan.width <= config.max_pixels
    assert len(plan.times) == len(plan.spatial_shapes) == -(-frames // 2)
    assert plan.tokens == len(plan.times) * plan.tokens_for_image
    assert list(plan.times) == sorted(plan.times)


# Models


def test_a_model_without_video_tokens_sees_labelled_frames():
    model, processor = loaded("gen2")
    video = load_video(CLIP, num_frames=3)
    frames = [frame.copy() for frame in video.read([0, 12, 23])]
    content = [each for n, frame in enumerate(frames, 1) for each in (text(f"Media-{n}: "), image(frame))]
    asked = [{"role": "user", "content": [*content, text("What moves?")]}]
    ours = encode(model, processor, GenerationRequest("What moves?", videos=video))
    np.testing.assert_array_equal(ours.ids, encode(model, processor, GenerationRequest(asked)).ids)
    assert len(ours.pictures) == 3


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(frame: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": frame}


def test_a_text_without_ids_has_the_frames_of_a_video():
    _, processor = loaded("gen2")
    asked = [{"role": "user", "content": [{"type": "video", "video": CLIP, "num_frames": 2}, text("What?")]}]
    written = processor.apply_chat_template(asked, tokenize=False)
    token = processor.image_token
    assert f"Media-1: {token}Media-2: {token}What?" in written


@pytest.mark.backends("mlx", "numpy")
def test_a_video_is_answered_alike_however_it_is_given(golden):
    model, processor = loaded("lfm3")
    frames = np.stack(frames_of(load_video(CLIP)))
    expected = golden("lfm3-video").generated_text[0]
    for video in (CLIP, str(CLIP), CLIP.read_bytes(), load_video(frames, frame_rate=8)):
        assert generate(model, processor, "What moves?", videos=video, max_tokens=24, temperature=0) == expected
    other = generate(model, processor, "What moves?", videos=load_video(CLIP, fps=4), max_tokens=24, temperature=0)
    assert other != expected


def test_several_videos_and_pictures_stand_in_their_order():
    model, processor = loaded("lfm3")
    request = GenerationRequest("Which?", images=picture("small"), videos=[CLIP, GOLDEN / "videos" / "odd.png"])
    prompt = encode(model, processor, request)
    kinds = [int(prompt.ids[end - 1]) for _, end in prompt.places]
    assert kinds == [model.config.image_token_id, model.config.video_token_id, model.config.video_token_id]
    assert [len(each.spatial_shapes) for each in prompt.pictures] == [1, 3, 4]


def test_a_video_item_without_a_single_source_is_refused():
    model, processor = loaded("lfm3")
    item = {"type": "video", "video": CLIP, "path": str(CLIP)}
    with pytest.raises(PromptError, match="holds 2 videos"):
        generate(model, processor, [{"role": "user", "content": [item]}])


# Conversations


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("checkpoint", ["lfm3", "gen2"])
def test_a_turn_with_a_video_is_answered_as_one_question(checkpoint):
    model, processor = loaded(checkpoint)
    chat = Chat(model, processor, options=GREEDY)
    item = {"type": "video", "video": CLIP, "fps": 1}
    asked: list[dict[str, Any]] = [{"role": "user", "content": [item, text("What moves?")]}]
    first = chat.ask("What moves?", videos={"path": str(CLIP), "fps": 1})
    assert first == generate(model, processor, asked, options=GREEDY)
    asked += [{"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    assert chat.ask("And then?") == generate(model, processor, asked, options=GREEDY)


@pytest.mark.parametrize("checkpoint", ["lfm3", "gen2"])
def test_a_saved_conversation_keeps_what_was_seen_of_a_video(checkpoint, tmp_path):
    model, processor = loaded(checkpoint)
    frames = np.random.default_rng(0).integers(0, 256, (9, 100, 150, 3), np.uint8)  # of an odd number of frames
    chat = Chat(model, processor, options=GREEDY)
    chat.ask("What moves?", picture("small"), videos=load_video(frames, frame_rate=3, num_frames=5))
    chat.save(tmp_path / "a.json")
    frames[:] = 0
    other = Chat(model, processor, options=GREEDY)
    other.load(tmp_path / "a.json")
    again = [response.text for response in other.retry()]
    assert "".join(again) == chat.messages[-1]["content"] == "".join(each.text for each in chat.retry())
    (asked, _), (kept, _) = chat.messages, other.messages
    assert [item["type"] for item in kept["content"]] == ["image", "video", "text"]
    one, two = asked["content"][1]["video"], kept["content"][1]["video"]
    assert (one.numbers, one.frame_rate, one.size) == (two.numbers, two.frame_rate, two.size)
    np.testing.assert_array_equal(np.stack(frames_of(one)), np.stack(frames_of(two)))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"frames": [], "frame_rate": 2, "numbers": []}, "a video without frames"),
        ({"frames": ["a"], "frame_rate": 0, "numbers": [0]}, "a video without frames"),
        ({"frames": ["a"], "frame_rate": 2, "numbers": [1, 0]}, "a video without frames"),
        ({"frames": ["a"], "frame_rate": 2, "numbers": [0], "size": [0, 3]}, "of the size 0x3"),
        ({"frames": ["a"], "frame_rate": 2, "numbers": [0], "size": [10**9, 10**9]}, "of the size 10000"),
        ({"frames": ["a"], "frame_rate": 2, "numbers": [0], "size": "all"}, "a video whose size is 'all'"),
        ({"frames": ["aGVsbG8="], "frame_rate": 2, "numbers": [0]}, "not a picture"),
        ({"frames": [PNG], "frame_rate": 2, "numbers": [0], "name": 3}, r"a video whose name is 3\)"),
    ],
)
def test_a_saved_video_that_makes_no_sense_is_refused(item, words, tmp_path):
    message = {"role": "user", "content": [{"type": "video", **item}]}
    (tmp_path / "a.json").write_text(json.dumps({"format": 1, "messages": [message]}))
    with pytest.raises(PromptError, match=words):
        Chat(*loaded("gen2")).load(tmp_path / "a.json")


def test_an_engine_s_conversation_sees_a_video():
    model, processor = loaded("lfm3")
    expected = generate(model, processor, "What moves?", videos=CLIP, options=GREEDY)
    with Engine(GOLDEN / "lfm3") as engine:
        chat = engine.chat(options=GREEDY)
        assert chat.ask("What moves?", videos=CLIP) == expected
        assert chat.ask("And then?") == engine.generate(
            [*chat.messages[:2], {"role": "user", "content": "And then?"}], options=GREEDY
        )


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ({"path": "a.mp4", "film": "b.mp4"}, r"videos\[0\] is of type 'video' and has 'film', which is not read"),
        ({"fps": 2}, "holds 0 videos"),
    ],
)
def test_a_video_s_fields_are_refused_by_name(video, words):
    model, processor = loaded("lfm3")
    for ask in (Chat(model, processor).ask, functools.partial(generate, model, processor)):
        with pytest.raises(PromptError, match=words):
            ask("What?", videos=[video])


def test_frames_that_are_pictures_are_bounded_together(monkeypatch):
    monkeypatch.setattr(video_module, "MOST_PICTURES", 4 * 160 * 96 - 1)
    with pytest.raises(ImageError, match="its frames of 160x96 have more than 61,439 pixels together; give fewer"):
        answer: Any = generate
        answer(*loaded("gen2"), "What?", videos=load_video(CLIP, num_frames=4))


def test_a_policy_bounds_the_frames_that_are_decoded(tmp_path):
    file = write_video(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8, 4)
    with pytest.raises(ImageError, match=r"a\.mp4: its frames have more than 24,575 pixels together"):
        load_video(file, policy=SourcePolicy(max_video_pixels=8 * 48 * 64 - 1))
    lying = load_video(file)  # as if its header had said less
    with pytest.raises(ImageError, match="its frames have more than 12,288 pixels together"):
        list(video_file.frames(file.open("rb"), lying.label, [7], SourcePolicy(max_video_pixels=4 * 48 * 64)))


@pytest.mark.soak
@pytest.mark.parametrize(("checkpoint", "most"), [("lfm3", 150), ("gen2", 700)])
def test_a_video_of_20_seconds_takes_bounded_memory(checkpoint, most, tmp_path):
    """In a process of its own, so that its peak is its own. All frames of it have 1.7 GB."""
    light = np.linspace(0, 200, 1280 * 720).reshape(720, 1280, 1)
    frames = (np.broadcast_to((light + n / 12).astype(np.uint8), (720, 1280, 3)) for n in range(600))
    clip = write_video(tmp_path / "a.mp4", frames, 30)
    program = f"""
from mlx_lfm2vl import generate, load
from peak import peak_memory
model, processor = load({str(GOLDEN / checkpoint)!r})
generate(model, processor, "Hi", {str(GOLDEN / "pictures" / "small.png")!r}, max_tokens=2)
before = peak_memory()
answer = generate(model, processor, "What moves?", videos={str(clip)!r}, max_tokens=8)
print(bool(answer), peak_memory() - before)
"""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(GOLDEN.parent), *sys.path])}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=here)
    answered, grown = run.stdout.split()
    print(f"{checkpoint}: {int(grown) / 1e6:.0f} MB more at the peak")
    assert answered == "True" and int(grown) < most * 1e6


# The command


def test_the_command_answers_about_a_video(capsys):
    words = ["generate", "--model", str(GOLDEN / "lfm3"), "--max-tokens", "4", "--prompt", "What?", "--json"]
    counts = []
    for fps in ("1", "4"):
        assert main([*words, "--video", str(CLIP), "--fps", fps]) == 0
        counts.append(json.loads(capsys.readouterr().out)["image_tokens"])
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--video", "nowhere.mp4"], "nowhere.mp4: no such video"),
        (["--fps", "2"], "--fps needs --video"),
        (["--video", str(CLIP), "--fps", "0"], "'0' is not a number above 0"),
    ],
)
def test_the_command_refuses_in_one_line(words, line, capsys):
    code = 0
    try:
        code = main(["generate", "--model", str(GOLDEN / "lfm3"), "--prompt", "What?", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert line in capsys.readouterr().err


def test_an_engine_counts_the_tokens_of_videos():
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    video = load_video(frames, fps=2)
    with Engine(GOLDEN / "lfm3") as engine:
        answer = engine.submit("Hi", videos=video, options=GenerationOptions(max_tokens=1)).result(60)
        assert answer.statistics is not None
        assert engine.count_tokens("Hi", videos=video) == answer.statistics.prompt_tokens


# What is said of a video


@pytest.mark.parametrize(
    "item",
    [
        {"type": "video", "path": str(CLIP), "fps": 4},
        {"type": "video_url", "video_url": {"url": str(CLIP), "fps": 4}},
        {"type": "video_url", "video_url": str(CLIP), "fps": 4},
        {"type": "video", "video_url": {"url": clip_uri()}, "num_frames": 12},
    ],
)
def test_every_spelling_of_a_video_item_is_read(item):
    model, processor = loaded("lfm3")
    expected = encode(model, processor, GenerationRequest("What?", videos=load_video(CLIP, fps=4))).ids
    asked = [{"role": "user", "content": [item, text("What?")]}]
    np.testing.assert_array_equal(encode(model, processor, GenerationRequest(asked)).ids, expected)
    both = processor.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)
    np.testing.assert_array_equal(both[0], expected)


KNOWN = "'video', 'url', 'path', 'fps', 'num_frames'"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fsp": 1}, f"is of type 'video' and has 'fsp', which is not read; it takes {KNOWN}"),
        ({"nframes": 8}, "is of type 'video' and has 'nframes', which is not read; did you mean num_frames?"),
        ({"video_url": {"fps": 2}}, "has 'video_url' without 'url'; give the video's address"),
    ],
)
def test_no_field_of_a_video_is_passed_over(fields, words):
    model, processor = loaded("gen2")
    item = {"type": "video", "path": str(CLIP), **fields}
    for request, where in (
        (GenerationRequest("What?", videos={"path": str(CLIP), **fields}), "videos[0]"),
        (GenerationRequest([{"role": "user", "content": [item]}]), "prompt[0], item 0 of its content,"),
    ):
        with pytest.raises(PromptError, match=f"^{re.escape(f'{where} {words}')}$"):
            encode(model, processor, request)


@pytest.mark.parametrize("checkpoint", ["lfm3", "gen2"])
def test_a_processor_tells_the_frames_and_tokens_of_a_video(checkpoint):
    model, processor = loaded(checkpoint)
    for video in (load_video(CLIP), load_video(CLIP, fps=1), load_video(CLIP, num_frames=5)):
        prompt = encode(model, processor, GenerationRequest("What?", videos=video))
        assert processor.video_tokens(video) == np.isin(prompt.ids, processor.placeholder_ids).sum()
    fps, least, most = processor.frame_sampling
    assert (fps, least) == (2.0, 4) and most == {"lfm3": 24, "gen2": 32}[checkpoint]


@pytest.mark.parametrize(("checkpoint", "most"), [("lfm3", 24), ("gen2", 32)])
@pytest.mark.parametrize(
    ("fps", "seen", "bounded"), [(None, 6, False), ("0.1", 4, True), ("4", 12, False), ("100", 24, False)]
)
def test_the_command_says_how_many_frames_are_seen(checkpoint, most, fps, seen, bounded, capsys):
    words = ["generate", "--model", str(GOLDEN / checkpoint), "--video", str(CLIP), "--max-tokens", "1", "--json"]
    assert main(words if fps is None else [*words, "--fps", fps]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert made["images"] == []
    assert made["videos"] == [{"source": str(CLIP), "frames": seen, "tokens": made["image_tokens"]}]
    limits = f"; the model takes 4 to {most}" if bounded else ""
    said = f"mlx-lfm2vl: {CLIP}: {seen} of 24 frames are seen{limits}\n"
    assert err == ("" if seen == 24 else said)


# What is no video, and videos in the place of pictures

STILL = "a.jpg: is a picture, not a video; give it as one (--image, images=)"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", b"%PDF-1.4 a", "a.pdf: is a PDF document, not a video; give it as a picture (--image, images=)"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(99), STILL),
        ("a.jpg", b"\0\0\0\x20ftypheic" + bytes(99), STILL),
        (
            "a.mp4",
            b"hello\n" * 99,
            "a.mp4: is no video that can be read (Invalid data found when processing input); convert it to MP4",
        ),
        ("a.mp4", b"", "a.mp4: the file is empty; save or download it again"),
    ],
)
def test_a_file_that_is_no_video_says_what_it_is(name, data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=f"^{re.escape(words)}$"):
        load_video(name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (".", ".: is a directory, not a video; name a file in it"),
        ("", "the video's path is empty; name a file"),
        (b"", "video bytes: there are no bytes in it; give those of a video file"),
        (os.devnull, f"{os.devnull}: is not a regular file but a device or pipe; give a file, or the video's bytes"),
        (
            3,
            "a video of type int cannot be read; give a list of pictures, an array of frames, a path, a URL, a data: "
            "URI, an open file or the bytes of a video file",
        ),
    ],
)
def test_what_cannot_be_a_video_is_called_one(source, words):
    with pytest.raises(ImageError, match=f"^{re.escape(words)}$"):
        load_video(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv", ".flv", ".webm"])
def test_a_video_in_the_place_of_a_picture_says_so(suffix, tmp_path):
    codec = {".webm": "libvpx", ".flv": "flv"}.get(suffix, "mpeg4")
    file = write_video(tmp_path / f"a{suffix}", [np.zeros((48, 64, 3), np.uint8)] * 2, 4, codec)
    with pytest.raises(ImageError, match=r"not a picture but a video; ask about it with --video or videos=, or as an "):
        load_image(file)


NOTED = "videos of generate and Chat go into videos="


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"video": CLIP}, "video is not read; give a video in videos="),
        ({"videos": CLIP, "fps": 1}, "fps is for a video; give it in videos=load_video(..., fps=...)"),
        (
            {"videos": CLIP, "num_frames": 1},
            "num_frames is for a video; give it in videos=load_video(..., num_frames=...)",
        ),
        ({"images": Video("a.mp4", 1, 1)}, f"images[0] is a video, a.mp4; {NOTED}"),
        (
            {"images": np.zeros((4, 8, 8, 3), np.uint8)},
            "images[0] is an array of the shape (4, 8, 8, 3), so several "
            "pictures or the frames of a video; give a list of pictures, or load_video(array) in videos=",
        ),
    ],
)
@pytest.mark.parametrize("checkpoint", ["lfm3", "gen2"])
def test_a_video_under_another_name_has_a_way_out(checkpoint, named, words):
    model, processor = loaded(checkpoint)
    with pytest.raises((OptionError, PromptError), match=f"^{re.escape(words)}$"):
        generate(model, processor, "What?", **named)


def test_explain_and_tasks_refuse_videos():
    model, processor = loaded("gen2")
    with pytest.raises(PromptError, match=r"^explain is for pictures; ask about a video with generate$"):
        explain(model, processor, "What?", videos=CLIP)  # type: ignore[call-arg]
    with pytest.raises(PromptError, match=rf"^images\[0\] is a video, .*; {NOTED}$"):
        detect(model, processor, load_video(CLIP), "dogs", recipe="lfm2.5-vl-450m")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max-image-tokens", "4"], "--max-image-tokens is for pictures"),
        (["--no-tiling"], "--no-tiling is for pictures"),
        (["--color-management"], "--color-management is for pictures"),
    ],
)
def test_options_of_pictures_do_nothing_in_silence(options, line, capsys):
    words = ["generate", "--video", str(CLIP), "--max-tokens", "1", "--model"]
    assert main([*words, str(GOLDEN / "lfm3"), *options]) == 2
    rest = ", which videos of this model are not; leave it out"
    assert capsys.readouterr().err == f"mlx-lfm2vl: error: {line}{rest}\n"
    assert main([*words, str(GOLDEN / "lfm3"), *options, "--image", str(GOLDEN / "pictures" / "small.png")]) == 0
    assert main([*words, str(GOLDEN / "gen2"), *options]) == 0
