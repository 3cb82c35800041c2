"""The commands detect, point, read, extract and describe, and tasks in batch: what they print, write and refuse."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pdfs import RING, pdf
from PIL import Image
from test_cli import ROOT, cli, refused  # noqa: F401

from mlx_lfm2vl import Box, detect, extract, load
from mlx_lfm2vl.cli.detect import unasked

EXAMPLES = ROOT / "examples"
STARS = {"type": "object", "properties": {"stars": {"type": "integer", "description": "How many stars are there?"}}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures, which is the working directory."""
    for name in ("boxes", "scene", "text", "count"):
        shutil.copy(EXAMPLES / f"{name}.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def demo(cli):  # noqa: F811
    """Runs a command with the demo model; its words are one text, and maybe a last one of its own."""
    return lambda words, *last: cli(words.split()[0], "--model", "demo", *words.split()[1:], *last)


def boxes(name: str | Path, what: str = "ring", image: int = 0) -> list[dict[str, Any]]:
    found = [
        vars(box) for box in detect(*load("demo"), EXAMPLES / f"{name}.png" if isinstance(name, str) else name, what)
    ]
    rounded = [
        {key: round(value, 2) if isinstance(value, float) else value for key, value in box.items()} for box in found
    ]
    return [box | {"image": image} for box in rounded]


def test_boxes_are_printed_as_a_table(demo, here):
    code, out, err = demo("detect --image boxes.png ring")
    assert (code, err) == (0, "")
    (box,) = boxes("boxes")
    head, line = (row.split() for row in out.splitlines())
    assert head == ["label", "left", "top", "right", "bottom"] and line[0] == "ring"
    assert [float(cell) for cell in line[1:]] == pytest.approx([box[k] for k in head[1:]], abs=0.051)


def test_boxes_of_several_pictures_name_their_picture(demo, here):
    code, out, err = demo("detect ring --image boxes.png --image count.png")
    assert (code, err) == (0, "mlx-lfm2vl: count.png: no ring found\n")
    head, *lines = (row.split() for row in out.splitlines())
    assert head[0] == "image" and [line[0] for line in lines] == ["boxes.png"]


def test_one_object_of_json_holds_pictures_and_boxes(demo, here):
    code, out, _ = demo("detect ring --image boxes.png --image scene.png --json")
    made = json.loads(out)
    assert code == 0 and list(made) == ["model", "recipe", "images", "boxes"]
    assert made["images"] == [{"source": f"{name}.png", "width": 128, "height": 128} for name in ("boxes", "scene")]
    assert made["boxes"] == boxes("boxes") + boxes("scene", image=1)


def test_a_page_is_drawn_as_large_as_the_model_sees_it(demo, here):
    (here / "a.pdf").write_bytes(pdf([""], "0 0 595 842"))
    code, out, _ = demo("describe --image a.pdf --max-image-tokens 64 --no-tiling --max-tokens 1 --json")
    (page,) = json.loads(out)["images"]
    assert code == 0 and (page["width"], page["height"]) == (197, 279)


def test_files_of_boxes_are_written_once(demo, here):
    words = "detect ring --image boxes.png --draw out.png --coco out.json --csv out.csv"
    assert demo(words)[0] == 0
    (box,) = boxes("boxes")
    coco = json.loads((here / "out.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "boxes.png", "width": 128, "height": 128}]
    assert coco["categories"] == [{"id": 1, "name": "ring"}]
    left, top, width, height = coco["annotations"][0]["bbox"]
    assert (left, top) == (box["left"], box["top"])
    assert (left + width, top + height) == pytest.approx((box["right"], box["bottom"]), abs=0.011)
    with open("out.csv", newline="") as file:
        assert list(csv.reader(file))[1] == [
            "boxes.png",
            "ring",
            *(str(box[k]) for k in ("left", "top", "right", "bottom")),
        ]
    with Image.open("out.png") as drawn:
        assert drawn.size == (640, 640)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    for option in ("--draw out.png", "--coco out.json", "--csv out.csv"):
        code, out, err = demo(f"detect star --image boxes.png {option}")
        assert (code, out) == (2, "") and "exists already; choose another file, or --overwrite" in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    code, out, err = demo("detect star --image boxes.png --draw boxes.png --overwrite")
    assert (code, out) == (2, "") and "boxes.png: is one of the pictures; choose another file" in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    assert demo(f"{words} --overwrite")[0] == 0


def test_each_of_several_drawings_has_a_number(demo, here):
    assert demo("point ring --image boxes.png --image scene.png --draw out.jpg")[0] == 0
    assert sorted(path.name for path in here.glob("out*")) == ["out-1.jpg", "out-2.jpg"]


def test_points_are_the_middles_of_the_boxes(demo, here):
    (box,) = (Box(**each) for each in boxes("boxes"))
    code, out, _ = demo("point ring --image boxes.png --json")
    assert code == 0 and json.loads(out)["points"] == [
        {"label": "ring", "x": round(box.center[0], 2), "y": round(box.center[1], 2), "image": 0}
    ]


def test_text_is_printed_by_picture(demo, here):
    assert demo("read --image text.png") == (0, "FRIEND\n", "")
    code, out, _ = demo("read --image text.png text.png")
    assert (code, out) == (0, "text.png:\nFRIEND\ntext.png:\nFRIEND\n")
    made = json.loads(demo("read --image text.png --json")[1])
    assert made["regions"] == [{"label": "text", "text": "FRIEND", "box": None, "image": 0}]


def test_a_schema_comes_from_a_file_or_the_command_line(demo, here):
    (here / "stars.json").write_text(json.dumps(STARS))
    for schema in ("stars.json", json.dumps(STARS)):
        code, out, err = demo("extract --image count.png --schema", schema)
        assert (code, json.loads(out), err) == (0, {"stars": 7}, "")
    made = json.loads(demo("extract --image count.png --json --schema stars.json")[1])
    assert made["fields"] == {"stars": 7} and made["recipe"] == "demo"


def test_a_description_is_printed(demo, here):
    code, out, _ = demo("describe --image scene.png")
    assert (code, out) == (0, "At the left there is a large black ring, and at the bottom right a large pink square.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("detect ring", "the following arguments are required: --image"),
        ("detect --image boxes.png", "the following arguments are required: WHAT"),
        ("detect ring --image nowhere.png", "nowhere.png: no such picture"),
        ("detect ring --image boxes.png --draw out.txt", "out.txt: its ending is no format of pictures; end it in"),
        ("detect ring --image boxes.png --draw out", "out: its ending is no format of pictures"),
        ("detect ring --image boxes.png --coco a --csv a", "a: is given for two files"),
        ("detect ring --image boxes.png --coco no/a.json", "no/a.json: there is no folder no"),
        ("detect ring --image boxes.png --recipe lfm3", "error: --recipe is 'lfm3', expected one of demo, lfm2.5"),
        ("detect ring --image boxes.png --recipe lfm2-vl", "the recipe lfm2-vl has no boxes"),
        (
            "detect ring --image boxes.png --max-tokens 5",
            "error: the answer was cut off by --max-tokens; raise it (answer, ",
        ),
        ("extract --image boxes.png --schema none.json", "none.json: cannot be read"),
        ("extract --image boxes.png --schema true", "schema: expected a JSON schema of an object"),
        ("read --image boxes.png --json-schema {}", "unrecognized arguments: --json-schema"),
        ("read --image boxes.png --draw out.png", "--draw: this model (recipe demo) reads text without boxes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(refused, here, words, message):  # noqa: F811
    assert message in refused(*words.split(), "--model", "demo")


# --- batch


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_a_task_has_its_results(demo, here):
    words = "batch boxes.png scene.png count.png --task detect --prompt ring --output out.jsonl"
    code, _, err = demo(words)
    assert code == 0 and err.endswith("out.jsonl: 3 rows\n")
    made = rows(here / "out.jsonl")
    assert [row["result"] for row in made] == [boxes("boxes"), boxes("scene"), []]
    assert [row["prompt"] for row in made] == ["ring"] * 3 and str(made[0]["text"]).startswith('[{"image_id": 0')
    assert "all 3 rows are there already" in demo(words)[2]
    assert "was made with another model, prompt or other options" in demo(f"{words} --task point")[2]


@pytest.mark.backends("mlx", "numpy")
def test_a_batch_draws_pages_by_the_policy_of_the_model(demo, here):
    (here / "ring.pdf").write_bytes(pdf([RING], "0 0 600 600"))
    code, _, _ = demo("batch ring.pdf --task detect --prompt ring --output out.jsonl")
    assert code == 0 and rows(here / "out.jsonl")[0]["result"] == boxes(here / "ring.pdf") != []


def test_rows_of_a_batch_name_things_of_their_own(demo, here):
    lines = [
        {"image": ["boxes.png", "scene.png"], "prompt": "ring"},
        {"image": "boxes.png", "prompt": "star"},
        {"image": "nowhere.png", "prompt": "ring"},
        {"prompt": "ring"},
        {"image": "boxes.png"},
    ]
    (here / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = demo("batch rows.jsonl --task detect --output out.jsonl --batch-size 2")
    assert code == 1 and "out.jsonl: 5 rows, 3 with an error" in err
    made = rows(here / "out.jsonl")
    assert made[0]["result"] == boxes("boxes") + boxes("scene", image=1) and made[1]["result"] == []
    assert [row["error"] for row in made[3:]] == [
        "there is no picture; give one or several",
        'line 5: detect needs the name of what to find as "prompt"',
    ]
    assert "nowhere.png: no such picture" in str(made[2]["error"])
    assert not any("text" in row for row in made[2:])


def test_a_batch_fills_a_schema(demo, here):
    (here / "stars.json").write_text(json.dumps(STARS))
    words = "batch count.png boxes.png --task extract --json-schema stars.json --output out.csv"
    assert demo(words)[0] == 0
    with open("out.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(row["result"]) for row in table] == [
        extract(*load("demo"), EXAMPLES / f"{name}.png", STARS) for name in ("count", "boxes")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task detect", "--task detect needs --prompt, the name of what to find"),
        ("--task extract", "--task extract needs --json-schema"),
        ("--task read --json-schema {}", "--task read holds its answers to its own form"),
        ("--task detect --prompt ring --recipe lfm2-vl", "the recipe lfm2-vl has no boxes"),
        ("--recipe demo", "--recipe is for --task"),
        ("--task read --system x", "--task has its own system prompt"),
        ("--task read --prompt x", "--task read asks by itself; leave --prompt out"),
    ],
)
def test_a_task_that_lacks_something_writes_nothing(refused, here, words, message):  # noqa: F811
    argv = ["batch", "boxes.png", "--model", "demo", "--output", "out.jsonl", *words.split()]
    assert message in refused(*argv) and not (here / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("what", "labels", "others"),
    [
        ("zebra", ["black square", "black square", "zebras"], ["black square"]),
        ("red cars", ["car", "red bus", "person"], ["person"]),
        ("boxes and circles", ["box", "circle"], []),
        ("every object", ["dog"], []),
        ("all things", ["dog"], []),
    ],
)
def test_labels_that_nobody_asked_for_are_found(what, labels, others):
    assert unasked(what, labels) == others


def test_detect_says_that_a_label_was_not_asked_for(demo):
    code, out, err = demo("detect zebra --image", str(EXAMPLES / "shapes.png"))
    assert code == 0 and "black square" in out
    assert err == (
        "mlx-lfm2vl: black square: labels of the model's own, where 'zebra' was asked for; look at the boxes\n"
    )
