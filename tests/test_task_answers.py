"""Answers of models to results of tasks: every recipe's form, and whatever else a model may write."""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_response_format import holds

from mlx_lfm2vl import (
    RECIPES,
    AnswerError,
    AnswerWarning,
    Box,
    Completion,
    ConstraintError,
    GenerationOptions,
    OptionError,
    Region,
    ResponseFormat,
)
from mlx_lfm2vl.errors import HubError
from mlx_lfm2vl.tasks.boxes import DetectTask, PointTask, parse_boxes
from mlx_lfm2vl.tasks.description import DescribeTask
from mlx_lfm2vl.tasks.export import plain
from mlx_lfm2vl.tasks.extraction import ExtractTask
from mlx_lfm2vl.tasks.forms import box_form, layout_form
from mlx_lfm2vl.tasks.reading import ReadTask, parse_layout
from mlx_lfm2vl.tasks.recipes import BoxRecipe, LayoutRecipe, Recipe
from mlx_lfm2vl.tasks.task import Task

BY_NAME = {recipe.name: recipe for recipe in RECIPES}
POINTING = [recipe for recipe in RECIPES if recipe.boxes is not None]
THOUSANDTHS, FRACTIONS = (
    recipe.boxes for name in ("lfm2.5-vl-3b", "lfm2.5-vl-450m") if (recipe := BY_NAME[name]).boxes is not None
)
LAYOUT = LayoutRecipe(prompt="", labels=("text", "title"), scale=1000)
SIZE = (200, 100)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
labels = st.text(min_size=1).map(str.strip).filter(bool)


