"""`explain`: the attention of an answer's tokens is the reference's, and lies over the pictures where it belongs."""

import itertools
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Loaded, cache_by_backend, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli import cli, refused  # noqa: F401

from mlx_lfm2vl import GenerationOptions, explain, generate, load
from mlx_lfm2vl.config import ImageProcessorConfig
from mlx_lfm2vl.errors import AnswerError, ImageError, OptionError, PromptError
from mlx_lfm2vl.explanation import attention, overlay
from mlx_lfm2vl.explanation.explain import _spoken
from mlx_lfm2vl.explanation.explanation import Explanation
from mlx_lfm2vl.explanation.overlay import above_mean, heat_map
from mlx_lfm2vl.explanation.picture_map import mass_in, picture_map
from mlx_lfm2vl.processing.geometry import plan

SCENE = "examples/scene.png"
SCALE = 5  # by which it is drawn enlarged
QUESTION = "What is in this image?"
GREEDY = GenerationOptions(max_tokens=24, temperature=0)
ATTENDED = ("gen2-small", "gen2-tiled", "gen2-tiled-no-thumbnail", "gen2-several", "untied-landscape")


@cache_by_backend
def loaded(name: str) -> Loaded:
    return load(name if name == "demo" else GOLDEN / name)


@pytest.fixture(scope="module")
def scene():
    return explain(*load("demo"), QUESTION, SCENE)


# Long work


