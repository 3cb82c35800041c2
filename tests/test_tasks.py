"""Tasks done by the demo model: from pictures, of whatever size and orientation, to typed results."""

import contextlib
import gc
import itertools
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Loaded, cache_by_backend
from pdfs import pdf
from PIL import Image
from profiles import ADOBE_RGB, rgb_profile

from mlx_lfm2vl import (
    RECIPES,
    AnswerError,
    AnswerWarning,
    Box,
    DescribeTask,
    DetectTask,
    Engine,
    ExtractTask,
    GenerationOptions,
    ImageError,
    Lfm2VlConfig,
    OptionError,
    Point,
    PromptError,
    ReadTask,
    Region,
    describe,
    detect,
    extract,
    generate_batch,
    load,
    point,
    read,
    recipe_of,
)
from mlx_lfm2vl.processing.open_file import LabelledBytes
from mlx_lfm2vl.tasks.recipes import choose
from mlx_lfm2vl.tasks.run import run
from mlx_lfm2vl.tasks.task import Task
from tools.demo import rows, tasks

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RING = (359 * 0.128, 602 * 0.128, 680 * 0.128, 922 * 0.128)  # of boxes.png, as examples/README.md says
both = pytest.mark.backends("mlx", "numpy")


@cache_by_backend
def load_demo() -> Loaded:
    return load("demo")


@pytest.fixture
def loaded() -> Loaded:
    return load_demo()


@both
def test_a_thing_is_found_at_its_place_in_pixels(loaded: Loaded):
    (box,) = detect(*loaded, EXAMPLES / "boxes.png", "ring")
    assert box.label == "ring" and box.overlap(Box("ring", *RING)) > 0.85
    assert point(*loaded, EXAMPLES / "boxes.png", "ring") == [Point("ring", *box.center)]


@both
def test_text_descriptions_and_fields_are_read(loaded: Loaded):
    assert read(*loaded, EXAMPLES / "text.png") == [Region("text", "FRIEND")]
    assert describe(*loaded, EXAMPLES / "scene.png") == (
        "At the left there is a large black ring, and at the bottom right a large pink square."
    )
    schema = {
        "type": "object",
        "properties": {
            "stars": {"type": "integer", "description": "How many stars are there?"},
            "circle": {"type": "boolean", "description": "Is there a red circle?"},
        },
    }
    assert extract(*loaded, EXAMPLES / "count.png", schema) == {"stars": 7, "circle": False}


def test_what_is_not_there_gives_an_empty_list(loaded: Loaded):
    assert detect(*loaded, EXAMPLES / "scene.png", "star") == [] == point(*loaded, EXAMPLES / "scene.png", "star")