def read(text: str, form: BoxRecipe = FRACTIONS) -> list[Box]:
    """The boxes of an answer that is to be read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", AnswerWarning)
        return parse_boxes(text, form, SIZE, label="it")


def boxes(*corners: float, label: str = "a") -> list[dict[str, object]]:
    return [{"label": label, "bbox": list(corners)}]


def test_each_recipe_has_its_scale_and_keys():
    assert read('[{"label": "a", "bbox": [0.1, 0.2, 0.5, 1]}]') == [Box("a", 20, 20, 100, 100)]
    answer = '[{"image_id": 0, "bbox_2d": [100, 200, 500, 1000], "label": "a"}]'
    assert read(answer, THOUSANDTHS) == [Box("a", 20, 20, 100, 100)]
    with pytest.raises(AnswerError, match=r"answer, item 0: has no four numbers as 'bbox'"):
        read(answer)


@given(st.sampled_from(POINTING), sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_printed_boxes_are_read_again_in_pixels(recipe, size, data):
    form = recipe.boxes
    step = (form.step or 0.001 * form.scale) / form.scale
    most = round(1 / step)
    corner = st.tuples(st.integers(0, most - 1), st.integers(1, most)).filter(lambda pair: pair[0] < pair[1])
    drawn = data.draw(st.lists(st.tuples(labels, corner, corner), max_size=5, unique=True))
    wanted = [
        Box(name, x[0] * step * size[0], y[0] * step * size[1], x[1] * step * size[0], y[1] * step * size[1])
        for name, x, y in drawn
    ]
    told = []
    for box in wanted:
        shares = [edge / side * form.scale for edge, side in zip(box.edges, (*size, *size), strict=True)]
        corners = [round(share) if form.step else round(share, 6) for share in shares]
        told.append({form.box: corners, "label": box.label} | ({form.image: 0} if form.image else {}))
    found = parse_boxes(json.dumps(told), form, size)
    assert [box.label for box in found] == [box.label for box in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.edges == pytest.approx(other.edges, abs=1e-4 * max(size))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(-2, 3), st.floats(-2, 3), st.floats(-2, 3))
@settings(max_examples=200, deadline=None)
def test_a_box_lies_in_its_picture_and_is_not_empty(left, top, right, bottom):
    with warnings.catch_warnings(record=True):
        try:
            found = parse_boxes(json.dumps(boxes(left, top, right, bottom)), FRACTIONS, SIZE)
        except AnswerError as error:
            assert "has nothing in the picture" in str(error) or "four numbers" in str(error)
            return
    (box,) = found
    assert 0 <= box.left < box.right <= SIZE[0] and 0 <= box.top < box.bottom <= SIZE[1]


def test_corners_are_put_in_order_and_cut_to_the_picture():
    assert read(json.dumps(boxes(0.5, 1.0, 0.1, 0.2))) == [Box("a", 20, 20, 100, 100)]
    assert read(json.dumps(boxes(-3, 0.2, 0.5, 7))) == [Box("a", 0, 20, 100, 100)]


@pytest.mark.parametrize("corners", [(0.5, 0.2, 0.5, 0.6), (2, 0.1, 3, 0.4), (-1, 0, 0, 1)])
def test_a_box_with_nothing_in_the_picture_is_left_out(corners):
    with pytest.raises(AnswerError, match="item 0: has nothing in the picture"):
        read(json.dumps(boxes(*corners)))
    beside = boxes(0, 0, 1, 1) + boxes(*corners)
    with pytest.warns(AnswerWarning, match="item 1: has nothing in the picture; left out"):
        assert parse_boxes(json.dumps(beside), FRACTIONS, SIZE) == [Box("a", 0, 0, 200, 100)]


def test_a_box_that_is_told_again_counts_once():
    one, other = boxes(0, 0, 0.5, 0.5), boxes(0, 0, 0.5, 0.5, label="b")
    assert read(json.dumps(one + other + one)) == [Box("a", 0, 0, 100, 50), Box("b", 0, 0, 100, 50)]


@pytest.mark.parametrize("text", ["[]", " [ ] ", "```json\n[]\n```", "There is none: []"])
def test_an_empty_list_says_that_there_is_nothing(text):
    assert read(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '```json\n[{"label": "a", "bbox": [0, 0, 1, 1]}]\n```',
        'Here: [{"label": "a", "bbox": [0, 0, 1, 1]}] and more',
        '{"label": "a", "bbox": [0, 0, 1, 1]}',
        '[{"bbox": [0, 0, 1, 1], "label": " a ", "score": 1}]',
    ],
)
def test_a_fence_words_and_other_keys_are_passed_over(text):
    assert read(text) == [Box("a", 0, 0, 200, 100)]


def test_a_box_without_a_label_has_that_of_the_question():
    assert read('[{"bbox": [0, 0, 1, 1]}]') == [Box("it", 0, 0, 200, 100)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 0: expected a JSON list, found the end"),
        ("There is a cat.", "character 0: expected a JSON list, found 'There is a cat.'"),
        ("[", "character 1: expected a JSON value, found the end"),
        ('[{"label": "a", "bbox": [0, 0', "character 1: expected a JSON value"),
        ("[1]", "item 0: is no object with 'bbox'"),
        ('[{"bbox": [0, 0, 1]}]', "item 0: has no four numbers as 'bbox'"),
        ('[{"bbox": [0, 0, 1, true]}]', "item 0: has no four numbers"),
        ('[{"bbox": [0, 0, 1, NaN]}]', "character 1: expected a JSON value"),
        ('[{"bbox": [0, 0, 1, 1e999]}]', "item 0: has no four numbers"),
        ("[" * 100_000, "character 1: expected a JSON value"),
        ('[{"bbox": [0, 0, 1, ' + "9" * 5000 + "]}]", "character 1: expected a JSON value"),
    ],
)
def test_an_answer_without_a_box_names_the_place(text, message):
    with pytest.raises(AnswerError) as caught:
        read(text)
    assert str(caught.value).startswith("answer, " + message)


def test_of_an_answer_that_is_cut_off_the_whole_boxes_count():
    whole = json.dumps(boxes(0, 0, 1, 1))[:-1]
    with pytest.warns(AnswerWarning, match=r"character 39: expected a JSON value, found '\{\"label\": \"b\", \"bb'"):
        assert parse_boxes(f'{whole}, {{"label": "b", "bb', FRACTIONS, SIZE) == [Box("a", 0, 0, 200, 100)]
    with pytest.warns(AnswerWarning, match=r"expected ',' or '\]', found the end"):
        assert parse_boxes(whole, FRACTIONS, SIZE) == [Box("a", 0, 0, 200, 100)]


def test_a_box_of_another_picture_is_left_out():
    answer = json.dumps([{"image_id": image, "bbox_2d": [0, 0, 500, 500], "label": "a"} for image in (0, 1)])
    with pytest.warns(AnswerWarning, match=r"item 1: is of another picture \(image_id 1\)"):
        assert parse_boxes(answer, THOUSANDTHS, SIZE) == [Box("a", 0, 0, 100, 50)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["bbox", "bbox_2d", "label", "image_id", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["red", "blue"]}}}


@given(st.text() | json_values.map(json.dumps), st.sampled_from(RECIPES))
@example('[{"bbox": [0, 0, 1, 1]' + "[" * 10_000, BY_NAME["lfm2.5-vl-450m"])
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text, recipe):
    made: list[Callable[[], Task[Any]]] = [
        lambda: DetectTask(recipe, "a"),
        lambda: PointTask(recipe, "a"),
        lambda: ReadTask(recipe),
    ]
    made += [lambda: ExtractTask(recipe, SCHEMA), lambda: DescribeTask(recipe)]
    for make in made:
        try:
            task = make()
        except OptionError as error:
            assert recipe.name in str(error)
            continue
        requests = task.requests(Image.new("RGB", SIZE))
        with warnings.catch_warnings(record=True):
            try:
                result = task.parse(requests, [text] * len(requests))
                json.dumps(plain(result), ensure_ascii=False, allow_nan=False).encode()
            except AnswerError as error:
                assert len(str(error).splitlines()) == 1


def test_values_that_json_cannot_hold_are_no_result():
    task = ExtractTask(BY_NAME["lfm2-vl"], {"properties": {"a": {}}})
    assert task.result([SIZE], [r'{"a": ["\ud83d\ude00 \ud83d", "\\ud83d"]}']) == {
        "a": ["\U0001f600 \ufffd", r"\ud83d"]
    }
    for text in ('{"a": 1e999}', '{"a": [-1e999]}', '{"a": NaN}'):
        with pytest.raises(AnswerError, match="answer, character 0: expected a JSON value"):
            task.result([SIZE], [text])
    boxes = DetectTask(BY_NAME["lfm2.5-vl-450m"], "cat")
    with pytest.warns(AnswerWarning, match="item 0: has no four numbers"):
        found = boxes.result([SIZE], [r'[{"bbox": [0, 0, 1e999, 1]}, {"label": "\udc00", "bbox": [0, 0, 1, 1]}]'])
    assert [box.label for box in found] == ["\ufffd"]


# --- the forms that answers are held to


corners = st.tuples(*[st.integers(0, 100)] * 4)
labelled = st.tuples(st.text("abc äß'é", min_size=1, max_size=20), corners)


def matches(form: ResponseFormat, text: str) -> bool:
    return re.fullmatch(str(form.value), text) is not None


@given(
    st.sampled_from(POINTING), st.lists(st.tuples(st.text("abc äß'é", min_size=1, max_size=20), corners), max_size=4)
)
@settings(max_examples=60, deadline=None)
def test_boxes_that_are_printed_have_the_recipes_form(recipe, drawn):
    form, told = recipe.boxes, []
    for label, hundredths in drawn:
        places = [round(each * form.scale / 100) if form.step else each / 100 for each in hundredths]
        values = {form.box: places, "label": label, form.image: 0}
        told.append({key: values[key] for key in form.keys})
    assert matches(box_form(form), json.dumps(told, ensure_ascii=False))


@pytest.mark.parametrize(
    ("recipe", "within", "beyond"),
    [
        ("demo", ("0", "10", "990", "1000"), ("5", "1010", "0.5", "00", "-10", "100.0")),
        ("lfm2.5-vl-3b", ("0", "7", "999", "1000"), ("1001", "01", "0.5", "-1")),
        ("lfm2.5-vl-450m", ("0", "0.5", "0.123456", "1", "1.0"), ("1.1", "2", ".5", "0.", "0.1234567", "-0.1")),
    ],
)
def test_a_forms_numbers_are_those_of_the_recipes_range(recipe, within, beyond):
    form = BY_NAME[recipe].boxes
    assert form is not None
    for number in (*within, *beyond):
        values = {form.box: f"[0, {number}, 0, 0]", "label": '"a"', form.image: "0"}
        text = ", ".join(f'"{key}": {values[key]}' for key in form.keys)
        assert matches(box_form(form), f"[{{{text}}}]") == (number in within), number


def test_layout_has_the_recipes_labels_and_range():
    form = layout_form(LAYOUT)
    for text in ("", "image_index=0 text [0, 0, 1000, 7]", "image_index=0 title [0, 1, 2, 3]\na\nb\n\n" * 2):
        assert matches(form, text.strip())
    for text in ("a", "image_index=1 text [0, 0, 1, 7]", "image_index=0 figure [0, 0, 1, 7]"):
        assert not matches(form, text)
    assert not matches(form, "image_index=0 text [0, 0, 1001, 7]")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 500}, "scale of a BoxRecipe is 500, expected a power of ten"),
        ({"step": 3}, "step of a BoxRecipe is 3"),
        ({"step": 10}, "step of a BoxRecipe is 10"),
        ({"keys": ("bbox",)}, "keys of a BoxRecipe are"),
    ],
)
def test_a_recipe_that_has_no_form_is_refused(changed, message):
    with pytest.raises(OptionError, match=message):
        replace(FRACTIONS, **changed)


# --- layout


def test_layout_lines_become_regions_in_order():
    answer = (
        "image_index=0 title [0, 0, 1000, 100]\nA title\n\n"
        "image_index=0 text [100, 200, 500, 1000]\nOne line\nand [1, 2, 3, 4] another\n\nbehind a blank one\n\n"
        "image_index=0 image [0, 0, 500, 500]\n"
    )
    assert parse_layout(answer, LAYOUT, SIZE, image=3) == [
        Region("title", "A title", Box("title", 0, 0, 200, 10, 3), 3),
        Region("text", "One line\nand [1, 2, 3, 4] another\n\nbehind a blank one", Box("text", 20, 20, 100, 100, 3), 3),
        Region("image", "", Box("image", 0, 0, 100, 50, 3), 3),
    ]
    assert parse_layout("", LAYOUT, SIZE) == []


def test_what_is_no_region_of_the_picture_is_left_out():
    answer = "Sure:\nimage_index=0 text [0, 0, 500, 500]\na\n\nimage_index=1 text [0, 0, 500, 500]\nb"
    with pytest.warns(AnswerWarning) as caught:
        assert parse_layout(answer, LAYOUT, SIZE) == [Region("text", "a", Box("text", 0, 0, 100, 50))]
    assert [str(each.message) for each in caught] == [
        "answer: text before the first region ('Sure:'); left out",
        "answer: a region of another picture (image_index=1); left out",
    ]
    with pytest.raises(AnswerError, match=r"expected a line 'image_index=\.\.\.', found 'Sure\.'"):
        parse_layout("Sure.", LAYOUT, SIZE)
    with pytest.raises(AnswerError, match=r"has only a region of another picture \(image_index=2\)"):
        parse_layout("image_index=2 text [0, 0, 500, 500]\nb", LAYOUT, SIZE)


def test_a_region_with_an_empty_box_keeps_its_text():
    assert parse_layout("image_index=0 text [5, 5, 5, 5]\na", LAYOUT, SIZE) == [Region("text", "a")]


region_texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)


@given(st.lists(st.tuples(st.sampled_from(LAYOUT.labels), region_texts.map(str.strip)), min_size=1), sizes)
@settings(max_examples=100, deadline=None)
def test_printed_regions_are_read_again(regions, size):
    answer = "\n\n".join(f"image_index=0 {label} [0, 250, 500, 1000]\n{text}" for label, text in regions)
    edges = (0, size[1] / 4, size[0] / 2, size[1])
    wanted = [Region(label, text, Box(label, *edges)) for label, text in regions]
    assert parse_layout(answer, LAYOUT, size) == wanted


# --- fields


def extracted(recipe: str, schema: dict, *answers: str) -> dict:
    task = ExtractTask(BY_NAME[recipe], schema)
    return task.parse(task.requests(Image.new("RGB", SIZE)), answers)


@pytest.mark.parametrize("recipe", ["lfm2.5-vl-450m", "lfm2.5-vl-extract"])
def test_an_object_of_the_answer_is_the_result(recipe):
    assert extracted(recipe, SCHEMA, '```json\n{"a": 1, "b": "red"}\n```') == {"a": 1, "b": "red"}
    for text in ("", "None.", "[1]", '{"a": 1'):
        with pytest.raises(AnswerError, match="answer, character"):
            extracted(recipe, SCHEMA, text)


def test_a_schema_that_leaves_fields_open_is_closed():
    task = ExtractTask(BY_NAME["lfm2.5-vl-450m"], '{"properties": {"a": {"type": "integer"}}}')
    closed = {"type": "object", "required": ["a"], "additionalProperties": False}
    assert task.schema == closed | {"properties": {"a": {"type": "integer"}}}
    (request,) = task.requests(Image.new("RGB", SIZE))
    assert request.options.response_format == ResponseFormat.json_schema(task.schema)
    said = {"required": [], "additionalProperties": True, "type": "object", "properties": {"a": {}}}
    assert ExtractTask(BY_NAME["lfm2.5-vl-450m"], said).schema == said


def test_an_extract_checkpoint_gets_its_fields_in_the_system_prompt():
    schema = {
        "type": "object",
        "properties": {
            "wood_color": {"type": "string", "description": "The colour of\nthe wood"},
            "finish": {"enum": ["matt", "gloss", "none"]},
            "size": {"type": "object", "properties": {"wide": {"type": "number"}}},
        },
    }
    (request,) = ExtractTask(BY_NAME["lfm2.5-vl-extract"], schema).requests(Image.new("RGB", SIZE))
    prompt: Any = request.prompt
    system, user = prompt
    assert system["content"] == (
        "wood_color: The colour of the wood\nfinish: finish, select from matt, gloss or none\nsize:\n  wide: wide"
    )
    assert [item["type"] for item in user["content"]] == ["image"]


def test_a_model_that_answers_questions_is_asked_one_a_field():
    schema = {"properties": {"stars": {"type": "integer", "description": "How many stars?"}, "top": {"enum": ["ring"]}}}
    requests = ExtractTask(BY_NAME["demo"], schema).requests([Image.new("RGB", SIZE)] * 2)
    prompts: list[Any] = [request.prompt for request in requests]
    said = [[item.get("text") for item in prompt[0]["content"]] for prompt in prompts]
    named = ["Media-1: ", None, "Media-2: ", None]
    assert said == [[*named, "How many stars?"], [*named, "top"]]


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ({"type": "integer"}, "7", 7),
        ({"type": "number"}, "7.5", 7.5),
        ({"type": "boolean"}, "Yes, at the top.", True),
        ({"type": "boolean"}, "No.", False),
        ({"type": "string"}, "FRIEND", "FRIEND"),
        ({"enum": ["red", "blue"]}, "Blue.", "blue"),
        ({"enum": ["circle"]}, "A circle.", "circle"),
        ({"enum": ["the end"]}, "The end.", "the end"),
    ],
)
def test_an_answer_to_a_question_becomes_the_fields_value(field, text, value):
    assert extracted("demo", {"properties": {"a": field}}, text) == {"a": value}


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ({"type": "integer"}, "More than 9.", "the field a: expected a value of type integer, found 'More than 9.'"),
        ({"type": "boolean"}, "Nothing.", "the field a: expected a value of type boolean"),
        ({"enum": ["red", "blue"]}, "Green.", "the field a: expected one of red, blue, found 'Green.'"),
    ],
)
def test_another_answer_than_the_fields_is_refused(field, text, message):
    with pytest.raises(AnswerError, match=message):
        extracted("demo", {"properties": {"a": field}}, text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("", "^schema is empty"),
        (3, "^schema is int, expected a JSON schema"),
        (None, "^schema is NoneType, expected a JSON schema"),
        ({"properties": {"a": {"enum": ["x"]}}, "required": ["b"]}, "^JSON schema, #"),
        (
            {"properties": {"a": {"enum": ["x"]}}, "required": ["b"], "additionalProperties": True},
            "^JSON schema, #/required: .* 'b' is none of the properties",
        ),
        *(
            (
                {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, name: value},
                f"^JSON schema, #/{name}: ",
            )
            for name, value in (
                ("allOf", [{"properties": {"a": {"minimum": 3}}}]),
                ("anyOf", [{"properties": {"a": {"minimum": 3}}}]),
                ("patternProperties", {"^a": {"minimum": 3}}),
                ("enum", [{"a": 1, "b": "x"}]),
            )
        ),
        ({"type": "array"}, 'schema: expected a JSON schema of an object, with "properties"'),
        ({"properties": {}}, "schema: expected"),
        ({"type": "string", "properties": {"a": {"type": "string"}}}, "schema: expected"),
        ({"properties": {"a": True}}, "^JSON schema, #/properties/a: is true, expected an object"),
        (
            {"properties": {"a": {"type": "array"}}},
            "^JSON schema, #/properties/a: this model answers a question a field",
        ),
        ({"properties": {"a": {"enum": [1]}}}, "or an enum of strings"),
        *(
            (
                {"properties": {"a": {"type": kind, name: value}}},
                f"^JSON schema, #/properties/a/{name}: .* cannot be held to it",
            )
            for kind, name, value in (
                ("integer", "minimum", 5),
                ("integer", "maximum", 0),
                ("string", "pattern", "^[0-9]+$"),
                ("string", "maxLength", 2),
                ("string", "const", "x"),
            )
        ),
    ],
)
def test_a_schema_that_cannot_be_asked_for_is_refused(schema, message):
    with pytest.raises((OptionError, ConstraintError), match=message):
        ExtractTask(BY_NAME["demo"], schema)


@pytest.mark.parametrize("name", ["lfm2-vl", "lfm2.5-vl-extract"])
def test_a_model_asked_by_schema_is_held_to_its_keywords(name):
    fields = {
        "n": {"type": "integer", "maximum": 4},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "x": {"const": 1},
    }
    (request,) = ExtractTask(BY_NAME[name], {"properties": fields}).requests(Image.new("RGB", SIZE))
    form = request.options.response_format
    assert holds(form, '{"n": 4, "code": "AB", "x": 1}')
    for wrong in ('{"n": 5, "code": "AB", "x": 1}', '{"n": 4, "code": "ab", "x": 1}', '{"n": 4, "code": "AB", "x": 2}'):
        assert not holds(form, wrong)
    assert not holds(form, '{"n": 4, "code": "AB"}')


# --- requests and their answers


def test_pictures_are_asked_about_one_by_one_or_together():
    pictures = [Image.new("RGB", (10, 20)), Image.new("RGB", (30, 40))]
    recipe = BY_NAME["lfm2.5-vl-3b"]
    requests = DetectTask(recipe, " red cars ").requests(pictures)
    assert [request.images[0].size for request in requests] == [(10, 20), (30, 40)]
    assert {request.prompt for request in requests} == {"Provide bounding boxes for red cars."}
    assert all("image_id" in (request.system or "") for request in requests)
    answers = [json.dumps([{"image_id": 0, "bbox_2d": [0, 0, 1000, 1000], "label": "car"}])] * 2
    assert DetectTask(recipe, "cars").parse(requests, answers) == [
        Box("car", 0, 0, 10, 20, 0),
        Box("car", 0, 0, 30, 40, 1),
    ]
    assert len(ReadTask(recipe).requests(pictures)) == 2
    assert len(DescribeTask(recipe).requests(pictures)) == len(ExtractTask(recipe, SCHEMA).requests(pictures)) == 1


def test_options_of_the_caller_hold_else_the_tasks_length():
    picture = Image.new("RGB", SIZE)
    task = DescribeTask(BY_NAME["demo"])
    with pytest.raises(OptionError, match="a task holds its answers to its own"):
        task.requests(picture, options=GenerationOptions(response_format=ResponseFormat.choice(["ab"])))
    assert task.requests(picture)[0].options == GenerationOptions(max_tokens=512)
    mine = GenerationOptions(max_tokens=3, temperature=1)
    (request,) = task.requests(picture, options=mine, image_overrides={"max_image_tokens": 64})
    assert request.options == mine and request.image_overrides == {"max_image_tokens": 64}


def test_a_failed_or_stopped_answer_is_no_result():
    task = DetectTask(BY_NAME["demo"], "ring")
    requests = task.requests(Image.new("RGB", SIZE))
    with pytest.raises(HubError, match="gone"):
        task.parse(requests, [Completion(error=HubError("gone"))])
    for reason in ("cancelled", "deadline"):
        with pytest.raises(AnswerError, match=f"stopped \\({reason}\\)"):
            task.parse(requests, [Completion("[]", finish_reason=reason)])
    assert task.parse(requests, [Completion("[]", finish_reason="stop")]) == []
    with pytest.warns(AnswerWarning, match="cut off by max_tokens"):
        assert DescribeTask(BY_NAME["demo"]).parse(requests, [Completion("A cat", finish_reason="length")]) == "A cat"
    fields = ExtractTask(BY_NAME["demo"], {"properties": {"a": {"type": "string"}}})
    with pytest.raises(AnswerError, match=r"cut off by max_tokens; raise it"):
        fields.parse(requests, [Completion("A cat", finish_reason="length")])
    with pytest.raises(OptionError, match="2 answers for 1 request;"):
        task.parse(requests, ["[]", "[]"])


def test_a_recipe_of_the_callers_may_be_anything():
    mine = Recipe(name="mine", boxes=BoxRecipe(prompt="Box {what} {}!", keys=("b", "label"), box="b", scale=10))
    task = DetectTask(mine, "{x}")
    requests = task.requests(Image.new("RGB", SIZE))
    assert requests[0].prompt == "Box {x} {}!"
    assert task.parse(requests, ['[{"b": [0, 0, 5, 10]}]']) == [Box("{x}", 0, 0, 100, 100)]


@pytest.mark.parametrize("what", ["", "  ", None, 3])
def test_a_name_of_nothing_is_refused(what):
    with pytest.raises(OptionError, match="expected the name of something"):
        DetectTask(BY_NAME["demo"], what)


def test_the_overlap_of_boxes():
    one = Box("a", 0, 0, 10, 10)
    assert one.overlap(one) == 1 and one.overlap(Box("b", 5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert one.overlap(Box("b", 10, 0, 20, 10)) == one.overlap(Box("a", 0, 0, 10, 10, 1)) == 0