@pytest.mark.backends("mlx", "numpy")
def test_it_tells_how_far_it_is_and_stops_anywhere():
    told: list[tuple[int, int]] = []
    few = GenerationOptions(max_tokens=2, temperature=0)
    explain(*loaded("demo"), f"{QUESTION} " * 150, SCENE, options=few, progress=lambda *pair: told.append(pair))
    assert told == sorted(told) and {total for _, total in told} == {told[-1][0]}
    assert any(2 * done > total for done, total in told[:-1])  # also as the prompt runs for the second time
    made = explain(*loaded("demo"), QUESTION, SCENE, options=GREEDY)
    asked = itertools.count()
    assert explain(*loaded("demo"), QUESTION, SCENE, options=GREEDY, stop=lambda: next(asked) < 0).tokens == made.tokens
    count = next(asked)
    for number in (0, count // 2, count - 1):
        stop = map(number.__le__, itertools.count()).__next__
        with pytest.raises(AnswerError, match="the answer was stopped before it was explained"):
            explain(*loaded("demo"), QUESTION, SCENE, options=GREEDY, stop=stop)
    wrong: Any = 3
    with pytest.raises(OptionError, match="stop is 3, expected a function"):
        explain(*loaded("demo"), QUESTION, SCENE, stop=wrong)
    with pytest.raises(OptionError, match="progress is 3, expected a function"):
        explain(*loaded("demo"), QUESTION, SCENE, progress=wrong)


# The weights


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("case_id", ATTENDED)
def test_the_weights_are_the_references(case_id, golden):
    case = golden(case_id)
    model, processor = loaded(case.checkpoint)
    (messages,) = case.conversations
    made = explain(model, processor, messages, options=GREEDY, per_head=True, **case.options)
    reference = case.arrays["answer_attentions"]
    assert made.tokens == tuple(case.arrays["generated"][0])
    counts = [plan.tokens for plan in plans(made.pictures, processor, case.options)]
    parts = np.split(reference, np.cumsum(counts)[:-1], axis=-1)
    each = zip(made.attention, parts, plans(made.pictures, processor, case.options), strict=True)
    for ours, weights, views in each:
        expected = picture_map(weights, views)
        np.testing.assert_allclose(ours[:, :, : weights.shape[2]], expected, rtol=0, atol=1e-5)


def plans(pictures, processor, options):
    config = processor.image_processor.configured(**options)
    return [plan(each.height, each.width, config) for each in pictures]


@pytest.mark.backends("mlx", "numpy")
def test_passes_of_a_few_tokens_give_the_weights_of_one(monkeypatch):
    model, processor = loaded("demo")
    whole = explain(model, processor, QUESTION, SCENE, per_head=True)
    monkeypatch.setattr(attention, "TOKENS_PER_PASS", 3)
    parts = explain(model, processor, QUESTION, SCENE, per_head=True)
    assert len(whole.tokens) > 6 and parts.tokens == whole.tokens
    np.testing.assert_allclose(parts.attention[0], whole.attention[0], rtol=0, atol=1e-5)


def test_heads_are_averaged_unless_they_are_wanted():
    model, processor = loaded("demo")
    mean = explain(model, processor, QUESTION, SCENE)
    heads = explain(model, processor, QUESTION, SCENE, per_head=True)
    assert mean.attention[0].shape == (3, len(mean.tokens), 4, 4) and mean.layers == (1, 3, 5)
    np.testing.assert_allclose(heads.attention[0].mean(axis=1), mean.attention[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(heads.map("ring"), mean.map("ring"), rtol=0, atol=1e-6)


def test_the_answer_is_the_one_of_generate(scene):
    assert scene.text == generate(*loaded("demo"), QUESTION, SCENE)
    pieces = [scene.text[start:end] for start, end in scene.spans]
    assert "".join(pieces) == scene.text and len(pieces) == len(scene.tokens)


def test_characters_of_several_tokens_belong_to_the_last_of_them():
    model, processor = loaded("gen2")
    made = explain(model, processor, QUESTION, picture("small"), options=GREEDY)
    assert made.spans[0][0] == 0 and made.spans[-1][1] <= len(made.text)
    assert all(low <= high for low, high in made.spans) and all(a[1] == b[0] for a, b in pairwise(made.spans))


def test_spans_are_those_of_every_beginning_decoded_once():
    processor = loaded("gen2")[1]
    tokens = [
        *processor.tokenizer.encode("Käse 🧀 und\ufffd"),
        *np.random.default_rng(0).integers(0, 300, 400).tolist(),
    ]
    beginnings = [processor.decode(tokens[:end], skip_special_tokens=True) for end in range(len(tokens) + 1)]
    ends = [len(text.rstrip("\ufffd")) for text in beginnings]
    decode, decoded = processor.tokenizer.decode, []

    def counted(ids, **options):
        decoded.extend(ids)
        return decode(ids, **options)

    counting: Any = SimpleNamespace(decode=counted)
    assert _spoken(counting, tokens) == (beginnings[-1], tuple(pairwise(ends)))
    assert len(decoded) < 8 * len(tokens)


def test_pictures_of_a_conversation_and_pages_are_explained(tmp_path):
    model, processor = loaded("demo")
    question = {"type": "text", "text": "Which image shows a red triangle?"}
    items = [{"type": "image", "path": "examples/documents/pages.pdf"}, {"type": "image", "url": "examples/tall.png"}]
    made = explain(model, processor, [{"role": "user", "content": [*items, question]}])
    assert [each.size for each in made.pictures[2:]] == [Image.open("examples/tall.png").size]
    assert len(made.attention) == len(made.pictures) == 3
    total = sum(each.sum(axis=(-1, -2)) for each in made.attention)
    assert (total > 0).all() and (total <= 1 + 1e-5).all()


# Maps


@given(st.integers(1, 900), st.integers(1, 900), st.booleans(), st.integers(2, 6))
def test_a_map_has_the_sum_of_its_tokens_and_its_views_places(width, height, thumbnail, most):
    config = ImageProcessorConfig(
        tile_size=128, max_tiles=most, use_thumbnail=thumbnail, min_image_tokens=4, max_image_tokens=16
    )
    views = plan(height, width, config)
    values = np.random.default_rng(width * height).random((2, views.tokens), np.float32)
    made = picture_map(values, views)
    side = 4 if views.tiled else 1 / 32  # tokens of a tile, or of a pixel of the only view
    rows, columns = (views.rows, views.cols) if views.tiled else (views.height, views.width)
    assert made.shape == (2, rows * side, columns * side)
    np.testing.assert_allclose(made.sum(axis=(1, 2)), values.sum(axis=1), rtol=1e-5)
    assert mass_in(made, (0, 0, 1, 1)) == pytest.approx(values.sum(axis=1), rel=1e-5)


def test_tokens_of_tiles_and_thumbnail_lie_where_they_look():
    config = ImageProcessorConfig(tile_size=128, max_tiles=4, min_image_tokens=4, max_image_tokens=16)
    views = plan(256, 256, config)
    assert (views.rows, views.cols, views.tokens) == (2, 2, 4 * 16 + 16)
    for token, cells in {
        0: (slice(0, 1), slice(0, 1)),  # the first of the first tile
        7: (slice(1, 2), slice(3, 4)),  # the last of its second row
        16: (slice(0, 1), slice(4, 5)),  # the first of the second tile, at the right
        63: (slice(7, 8), slice(7, 8)),  # the last of the last tile
        64: (slice(0, 2), slice(0, 2)),  # of the thumbnail, whose cells are four of the tiles'
        79: (slice(6, 8), slice(6, 8)),
    }.items():
        made = picture_map(np.eye(views.tokens, dtype=np.float32)[token], views)
        expected = np.zeros((8, 8), np.float32)
        expected[cells] = 1 / expected[cells].size
        np.testing.assert_allclose(made, expected, atol=1e-7)


def test_a_picture_with_one_dot_is_looked_at_in_its_place():
    """The whole way: the word for the only object has its highest cell there, in one view and in tiles."""
    model, processor = loaded("demo")
    made = explain(model, processor, "What shape is the red object?", "examples/large.png")
    highest = np.unravel_index(made.map("square").argmax(), (8, 8))
    assert made.text == "A square." and highest[0] <= 1 and highest[1] >= 6  # at the top right


def test_named_objects_draw_the_attention(scene):
    """Their boxes, read off the drawing, hold several times what an even map gives."""
    ring, square = (0.12, 0.3, 0.45, 0.63), (0.62, 0.65, 0.91, 0.93)
    for word, own, other in (("black ring", ring, square), ("pink square", square, ring)):
        attended = scene.map(word) / scene.map(word).sum()
        area = (own[2] - own[0]) * (own[3] - own[1])
        assert mass_in(attended, own) > 2.5 * area > mass_in(attended, other)


def test_spans_are_words_texts_tokens_or_all(scene):
    assert scene.tokens_of() == slice(0, len(scene.tokens))
    assert scene.tokens_of("RING") == scene.tokens_of("ring")
    assert scene.tokens_of("a large black ring").start < scene.tokens_of("ring").start
    assert scene.tokens_of(2) == slice(2, 3) and scene.tokens_of((1, 4)) == slice(1, 4)
    assert " ".join(word for word, _ in scene.words()) == scene.text
    np.testing.assert_allclose(scene.map((0, 2)), (scene.map(0) + scene.map(1)) / 2, rtol=1e-5)
    np.testing.assert_allclose(scene.map(0), sum(scene.map(0, layers=[n]) for n in (1, 3, 5)) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"span": "triangle"}, "'triangle' is not in the answer"),
        ({"span": ""}, "'' is not in the answer"),
        ({"span": 99}, "tokens 99 to 100 are not in the answer"),
        ({"span": (3, 3)}, "tokens 3 to 3 are not in the answer"),
        ({"picture": 1}, "picture is 1, but there are 1"),
        ({"picture": -1}, "picture is -1, but there are 1"),
        ({"layers": [0]}, r"layers are \[0\], expected some of \[1, 3, 5\]"),
        ({"layers": []}, r"layers are \[\], expected some of"),
    ],
)
def test_what_is_not_in_the_answer_is_said(arguments, said, scene):
    with pytest.raises(OptionError, match=said):
        scene.map(**arguments)
    with pytest.raises(OptionError, match=said):
        scene.overlay(**arguments)