def test_boxes_of_several_pictures_name_their_picture(loaded: Loaded):
    names = ("scene", "boxes", "text", "boxes")
    found = detect(*loaded, [EXAMPLES / f"{name}.png" for name in names], "ring")
    alone = {name: detect(*loaded, EXAMPLES / f"{name}.png", "ring") for name in names}
    wanted = [replace(box, image=place) for place, name in enumerate(names) for box in alone[name]]
    assert found == wanted and {box.image for box in found} >= {0, 1, 3}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_upright_picture(loaded: Loaded, orientation: int, tmp_path: Path):
    """A camera's file is stored turned, and says how to turn it."""
    backwards = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        8: Image.Transpose.ROTATE_270,
    }
    sample = tasks.make("point", "test", 10_000_004, (96, 160))
    label = sample.turns[0][0].removeprefix("Provide bounding boxes for the ").removesuffix(".")
    upright = sample.images[0]
    stored = upright.transpose(backwards[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    found = detect(*loaded, tmp_path / "turned.png", label)
    assert found and found == detect(*loaded, upright, label)
    assert all(box.right <= 160 and box.bottom <= 96 for box in found)


@pytest.mark.backends("numpy")
def test_boxes_of_a_tiled_picture_are_in_its_pixels(loaded: Loaded):
    """One that is cut into tiles; the demo learnt boxes of pictures of one view, so not all are found."""
    met = number = 0
    for sample in rows.held_out("tiled", 8, (256, 256)):
        thing, extent = sample.things[0][0], Box("", *sample.extents[0][0])
        found = detect(*loaded, sample.images[0], f"{thing.colour} {thing.shape}")
        assert all(0 <= box.left < box.right <= 256 and 0 <= box.top < box.bottom <= 256 for box in found)
        met += any(box.overlap(extent) > 0.4 for box in found)
        number += 1
    assert met >= number / 2


def test_requests_may_be_answered_by_an_engine_or_a_batch(loaded: Loaded):
    recipe = recipe_of(loaded[0])
    jobs: list[Task[Any]] = [DetectTask(recipe, "ring"), DescribeTask(recipe)]
    with Engine("demo") as engine:
        for job in jobs:
            requests = job.requests(EXAMPLES / "scene.png")
            asked = [engine.submit(r.prompt, r.images, system=r.system, options=r.options) for r in requests]
            by_engine = job.parse(requests, [request.result() for request in asked])
            assert by_engine == job.parse(requests, list(generate_batch(*loaded, requests)))


@dataclass(frozen=True)
class SizesTask(ReadTask):
    """The sizes of the pictures that are asked about."""

    def result(self, sizes, found):
        return list(sizes)


def test_pages_are_drawn_by_the_policy_of_the_processor(loaded: Loaded):
    page = pdf([""], "0 0 595 842")
    few: dict[str, Any] = {"max_image_tokens": 64, "do_image_splitting": False}
    model, processor = loaded[0], load("demo", **few)[1]
    job = SizesTask(recipe_of(model))
    options = GenerationOptions(max_tokens=1)
    with warnings.catch_warnings(action="ignore"):
        assert run(model, processor, job, page, options=options) == [(197, 279)]
        assert run(*loaded, job, page, options=options, image_overrides=few) == [(197, 279)]
        assert run(*loaded, job, page, options=options) != [(197, 279)]
    assert job.parse(job.requests(page, image_overrides=few), ["a text"]) == [(197, 279)]
    with pytest.raises(OptionError, match="max_image_tokens"):
        job.requests(page, image_overrides={"max_image_tokens": "many"})


def test_colours_are_read_by_the_policy_of_the_processor(loaded: Loaded):
    picture = Image.open(EXAMPLES / "scene.png")
    picture.info["icc_profile"] = rgb_profile(ADOBE_RGB)
    job = DescribeTask(recipe_of(loaded[0]))
    as_they_are = replace(loaded[1].image_processor.config, color_management=False)
    (request,) = job.requests(picture, image_config=as_they_are)
    messages: Any = request.prompt
    assert messages[-1]["content"][0]["image"].tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.backends("mlx", "numpy")
def test_bytes_in_memory_wait_for_their_turn_undecoded(tmp_path: Path):
    model, processor = load_demo()
    picture = Image.open(EXAMPLES / "boxes.png").convert("RGB")
    picture.getexif()[274] = 6  # to be turned
    picture.save(tmp_path / "a.png", exif=picture.getexif())
    held = LabelledBytes("images[0]", (tmp_path / "a.png").read_bytes())
    job = DetectTask(recipe_of(model), "ring")
    (request,) = job.requests(held, image_config=processor.image_processor.config)
    (kept,) = request.images
    assert kept.data is held.data and kept.size == picture.size[::-1]
    answer = list(generate_batch(model, processor, [request]))
    assert job.parse([request], answer) == detect(model, processor, tmp_path / "a.png", "ring") != []


def test_an_answer_that_is_cut_off_is_said_to_be(loaded: Loaded):
    options = DescribeTask(recipe_of(loaded[0])).requests(EXAMPLES / "scene.png")[0].options
    short = replace(options, max_tokens=8)
    with pytest.raises(AnswerError, match=r"cut off by max_tokens; raise it \(answer, character"):
        detect(*loaded, EXAMPLES / "boxes.png", "ring", options=short)
    with pytest.warns(AnswerWarning, match="the answer was cut off by max_tokens"):
        assert describe(*loaded, EXAMPLES / "scene.png", options=short).startswith("At the left")


@pytest.mark.backends("mlx", "numpy")
def test_pictures_are_read_one_by_one(loaded: Loaded, tmp_path):
    names = [tmp_path / f"{number}.png" for number in range(20)]
    for name in names:
        Image.new("RGB", (61, 53)).save(name)
    alive = []
    looks = itertools.count()

    def look() -> bool:
        if next(looks) % 4 == 0:  # to go through all objects takes longer than a token
            alive.append(sum(isinstance(each, Image.Image) and each.size == (61, 53) for each in gc.get_objects()))
        return False

    options = GenerationOptions(max_tokens=2)
    with pytest.raises(AnswerError, match="cut off by max_tokens"):
        detect(*loaded, names, "ring", options=options, stop=look)
    assert len(alive) > 5 and 0 < max(alive) <= 9  # a batch, and the next one
    with pytest.raises(ImageError, match=r"no/such\.png"):
        detect(*loaded, [*names, "no/such.png"], "ring", options=options)


def test_a_stopped_task_is_an_error(loaded: Loaded):
    with pytest.raises(AnswerError, match="stopped"):
        detect(*loaded, [EXAMPLES / "boxes.png"], "ring", stop=lambda: True)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], PromptError, "there is no picture"),
        (None, PromptError, "there is no picture"),
        (["nowhere.png"], ImageError, "nowhere.png: no such picture"),
        ([EXAMPLES / "boxes.png", None], PromptError, r"images\[1\] is None"),
    ],
)
def test_bad_pictures_are_told_before_anything_is_generated(loaded: Loaded, images, error, message):
    with pytest.raises(error, match=message):
        detect(*loaded, images, "ring")


