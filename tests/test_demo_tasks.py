"""The generator of the demo model's pictures: one seed, one sample; and the answers tell what is drawn."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.demo import tasks, vocabulary
from tools.demo.tasks import COLOURS, GRIDS, PLACES, make

NAMES = tasks.BASIC
seeds = st.integers(0, 2**40)
grids = st.sampled_from(GRIDS)


@given(st.sampled_from(NAMES), seeds, st.sampled_from(["train", "test"]))
@settings(max_examples=40, deadline=None)
def test_a_sample_depends_on_its_arguments_alone(name, seed, split):
    first, second = make(name, split, seed), make(name, split, seed)
    assert first.turns == second.turns and first.things == second.things and first.facts == second.facts
    assert [p.tobytes() for p in first.images] == [p.tobytes() for p in second.images]


@pytest.mark.parametrize("name", NAMES)
def test_no_held_out_picture_is_a_training_picture(name):
    train = {make(name, "train", seed).images[0].tobytes() for seed in range(150)}
    held_out = {make(name, "test", seed).images[0].tobytes() for seed in range(150)}
    assert len(train) == len(held_out) == 150 and not train & held_out


@pytest.mark.parametrize("arguments", [("paint", "train", 0), ("ask", "validation", 0)])
def test_an_unknown_task_or_split_is_refused(arguments):
    with pytest.raises(KeyError):
        make(*arguments)


def nearest_colour(pixel: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - pixel).sum()))


@given(st.sampled_from(["describe", "count"]), seeds, grids)
@settings(max_examples=60, deadline=None)
def test_every_object_stands_where_its_facts_say(name, seed, size):
    sample = make(name, "test", seed, size)
    pixels = np.asarray(sample.images[0]).astype(int)
    assert pixels.shape == (*size, 3)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    drawn = np.abs(pixels - background).max(-1) > 45
    for thing in sample.things[0]:
        left, top, right, bottom = thing.box
        assert left > 0 and top > 0 and right < size[1] and bottom < size[0]
        assert thing.radius >= 8, "an object is at least one patch wide"
        y, x = round(thing.y), round(thing.x)
        if thing.shape == "ring":
            assert not drawn[y, x]
            y = round(thing.y - 0.76 * thing.radius)
        assert nearest_colour(pixels[y, x]) == thing.colour
        drawn[int(top) - 1 : int(bottom) + 2, int(left) - 1 : int(right) + 2] = False
    assert drawn.mean() < 0.002, "nothing is drawn that the facts do not name"


@given(seeds, grids)
@settings(max_examples=100, deadline=None)
def test_a_description_names_every_object_in_full(seed, size):
    sample = make("describe", "test", seed, size)
    told = re.findall(r"((?:at|in) the [a-z ]+?) (?:there is )?a (\w+) (\w+) (\w+)", sample.turns[0][1].lower())
    assert told == [(PLACES[o.place], o.size, o.colour, o.shape) for o in sample.things[0]]
    for o in sample.things[0]:
        assert divmod(o.place, 3) == (int(3 * o.y / size[0]), int(3 * o.x / size[1]))
    radii: dict[str, list[float]] = {"small": [], "large": []}
    for o in sample.things[0]:
        radii[o.size].append(o.radius)
    assert max(radii["small"], default=0) < 14 and min(radii["large"], default=99) > 19


def right_answer(question: str, things) -> str:
    """The answer to a question about a scene, worked out from the facts in another way than the generator's."""

    def named(o) -> str:
        return f"A {o.size} {o.colour} {o.shape}."

    words = re.findall(r"\w+", question.lower())
    shape = next((w for w in words if w in tasks.SHAPES), None)
    colour = next((w for w in words if w in COLOURS), None)
    match = [o for o in things if shape in (None, o.shape) and colour in (None, o.colour)]
    if question.startswith("Is there"):
        return f"Yes, {PLACES[match[0].place]}." if match else "No."
    if question.startswith("How many"):
        return str(len(things))
    if place := next((p for p in sorted(PLACES, key=len, reverse=True) if question == f"What is {p}?"), None):
        return next((named(o) for o in things if PLACES[o.place] == place), "Nothing.")
    assert len(match) == 1, "the question names one object"
    (one,) = match
    if question.startswith("What is"):
        step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[words[2]]
        row, col = divmod(one.place, 3)
        found = [
            o for o in things if (o.place // 3 - row) * step[0] + (o.place % 3 - col) * step[1] > 0 and o is not one
        ]
        assert len(found) < 2, "at most one object is the answer"
        return named(found[0]) if found else "Nothing."
    if question.startswith("Where"):
        return PLACES[one.place].capitalize() + "."
    if question.startswith("How big"):
        return one.size.capitalize() + "."
    if question.startswith("What shape"):
        return ("An " if one.shape[0] in "aeiou" else "A ") + one.shape + "."
    assert re.match("What colou?r", question)
    return one.colour.capitalize() + "."


@given(seeds)
@settings(max_examples=300, deadline=None)
def test_answers_follow_from_the_facts(seed):
    for name in ("ask", "chat"):
        sample = make(name, "test", seed)
        for question, answer in sample.turns:
            if question not in tasks.DESCRIBE:
                assert answer == right_answer(question, sample.things[0]), question


def test_yes_and_no_are_equally_likely():
    samples = [make("ask", "test", seed) for seed in range(3000)]
    answers = [s.turns[0][1] for s in samples if s.facts["kind"] == "exists"]
    assert 0.45 < sum(a.startswith("Yes") for a in answers) / len(answers) < 0.55


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_the_drawn_objects(seed):
    sample = make("count", "test", seed)
    shapes = [o.shape for o in sample.things[0]]
    target = sample.facts["target"]
    assert sample.turns[0] == (f"How many {tasks.plural(target)} are there?", str(shapes.count(target)))
    assert sample.facts["number"] == shapes.count(target)


def test_all_counts_from_none_to_nine_occur():
    assert {make("count", "test", seed).facts["number"] for seed in range(200)} == set(range(10))


def test_messages_hold_the_pictures_in_the_first_turn():
    sample = make("chat", "test", 0)
    messages = sample.messages()
    assert [m["role"] for m in messages] == ["user", "assistant"] * len(sample.turns)
    assert messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": sample.turns[0][0]}]
    assert messages[2]["content"] == [{"type": "text", "text": sample.turns[1][0]}]
    assert sample.messages(answers=False) == messages[:1]


# --- the tokenizer that the answers are learnt in


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.tokenizer()


@given(st.sampled_from(NAMES), seeds)
@settings(max_examples=100, deadline=None)
def test_every_question_and_answer_survives_the_tokenizer(tokenizer, name, seed):
    for text in (text for turn in make(name, "test", seed).turns for text in turn):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_and_capitals_are_tokens_of_their_own(tokenizer):
    assert tokenizer.encode("K7TQ 905", add_special_tokens=False).tokens == ["K", "7", "T", "Q", "Ġ", "9", "0", "5"]


def test_special_tokens_have_the_ids_of_the_published_family(tokenizer):
    wanted = {
        "<|pad|>": 0,
        "<|startoftext|>": 1,
        "<|im_start|>": 6,
        "<|im_end|>": 7,
        "<|tool_call_start|>": 10,
        "<|tool_call_end|>": 11,
        "<image>": 396,
        "<|img_row_1_col_1|>": 397,
        "<|img_row_10_col_10|>": 496,
        "<|img_thumbnail|>": 497,
        "<|image_start|>": 498,
        "<|image_end|>": 499,
    }
    assert {token: tokenizer.token_to_id(token) for token in wanted} == wanted
    assert tokenizer.encode("Yes.").ids[0] == 1 and len(tokenizer.encode("<image>", add_special_tokens=False).ids) == 1
    assert tokenizer.get_vocab_size() == vocabulary.VOCAB_SIZE


def test_json_of_boxes_is_short(tokenizer):
    boxes = json.dumps([{"image_id": 0, "bbox_2d": [12, 345, 678, 901], "label": "red circle"}])
    assert len(tokenizer.encode(boxes, add_special_tokens=False).ids) < 28


def test_a_coordinate_is_one_token_and_no_other_number_is(tokenizer):
    for number in range(0, 1001, 10):
        box = json.dumps([number, 10, number, number])
        ids = tokenizer.encode(box, add_special_tokens=False).ids
        assert len(ids) == 9 and ids[1] == ids[5] == ids[7] and tokenizer.decode(ids) == box
        alone = tokenizer.encode(str(number), add_special_tokens=False).ids
        assert len(alone) == len(str(number)), "texts that are read are spelled"
    assert len(tokenizer.encode("[123, 45]", add_special_tokens=False).ids) == 8
