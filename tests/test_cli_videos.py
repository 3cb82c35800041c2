"""Videos on the command line: `chat`, `batch` with rows and folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, cache_by_backend, picture
from videos import CLIP, rising, write_video

from mlx_lfm2vl import Chat, GenerationOptions, SourcePolicy, generate, load, load_video
from mlx_lfm2vl.cli import main
from mlx_lfm2vl.cli.chat_commands import Conversation
from mlx_lfm2vl.cli.chat_help import completions
from mlx_lfm2vl.cli.chat_pictures import find_pictures
from mlx_lfm2vl.cli.terminal import Terminal

MODEL = GOLDEN / "lfm3"
GREEDY = GenerationOptions(max_tokens=8, temperature=0)


@cache_by_backend
def loaded() -> Any:
    return load(MODEL)


def answered(question: str, video: Any, **more: Any) -> str:
    model, processor = loaded()
    return generate(model, processor, question, videos=video, options=GREEDY, **more)


@pytest.fixture(name="clip")
def written(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a clip.mp4", rising(), 4)


# chat


@pytest.fixture(name="person")
def talk() -> Conversation:
    return Conversation(Chat(*loaded(), options=GREEDY), Terminal(False, SourcePolicy(), fps=4), [])


def test_a_message_that_names_a_video_is_about_it(person, clip, capsys):
    for line in (f"What moves in '{clip}'?", f"/video {CLIP}", "And here?", "/images"):
        person.take(line)
    first, second, *listed = capsys.readouterr().out.splitlines()
    assert first == answered("What moves in a clip.mp4?", load_video(clip, fps=4))
    assert second == person.chat.messages[-1]["content"]
    assert listed == ["message 1: a clip.mp4  8 frames, 2.0 s", "message 2: clip.png  12 frames, 3.0 s"]


def test_a_dropped_video_waits_beside_pictures(person, clip, capsys):
    person.take(str(clip).replace(" ", "\\ "))
    person.take(f"/image {GOLDEN / 'pictures' / 'small.png'}")
    person.take("What?")
    assert capsys.readouterr().out.strip() == answered("What?", load_video(clip, fps=4), images=picture("small"))
    assert [name for _, name, _ in person._sent()] == ["small.png", "a clip.mp4"]
    person.take("/undo")
    assert [name for name, _ in person.waiting] == ["small.png", "a clip.mp4"]


def test_names_of_videos_are_found_and_completed(clip, monkeypatch):
    assert find_pictures("Compare https://a.org/b.mp4?x=1 now").names == ["https://a.org/b.mp4?x=1"]
    assert find_pictures("no.mp4 is what?").unseen == ["no.mp4: no such picture"]
    monkeypatch.chdir(clip.parent)
    assert list(completions("/video a", 7)) == ["a clip.mp4"]
    assert list(completions("See ./a", 4)) == ["./a clip.mp4"]


def test_a_loaded_conversation_keeps_the_names_of_its_files(person, clip, capsys, tmp_path):
    person.take(f"/image {GOLDEN / 'pictures' / 'small.png'}")
    person.take(f"What moves in '{clip}'?")
    person.take(f"/save {tmp_path / 'a.json'}")
    other = Conversation(Chat(*loaded(), options=GREEDY), person.terminal, [])
    other.take(f"/load {tmp_path / 'a.json'}")
    capsys.readouterr()
    other.take("/images")
    names = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["message 1: small.png", "message 1: a clip.mp4"]
    assert other.chat.messages[0]["content"][1]["video"].label == "a clip.mp4"


def test_chat_takes_videos_of_its_first_message(clip, capsys, monkeypatch, tmp_path):
    (tmp_path / "said").write_text("What?\n")
    with open(tmp_path / "said") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        words = ["chat", "--model", str(MODEL), "--video", str(clip), "--fps", "4", "--max-tokens", "8"]
        assert main(words) == 0
    assert capsys.readouterr().out.strip() == answered("What?", load_video(clip, fps=4))


# batch


def batch(tmp_path: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    output = tmp_path / "out.jsonl"
    code = main(["batch", *words, "--model", str(MODEL), "--output", str(output), "--max-tokens", "8"])
    return code, [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_with_videos_are_answered(tmp_path, clip):
    (tmp_path / "small.png").write_bytes((GOLDEN / "pictures" / "small.png").read_bytes())
    rows = [
        {"video": clip.name, "prompt": "What?", "fps": 1},
        {"videos": [clip.name, str(CLIP)], "image": "small.png", "prompt": "Which?"},
        {"video_path": clip.name},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, made = batch(tmp_path, str(tmp_path / "rows.jsonl"), "--fps", "4")
    assert code == 0 and [row.get("error") for row in made] == [None] * 3
    both = [load_video(each, fps=4) for each in (clip, CLIP)]
    assert [row["text"] for row in made] == [
        answered("What?", load_video(clip, fps=1)),
        answered("Which?", both, images=picture("small")),
        answered("What happens in this video?", load_video(clip, fps=4)),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"video": 3, "prompt": "a"}, '"video" must be a path, a URL, a data URI or a list of them'),
        ({"video": [], "prompt": "a"}, '"video" is empty; leave it out, or name a video'),
        ({"video": "a.mp4", "videos": ["b.mp4"]}, 'has both "video" and "videos"; give one of them'),
        ({"video": "a.mp4", "clip": "b.mp4"}, '"clip" names a video and is not read; call it "video"'),
        ({"vidoe": "a.mp4"}, '"vidoe" names a video and is not read; call it "video", with all videos in one list'),
        ({"file": "a.mp4", "prompt": "a"}, '"file" names a video and is not read; call it "video"'),
        ({"video": "a.mp4", "fsp": 2}, '"fsp" is not read; call it "fps"'),
        ({"image": "a.png", "fps": 2}, '"fps" counts frames of a video, and the row has none; name one as "video"'),
        ({"video": "no.mp4"}, "no.mp4: no such video"),
        ({"video": str(CLIP), "fps": "fast"}, "fps is 'fast', expected frames a second"),
    ],
)
def test_a_row_with_a_bad_video_says_so(row, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, (made,) = batch(tmp_path, str(tmp_path / "rows.jsonl"))
    assert code == 1 and words in made["error"]


def test_the_videos_of_a_folder_are_rows(tmp_path, clip):
    (tmp_path / "b.png").write_bytes((GOLDEN / "pictures" / "small.png").read_bytes())
    code, made = batch(tmp_path, str(tmp_path), "--overwrite")
    assert code == 0
    assert [(row.get("image"), row.get("video"), row["prompt"]) for row in made] == [
        (None, str(clip), "What happens in this video?"),
        (str(tmp_path / "b.png"), None, "What is in this image?"),
    ]
    assert made[0]["text"] == answered("What happens in this video?", clip)


def test_a_task_of_a_batch_takes_no_videos(tmp_path, clip, capsys):
    row = {"video": clip.name}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--task", "detect", "--prompt", "it", "--recipe", "lfm2.5-vl-450m"]
    code, (made,) = batch(tmp_path, str(tmp_path / "rows.jsonl"), *words)
    assert code == 1 and made["error"] == "detect is for pictures; ask about a video without --task"
    (tmp_path / "b.png").write_bytes((GOLDEN / "pictures" / "small.png").read_bytes())
    code, (made,) = batch(tmp_path, str(clip), "--overwrite", *words)
    assert code == 1 and made["error"] == "detect is for pictures; ask about a video without --task"
    assert made["video"] == str(clip) and "image" not in made
    batch(tmp_path, str(tmp_path), "--overwrite", *words)
    assert "left out, as no pictures by their names: a clip.mp4" in capsys.readouterr().err


def test_fps_without_a_video_is_refused(tmp_path, capsys):
    (tmp_path / "b.png").write_bytes((GOLDEN / "pictures" / "small.png").read_bytes())
    words = ["batch", str(tmp_path), "--fps", "2", "--output", str(tmp_path / "o.jsonl"), "--model", str(MODEL)]
    said = '--fps counts frames of videos, and INPUT has none; rows name animations as "video"'
    assert main(words) == 2
    assert capsys.readouterr().err == f"mlx-lfm2vl: error: {said}\n"
    (tmp_path / "rows.jsonl").write_text('{"image": "b.png"}\n{"image": "no.png", "prompt": 3}\n')
    assert main(["batch", str(tmp_path / "rows.jsonl"), *words[2:]]) == 2
    assert capsys.readouterr().err == f"mlx-lfm2vl: error: {said}\n"
    assert not (tmp_path / "o.jsonl").exists()


def test_fps_beside_a_row_with_a_bad_video_is_kept(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"video": "a.mp4", "videos": ["b.mp4"]}\n')
    code, made = batch(tmp_path, str(tmp_path / "rows.jsonl"), "--fps", "2")
    assert code == 1 and "error" not in made[0] and "give one of them" in made[1]["error"]


def test_rows_of_evaluate_have_no_videos(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video": "a.mp4", "prompt": "a", "answers": ["b"]}) + "\n")
    assert main(["evaluate", "demo", "--task", str(tmp_path / "rows.jsonl")]) == 2
    line = 'rows.jsonl, line 1: "video" names a video and is not read; rows have pictures only; leave it out\n'
    assert capsys.readouterr().err.endswith(line)