# --- recipes


def config(hidden: int, layers: int, vocabulary: int, **others) -> Lfm2VlConfig:
    text = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return Lfm2VlConfig(text_config=text | {"layer_types": ["full_attention"] * layers}, **others)


@pytest.mark.parametrize(
    ("shape", "layernorm", "name", "recipe"),
    [
        ((1024, 16, 65536), False, "LiquidAI/LFM2.5-VL-450M", "lfm2.5-vl-450m"),
        ((1024, 16, 65536), False, "me/some-fine-tune", "lfm2.5-vl-450m"),
        ((1024, 16, 65536), False, "LiquidAI/LFM2.5-VL-450M-Extract", "lfm2.5-vl-extract"),
        ((1024, 16, 65536), False, "models--x--lfm2.5-vl-450m-extract-8bit/snapshots/1", "lfm2.5-vl-extract"),
        ((1024, 16, 65536), True, "LiquidAI/LFM2-VL-450M", "lfm2-vl"),
        ((2048, 16, 65536), False, "LiquidAI/LFM2.5-VL-1.6B", "lfm2-vl"),
        ((2048, 30, 65536), True, "LiquidAI/LFM2-VL-3B", "lfm2-vl"),
        ((2048, 30, 128000), False, "LiquidAI/LFM2.5-VL-3B", "lfm2.5-vl-3b"),
    ],
)
def test_a_checkpoint_is_matched_by_its_shape_and_name(shape, layernorm, name, recipe):
    assert choose(config(*shape, projector_use_layernorm=layernorm), name).name == recipe


def test_the_names_of_recipes_differ():
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)


def test_a_recipe_that_is_given_is_used(loaded: Loaded):
    assert recipe_of(loaded[0]).name == "demo" and recipe_of(loaded[0], "lfm2.5-vl-3b").name == "lfm2.5-vl-3b"
    mine = replace(recipe_of(loaded[0]), describe="Read the text.")
    assert describe(*loaded, EXAMPLES / "text.png", recipe=mine) == "FRIEND"
    with pytest.raises(OptionError, match="recipe is 'demmo', expected one of demo, lfm2"):
        recipe_of(loaded[0], "demmo")


def test_a_model_of_another_shape_needs_a_recipe(golden_folder):
    model, processor = load(golden_folder("gen25"))
    with pytest.raises(OptionError, match="no recipe is known for a model of this shape; give recipe=, one of demo"):
        detect(model, processor, EXAMPLES / "boxes.png", "ring")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda recipe: DetectTask(recipe, "ring"), "the recipe lfm2-vl has no boxes"),
        (lambda recipe: ExtractTask(replace(recipe, extract=None), {}), "the recipe lfm2-vl has no extraction"),
        (lambda recipe: DescribeTask(replace(recipe, describe=None)), "the recipe lfm2-vl has no description"),
    ],
)
def test_a_task_that_the_model_is_not_known_to_do_is_refused(make, message):
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == "lfm2-vl")
    with pytest.raises(OptionError, match=message):
        make(recipe)


@pytest.mark.backends("mlx", "numpy")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_random_weights_hold_to_the_form_of_every_recipe(golden_folder, recipe):
    """What is cut off, or says a box with nothing in it, is an `AnswerError`; nothing else can go wrong."""
    model, processor = load(golden_folder("gen25"))
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    jobs: list[Task[Any]] = [ExtractTask(recipe, schema)]
    jobs += [DetectTask(recipe, "ring")] if recipe.boxes else []
    jobs += [ReadTask(recipe)] if recipe.layout else []
    options = GenerationOptions(max_tokens=40, temperature=1.5, seed=3)
    for job in jobs:
        requests = job.requests([EXAMPLES / "boxes.png"] * 2, options=options)
        answers = list(generate_batch(model, processor, requests))
        for request, answer in zip(requests, answers, strict=True):
            form = request.options.response_format
            assert form is not None and answer.error is None
            if answer.finish_reason == "stop" and form.kind == "regex":
                assert re.fullmatch(str(form.value), answer.text)
        with warnings.catch_warnings(), contextlib.suppress(AnswerError):
            warnings.simplefilter("ignore", AnswerWarning)
            job.parse(requests, answers)