def test_what_cannot_be_explained_is_said():
    model, processor = loaded("demo")
    with pytest.raises(PromptError, match="there is no picture"):
        explain(model, processor, "Hello?")
    with pytest.raises(ImageError, match=r"nowhere\.png: no such picture"):
        explain(model, processor, QUESTION, "nowhere.png")
    twice = [{"type": "image", "image": SCENE, "path": SCENE}]
    with pytest.raises(PromptError, match="holds two pictures"):
        explain(model, processor, [{"role": "user", "content": twice}])
    with pytest.raises(OptionError, match="model is int"):
        explain(1, processor, QUESTION, SCENE)  # type: ignore[arg-type]


# Drawings


def test_a_heat_map_colours_the_highest_cell_and_leaves_the_rest():
    grey = Image.new("RGB", (80, 40), (200, 200, 200))
    attended = np.full((2, 4), 0.01, np.float32)
    attended[1, 3] = 0.2
    made = np.asarray(heat_map(grey, attended)).astype(int)
    assert made.shape == (40, 80, 3)
    assert (made[30, 70] == made[35, 75]).all() and made[30, 70, 0] - made[30, 70, 1] > 20  # red, to its corner
    assert (made[:, :40] == 200).all()


def test_an_even_map_colours_nothing():
    assert not above_mean(np.full((3, 3), 0.1, np.float32)).any()
    assert not above_mean(np.zeros((3, 3), np.float32)).any()
    grey = Image.new("RGB", (30, 30), (90, 90, 90))
    assert heat_map(grey, np.full((3, 3), 0.1, np.float32)).tobytes() == grey.tobytes()


@pytest.mark.parametrize("size", [(128, 128), (1, 1), (2000, 20), (20, 2000)])
def test_sheets_of_any_shape_of_picture_are_drawn(size):
    made = explain(*loaded("demo"), QUESTION, Image.new("RGB", size, (250, 250, 250)), max_tokens=6)
    sheet = made.sheet("A title that is longer than a line of the sheet, so that it must be wrapped to be read at all")
    assert sheet.width >= 480 and sheet.height <= 3000


def test_a_sheet_has_a_map_of_each_word(scene):
    short, long = explain(*loaded("demo"), QUESTION, SCENE, max_tokens=1).sheet(), scene.sheet()
    assert long.height > short.height + 4 * 200 and long.width > short.width


