"""The tasks that a longer training takes in: what is asked and answered agrees with what is drawn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import Lfm2VlProcessor
from tools.demo import files, tasks_more, vocabulary
from tools.demo.drawing import PLACES
from tools.demo.tasks import describe_things, make

seeds = st.integers(0, 2**40)


def drawn(picture) -> np.ndarray:
    pixels = np.asarray(picture).astype(int)
    return np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).max(-1) > 45


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_text_to_read_lies_wholly_in_the_picture(seed):
    sample = make("read", "test", seed)
    text = sample.turns[0][1]
    assert 3 <= len(text) <= 8 and set(text) <= set(tasks_more.CHARACTERS) and text == sample.facts["text"]
    ink = drawn(sample.images[0])
    assert ink.any()
    assert not (ink[:2].any() or ink[-2:].any() or ink[:, :2].any() or ink[:, -2:].any())


def test_easy_texts_are_one_character():
    assert {len(make("read", "train", seed, level=0.0).turns[0][1]) for seed in range(30)} == {1}


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_boxes_hold_their_objects_tightly(seed):
    sample = make("point", "test", seed)
    told, exact = json.loads(sample.turns[0][1]), sample.facts["boxes"]
    height, width = np.asarray(sample.images[0]).shape[:2]
    label = sample.turns[0][0].removeprefix("Provide bounding boxes for the ").removesuffix(".")
    wanted = [o for o in sample.things[0] if label in (o.shape, f"{o.colour} {o.shape}")]
    assert len(told) == len(exact) == len(wanted)
    ink = drawn(sample.images[0])
    for o, box, edges in zip(wanted, told, exact, strict=True):
        assert set(box) == {"image_id", "bbox_2d", "label"} and box["image_id"] == 0 and box["label"] == label
        assert all(v % 10 == 0 and abs(v - edge) <= 5 for v, edge in zip(box["bbox_2d"], edges, strict=True))
        left, top, right, bottom = (v * side / 1000 for v, side in zip(edges, (width, height) * 2, strict=True))
        assert left < o.x < right and top < o.y < bottom
        y, x = np.mgrid[:height, :width]
        near = np.hypot(x - o.x, y - o.y) < o.radius + 1.5  # objects stand 3 pixels apart
        rows, cols = np.nonzero(ink & near)
        inside = (cols >= left - 1) & (cols <= right) & (rows >= top - 1) & (rows <= bottom)
        assert inside.mean() > 0.97, "ink of the object lies in its box"
        assert cols.min() < left + 3 and cols.max() > right - 4 and rows.min() < top + 3 and rows.max() > bottom - 4


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_exactly_one_picture_shows_what_is_asked_for(seed):
    sample = make("compare", "test", seed)
    words = sample.turns[0][0].rstrip("?").split()[-2:]
    shows = [any([o.colour, o.shape] == words for o in things) for things in sample.things]
    assert shows.count(True) == 1 and sample.turns[0][1] == f"Media-{shows.index(True) + 1}."
    content = sample.messages()[0]["content"]
    assert [c["text"] for c in content if c["type"] == "text"][:-1] == [
        f"Media-{i}: " for i in range(1, len(sample.images) + 1)
    ]
    assert sum(c["type"] == "image" for c in content) == len(sample.images)
    for question, answer in sample.turns:
        named = question.rstrip("?").split()[-2:]
        if question.startswith(("Which", "Where")):
            (at,) = [i for i, things in enumerate(sample.things) if any([o.colour, o.shape] == named for o in things)]
            assert answer.endswith(f"Media-{at + 1}.")
            place = answer.removesuffix(f"Media-{at + 1}.").removesuffix(" of ").lower()
            assert not place or any(
                [o.colour, o.shape] == named and PLACES[o.place] == place for o in sample.things[at]
            )
        else:
            at = int(named[0].removeprefix("Media-")) - 1
            assert answer == describe_things(sample.things[at])


@pytest.mark.parametrize("size", tasks_more.TILED)
def test_tiled_pictures_are_cut_by_the_demo_processor(size, tmp_path):
    files.write(tmp_path)
    processor = Lfm2VlProcessor.from_pretrained(tmp_path)
    views = processor.image_processor(make("tiled", "test", 0, size).images[0])
    assert len(views["pixel_values"]) == size[0] * size[1] // 128**2 + 1


@given(st.sampled_from(["read", "point", "compare", "tiled"]), seeds)
@settings(max_examples=60, deadline=None)
def test_every_answer_survives_the_tokenizer(name, seed):
    tokenizer = vocabulary.tokenizer()
    for text in (text for turn in make(name, "test", seed).turns for text in turn):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
