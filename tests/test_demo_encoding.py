"""What the demo is trained on is what the shipped processor makes: the same token ids, the same pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lfm2vl import Lfm2VlProcessor
from tools.demo import encoding, files, vocabulary
from tools.demo.drawing import COLOURS, SHAPES, SIZES
from tools.demo.tasks import TASKS, make
from tools.demo.tasks_more import CHARACTERS, FIRST_TEST_DIGIT

seeds = st.integers(0, 2**40)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    files.write(folder)
    return Lfm2VlProcessor.from_pretrained(folder)


@given(st.sampled_from(sorted(TASKS)), seeds)
@settings(max_examples=60, deadline=None)
def test_training_sees_the_processors_ids_and_pixels(processor, name, seed):
    sample = make(name, "train", seed)
    messages = sample.messages()
    pictures = iter(sample.images)
    for part in messages[0]["content"]:
        if part["type"] == "image":
            part["image"] = next(pictures)
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    encoded = encoding.encode_sample(sample)
    assert encoded.ids == np.asarray(batch["input_ids"]).reshape(-1).tolist()
    seen = [view for picture in sample.images for view in encoding.views(np.asarray(picture))]
    assert [[v.shape[0] // 16, v.shape[1] // 16] for v in seen] == np.asarray(batch["spatial_shapes"]).tolist()
    for view, pixels in zip(seen, np.asarray(batch["pixel_values"]), strict=True):
        mine = encoding.patchify(view).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(pixels[: len(mine)], mine, atol=1e-6)


@given(st.sampled_from(sorted(TASKS)), seeds)
@settings(max_examples=60, deadline=None)
def test_labels_are_the_answers_and_each_turn_has_its_number(name, seed):
    sample = make(name, "train", seed)
    encoded = encoding.encode_sample(sample)
    assert len(encoded.ids) == len(encoded.labels) == len(encoded.turns)
    said: dict[int, list[int]] = {}
    for label, token, turn in zip(encoded.labels, encoded.ids, encoded.turns, strict=True):
        if label != encoding.IGNORED:
            assert label == token
            said.setdefault(turn, []).append(token)
    decode = encoding.tokenizer().decode
    assert all(tokens[-1] == vocabulary.IM_END for tokens in said.values())
    assert [decode(said[i + 1][:-1]) for i in range(len(sample.turns))] == [answer for _, answer in sample.turns]


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_a_patch_at_an_objects_middle_is_labelled_with_it(seed):
    sample = make("describe", "train", seed)
    named, ways, edges, covered = encoding.patch_labels(sample, 0)
    sides = np.array([*sample.images[0].size] * 2)
    cols = sample.images[0].width // 16
    for o, box in zip(sample.things[0], sample.extents[0], strict=True):
        row, col = int(o.y // 16), int(o.x // 16)
        patch = row * cols + col
        assert abs(10 * edges[patch] - 1000 * np.array(box) / sides).max() <= 5
        assert named[patch].tolist() == [
            SHAPES.index(o.shape) + 1,
            list(COLOURS).index(o.colour) + 1,
            list(SIZES).index(o.size) + 1,
            o.place + 1,
            0,
            0,
            0,
        ]
        middle = np.array([col * 16 + 8, row * 16 + 8])
        np.testing.assert_allclose(ways[patch, :2] * 16 + middle, [o.x, o.y], atol=1e-3)
        np.testing.assert_allclose(ways[patch, 2:] * 16 + [*middle, *middle], box, atol=1e-3)
    assert covered.any()


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_printed_characters_are_labelled_in_the_order_of_the_text(seed):
    sample = make("read", "train", seed)
    named, *_ = encoding.patch_labels(sample, 0)
    rows, cols = sample.images[0].height // 16, sample.images[0].width // 16
    halves = named.reshape(rows, cols, 7)[..., 4:6].reshape(rows, cols * 2)
    text = sample.facts["text"]
    assert (halves > 0).any()
    for row in halves:
        shown = "".join(CHARACTERS[c - 1] for c in row if c)
        runs = "".join(c for c, before in zip(shown, " " + shown, strict=False) if c != before)
        rest = iter(text)
        assert all(c in rest for c in runs), (runs, text)


def test_no_digit_of_training_is_among_the_held_out_hands():
    assert max(make("digit", "train", seed).facts["number"] for seed in range(400)) < FIRST_TEST_DIGIT
    assert min(make("handwritten", "test", seed).facts["number"] for seed in range(400)) >= FIRST_TEST_DIGIT