# Command line


def test_explain_prints_the_answer_and_draws(cli, tmp_path, scene):  # noqa: F811
    out = tmp_path / "out.png"
    code, said, notes = cli("explain", "--model", "demo", "--image", SCENE, "--draw", out)
    assert (code, said, notes) == (0, f"{scene.text}\n", f"mlx-lfm2vl: {out}: the heat maps\n")
    assert Image.open(out).convert("RGB").tobytes() == scene.sheet().tobytes()
    assert cli("explain", "--model", "demo", "--image", SCENE, "--draw", out, "--word", "ring", "--overwrite")[0] == 0
    assert Image.open(out).convert("RGB").tobytes() == scene.overlay("ring", scale=SCALE).tobytes()


def test_heat_maps_of_several_pictures_name_them(cli, tmp_path, monkeypatch):  # noqa: F811
    heads, drawn = [], overlay.sheet

    def sheet(picture, title, *rest):
        heads.append(title)
        return drawn(picture, title, *rest)

    monkeypatch.setattr(overlay, "sheet", sheet)
    pages, out = Path(SCENE).parent / "documents" / "pages.pdf", tmp_path / "out.png"
    question = "Which image shows a red triangle?"
    words = ["explain", "--model", "demo", "--image", pages, "--prompt", question, "--draw", out]
    assert cli(*words)[:2] == (0, "Media-2.\n")
    assert heads == [f"Media-{number}, pages.pdf[{number}]. Answer: Media-2." for number in (1, 2)]


def test_explain_prints_words_with_their_maps_as_json(cli, scene):  # noqa: F811
    _, out, _ = cli("explain", "--model", "demo", "--image", SCENE, "--json")
    made = json.loads(out)
    assert (made["text"], made["tokens"], made["images"]) == (scene.text, list(scene.tokens), [SCENE])
    assert [word["word"] for word in made["words"]] == scene.text.split()
    for word, (_, tokens) in zip(made["words"], scene.words(), strict=True):
        assert word["shares"][0] == pytest.approx(scene.map(tokens).sum(), abs=1e-4)
        np.testing.assert_allclose(word["maps"][0], scene.map(tokens), atol=1e-5)


def test_explain_refuses_drawings_before_it_loads_a_model(refused, tmp_path):  # noqa: F811
    def line(*options: object) -> str:
        return refused("explain", "--model", tmp_path / "no model", "--image", SCENE, *options)

    assert "out.tga: a drawing is written as png, jpg, jpeg, webp" in line("--draw", tmp_path / "out.tga")
    assert "nowhere: no such folder" in line("--draw", tmp_path / "nowhere" / "out.png")
    (tmp_path / "a.png").mkdir()
    assert "a.png: is a folder; name a file" in line("--draw", tmp_path / "a.png")
    assert "scene.png: exists already; choose another file, or --overwrite" in line("--draw", SCENE)
    assert "scene.png: is one of the pictures; choose another file" in line("--draw", SCENE, "--overwrite")
    assert "--word chooses what --draw draws" in line("--word", "ring")


def test_explain_draws_each_word_that_is_given(cli, tmp_path, scene):  # noqa: F811
    out, words = tmp_path / "out.png", ("--word", "ring", "--word", "left")
    assert cli("explain", "--model", "demo", "--image", SCENE, "--draw", out, *words)[0] == 0
    drawn, each = Image.open(out).convert("RGB"), [scene.overlay(word, scale=SCALE) for word in ("ring", "left")]
    assert drawn.size == (each[0].width, 2 * each[0].height)
    assert drawn.tobytes() == b"".join(part.tobytes() for part in each)


def test_the_sheet_frames_a_white_picture():
    attention = np.ones((1, 1, 1, 1), np.float32)
    white = Image.new("RGB", (100, 80), "white")
    pixels = np.asarray(Explanation("a", (1,), ((0, 1),), (2,), (white,), (attention,)).sheet())
    grey = (pixels == 190).all(-1)
    rows = np.flatnonzero(grey[:, 15])
    columns = np.flatnonzero(grey[rows.min()])
    assert (columns.min(), columns.max() - columns.min()) == (15, 481)
    assert rows.max() - rows.min() == 385


@pytest.mark.parametrize("scale", [0, 65, 1.5, True])
def test_an_overlay_refuses_a_wrong_scale(scene, scale):
    with pytest.raises(OptionError, match=r"scale is .* expected an integer from 1 to 64"):
        scene.overlay("ring", scale=scale)


def test_explain_refuses_a_word_that_is_not_said(refused, tmp_path):  # noqa: F811
    line = refused("explain", "--model", "demo", "--image", SCENE, "--word", "cat", "--draw", tmp_path / "a.png")
    assert "'cat' is not in the answer 'At the left" in line
